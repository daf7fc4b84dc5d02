//! A controller: its router, the process around it, and its kernel.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use vrrp::hmac::{self, Authenticator, Now, Opened};
use vrrp::router::{Claim, Command, Delivery, InterfaceEvent, RxMeta, VipEvent};

use vrrp::{
    AdvertInterval, Advertisement, Announcement, ChecksumPolicy, MacAddr, Priority, PseudoHeader,
    RouterConfig, Version, VirtualRouter, Vrid,
};

use crate::world::{Frame, Job};

/// The wall clock at the start of the simulation: 2026-11-29.
const WALL: Duration = Duration::from_secs(1_795_910_400);

/// The address families of a virtual router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    V4,
    V6,
    Dual,
}

/// The state of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    /// Stopped by a signal; packets wait in the sockets.
    Paused,
    /// Killed; only the kernel is left.
    Dead,
}

pub(crate) struct Node {
    pub(crate) config: RouterConfig,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) router: VirtualRouter,
    /// Signs and verifies, as a runner does for its router.
    pub(crate) authenticator: Option<Authenticator>,
    /// The wall clock at the start of the simulation, plus all its steps since.
    pub(crate) wall: Duration,
    started: Instant,
    pub(crate) process: Process,
    /// Set while the daemon finds that this node can serve.
    pub(crate) serves: bool,
    /// The daemon's list of known controllers.
    pub(crate) controllers: BTreeSet<IpAddr>,
    /// Set unless the daemon hangs and reports nothing.
    pub(crate) reports: bool,
    pub(crate) link_up: bool,
    /// The time that the keeper thread is kept from running.
    pub(crate) keeper_delay: Duration,
    /// The work that the keeper thread has not done yet, first in, first out.
    pub(crate) jobs: VecDeque<Job>,
    /// The frames that arrived while the process was paused.
    pub(crate) inbox: VecDeque<Frame>,
    pub(crate) kernel: Kernel,
    /// Invalidates wake-ups that were scheduled before the last event.
    pub(crate) wake: u64,
    /// The deadline of the wake-up that is scheduled.
    pub(crate) wake_at: Option<Instant>,
    pub(crate) watching: bool,
    /// The last claim of the router, if it was not released.
    pub(crate) claim: Option<Claim>,
    pub(crate) sent: Sent,
}

/// The virtual address in the kernel, and the state of the keeper thread.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) installed: bool,
    /// Invalidates an expiry that was scheduled before the last refresh or removal.
    pub(crate) lease: u64,
    /// The time at which the kernel acknowledged the last refresh.
    pub(crate) refreshed: Option<Instant>,
    /// The keeper has the order to remove the address after a handover and has not done so yet.
    pub(crate) removing: bool,
    /// Invalidates keeper work that a release overtakes.
    pub(crate) epoch: u64,
}

/// Frames sent, to find storms.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) advertisements: u64,
    pub(crate) announcements: u64,
}

pub(crate) fn v4(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, 11 + u8::try_from(index).unwrap())
}

pub(crate) fn v6(index: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x11 + u16::try_from(index).unwrap())
}

/// k0s's settings: version 2 for IPv4, version 3 for IPv6, priority 200, one second.
pub(crate) fn k0s(stack: Stack) -> RouterConfig {
    config(stack, Version::V2, 200, Duration::from_secs(1))
}

pub(crate) fn config(stack: Stack, version: Version, priority: u8, interval: Duration) -> RouterConfig {
    let version = if stack == Stack::V6 { Version::V3 } else { version };
    let interval = AdvertInterval::new(version, interval).unwrap();
    let priority = Priority::new(priority).unwrap();
    let mut config = RouterConfig::new(Vrid::new(51).unwrap(), version, priority, interval);
    if stack != Stack::V6 {
        config.addresses_v4 = vec![Ipv4Addr::new(10, 9, 0, 100)];
    }
    if stack != Stack::V4 {
        config.addresses_v6 = vec!["fe80::100".parse().unwrap(), "fd00::100".parse().unwrap()];
    }
    config.lease = RouterConfig::lease_for(config.down_interval());
    config
}

/// Gives every router the addresses of the others.
pub(crate) fn with_known_peers(mut configs: Vec<RouterConfig>) -> Vec<RouterConfig> {
    let count = configs.len();
    for (index, config) in configs.iter_mut().enumerate() {
        let others = (0..count).filter(|other| *other != index);
        config.peers = others.flat_map(|other| [IpAddr::V4(v4(other)), IpAddr::V6(v6(other))]).collect();
    }
    configs
}

