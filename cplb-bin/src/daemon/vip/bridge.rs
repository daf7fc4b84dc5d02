//! The bridge between the election (`vrrp`) and the keeper of the addresses (`netlink-vip`).
//!
//! Both run on real-time threads of their own and talk to each other through this module without a detour over
//! the main thread: a claim must reach the kernel even while the main thread is busy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use netlink_vip::{GroupId, InterfaceState, KeeperEvent, KeeperHandle};
use vrrp::router::{self, Claim, Release};
use vrrp::runner::{InstanceId, Interface, RunnerEvent, RunnerHandle, VipKeeper};
use vrrp::{LinkPrefix, MacAddr};

use crate::daemon::sender::EventSender;

/// The main thread may keep the addresses of a planned release for so long: meanwhile another router may have them.
const WITHDRAWAL_BOUND: Duration = Duration::from_millis(300);

/// A report about the virtual IPs to the main thread.
#[derive(Debug)]
pub(crate) enum VipEvent {
    /// The election reports.
    Runner(RunnerEvent),
    /// The keeper reports.
    Keeper(KeeperEvent),
    /// An instance whose VIPs IPVS directs gives them up: IPVS has to stop directing, then the keeper removes them.
    PlannedRelease(InstanceId),
    /// The configured source of unicast advertisements is on the interface, or is not.
    Source { id: InstanceId, source: IpAddr, present: bool },
}

/// The settings of an instance that the bridge needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InstanceSettings {
    /// Source of unicast advertisements, if configured.
    pub(crate) source: Option<IpAddr>,
    /// Whether IPVS directs what clients send to its VIPs.
    pub(crate) is_directed: bool,
}

/// Shared by the callbacks of both threads.
pub(crate) struct Bridge {
    keeper: OnceLock<KeeperHandle>,
    runner: OnceLock<RunnerHandle>,
    events: EventSender<VipEvent>,
    slots: Mutex<BTreeMap<u32, InstanceSlot>>,
    /// The instances whose VIPs IPVS directs. Not in [`InstanceSlot`], whose mutex other threads hold while they work.
    directed: Mutex<BTreeSet<u32>>,
}

#[derive(Debug)]
struct InstanceSlot {
    settings: InstanceSettings,
    last_seen: Option<InterfaceState>,
}

impl Bridge {
    pub(crate) fn new(events: EventSender<VipEvent>) -> Arc<Self> {
        Arc::new(Self {
            keeper: OnceLock::new(),
            runner: OnceLock::new(),
            events,
            slots: Mutex::default(),
            directed: Mutex::default(),
        })
    }

    /// Connects the two ends; events that come earlier are remembered by [`InstanceSlot::last_seen`].
    pub(crate) fn connect(&self, keeper: KeeperHandle, runner: RunnerHandle) {
        let _ = self.keeper.set(keeper);
        let _ = self.runner.set(runner);
        let ids: Vec<u32> = self.slots().keys().copied().collect();
        for id in ids {
            self.announce_interface(id);
        }
    }

    /// Makes an instance known; its interface is announced to the election.
    pub(crate) fn join(&self, id: InstanceId, settings: InstanceSettings) {
        if settings.is_directed {
            self.directed().insert(id.0);
        } else {
            self.directed().remove(&id.0);
        }
        self.slots().entry(id.0).or_insert(InstanceSlot { settings, last_seen: None }).settings = settings;
        self.announce_interface(id.0);
    }

    /// Forgets an instance.
    pub(crate) fn leave(&self, id: InstanceId) {
        self.directed().remove(&id.0);
        self.slots().remove(&id.0);
    }

    /// Called on the keeper's thread.
    pub(crate) fn on_keeper(&self, event: KeeperEvent) {
        match &event {
            KeeperEvent::Interface { id, state } => {
                if let Some(slot) = self.slots().get_mut(&id.0) {
                    slot.last_seen.clone_from(state);
                }
                self.announce_interface(id.0);
            }
            KeeperEvent::Installed { id, .. } => self.notify_election(id.0, router::VipEvent::Installed),
            KeeperEvent::Missing { id, .. } => self.notify_election(id.0, router::VipEvent::Missing),
            KeeperEvent::LeaseLost { id, .. } => self.notify_election(id.0, router::VipEvent::LeaseLost),
            _ => {}
        }
        let _ = self.events.send(VipEvent::Keeper(event));
    }

    /// Called on the election's thread.
    pub(crate) fn on_runner(&self, event: RunnerEvent) {
        let _ = self.events.send(VipEvent::Runner(event));
    }

    /// Hands the instance's interface to the election.
    fn announce_interface(&self, id: u32) {
        let Some(runner) = self.runner.get() else { return };
        let slots = self.slots();
        let Some(slot) = slots.get(&id) else { return };
        if let (Some(state), Some(source)) = (&slot.last_seen, slot.settings.source) {
            let _ =
                self.events.send(VipEvent::Source { id: InstanceId(id), source, present: state.has(source) });
        }
        runner.interface(InstanceId(id), slot.interface());
    }

    fn notify_election(&self, id: u32, event: router::VipEvent) {
        if let Some(runner) = self.runner.get() {
            runner.vip(InstanceId(id), event);
        }
    }

    fn directed(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.directed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, InstanceSlot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InstanceSlot {
    /// The interface as the election knows it.
    fn interface(&self) -> Option<Interface> {
        let state = self.last_seen.as_ref()?;
        // Peers answer to the configured source. Without it a router is deaf and mute, and would become Active beside
        // another; so it waits until the address is there.
        let v4 = match self.settings.source {
            Some(IpAddr::V4(ip)) => state.has(ip.into()).then_some(ip),
            _ => state.source_v4(),
        };
        let v6 = match self.settings.source {
            Some(IpAddr::V6(ip)) => state.has(ip.into()).then_some(ip),
            _ => state.source_v6(),
        };
        Some(Interface {
            name: state.name.clone(),
            index: state.index,
            mac: MacAddr(state.mac?),
            up: state.up,
            v4,
            v6,
            prefixes: state
                .addresses
                .iter()
                .map(|it| LinkPrefix { address: it.ip, len: it.prefix_len })
                .collect(),
        })
    }
}

/// The election's end: claims and releases go straight to the keeper.
pub(crate) struct ElectionEnd(pub(crate) Arc<Bridge>);

impl VipKeeper for ElectionEnd {
    fn claim(&self, instance: InstanceId, claim: Claim) {
        if let Some(keeper) = self.0.keeper.get() {
            keeper.claim(GroupId(instance.0), claim.valid_until);
        }
    }

    fn extend(&self, instance: InstanceId, valid_until: Instant) {
        if let Some(keeper) = self.0.keeper.get() {
            keeper.extend(GroupId(instance.0), valid_until);
        }
    }

    fn release(&self, instance: InstanceId, release: Release) {
        let Some(keeper) = self.0.keeper.get() else { return };
        let id = GroupId(instance.0);
        // The keeper resets the sessions itself, so that no other thread has to be alive for it. Only IPVS has to stop
        // directing before, which the main thread sees to, if it has the time.
        match release {
            Release::Planned if self.0.directed().contains(&instance.0) => {
                keeper.release_by(id, Instant::now() + WITHDRAWAL_BOUND);
                let _ = self.0.events.send(VipEvent::PlannedRelease(instance));
            }
            Release::Planned => keeper.release(id, netlink_vip::Release::Planned),
            Release::Lost => keeper.release(id, netlink_vip::Release::Lost),
        }
    }
}
