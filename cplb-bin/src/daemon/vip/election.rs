//! The election and the keeper of the addresses: started, changed and stopped together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_vip::{
    GroupState, GroupStatus, Keeper, KeeperEvent, KeeperHandle, KeeperOptions, RegisterError,
    SpawnError as KeeperError, VipGroupConfig,
};
use vrrp::router::StateName;
use vrrp::runner::{InstanceId, Interface, Runner, RunnerHandle, RunnerOptions, RunnerStatus};

use crate::exit::{Failure, Kind};

use crate::daemon::ids::group_of;
use crate::daemon::instance_log::{InstanceFields, instance_log};
use crate::daemon::sender::EventSender;

use super::bridge::{Bridge, ElectionEnd, VipReport};
use super::change::{Change, Instances};
use super::plan::Instance;
use super::removals::Removals;

/// The time that a thread may take to end, beyond its own bound.
const END_GRACE: Duration = Duration::from_secs(2);

/// The time that a removed instance may take to hand over, beyond its own bound.
const REMOVAL_GRACE: Duration = Duration::from_secs(1);

/// The limit of known controllers, more than any cluster has: a name may resolve to new addresses all the time.
const MAX_CONTROLLERS: usize = 1024;

/// The two real-time threads and their instances.
pub(crate) struct Election {
    pub(crate) runner: RunnerHandle,
    pub(crate) keeper: KeeperHandle,
    pub(crate) instances: Instances,
    /// The log fields of each instance that there ever was: events of an instance can arrive before a reload that adds it is
    /// committed, and after one that removes it.
    labels: BTreeMap<InstanceId, InstanceFields>,
    removals: Removals,
    bridge: Arc<Bridge>,
    /// The controllers that were ever known under this configuration. A server that the API no longer lists is most
    /// likely down, but its node is still a controller.
    controllers: BTreeSet<IpAddr>,
}

impl Election {
    /// Starts both threads; `None` without instances.
    pub(crate) fn start(
        instances: Vec<Instance>,
        state_dir: &Path,
        events: EventSender<VipReport>,
    ) -> Result<Option<Self>, Failure> {
        let instances: BTreeMap<_, _> = instances.into_iter().map(|it| (it.id, it)).collect();
        if instances.is_empty() {
            return Ok(None);
        }
        let bridge = Bridge::new(events);
        for instance in instances.values() {
            bridge.join(instance.id, instance.settings);
        }
        let runner = {
            let (end, reports) = (ElectionEnd(Arc::clone(&bridge)), Arc::clone(&bridge));
            let routers = instances.values().map(|instance| instance.router.clone()).collect();
            Runner::spawn(
                RunnerOptions::default(),
                routers,
                Box::new(end),
                Box::new(move |event| reports.on_runner(event)),
            )
            .map_err(|error| Failure::new(Kind::System, format_args!("cannot start the election: {error}")))?
        };
        let groups = instances.values().map(|instance| instance.group.clone()).collect();
        let reports = Arc::clone(&bridge);
        let keeper = match Keeper::spawn(
            KeeperOptions::new(state_dir),
            groups,
            Box::new(move |event| reports.on_keeper(event)),
        ) {
            Ok(keeper) => keeper,
            Err(error) => {
                runner.abort();
                return Err(keeper_failure(&error));
            }
        };
        bridge.connect(keeper.clone(), runner.clone());
        let labels = instances.values().map(|instance| (instance.id, label(instance))).collect();
        Ok(Some(Self {
            runner,
            keeper,
            instances,
            labels,
            removals: Removals::default(),
            bridge,
            controllers: BTreeSet::new(),
        }))
    }

    /// The change to the instances of another configuration.
    pub(crate) fn prepare(&self, instances: Vec<Instance>) -> Change {
        Change::new(&self.instances, instances)
    }

    /// The groups for the keeper, with those of instances that hand over.
    pub(crate) fn groups(&self, change: &Change) -> Vec<VipGroupConfig> {
        change.groups(&self.instances)
    }

    /// Adds new instances to the bridge, before the keeper reports their interfaces.
    pub(crate) fn join_added(&mut self, change: &Change) {
        for instance in change.added(&self.instances) {
            self.bridge.join(instance.id, instance.settings);
            self.labels.insert(instance.id, label(instance));
        }
    }