impl Node {
    pub(crate) fn new(index: usize, config: RouterConfig, now: Instant) -> Self {
        Self {
            router: VirtualRouter::new(config.clone(), now),
            authenticator: None,
            wall: WALL,
            started: now,
            config,
            v4: v4(index),
            v6: v6(index),
            process: Process::Running,
            serves: true,
            controllers: BTreeSet::new(),
            reports: true,
            link_up: true,
            keeper_delay: Duration::ZERO,
            jobs: VecDeque::new(),
            inbox: VecDeque::new(),
            kernel: Kernel::default(),
            wake: 0,
            wake_at: None,
            watching: false,
            claim: None,
            sent: Sent::default(),
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.process == Process::Running
    }

    /// The daemon gives the known controllers to its router.
    pub(crate) fn introduce(&mut self, now: Instant) {
        self.router.handle_command(now, Command::Controllers(self.controllers.clone()));
    }

    pub(crate) fn interface(&self) -> InterfaceEvent {
        if self.link_up {
            InterfaceEvent::Up { v4: Some(self.v4), v6: Some(self.v6) }
        } else {
            InterfaceEvent::Down
        }
    }

    /// The time by both clocks.
    pub(crate) fn both_clocks(&self, now: Instant) -> Now {
        Now { instant: now, wall: self.wall + now.duration_since(self.started) }
    }

    /// Makes the authenticator anew, as a start of the process does.
    pub(crate) fn authenticate(&mut self, now: Instant) {
        let now = self.both_clocks(now);
        self.authenticator = self.config.hmac.clone().map(|hmac| Authenticator::new(hmac, now));
    }

    /// The payloads of an advertisement: one for each key, or a single unsigned one.
    pub(crate) fn payloads(&mut self, now: Instant, pseudo: &PseudoHeader, message: &[u8]) -> Vec<Vec<u8>> {
        let now = self.both_clocks(now);
        let authenticator = self.authenticator.as_mut();
        let trailers =
            authenticator.map(|found| found.sign(now, pseudo.source(), message)).unwrap_or_default();
        let signed = trailers.iter().map(|trailer| {
            let mut payload = message.to_vec();
            hmac::append(&mut payload, message.len(), trailer, pseudo);
            payload
        });
        let signed: Vec<_> = signed.collect();
        if signed.is_empty() { vec![message.to_vec()] } else { signed }
    }

    /// Gives a frame to the router, as its runner would.
    pub(crate) fn receive(&mut self, now: Instant, frame: &Frame) {
        match frame {
            Frame::Advertisement { bytes, pseudo } => {
                let source = match pseudo {
                    PseudoHeader::V4 { source, .. } => IpAddr::V4(*source),
                    PseudoHeader::V6 { source, .. } => IpAddr::V6(*source),
                };
                let by_both = self.both_clocks(now);
                let opened = match &self.authenticator {
                    Some(authenticator) => authenticator.open(by_both, source, bytes),
                    None => Ok(Opened { message: bytes, signature: None }),
                };
                let Opened { message, signature } = match opened {
                    Ok(opened) => opened,
                    Err(error) => {
                        self.router.handle_unusable(error);
                        return;
                    }
                };
                let decoded = Advertisement::decode_signed(message, bytes, pseudo, ChecksumPolicy::Strict);
                let advertisement = match decoded {
                    Ok(advertisement) => advertisement,
                    Err(error) => {
                        self.router.handle_unusable(error);
                        return;
                    }
                };
                let signed = signature.is_some();
                let meta = RxMeta { source, hop_limit: 255, delivery: Delivery::Multicast, signed };
                let accepted = if signature.is_some_and(|signature| signature.is_copy) {
                    self.router.handle_copy();
                    true
                } else {
                    self.router.handle_advertisement(now, &meta, &advertisement).is_ok()
                };
                if let (true, Some(authenticator), Some(signature)) =
                    (accepted, &mut self.authenticator, &signature)
                {
                    authenticator.accept(by_both, signature);
                }
            }
            Frame::Announcement { ip } if self.watching => {
                let mac = MacAddr([2, 0, 0, 0, 0, 1]);
                self.router.handle_announcement(now, Announcement { mac, ip: *ip });
            }
            Frame::Announcement { .. } => {}
        }
    }

    pub(crate) fn vip(&mut self, now: Instant, event: VipEvent) {
        self.router.handle_vip(now, event);
    }
}
