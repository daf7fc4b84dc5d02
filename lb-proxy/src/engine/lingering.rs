//! Listeners that a reconfiguration gave up: they accept for a while, then the workers close them.

use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::{Command, WorkerHandle};
use super::listener::Listener;

/// Time that workers get to close a listener. Only a worker that hangs needs more than an instant.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Listeners that the configuration no longer lists.
#[derive(Debug, Default)]
pub(crate) struct Lingering(Mutex<State>);

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Listeners that still accept, each with the time of its end. The thread that removes an entry decides alone about
    /// the listener: the worker whose timer closes it, or the reconfiguration that takes it over.
    pub(crate) open: Vec<(Listener, Instant)>,
    /// Listeners that workers are closing, or have closed lately: until then their ports are in use.
    closing: Vec<Closing>,
}

#[derive(Debug)]
struct Closing {
    closed: Receiver<()>,
    since: Instant,
}

impl Lingering {
    /// Removes and returns all listeners that still accept.
    pub(crate) fn take(&self) -> Vec<(Listener, Instant)> {
        std::mem::take(&mut self.lock().open)
    }

    /// Waits for the listeners that are being closed. Returns whether there were any.
    pub(crate) fn wait_closing(&self) -> bool {
        let closing = std::mem::take(&mut self.lock().closing);
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        for Closing { closed, .. } in &closing {
            wait_closed(closed, deadline.saturating_duration_since(Instant::now()));
        }
        !closing.is_empty()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes listeners without waiting; the next reconfiguration that finds a port in use waits.
    pub(crate) fn close(&mut self, workers: &[WorkerHandle], listeners: &[Listener]) {
        self.closing
            .retain(|closing| closing.since.elapsed() < CLOSE_TIMEOUT || !all_closed(&closing.closed));
        if !listeners.is_empty() {
            self.closing.push(Closing { closed: close(workers, listeners), since: Instant::now() });
        }
    }

    pub(crate) fn close_due(&mut self, workers: &[WorkerHandle]) {
        let now = Instant::now();
        let due = self.open.extract_if(.., |(_, until)| *until <= now);
        let due: Vec<_> = due.map(|(listener, _)| listener).collect();
        self.close(workers, &due);
    }
}

/// Orders all workers to close listeners. The receiver gets an acknowledgement for each and disconnects after the last.
pub(crate) fn close(workers: &[WorkerHandle], listeners: &[Listener]) -> Receiver<()> {
    let (done, closed) = mpsc::sync_channel(listeners.len() * workers.len());
    for listener in listeners {
        for worker in workers {
            let command = Command::Unlisten { id: listener.listening.id, done: done.clone() };
            let _ = worker.commands.send(command);
        }
    }
    closed
}

/// Returns whether all listeners of a [`close`] are closed.
fn all_closed(closed: &Receiver<()>) -> bool {
    loop {
        match closed.try_recv() {
            Ok(()) => {}
            Err(error) => return error == TryRecvError::Disconnected,
        }
    }
}

/// Waits until all listeners of a [`close`] are closed, at most `timeout`.
pub(crate) fn wait_closed(closed: &Receiver<()>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while closed.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
}