    /// Removes new instances from the bridge, because the change is rolled back.
    pub(crate) fn leave_added(&self, change: &Change) {
        change.added(&self.instances).for_each(|instance| self.bridge.leave(instance.id));
    }

    /// Makes the change; the keeper has its groups already. Equal instances are not disturbed.
    pub(crate) fn commit(&mut self, change: Change) {
        let Change { wanted, handing_over, gone } = change;
        let bound = Instant::now() + self.handover_bound() + REMOVAL_GRACE;
        for id in handing_over {
            self.runner.remove(id);
            self.removals.begin(id, bound);
        }
        for id in gone {
            self.runner.remove(id);
            self.bridge.leave(id);
            self.instances.remove(&id);
        }
        for (id, instance) in wanted {
            self.bridge.join(id, instance.settings);
            if Change::is_changed(&instance, &self.instances) {
                self.runner.reconfigure(instance.router.clone());
                // Announces the interface again: an instance that is new to the runner missed the first announcement.
                self.bridge.join(id, instance.settings);
            }
            self.labels.insert(id, label(&instance));
            self.instances.insert(id, instance);
        }
    }

    /// The interface of an instance as the election knows it.
    pub(crate) fn interface(&self, id: InstanceId) -> Option<Interface> {
        self.bridge.interface(id)
    }

    /// The time until which the keeper holds all addresses of an instance; `None` if it does not.
    pub(crate) fn held_until(&self, id: InstanceId) -> Option<Instant> {
        let status = self.keeper.status();
        let group = status.groups.iter().find(|group| group.id == group_of(id))?;
        match group.state {
            GroupState::Held { claimed_until, .. } => Some(claimed_until),
            _ => None,
        }
    }

    /// Returns whether this node has addresses of an instance, including those that stay until their sessions are reset.
    pub(crate) fn holds(&self, id: InstanceId) -> bool {
        self.keeper.status().groups.iter().any(|group| group.id == group_of(id) && has_addresses(group))
    }

    /// Replaces the peers of an instance that finds them. Its election goes on.
    pub(crate) fn set_peers(&mut self, id: InstanceId, peers: Option<&[IpAddr]>) {
        let Some(instance) = self.instances.get_mut(&id).filter(|instance| instance.finds_peers()) else {
            return;
        };
        let former = instance.clone();
        instance.set_peers(peers);
        if instance.router != former.router {
            self.runner.peers(id, peers.unwrap_or_default().to_vec());
        }
        if instance.settings != former.settings {
            self.bridge.join(id, instance.settings);
        }
    }

    /// The controllers that the election knows.
    pub(crate) const fn controllers(&self) -> &BTreeSet<IpAddr> {
        &self.controllers
    }

    /// Adds controllers to those that the election knows.
    pub(crate) fn add_controllers(&mut self, controllers: BTreeSet<IpAddr>) {
        if !controllers.is_subset(&self.controllers) && self.controllers.len() < MAX_CONTROLLERS {
            self.controllers.extend(controllers);
            self.runner.controllers(self.controllers.clone());
        }
    }

    /// Forgets all controllers, because another configuration is in use.
    pub(crate) fn forget_controllers(&mut self) {
        self.controllers.clear();
        self.runner.controllers(BTreeSet::new());
    }

    /// Returns the fields of each instance for the log.
    pub(crate) fn log_fields(election: Option<&Self>) -> impl Fn(InstanceId) -> InstanceFields {
        move |id| match election {
            Some(election) => election.fields(id),
            None => InstanceFields { vrid: id.0, ..InstanceFields::default() },
        }
    }

    fn fields(&self, id: InstanceId) -> InstanceFields {
        let unknown = || InstanceFields { vrid: id.0, ..InstanceFields::default() };
        let mut fields = self.labels.get(&id).cloned().unwrap_or_else(unknown);
        let status = self.keeper.status();
        let group = status.groups.iter().find(|group| group.id == group_of(id));
        if let Some(interface) = group.and_then(|group| group.interface.as_ref()) {
            fields.interface.clone_from(&interface.name);
        }
        fields
    }

