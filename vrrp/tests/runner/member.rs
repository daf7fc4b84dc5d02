//! A node that runs a runner, with a keeper that records its calls.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use vrrp::router::{Claim, Release, RouterConfig, StateName, VipEvent};
use vrrp::runner::{
    InstanceConfig, InstanceId, InstanceStatus, Runner, RunnerEvent, RunnerHandle, RunnerOptions, Transport,
    VipKeeper,
};
use vrrp::{AdvertInterval, ChecksumPolicy, Priority, Version, Vrid};

use crate::fixture::{Node, eventually};

pub(crate) const ID: InstanceId = InstanceId(1);
pub(crate) const VRID: u8 = 51;
pub(crate) const VIP4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100);

/// A call of the keeper, or an event, with its time.
#[derive(Debug)]
pub(crate) enum Note {
    Claim(InstanceId, Claim),
    Extend(InstanceId, Instant),
    Release(InstanceId, Release),
    Event(RunnerEvent),
}

/// The notes of a member, in order.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<(Instant, Note)>>>);

impl Notes {
    fn push(&self, note: Note) {
        self.0.lock().expect("notes").push((Instant::now(), note));
    }

    /// The first note at or after `since` that `select` likes.
    pub(crate) fn find<T>(
        &self,
        since: Instant,
        mut select: impl FnMut(&Note) -> Option<T>,
    ) -> Option<(Instant, T)> {
        let notes = self.0.lock().expect("notes");
        notes.iter().filter(|(at, _)| *at >= since).find_map(|(at, note)| Some((*at, select(note)?)))
    }

    pub(crate) fn count(&self, mut select: impl FnMut(&Note) -> bool) -> usize {
        self.0.lock().expect("notes").iter().filter(|(_, note)| select(note)).count()
    }

    /// The time at which this state was entered, at or after `since`.
    pub(crate) fn entered(&self, state: StateName, since: Instant) -> Option<Instant> {
        let entered = self.find(since, |note| match note {
            Note::Event(RunnerEvent::Transition { past, .. }) if past.transition.to == state => Some(()),
            _ => None,
        });
        entered.map(|(at, ())| at)
    }
}

struct NoteKeeper {
    notes: Notes,
    runner: Arc<OnceLock<RunnerHandle>>,
    held: Mutex<std::collections::BTreeSet<InstanceId>>,
}

impl VipKeeper for NoteKeeper {
    fn claim(&self, instance: InstanceId, claim: Claim) {
        self.notes.push(Note::Claim(instance, claim));
        if self.held.lock().expect("held").insert(instance)
            && let Some(runner) = self.runner.get()
        {
            runner.vip(instance, VipEvent::Installed);
        }
    }

    fn extend(&self, instance: InstanceId, valid_until: Instant) {
        self.notes.push(Note::Extend(instance, valid_until));
    }

    fn release(&self, instance: InstanceId, release: Release) {
        self.held.lock().expect("held").remove(&instance);
        self.notes.push(Note::Release(instance, release));
    }
}

/// A running member.
pub(crate) struct Member<'a> {
    pub(crate) node: &'a Node,
    pub(crate) handle: RunnerHandle,
    pub(crate) notes: Notes,
}

/// A closure to run on the runner's thread for each event.
pub(crate) type Hook = Box<dyn Fn(&RunnerEvent) + Send>;

impl<'a> Member<'a> {
    /// Starts a runner on a node and gives it the interfaces of its routers.
    pub(crate) fn start(node: &'a Node, instances: Vec<InstanceConfig>) -> Self {
        Self::start_with(node, RunnerOptions::default(), instances, Box::new(|_| {}))
    }

    pub(crate) fn start_with(
        node: &'a Node,
        options: RunnerOptions,
        instances: Vec<InstanceConfig>,
        hook: Hook,
    ) -> Self {
        let notes = Notes::default();
        let ids: Vec<InstanceId> = instances.iter().map(|instance| instance.id).collect();
        let runner = Arc::new(OnceLock::new());
        let keeper = NoteKeeper { notes: notes.clone(), runner: Arc::clone(&runner), held: Mutex::default() };
        let events = notes.clone();
        let handle = node.run(move || {
            let report = move |event: RunnerEvent| {
                hook(&event);
                events.push(Note::Event(event));
            };
            Runner::spawn(options, instances, Box::new(keeper), Box::new(report)).expect("a runner")
        });
        assert!(runner.set(handle.clone()).is_ok());
        // As a daemon with healthy backends reports all the time.
        handle.serving(Instant::now() + Duration::from_secs(3600));
        let member = Self { node, handle, notes };
        for id in ids {
            member.place(id);
        }
        member
    }

