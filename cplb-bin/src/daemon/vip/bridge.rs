//! The bridge between the election (`vrrp`) and the keeper of the addresses (`netlink-vip`).
//!
//! Both run on real-time threads of their own and call each other through this module, not through the main thread: a
//! claim must reach the kernel even while the main thread is busy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use netlink_vip::{KeeperEvent, KeeperHandle};
use vrrp::router::{Claim, Release};
use vrrp::runner::{InstanceId, Interface, RunnerEvent, RunnerHandle, VipKeeper};

use crate::daemon::ids::{group_of, instance_of};
use crate::daemon::sender::EventSender;

use super::slot::{Announcement, InstanceSettings, InstanceSlots, ReleasePlan, address_event, release_plan};

/// A report about the virtual IPs to the main thread.
#[derive(Debug)]
pub(crate) enum VipReport {
    /// An event of the election.
    Runner(RunnerEvent),
    /// An event of the keeper.
    Keeper(KeeperEvent),
    /// An instance whose VIPs IPVS directs releases them: its IPVS services have to be removed before the keeper removes
    /// the addresses.
    PlannedRelease(InstanceId),
    /// Reports whether the configured source of unicast advertisements is on the interface.
    Source { id: InstanceId, source: IpAddr, present: bool },
}

/// The bridge, shared by the callbacks of both threads.
pub(super) struct Bridge {
    keeper: OnceLock<KeeperHandle>,
    runner: OnceLock<RunnerHandle>,
    events: EventSender<VipReport>,
    slots: Mutex<InstanceSlots>,
    /// The instances whose VIPs IPVS directs. Not among the slots, whose mutex other threads hold while they work.
    directed: Mutex<BTreeSet<InstanceId>>,
}

impl Bridge {
    pub(super) fn new(events: EventSender<VipReport>) -> Arc<Self> {
        Arc::new(Self {
            keeper: OnceLock::new(),
            runner: OnceLock::new(),
            events,
            slots: Mutex::default(),
            directed: Mutex::default(),
        })
    }

    /// Connects the two ends, and announces the interfaces that were reported before.
    pub(super) fn connect(&self, keeper: KeeperHandle, runner: RunnerHandle) {
        let _ = self.keeper.set(keeper);
        let _ = self.runner.set(runner);
        let slots = self.slots();
        slots.announcements().for_each(|announcement| self.announce(announcement));
    }

    /// Adds an instance or changes its settings, and announces its interface to the election.
    pub(super) fn join(&self, id: InstanceId, settings: InstanceSettings) {
        if settings.is_directed {
            self.directed().insert(id);
        } else {
            self.directed().remove(&id);
        }
        // Announced under the lock, so that no older state follows a newer one.
        let mut slots = self.slots();
        slots.join(id, settings).into_iter().for_each(|announcement| self.announce(announcement));
    }

    /// Forgets an instance.
    pub(super) fn leave(&self, id: InstanceId) {
        self.directed().remove(&id);
        self.slots().leave(id);
    }

    /// The interface of an instance as the election knows it.
    pub(super) fn interface(&self, id: InstanceId) -> Option<Interface> {
        self.slots().interface(id)
    }

    /// Forwards an event of the keeper. Called on its thread.
    pub(super) fn on_keeper(&self, event: KeeperEvent) {
        if let KeeperEvent::Interface { id, state } = &event {
            let mut slots = self.slots();
            let announcement = slots.set_interface(instance_of(*id), state.as_ref());
            announcement.into_iter().for_each(|announcement| self.announce(announcement));
        }
        if let (Some(runner), Some((id, event))) = (self.runner.get(), address_event(&event)) {
            runner.vip(id, event);
        }
        let _ = self.events.send(VipReport::Keeper(event));
    }

    /// Forwards an event of the election. Called on its thread.
    pub(super) fn on_runner(&self, event: RunnerEvent) {
        let _ = self.events.send(VipReport::Runner(event));
    }

    /// Passes an instance's interface to the election.
    fn announce(&self, Announcement { id, interface, source }: Announcement) {
        let Some(runner) = self.runner.get() else { return };
        if let Some((source, present)) = source {
            let _ = self.events.send(VipReport::Source { id, source, present });
        }
        runner.interface(id, interface);
    }

    fn directed(&self) -> MutexGuard<'_, BTreeSet<InstanceId>> {
        self.directed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots(&self) -> MutexGuard<'_, InstanceSlots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The election's end of the bridge: claims and releases go directly to the keeper.
pub(super) struct ElectionEnd(pub(super) Arc<Bridge>);

impl VipKeeper for ElectionEnd {
    fn claim(&self, instance: InstanceId, claim: Claim) {
        if let Some(keeper) = self.0.keeper.get() {
            keeper.claim(group_of(instance), claim.valid_until);
        }
    }

    fn extend(&self, instance: InstanceId, valid_until: Instant) {
        if let Some(keeper) = self.0.keeper.get() {
            keeper.extend(group_of(instance), valid_until);
        }
    }

    fn release(&self, instance: InstanceId, release: Release) {
        let Some(keeper) = self.0.keeper.get() else { return };
        let (id, is_directed) = (group_of(instance), self.0.directed().contains(&instance));
        match release_plan(release, is_directed, Instant::now()) {
            ReleasePlan::Deferred(bound) => {
                keeper.release_by(id, bound);
                let _ = self.0.events.send(VipReport::PlannedRelease(instance));
            }
            ReleasePlan::Now(release) => keeper.release(id, release),
        }
    }
}
