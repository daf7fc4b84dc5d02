//! Finds a cluster's API servers through its API.

#[cfg(feature = "kubernetes")]
mod dial;
#[cfg(feature = "kubernetes")]
mod kubeconfig;
#[cfg(feature = "kubernetes")]
mod pace;
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
use without::{Directory, follow};
#[cfg(feature = "kubernetes")]
use {dial::Directory, watch::follow};

/// The seconds of a watch. A connection that died unnoticed is found out a little later.
const WATCH: u32 = 25;

/// What following a cluster brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// All servers that are listed now, by one that has proved to be one of them in this way.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "nobody is asked"))]
    Servers(BTreeSet<SocketAddr>, Trust),
    /// Why there are no news.
    State(State),
}

/// Why there are no news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// A file is not there yet.
    #[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "no file is read"))]
    Waiting(String),
    Failing(String),
}

/// What is followed.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "kubernetes"), expect(dead_code, reason = "nothing is asked"))]
struct Subject {
    kubeconfig: PathBuf,
    /// Who may be asked.
    directory: Directory,
    /// `SO_MARK` of the connections.
    mark: u32,
    /// A server ends a watch after so many seconds; one that is silent for some more is not there any more.
    watch: u32,
}

/// Follows one cluster until it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    directory: Directory,
    task: tokio::task::JoinHandle<()>,
}

impl Follower {
    /// Starts the task in the current runtime.
    pub(crate) fn start(
        kubeconfig: PathBuf,
        mark: u32,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Self {
        let directory = Directory::default();
        let subject = Subject { kubeconfig, directory: directory.clone(), mark, watch: WATCH };
        Self { directory, task: tokio::spawn(follow(subject, report)) }
    }

    /// Who may be asked from now on, besides the server that the kubeconfig names: those that were found, of which all
    /// may be gone, and others, in turn.
    pub(crate) fn ask(&self, found: Vec<SocketAddr>, others: Vec<SocketAddr>) {
        self.directory.set(found, others);
    }

    /// Who answered last, and when.
    pub(crate) fn answered(&self) -> Option<(SocketAddr, Instant)> {
        self.directory.answered()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}
