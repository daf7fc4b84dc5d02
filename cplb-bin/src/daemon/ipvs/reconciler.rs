//! The task that keeps the kernel's IPVS in its desired state: services, their servers, and the sync daemons.
//!
//! It resyncs once a second, and at once after a command. The kernel's module may be loaded and unloaded meanwhile.

mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipvs::reconcile::Desired;
use ipvs::{DestinationEntry, InterfaceName, ServiceEntry, ServiceKey, SyncDaemon};
use netlink_vip::RealServerConfig;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::daemon::sender::EventSender;

use super::forwarding::Forwarding;
use super::node::Node;
use super::record::Record;
use super::sysctls;

use task::Reconciler;

/// The time that the kernel may take to remove everything.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// The desired state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) services: Desired,
    /// Interface and id of the sync daemons, if there are to be any.
    pub(super) sync: Option<(InterfaceName, u32)>,
    pub(super) sysctls: sysctls::Values,
    pub(super) forwarding: Forwarding,
    /// This node as a real server.
    pub(super) node: NodePlan,
}

/// The desired state of a node as a real server.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum NodePlan {
    #[default]
    None,
    /// Not known yet: the settings of a former daemon stay.
    Unchanged,
    Server(RealServerConfig),
}

/// The observed state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Observed {
    /// The reason why IPVS is unavailable.
    pub(crate) unavailable: Option<String>,
    /// The differences to the desired state, for the operator.
    pub(super) faults: Vec<String>,
    /// The services of this daemon with their servers.
    pub(super) services: BTreeMap<ServiceKey, (ServiceEntry, Vec<DestinationEntry>)>,
    pub(super) daemons: Vec<SyncDaemon>,
}

impl Observed {
    /// The services with a server that gets new connections.
    fn ready(&self) -> impl Iterator<Item = ServiceKey> {
        let gets_connections = |server: &DestinationEntry| server.destination.weight.0 > 0;
        self.services
            .iter()
            .filter(move |(_, (_, servers))| servers.iter().any(gets_connections))
            .map(|(key, _)| *key)
    }
}

/// A report to the main thread: the availability of IPVS, its faults, and the services that balance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReconcilerReport {
    pub(super) unavailable: Option<String>,
    pub(super) faults: Vec<String>,
    /// The services with a server that gets new connections.
    pub(super) ready: BTreeSet<ServiceKey>,
}

enum Command {
    Want(Box<Wanted>),
    /// Reads the kernel now.
    Resync,
    /// Answered after a resync with everything that was wanted before.
    Reconciled(oneshot::Sender<()>),
    /// Removes everything, ends the task, and is answered with the objects left behind.
    End(oneshot::Sender<Vec<String>>),
}

/// The handle of the task, which ends with [`ReconcilerHandle::end`].
#[derive(Debug, Clone)]
pub(crate) struct ReconcilerHandle {
    commands: UnboundedSender<Command>,
    observed: Arc<Mutex<Observed>>,
    /// The last desired state.
    wanted: Arc<Mutex<Option<Wanted>>>,
}

impl ReconcilerHandle {
    /// Starts the task in the current runtime.
    pub(super) fn start(state_dir: PathBuf, events: EventSender<ReconcilerReport>) -> Self {
        let (record, fault) = Record::open(&state_dir);
        if let Some(why) = fault {
            tracing::warn!(why, "record of owned IPVS services unreadable; moved aside");
        }
        let (commands, inbox) = unbounded_channel();
        let observed = Arc::new(Mutex::new(Observed::default()));
        let node = Node::new(state_dir);
        let reconciler = Reconciler::new(node, record, Arc::clone(&observed), events);
        tokio::spawn(reconciler.run(inbox));
        Self { commands, observed, wanted: Arc::default() }
    }

    /// Sets the desired state. Nothing is changed before the first call, so that services of a former daemon stay if they
    /// are still wanted.
    pub(super) fn want(&self, wanted: Wanted) {
        let mut last = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&wanted) {
            *last = Some(wanted.clone());
            let _ = self.commands.send(Command::Want(Box::new(wanted)));
        }
    }

    /// Reads the kernel now, before the next interval.
    pub(super) fn resync(&self) {
        let _ = self.commands.send(Command::Resync);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.commands.is_closed()
    }

    /// Waits for the resync after the last desired state.
    pub(super) async fn reconciled(&self) {
        let (done, reconciled) = oneshot::channel();
        let _ = self.commands.send(Command::Reconciled(done));
        let _ = reconciled.await;
    }

    /// Removes everything that this daemon owns, and ends the task. Returns the objects left behind, for the operator.
    pub(super) async fn end(&self) -> Vec<String> {
        let (done, ended) = oneshot::channel();
        let _ = self.commands.send(Command::End(done));
        let left = async { ended.await.unwrap_or_else(|_| vec!["its task ended unexpectedly".to_owned()]) };
        let late = vec![format!("the kernel has not answered within {END_TIMEOUT:?}")];
        tokio::time::timeout(END_TIMEOUT, left).await.unwrap_or(late)
    }

    /// The last observed state.
    pub(crate) fn observed(&self) -> Observed {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
