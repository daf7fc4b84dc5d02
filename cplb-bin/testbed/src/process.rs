//! Processes in nodes.

use std::{
    fs,
    process::{Child, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

pub use nix::sys::signal::Signal;
use nix::{sys::signal, unistd::Pid};

use crate::{Error, Line, Log, log::Journal, wait::TimedOut, wait_until};

/// A process in a node. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    child: Mutex<Child>,
    log: Log,
    journal: Journal,
}

impl Process {
    /// The name in logs.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// The captured output.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits for a line that contains `text`; see [`Log::wait_for_line`].
    ///
    /// # Errors
    /// [`TimedOut`] if no line matches within `timeout`.
    pub fn wait_for_line(&self, text: &str, timeout: Duration) -> Result<Line, TimedOut> {
        self.log.wait_for_line(text, timeout)
    }

    /// Sends a signal; returns the instant just before it was sent.
    ///
    /// # Errors
    /// [`Error::System`] if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<Instant, Error> {
        // The process id is not reused while the child has not been waited for.
        let mut child = self.guard();
        let what = || format!("send {signal} to {}", self.name);
        if exited(&mut child, &what())?.is_some() {
            return Err(Error::errno(what())(nix::Error::ESRCH));
        }
        let at = Instant::now();
        signal::kill(self.pid, signal).map_err(Error::errno(what()))?;
        Ok(at)
    }

    /// Returns whether the process has not ended (a stopped process runs).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// The exit status, if the process has ended.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.guard().try_wait().ok().flatten()
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// [`Error::StillRunning`] after `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus, Error> {
        let mut status = None;
        let ended = wait_until("process ends", timeout, || {
            status = self.exit_status();
            status.is_some()
        });
        match (ended, status) {
            (Ok(_), Some(status)) => Ok(status),
            _ => Err(Error::StillRunning { name: self.name.clone(), timeout }),
        }
    }

    /// Requests the end (SIGTERM, and SIGCONT in case the process is stopped), and kills the process after `grace`.
    ///
    /// # Errors
    /// [`Error::StillRunning`] if not even SIGKILL ends it; ending early is no error.
    pub fn stop(&self, grace: Duration) -> Result<ExitStatus, Error> {
        if self.is_running() {
            // Each signal fails if the process has ended meanwhile.
            let _ = self.signal(Signal::SIGTERM);
            let _ = self.signal(Signal::SIGCONT);
        }
        self.wait(grace).or_else(|_| self.kill())
    }

    /// Kills the process and waits for its end.
    ///
    /// # Errors
    /// [`Error::StillRunning`] if the process does not end within five seconds.
    pub fn kill(&self) -> Result<ExitStatus, Error> {
        let _ = self.signal(Signal::SIGKILL);
        self.wait(KILL_TIMEOUT)
    }

    /// The ids and names of the threads; empty once the process has ended.
    #[must_use]
    pub fn threads(&self) -> Vec<(u32, String)> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return Vec::new() };
        tasks
            .filter_map(|task| {
                let task = task.ok()?;
                let id = task.file_name().to_str()?.parse().ok()?;
                let name = fs::read_to_string(task.path().join("comm")).ok()?;
                Some((id, name.trim_end().to_owned()))
            })
            .collect()
    }

    pub(crate) fn new(name: String, child: Child, log: Log, journal: Journal) -> Self {
        // Process ids fit: the kernel's are positive and below 2^22.
        let pid = Pid::from_raw(child.id().cast_signed());
        journal.owned().insert(pid.as_raw());
        Self { name, pid, child: Mutex::new(child), log, journal }
    }

    pub(crate) fn guard(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failure needs no handling: the PID namespace ends the remaining processes.
        let _ = self.kill();
        self.journal.owned().remove(&self.pid.as_raw());
    }
}

const KILL_TIMEOUT: Duration = Duration::from_secs(5);

fn exited(child: &mut Child, what: &str) -> Result<Option<ExitStatus>, Error> {
    child.try_wait().map_err(Error::system(what))
}
