//! A kernel made of vectors, with a clock that only the test moves.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Manager, SessionPolicy};
use crate::event::{KeeperEvent, ResyncCause};
use crate::group::Registered;
use crate::kernel::Kernel;
use crate::lease::Claim;
use crate::listener::Notification;
use crate::plan::{Step, VipScope};
use crate::sessions::SessionsError;
use crate::socket::KernelError;
use crate::types::{GroupId, InterfaceSelector, LeaseTime, Prefix, VipAddress, VipGroupConfig, full_prefix};
use crate::validity::Validity;
use crate::wire::PROTOCOL;
use crate::wire::decode::{LinkUpdate, NetEvent, ObservedAddress, ObservedLabel, ObservedRoute};
use crate::wire::diag::SocketId;

pub(super) const ETH0: u32 = 2;
pub(super) const UP: u32 = 0x1_0043;
pub(super) const ONE: GroupId = GroupId(1);

/// A call to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KernelCall {
    Step(Step),
    /// A session ended, with a RST to its peer.
    Reset(IpAddr),
    /// A session ended when its address was gone.
    Close(IpAddr),
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) links: Vec<LinkUpdate>,
    /// Addresses and when they expire.
    pub(super) addresses: Vec<(ObservedAddress, Option<Instant>)>,
    pub(super) labels: Vec<ObservedLabel>,
    pub(super) routes: Vec<ObservedRoute>,
    pub(super) events: VecDeque<Notification>,
    pub(super) calls: Vec<KernelCall>,
    /// So long is the process stopped just before the next write takes effect.
    pub(super) stop_before_write: Option<Duration>,
    /// Answers to the next writes.
    pub(super) refusals: VecDeque<Errno>,
    /// Number of reads that fail next.
    pub(super) blind: usize,
    /// TCP sessions and their local addresses.
    pub(super) sessions: Vec<(IpAddr, SocketId)>,
    /// So long it takes to end one.
    pub(super) per_session: Duration,
    /// So many clients connect again at once when sessions are ended.
    pub(super) returning: usize,
    /// The kernel has no SOCK_DESTROY.
    pub(super) cannot_reset: bool,
}

impl World {
    /// Lets time pass; leases end.
    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
        let now = self.now;
        let (over, rest): (Vec<_>, Vec<_>) =
            self.addresses.drain(..).partition(|(_, expires)| expires.is_some_and(|at| at <= now));
        self.addresses = rest;
        for (address, _) in over {
            self.events.push_back(Notification::Event(NetEvent::AddressRemoved(address)));
        }
    }

    /// Clients connect to an address.
    pub(super) fn connect(&mut self, ip: IpAddr, count: usize) {
        let first = self.sessions.len();
        self.sessions.extend((first..first + count).map(|number| (ip, SocketId::numbered(number))));
    }

    /// Another program removes an address.
    pub(super) fn remove(&mut self, ip: IpAddr) -> bool {
        let Some(at) = self.addresses.iter().position(|(address, _)| address.ip == ip) else { return false };
        let (address, _) = self.addresses.remove(at);
        self.events.push_back(Notification::Event(NetEvent::AddressRemoved(address)));
        true
    }

    /// Another program adds an address.
    pub(super) fn add(&mut self, ip: IpAddr, prefix_len: u8) {
        let address = ObservedAddress {
            index: ETH0,
            ip,
            prefix_len,
            scope: 0,
            flags: 0x80,
            protocol: None,
            valid: None,
        };
        if !self.addresses.iter().any(|(there, _)| (there.ip, there.prefix_len) == (ip, prefix_len)) {
            self.addresses.push((address.clone(), None));
            self.events.push_back(Notification::Event(NetEvent::Address(address)));
        }
    }

    pub(super) fn set_link(&mut self, flags: u32) {
        let link = LinkUpdate {
            index: ETH0,
            flags,
            name: Some("eth0".into()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            ..LinkUpdate::default()
        };
        self.links = vec![link.clone()];
        self.events.push_back(Notification::Event(NetEvent::Link(link)));
    }

    pub(super) fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|(address, _)| address.ip == ip)
    }

    fn put(&mut self, index: u32, ip: IpAddr, lease: LeaseTime, scope: VipScope) {
        let expires = Some(self.now + lease.duration());
        let same = |address: &ObservedAddress| (address.ip, address.prefix_len) == (ip, full_prefix(ip));
        if let Some(there) = self.addresses.iter_mut().find(|(address, _)| same(address)) {
            there.1 = expires;
            there.0.protocol = Some(PROTOCOL);
            there.0.valid = Some(lease.as_secs());
            self.events.push_back(Notification::Event(NetEvent::Address(there.0.clone())));
            return;
        }
        let host = scope == VipScope::Host;
        let address = ObservedAddress {
            index,
            ip,
            prefix_len: full_prefix(ip),
            scope: if host { 254 } else { 0 },
            flags: 0x200,
            protocol: Some(PROTOCOL),
            valid: Some(lease.as_secs()),
        };
        self.events.push_back(Notification::Event(NetEvent::Address(address.clone())));
        let at = if host { 0 } else { self.addresses.len() };
        self.addresses.insert(at, (address, expires));
    }

    fn delete(&mut self, ip: IpAddr, prefix_len: u8) {
        let gone = self.addresses.iter().position(|(a, _)| (a.ip, a.prefix_len) == (ip, prefix_len));
        if let Some(at) = gone {
            let (address, _) = self.addresses.remove(at);
            self.events.push_back(Notification::Event(NetEvent::AddressRemoved(address)));
        }
    }
}

