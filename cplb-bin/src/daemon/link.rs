//! The wire between the election (`vrrp`) and the addresses (`netlink-vip`).
//!
//! Both run on real-time threads of their own and talk to each other through this module without a detour over
//! the main thread: a claim must reach the kernel even while the main thread is busy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lb_proxy::nft::Director;
use netlink_vip::{GroupId, InterfaceState, KeeperEvent, KeeperHandle};
use tokio::sync::mpsc::UnboundedSender;
use vrrp::router::{Claim, Release, VipEvent};
use vrrp::runner::{InstanceId, Interface, RunnerEvent, RunnerHandle, VipKeeper};
use vrrp::{LinkPrefix, MacAddr};

use crate::exit::Failure;

use super::found;
use super::ipvs::{Heard, News};
use super::names::Resolved;
use super::prepare::Reading;
use super::verdict::Finding;

/// The main thread may keep the addresses of a planned release for so long: meanwhile another router may have them.
const WITHDRAWAL_BOUND: Duration = Duration::from_millis(300);

/// What the main thread hears.
#[derive(Debug)]
pub(crate) enum Event {
    /// The election reports.
    Runner(RunnerEvent),
    /// The keeper reports.
    Keeper(KeeperEvent),
    /// An instance whose VIPs IPVS directs gives them up: stop directing, then let the keeper remove them.
    PlannedRelease(InstanceId),
    /// The configured source of unicast advertisements is on the interface, or is not.
    Source(InstanceId, IpAddr, bool),
    /// The load balancer reports.
    Balancer(lb_proxy::Event),
    /// A round of the serving verdict is over.
    Finding(Finding),
    /// The configuration file is read, or takes long to be.
    Read(Reading),
    /// The state directory was looked at, with this fault.
    StateDir(Option<String>),
    /// Names were resolved.
    Resolved(Resolved),
    /// What may fail of a reload is done, or has failed.
    Staged(Result<(), Failure>),
    /// Whether there is IPVS, and what is wrong with it, has changed.
    Ipvs(News),
    /// Servers behind directors were asked, with another result than before.
    Heard(Heard),
    /// A cluster's API has said something about its servers.
    Discovered(found::News),
    /// The nftables table was changed, or could not be.
    Table(TableChange),
}

/// A change of the nftables table that was tried.
#[derive(Debug)]
pub(crate) struct TableChange {
    pub(crate) result: Result<(), Failure>,
    /// What it says about IPVS.
    pub(crate) directors: Vec<Director>,
}

/// What one instance needs of the link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    /// Source of unicast advertisements, if configured.
    pub(crate) source: Option<IpAddr>,
    /// Whether IPVS directs what clients send to its VIPs.
    pub(crate) is_directed: bool,
}

/// Shared by the callbacks of both threads.
pub(crate) struct Link {
    keeper: OnceLock<KeeperHandle>,
    runner: OnceLock<RunnerHandle>,
    events: UnboundedSender<Event>,
    members: Mutex<BTreeMap<u32, Seat>>,
    /// The instances whose VIPs IPVS directs. Not in [`Seat`], whose mutex other threads hold while they work.
    directed: Mutex<BTreeSet<u32>>,
}

#[derive(Debug)]
struct Seat {
    member: Member,
    last_seen: Option<InterfaceState>,
}

impl Link {
    pub(crate) fn new(events: UnboundedSender<Event>) -> Arc<Self> {
        Arc::new(Self {
            keeper: OnceLock::new(),
            runner: OnceLock::new(),
            events,
            members: Mutex::default(),
            directed: Mutex::default(),
        })
    }

    /// Connects the two ends; events that come earlier are remembered by [`Seat::last_seen`].
    pub(crate) fn connect(&self, keeper: KeeperHandle, runner: RunnerHandle) {
        let _ = self.keeper.set(keeper);
        let _ = self.runner.set(runner);
        let ids: Vec<u32> = self.seats().keys().copied().collect();
        for id in ids {
            self.admit(id);
        }
    }

    /// Makes an instance known; its interface is announced to the election.
    pub(crate) fn join(&self, id: InstanceId, member: Member) {
        if member.is_directed {
            self.directed().insert(id.0);
        } else {
            self.directed().remove(&id.0);
        }
        self.seats().entry(id.0).or_insert(Seat { member, last_seen: None }).member = member;
        self.admit(id.0);
    }

    /// Forgets an instance.
    pub(crate) fn leave(&self, id: InstanceId) {
        self.directed().remove(&id.0);
        self.seats().remove(&id.0);
    }

    /// Called on the keeper's thread.
    pub(crate) fn on_keeper(&self, event: KeeperEvent) {
        match &event {
            KeeperEvent::Interface { id, state } => {
                if let Some(seat) = self.seats().get_mut(&id.0) {
                    seat.last_seen.clone_from(state);
                }
                self.admit(id.0);
            }
            KeeperEvent::Installed { id, .. } => self.tell(id.0, VipEvent::Installed),
            KeeperEvent::Missing { id, .. } => self.tell(id.0, VipEvent::Missing),
            KeeperEvent::LeaseLost { id, .. } => self.tell(id.0, VipEvent::LeaseLost),
            _ => {}
        }
        let _ = self.events.send(Event::Keeper(event));
    }

    /// Called on the election's thread.
    pub(crate) fn on_runner(&self, event: RunnerEvent) {
        let _ = self.events.send(Event::Runner(event));
    }

    /// Hands the instance's interface to the election.
    fn admit(&self, id: u32) {
        let Some(runner) = self.runner.get() else { return };
        let seats = self.seats();
        let Some(seat) = seats.get(&id) else { return };
        if let (Some(state), Some(source)) = (&seat.last_seen, seat.member.source) {
            let _ = self.events.send(Event::Source(InstanceId(id), source, state.has(source)));
        }
        runner.interface(InstanceId(id), seat.interface());
    }

    fn tell(&self, id: u32, event: VipEvent) {
        if let Some(runner) = self.runner.get() {
            runner.vip(InstanceId(id), event);
        }
    }

    fn directed(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.directed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seats(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Seat>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// What the election needs to know of the interface.
    fn interface(&self) -> Option<Interface> {
        let state = self.last_seen.as_ref()?;
        // Peers answer to the configured source. Without it a router is deaf and mute, and would become Active beside
        // another; so it waits until the address is there.
        let v4 = match self.member.source {
            Some(IpAddr::V4(ip)) => state.has(ip.into()).then_some(ip),
            _ => state.source_v4(),
        };
        let v6 = match self.member.source {
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
pub(crate) struct Wire(pub(crate) Arc<Link>);

impl VipKeeper for Wire {
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
                let _ = self.0.events.send(Event::PlannedRelease(instance));
            }
            Release::Planned => keeper.release(id, netlink_vip::Release::Planned),
            Release::Lost => keeper.release(id, netlink_vip::Release::Lost),
        }
    }
}