    /// Reports the interface as it is now.
    pub(crate) fn place(&self, id: InstanceId) {
        self.handle.interface(id, self.node.interface("eth0"));
    }

    pub(crate) fn status(&self) -> InstanceStatus {
        self.status_of(ID).expect("the router exists")
    }

    pub(crate) fn status_of(&self, id: InstanceId) -> Option<InstanceStatus> {
        self.handle.status().instances.iter().find(|instance| instance.id == id).cloned()
    }

    pub(crate) fn state(&self) -> StateName {
        self.status().state
    }

    pub(crate) fn is_active(&self) -> bool {
        self.state() == StateName::Active
    }

    pub(crate) fn await_state(&self, state: StateName, within: Duration) {
        eventually(&format!("node {} is {state}", self.node.number), within, || {
            (self.state() == state).then_some(())
        });
    }

    /// Ends the thread without a resignation.
    pub(crate) fn crash(&self) -> Instant {
        let at = Instant::now();
        self.handle.abort();
        self.handle.join().expect("no panic");
        at
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.handle.abort();
        let joined = self.handle.join();
        assert!(std::thread::panicking() || joined.is_ok(), "the runner's thread panicked");
    }
}

/// A version 3 router for [`VIP4`].
pub(crate) fn config(priority: u8, interval: Duration) -> InstanceConfig {
    let mut instance = bare(Version::V3, priority, interval);
    instance.router.addresses_v4 = vec![VIP4];
    instance
}

/// A version 3 router for [`VIP6`].
pub(crate) fn config_v6(priority: u8, interval: Duration) -> InstanceConfig {
    let mut instance = bare(Version::V3, priority, interval);
    instance.router.addresses_v6 = vec![VIP6];
    instance
}

/// A version 2 router for [`VIP4`], as k0s configures it.
pub(crate) fn config_v2(priority: u8) -> InstanceConfig {
    let mut instance = bare(Version::V2, priority, Duration::from_secs(1));
    instance.router.addresses_v4 = vec![VIP4];
    instance.router.auth = Some(vrrp::AuthPass::new("Example").expect("a password"));
    instance
}

fn bare(version: Version, priority: u8, interval: Duration) -> InstanceConfig {
    let vrid = Vrid::new(VRID).expect("not 0");
    let priority = Priority::new(priority).expect("a priority");
    let interval = AdvertInterval::new(version, interval).expect("an interval");
    let router = RouterConfig::new(vrid, version, priority, interval);
    InstanceConfig { id: ID, router, transport: Transport::Multicast, checksum: ChecksumPolicy::Lenient }
}

/// The same router, but to these peers only.
pub(crate) fn unicast(mut instance: InstanceConfig, peers: &[IpAddr]) -> InstanceConfig {
    instance.transport = Transport::Unicast { peers: peers.to_vec() };
    instance
}

/// Starts a member on each node; the first one is Active before the others start.
pub(crate) fn with_first_active<'a>(members: Vec<(&'a Node, InstanceConfig)>) -> Vec<Member<'a>> {
    let start = |(node, instance)| {
        let member = Member::start(node, vec![instance]);
        if member.node.number == 1 {
            member.await_state(StateName::Active, Duration::from_secs(6));
        }
        member
    };
    assert_eq!(members[0].0.number, 1);
    members.into_iter().map(start).collect()
}

/// The one member that is Active, once there is exactly one.
pub(crate) fn sole_active<'a, 'b>(members: &'b [Member<'a>], within: Duration) -> &'b Member<'a> {
    eventually("exactly one member is active", within, || {
        let active: Vec<_> =
            members.iter().filter(|member| !member.handle.has_ended() && member.is_active()).collect();
        (active.len() == 1).then(|| active[0])
    })
}
