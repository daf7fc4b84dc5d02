//! The signals that matter, caught before anything is made that they would leave behind.

use nix::libc::{SIGRTMAX, SIGRTMIN};
use nix::sys::signal::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that people and their tools send to daemons, and that would end the process. After SIGXFSZ a write fails.
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
    /// A stop that was asked for and not yet obeyed.
    stop_is_due: bool,
}

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Stop,
    Reload,
    Report,
}

impl Signals {
    /// From here on no signal ends the process by itself, but for those of faults and SIGKILL.
    pub(crate) fn new() -> std::io::Result<Self> {
        // keepalived has commands on some of the real-time signals.
        let real_time = SIGRTMIN()..=SIGRTMAX();
        for number in IGNORED.into_iter().map(|number| number as i32).chain(real_time) {
            // The handler stays when the listener goes.
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

    /// The next signal, or the stop that was noticed before.
    pub(crate) async fn next(&mut self) -> Asked {
        if std::mem::take(&mut self.stop_is_due) {
            return Asked::Stop;
        }
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.quit.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.report.recv() => Asked::Report,
        }
    }

    /// Waits until a stop is asked for, which [`Signals::next`] then tells again. A reload stays for later.
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
    async fn signals_of_habit_end_nothing_and_the_others_ask() {
        let mut signals = Signals::new().unwrap();
        for number in IGNORED {
            raise(number).unwrap();
        }
        for (number, asked) in [
            (Number::SIGUSR1, Asked::Report),
            (Number::SIGHUP, Asked::Reload),
            (Number::SIGTERM, Asked::Stop),
            (Number::SIGQUIT, Asked::Stop),
        ] {
            raise(number).unwrap();
            assert_eq!(signals.next().await, asked);
        }
    }
}
