//! Stopping single threads of a process, as a deadlock or an endless loop would.

use std::{
    collections::BTreeSet,
    io,
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{Error, Process};

/// Threads that are stopped until this is dropped.
#[derive(Debug)]
pub struct FrozenThreads {
    names: Vec<String>,
    since: Instant,
    thaw: Option<SyncSender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl FrozenThreads {
    /// The names of the threads.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The time at which all of them had stopped.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Resumes the threads.
    pub fn thaw(self) {}
}

impl Drop for FrozenThreads {
    fn drop(&mut self) {
        drop(self.thaw.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

impl Process {
    /// Stops those threads whose name `matches`; the rest of the process goes on. The kernel cuts the names to 15
    /// bytes.
    ///
    /// # Errors
    /// [`Error::Misuse`] if no thread matches; [`Error::System`] if the kernel refuses to trace them.
    pub fn freeze_threads(&self, matches: impl Fn(&str) -> bool) -> Result<FrozenThreads, Error> {
        let (ids, names): (Vec<u32>, Vec<String>) =
            self.threads().into_iter().filter(|(_, name)| matches(name)).unzip();
        if ids.is_empty() {
            let names: Vec<String> = self.threads().into_iter().map(|(_, name)| name).collect();
            return Err(Error::Misuse(format!(
                "no thread to freeze in {}, which has {names:?}",
                self.name()
            )));
        }
        let ids = ids.into_iter().map(|id| Pid::from_raw(id.cast_signed())).collect();
        let failed = || Error::system(format!("freeze threads of {}", self.name()));
        let (thaw, thawed) = mpsc::sync_channel(0);
        let (report, frozen) = mpsc::sync_channel(1);
        // Tracing belongs to the thread that began it, so one thread does all of it. No other thread may wait for the
        // process meanwhile: `waitpid` would take a stopped main thread for an ended process.
        let _guard = self.guard();
        let process = Pid::from_raw(self.pid().cast_signed());
        let trace = move || trace(process, ids, &report, &thawed);
        let tracer = thread::Builder::new().name("tracer".into()).spawn(trace);
        let tracer = tracer.map_err(failed())?;
        frozen.recv().unwrap_or_else(|_| Err(io::Error::other("the tracer ended"))).map_err(failed())?;
        Ok(FrozenThreads { names, since: Instant::now(), thaw: Some(thaw), tracer: Some(tracer) })
    }
}

/// Interval at which the tracer checks whether one of its threads was killed: they cannot end before the tracer has
/// waited for them.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time for a thread to stop: one in an uninterruptible system call stops when the call returns.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

fn trace(process: Pid, mut ids: BTreeSet<Pid>, report: &SyncSender<io::Result<()>>, thawed: &Receiver<()>) {
    let stopped = ids.iter().try_for_each(|&id| stop(id));
    let failed = stopped.is_err();
    // The receiver is gone if the caller has panicked.
    let _ = report.send(stopped.map_err(io::Error::from));
    while !failed && matches!(thawed.recv_timeout(POLL_INTERVAL), Err(RecvTimeoutError::Timeout)) {
        // The end of the main thread is that of the process, which its owner waits for. A signal for a stopped thread
        // stays pending, so any other status of the other threads is their end.
        ids.retain(|&id| {
            id == process
                || matches!(
                    waitpid(id, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)),
                    Ok(WaitStatus::StillAlive | WaitStatus::PtraceEvent(..))
                )
        });
    }
    for id in ids {
        // The thread may have ended.
        let _ = ptrace::detach(id, None);
    }
}

fn stop(id: Pid) -> nix::Result<()> {
    ptrace::seize(id, ptrace::Options::empty())?;
    ptrace::interrupt(id)?;
    let deadline = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < deadline {
        match waitpid(id, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL))? {
            WaitStatus::StillAlive => thread::sleep(Duration::from_micros(200)),
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => return Ok(()),
            _ => return Err(Errno::ESRCH),
        }
    }
    Err(Errno::ETIMEDOUT)
}
