//! The signals that the daemon handles, caught before it makes anything that a signal could leave behind.

use nix::libc::{SIGRTMAX, SIGRTMIN};
use nix::sys::signal::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that operators and tools send to daemons, and whose default action ends the process. After SIGXFSZ a write
/// fails.
const IGNORED: [Number; 9] = [
    Number::SIGUSR2,
    Number::SIGALRM,
    Number::SIGSTKFLT,
    Number::SIGXFSZ,
    Number::SIGVTALRM,
    Number::SIGPROF,
    Number::SIGWINCH,
    Number::SIGIO,
    Number::SIGPWR,
];

/// Listens for signals.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    report: Signal,
    /// A stop that [`Signals::stop`] received and [`Signals::next`] has not returned yet.
    stop_is_due: bool,
}

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    Reload,
    Report,
}

impl Signals {
    /// Installs the handlers: from here on no signal ends the process, except SIGKILL and the signals of faults.
    pub(crate) fn new() -> std::io::Result<Self> {
        // keepalived has commands on some of the real-time signals.
        let real_time = SIGRTMIN()..=SIGRTMAX();
        for number in IGNORED.into_iter().map(|number| number as i32).chain(real_time) {
            // The handler stays installed without the listener.
            drop(signal(SignalKind::from_raw(number))?);
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
            report: signal(SignalKind::user_defined1())?,
            stop_is_due: false,
        })
    }

    /// The next request, or the stop that [`Signals::stop`] received before.
    pub(crate) async fn next(&mut self) -> Request {
        if std::mem::take(&mut self.stop_is_due) {
            return Request::Stop;
        }
        tokio::select! {
            _ = self.terminate.recv() => Request::Stop,
            _ = self.interrupt.recv() => Request::Stop,
            _ = self.quit.recv() => Request::Stop,
            _ = self.hangup.recv() => Request::Reload,
            _ = self.report.recv() => Request::Report,
        }
    }

    /// Waits for a request to stop, which [`Signals::next`] then returns again. A request to reload stays pending.
    pub(crate) async fn stop(&mut self) {
        if !self.stop_is_due {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.quit.recv() => {}
            }
            self.stop_is_due = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[tokio::test]
    async fn ignored_signals_do_not_end_the_process_and_handled_ones_become_requests() {
        let mut signals = Signals::new().unwrap();
        for number in IGNORED {
            raise(number).unwrap();
        }
        for (number, request) in [
            (Number::SIGUSR1, Request::Report),
            (Number::SIGHUP, Request::Reload),
            (Number::SIGTERM, Request::Stop),
            (Number::SIGQUIT, Request::Stop),
        ] {
            raise(number).unwrap();
            assert_eq!(signals.next().await, request);
        }
    }
}