#[derive(Clone)]
pub(super) struct FakeKernel(pub(super) Rc<RefCell<World>>);

impl FakeKernel {
    fn read<T>(&self, read: impl FnOnce(&World) -> T) -> Result<T, KernelError> {
        let mut world = self.0.borrow_mut();
        if world.blind > 0 {
            world.blind -= 1;
            return Err(KernelError::NoAnswer);
        }
        Ok(read(&world))
    }
}

impl Kernel for FakeKernel {
    fn now(&self) -> Instant {
        self.0.borrow().now
    }

    fn links(&mut self) -> Result<Vec<LinkUpdate>, KernelError> {
        self.read(|world| world.links.clone())
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<ObservedAddress>, KernelError> {
        self.read(|world| {
            let all = world.addresses.iter().map(|(address, _)| address.clone());
            all.filter(|address| index == 0 || address.index == index).collect()
        })
    }

    fn default_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.read(|world| world.routes.iter().filter(|route| route.destination.is_empty()).cloned().collect())
    }

    fn marked_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.read(|world| world.routes.iter().filter(|route| route.protocol == PROTOCOL).cloned().collect())
    }

    fn labels(&mut self) -> Result<Vec<ObservedLabel>, KernelError> {
        self.read(|world| world.labels.clone())
    }

    fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        let mut world = self.0.borrow_mut();
        if let Some(stop) = world.stop_before_write.take() {
            world.advance(stop);
        }
        world.calls.push(KernelCall::Step(*step));
        if let Some(errno) = world.refusals.pop_front() {
            return Err(KernelError::Refused { errno, message: None });
        }
        match *step {
            Step::PutAddress { index, ip, lease, scope } => world.put(index, ip, lease, scope),
            Step::MoveAddress { index, ip, lease, scope } => {
                world.delete(ip, full_prefix(ip));
                world.put(index, ip, lease, scope);
            }
            Step::DeleteAddress { ip, prefix_len, .. } => world.delete(ip, prefix_len),
            Step::PutRoute { index, prefix } => {
                let (table, kind, metric) = (254, 1, 1024);
                let interfaces = vec![index];
                world.routes.push(ObservedRoute {
                    destination: prefix,
                    table,
                    protocol: PROTOCOL,
                    kind,
                    metric,
                    interfaces,
                });
            }
            Step::DeleteRoute { prefix, .. } => {
                world.routes.retain(|route| (route.protocol, route.destination) != (PROTOCOL, prefix));
            }
            Step::PutLabel { ip, label } => {
                let prefix = Prefix::new(ip, full_prefix(ip));
                world.labels.push(ObservedLabel { prefix, index: 0, label });
            }
            Step::DeleteLabel { ip, label } => {
                world.labels.retain(|seen| (seen.prefix.network(), seen.label) != (ip, label));
            }
        }
        Ok(())
    }

    fn sessions(&mut self, ips: &[IpAddr]) -> Result<Vec<SocketId>, SessionsError> {
        let world = self.0.borrow();
        if world.cannot_reset {
            return Err(SessionsError::Unsupported);
        }
        Ok(world.sessions.iter().filter(|(ip, _)| ips.contains(ip)).map(|(_, id)| id.clone()).collect())
    }

    fn end_sessions(&mut self, sessions: &[SocketId]) -> Result<usize, SessionsError> {
        let mut world = self.0.borrow_mut();
        let time = world.per_session * u32::try_from(sessions.len()).unwrap();
        world.advance(time);
        let mut ended = 0;
        for session in sessions {
            let Some(at) = world.sessions.iter().position(|(_, id)| id == session) else { continue };
            let (ip, _) = world.sessions.swap_remove(at);
            let told = world.has(ip);
            world.calls.push(if told { KernelCall::Reset(ip) } else { KernelCall::Close(ip) });
            ended += 1;
            if told && ended <= world.returning {
                world.connect(ip, 1);
            }
        }
        Ok(ended)
    }

    fn marks_addresses(&self) -> bool {
        true
    }
}

