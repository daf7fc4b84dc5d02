//! The signals that matter, caught before anything is made that they would leave behind.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for signals.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// A stop that was asked for and not yet obeyed.
    stop_is_due: bool,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Stop,
    Reload,
}

impl Signals {
    /// From here on no signal ends the process by itself.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
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
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// Waits until a stop is asked for, which [`Signals::next`] then tells again. A reload stays for later.
    pub(crate) async fn stop(&mut self) {
        if !self.stop_is_due {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            self.stop_is_due = true;
        }
    }
}
