//! Health checks of backends: TCP, TLS and HTTPS, on one thread for all targets.
//!
//! Each target has a task of its own, so a server that hangs, drips or floods delays no other check. An HTTPS check
//! keeps its connection and sends the next request over it; if the server has closed it meanwhile, the check silently
//! opens a new one.
//!
//! With a [`Trust`] an HTTPS check verifies the server, and authenticates this program to servers that give no answer
//! to anonymous requests (401, 403, client certificate demanded). Without one certificates are **not** verified: before
//! the cluster's authority is known a check can only show that a server is alive, presents no credential and relies on
//! no answer beyond that.
//!
//! Call order: [`Monitor::spawn`], then [`Monitor::update`] with all targets whenever they change;
//! [`Monitor::report_failure`] when a client's connection to a backend was refused; [`Monitor::snapshot`] at any
//! time; [`Monitor::stop`].
//!
//! [`check_once`] makes a single check, and [`misnamed`] compares the certificates of a server with the names that clients use.

mod accept_any;
mod certificate;
mod connect;
mod http;
mod once;
mod outcome;
mod probe;
mod rise_fall;
mod schedule;
mod state;
mod supervisor;
mod target;
mod task;
#[cfg(test)]
mod testing;
mod trust;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

pub use certificate::explain_error;
pub use once::{Misnamed, check_once, misnamed};
pub use outcome::{CheckFailure, Step};
pub use rustls;
pub use state::HealthState;
pub use target::{HealthChange, LastCheck, Target, TargetError, TargetKey, TargetSnapshot};
pub use trust::{Credentials, Names, ServerTls, Trust, TrustError};

use probe::NetProbe;
use supervisor::{Handle, Supervisor};

/// The thread needs little; a larger address space would only look like use.
const STACK: usize = 512 * 1024;

/// Settings of a monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MonitorOptions {
    /// `SO_MARK` of the checks' connections, the same as that of the proxy's; 0 for none. Needs `CAP_NET_ADMIN`;
    /// without it the connections go unmarked.
    pub mark: u32,
    /// The seed of the checks' jitter; should differ between nodes.
    pub seed: u64,
}

/// The monitor could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// The system refused a thread or descriptors.
    #[error("the health checks could not be started: {0}")]
    System(#[from] io::Error),
    /// The TLS library refused its settings.
    #[error("the health checks could not be started: {0}")]
    Tls(#[from] rustls::Error),
}

/// Checks targets until it is stopped or dropped.
#[derive(Debug)]
pub struct Monitor {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Monitor {
    /// Starts the thread, with no targets yet. It calls `sink` with every change of a health state; `sink` must not
    /// block.
    ///
    /// # Errors
    /// See [`MonitorError`].
    pub fn spawn(
        options: MonitorOptions,
        sink: Box<dyn Fn(HealthChange) + Send + Sync>,
    ) -> Result<Self, MonitorError> {
        let tls = accept_any::client_config()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let probe = move |target: &Target| NetProbe::new(target, options.mark, Arc::clone(&tls));
        let (handle, supervisor) = Supervisor::new(probe, sink.into(), options.seed);
        let thread = thread::Builder::new()
            .name("lb-health".to_owned())
            .stack_size(STACK)
            .spawn(move || runtime.block_on(supervisor.run()))?;
        Ok(Self { handle, thread })
    }

    /// Replaces all targets by `targets`. A target with the same check continues undisturbed; one whose check changed
    /// keeps its health state; new ones are [`HealthState::Unknown`] and are checked at once. Of several with one key
    /// the last counts.
    pub fn update(&self, targets: Vec<Target>) {
        self.handle.update(targets);
    }

    /// Reports that a connection to the backend failed in a way that speaks against it, such as a refusal. It is
    /// checked at once, and if that fails, too, the two count as two failures. Cheap, from any thread, any number of
    /// times.
    pub fn report_failure(&self, target: &TargetKey) {
        self.handle.report_failure(target);
    }

    /// Returns the state of all targets, ordered by their keys.
    pub fn snapshot(&self) -> Vec<TargetSnapshot> {
        self.handle.snapshot()
    }

    /// Ends the checks and waits for the thread. Must not be called from within the sink.
    pub fn stop(self) {
        drop(self.handle);
        // The thread panics only where a sink does.
        let _ = self.thread.join();
    }
}