/// A manager with its world.
pub(super) struct Bench {
    pub(super) manager: Manager<FakeKernel>,
    pub(super) world: Rc<RefCell<World>>,
    pub(super) validity: Arc<Validity>,
    pub(super) events: Vec<KeeperEvent>,
}

impl Bench {
    /// One group of `vips` on eth0, which is up and has 10.0.0.1/24.
    pub(super) fn new(vips: &[&str]) -> Self {
        let world = World {
            now: Instant::now(),
            links: Vec::new(),
            addresses: Vec::new(),
            labels: Vec::new(),
            routes: Vec::new(),
            events: VecDeque::new(),
            calls: Vec::new(),
            stop_before_write: None,
            refusals: VecDeque::new(),
            blind: 0,
            sessions: Vec::new(),
            per_session: Duration::from_micros(10),
            returning: 0,
            cannot_reset: false,
        };
        let world = Rc::new(RefCell::new(world));
        world.borrow_mut().set_link(UP);
        world.borrow_mut().add([10, 0, 0, 1].into(), 24);
        let validity = Arc::new(Validity::default());
        let kernel = FakeKernel(Rc::clone(&world));
        let mut manager = Manager::new(kernel, SessionPolicy::Reset, Arc::clone(&validity));
        let config = config(vips);
        let labelled = config.ips().into_iter().filter(IpAddr::is_ipv6);
        let labels = labelled.map(|ip| (ip, 10_000)).collect();
        manager.add(Registered { config, labels });
        let mut bench = Self { manager, world, validity, events: Vec::new() };
        bench.run_once();
        let cause = ResyncCause::Start;
        let first = bench.take_events();
        let known = |event: &KeeperEvent| matches!(event, KeeperEvent::Interface { state: Some(_), .. });
        assert!(
            first.len() == 2 && known(&first[0]) && first[1] == KeeperEvent::Resynced { cause },
            "{first:?}"
        );
        bench
    }

    /// One iteration of the keeper's event loop.
    pub(super) fn run_once(&mut self) {
        let notifications: Vec<Notification> = self.world.borrow_mut().events.drain(..).collect();
        notifications.into_iter().for_each(|notification| self.manager.handle_notification(notification));
        self.manager.reconcile();
        self.manager.handle_timeout();
        while self.manager.advance() {}
        while let Some(event) = self.manager.poll_event() {
            self.events.push(event);
        }
    }

    /// Lets time pass as it does for a keeper that runs: it wakes up whenever it has to.
    pub(super) fn pass(&mut self, by: Duration) {
        let end = self.world.borrow().now + by;
        loop {
            let now = self.world.borrow().now;
            let wake = self.manager.poll_timeout().map_or(end, |at| at.clamp(now, end));
            self.world.borrow_mut().advance(wake - now);
            self.run_once();
            if wake >= end {
                return;
            }
            if wake == now {
                self.world.borrow_mut().advance(Duration::from_millis(1));
            }
        }
    }

    /// A claim of now, valid for 1.8 s.
    pub(super) fn claim(&mut self) {
        let issued = self.world.borrow().now;
        self.claim_of(Claim { issued, valid_until: issued + Duration::from_millis(1_800) });
    }

    pub(super) fn claim_of(&mut self, claim: Claim) {
        self.manager.claim(ONE, &claim);
        self.run_once();
    }

    pub(super) fn take_events(&mut self) -> Vec<KeeperEvent> {
        std::mem::take(&mut self.events)
    }

    pub(super) fn take_calls(&self) -> Vec<KernelCall> {
        std::mem::take(&mut self.world.borrow_mut().calls)
    }
}

pub(super) fn config(vips: &[&str]) -> VipGroupConfig {
    let parse = |text: &&str| {
        let (ip, len) = text.split_once('/').unwrap();
        VipAddress::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
    };
    VipGroupConfig {
        id: ONE,
        interface: InterfaceSelector::Name("eth0".into()),
        addresses: vips.iter().map(parse).collect(),
        address_label: None,
        lease: LeaseTime::MIN,
        lasting: BTreeSet::new(),
    }
}
