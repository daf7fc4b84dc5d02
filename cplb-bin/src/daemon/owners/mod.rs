//! The watch over the virtual IPs on each link: hosts that answer for them without being Active (see [`vrrp::owners`]).
//!
//! Each interface has a task with its sockets and a core for each instance. The loop gives it the instances, and reads what
//! it found.

mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use vrrp::owners::ForeignOwner;
use vrrp::runner::{InstanceId, RunnerHandle};
use vrrp::{MacAddr, Vrid};

/// A link that is watched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) interface: String,
    pub(crate) mac: MacAddr,
    /// The source of neighbour solicitations.
    pub(crate) source: Option<Ipv6Addr>,
}

/// An instance on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) vrid: Vrid,
    /// The source of this node's advertisements.
    pub(crate) own: IpAddr,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The controllers, by which an owner is named.
    pub(crate) controllers: BTreeSet<IpAddr>,
}

type Instances = BTreeMap<InstanceId, Watched>;
type Found = BTreeMap<InstanceId, Vec<ForeignOwner>>;

/// All watches of this node.
#[derive(Debug, Default)]
pub(crate) struct OwnerWatches(BTreeMap<Link, Running>);

#[derive(Debug)]
struct Running {
    instances: watch::Sender<Instances>,
    board: Arc<Mutex<Board>>,
    task: JoinHandle<()>,
}

/// The results of a watch.
#[derive(Debug, Default)]
struct Board {
    found: Found,
    /// The reason why the sockets do not work.
    error: Option<String>,
}

impl OwnerWatches {
    /// Starts, changes and stops watches so that there are these.
    pub(crate) fn set(&mut self, wanted: BTreeMap<Link, Instances>, runner: Option<&RunnerHandle>) {
        self.0.retain(|link, running| wanted.contains_key(link) && !running.task.is_finished());
        let Some(runner) = runner else { return };
        for (link, instances) in wanted {
            if let Some(running) = self.0.get(&link) {
                running.instances.send_if_modified(|former| {
                    let changed = *former != instances;
                    *former = instances;
                    changed
                });
                continue;
            }
            let (sender, receiver) = watch::channel(instances);
            let board = Arc::new(Mutex::new(Board::default()));
            let run = task::run(link.clone(), receiver, runner.clone(), Arc::clone(&board));
            self.0.insert(link, Running { instances: sender, board, task: tokio::spawn(run) });
        }
    }

    /// The foreign owners of each instance, with the interface.
    pub(crate) fn found(&self) -> BTreeMap<InstanceId, (String, Vec<ForeignOwner>)> {
        let of_link = |(link, running): (&Link, &Running)| {
            let found = running.board.lock().unwrap_or_else(PoisonError::into_inner).found.clone();
            let interface = link.interface.clone();
            found.into_iter().map(move |(id, owners)| (id, (interface.clone(), owners)))
        };
        self.0.iter().flat_map(of_link).collect()
    }

    /// The interfaces that cannot be watched, with the reasons.
    pub(crate) fn errors(&self) -> BTreeMap<String, String> {
        let error = |(link, running): (&Link, &Running)| {
            let error = running.board.lock().unwrap_or_else(PoisonError::into_inner).error.clone();
            Some((link.interface.clone(), error?))
        };
        self.0.iter().filter_map(error).collect()
    }
}
