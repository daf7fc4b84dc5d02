//! Finds a cluster's API servers through its API.

#[cfg(feature = "kubernetes")]
mod backoff;
#[cfg(feature = "kubernetes")]
mod dial;
#[cfg(feature = "kubernetes")]
mod kubeconfig;
#[cfg(feature = "kubernetes")]
mod slices;
mod store;
#[cfg(all(test, feature = "kubernetes"))]
mod tests;
#[cfg(feature = "kubernetes")]
mod watch;
#[cfg(not(feature = "kubernetes"))]
mod without;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use lb_proxy::health::Trust;

pub(crate) use store::Store;

#[cfg(not(feature = "kubernetes"))]
use without::{Candidates, follow};
#[cfg(feature = "kubernetes")]
use {dial::Candidates, watch::follow};

/// The requested length of a watch in seconds. A dead connection is noticed shortly after that time.
const WATCH_SECONDS: u32 = 25;

/// A report about a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// All servers that the API lists now, and the cluster to which the server that listed them was verified to belong.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "there is no client of the API"))]
    Servers(BTreeSet<SocketAddr>, ClusterIdentity),
    State(State),
}

/// The cluster of a kubeconfig, by the content of that file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClusterIdentity {
    /// The means to verify servers.
    pub(crate) trust: Trust,
    /// The name by which users of the kubeconfig verify servers: the host of its URL, or its `tls-server-name`.
    pub(crate) host: String,
}

/// The reason why the list of servers is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// A file does not exist yet.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "no file is read"))]
    Waiting(String),
    Failing(String),
}

/// The cluster to follow.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "there is no client of the API"))]
struct Target {
    kubeconfig: PathBuf,
    candidates: Candidates,
    /// `SO_MARK` of the connections.
    mark: u32,
    /// The requested length of a watch, after which a server ends it. A server that does not is not reachable any more.
    watch_seconds: u32,
}

/// Follows one cluster until it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    candidates: Candidates,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// Starts the task in the current runtime.
    pub(crate) fn start(
        kubeconfig: PathBuf,
        mark: u32,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Self {
        let candidates = Candidates::default();
        let target =
            Target { kubeconfig, candidates: candidates.clone(), mark, watch_seconds: WATCH_SECONDS };
        Self { candidates, task: tokio::spawn(follow(target, report)) }
    }

    /// Replaces the servers to try in addition to that of the kubeconfig: those that were discovered, all of which may be
    /// gone, and others. They alternate.
    pub(crate) fn ask(&self, discovered: Vec<SocketAddr>, others: Vec<SocketAddr>) {
        self.candidates.set(discovered, others);
    }

    /// The server of the last useful response, and its time.
    pub(crate) fn answered(&self) -> Option<(SocketAddr, Instant)> {
        self.candidates.answered()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