    /// Every virtual IP that this node may hold.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.instances.values().flat_map(Instance::addresses)
    }

    /// Returns whether removed instances are still handing over.
    pub(crate) fn is_removing(&self) -> bool {
        !self.removals.is_empty()
    }

    /// Forgets the removed instances that have handed over by `status`, or reached their deadline.
    pub(crate) fn finish_removals(&mut self, status: &RunnerStatus) {
        let keeper = self.keeper.status();
        let runs = |id: InstanceId| {
            status.instances.iter().any(|instance| instance.id == id)
                || keeper.groups.iter().any(|group| group.id == group_of(id) && has_addresses(group))
        };
        for id in self.removals.poll(runs, Instant::now()) {
            let fields = self.fields(id);
            self.instances.remove(&id);
            if let Err(error) = self.keeper.remove_group(group_of(id)) {
                instance_log!(warn, fields, %error, "addresses of a removed instance not released");
            }
            self.bridge.leave(id);
            instance_log!(info, fields, "the instance is removed");
        }
    }

    /// The name of a thread that has ended without a request, which means that it panicked.
    pub(crate) fn dead_thread(&self) -> Option<&'static str> {
        if self.runner.has_ended() {
            return Some("the election");
        }
        (!self.keeper.is_running()).then_some("the keeper of the virtual IPs")
    }

    /// The longest a planned handover may take: Skew_Time and three intervals of the slowest instance.
    pub(crate) fn handover_bound(&self) -> Duration {
        self.instances.values().map(|i| i.router.router.down_interval()).max().unwrap_or_default()
    }

    /// Returns whether every router has handed over, and the keeper has removed the addresses.
    pub(crate) fn is_over(&self) -> bool {
        let routers = self.runner.status();
        let stopped = routers.instances.iter().all(|instance| instance.state == StateName::Stopped);
        stopped && !self.keeper.status().groups.iter().any(has_addresses)
    }

    /// Stops both threads and removes their addresses.
    pub(crate) async fn end(&self) {
        self.runner.shutdown(Duration::from_millis(100));
        if tokio::time::timeout(END_GRACE, self.runner.ended()).await.is_err() {
            tracing::warn!("election thread does not end in time; continuing the shutdown");
            self.runner.abort();
        }
        self.keeper.shutdown();
        let keeper = self.keeper.clone();
        let joined = tokio::task::spawn_blocking(move || keeper.join());
        match tokio::time::timeout(END_GRACE, joined).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "VIP keeper failed"),
            Ok(Err(error)) => tracing::warn!(%error, "VIP keeper failed"),
            Err(_) => tracing::warn!(
                "VIP keeper does not end in time; the kernel removes the addresses when their leases expire"
            ),
        }
    }
}

/// Returns whether a group's addresses are on this node, including those that stay until their sessions are reset.
fn has_addresses(group: &GroupStatus) -> bool {
    matches!(group.state, GroupState::Held { .. } | GroupState::Departing)
}

/// Removes the virtual IPs that an earlier run left behind. Their clients would reach this node as soon as its load balancer
/// listens, and be cut off when the election starts. Returns the reports of it.
pub(crate) fn reclaim(state_dir: &Path) -> Result<Vec<VipReport>, Failure> {
    let found = Keeper::reclaim(state_dir).map_err(|error| keeper_failure(&error))?;
    let report = |warning| VipReport::Keeper(KeeperEvent::Warning { id: None, warning });
    Ok(found.into_iter().map(report).collect())
}

fn keeper_failure(error: &KeeperError) -> Failure {
    let kind = match error {
        KeeperError::Permission => Kind::Permission,
        KeeperError::Register(RegisterError::InUse { .. }) => Kind::Temporary,
        KeeperError::Register(_) => Kind::CannotCreate,
        _ => Kind::System,
    };
    let failure = Failure::new(kind, format_args!("cannot manage the virtual IPs: {error}"));
    match error {
        KeeperError::Register(_) => {
            failure.help("name another directory with --state-dir, unless another cplb should be stopped")
        }
        _ => failure,
    }
}

/// The log fields of an instance whose interface is not known yet.
fn label(instance: &Instance) -> InstanceFields {
    let vips: Vec<String> = instance.addresses().map(|ip| ip.to_string()).collect();
    InstanceFields {
        vip: vips.join(","),
        interface: instance.group.interface.to_string(),
        vrid: instance.id.0,
    }
}
