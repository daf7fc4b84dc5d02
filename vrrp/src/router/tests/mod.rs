//! One router at a time: the rows of the state table, what is discarded, and arbitrary events.

mod arbitrary;
mod backup;
mod contention;
mod fsm;
mod receive;
mod serving;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::*;
use crate::packet::{Addresses, Auth};
use crate::types::{AdvertInterval, MacAddr, Priority, Version, Vrid};

pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 12);
pub(super) const LOWER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 11);
pub(super) const HIGHER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 13);
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
pub(super) const OWN_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x12);
pub(super) const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x100);

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Version 3, 100 ms, priority 100: Skew is 60.9375 ms and Down 360.9375 ms.
pub(super) fn config() -> RouterConfig {
    let interval = AdvertInterval::new(Version::V3, ms(100)).unwrap();
    let priority = Priority::new(100).unwrap();
    let mut config = RouterConfig::new(Vrid::new(51).unwrap(), Version::V3, priority, interval);
    config.addresses_v4 = vec![VIP];
    // One peer, and a lower one, so that this router's offset is 0.
    config.peers = vec![IpAddr::V4(LOWER)];
    config
}

pub(super) const SKEW: Duration = Duration::from_nanos(60_937_500);
pub(super) const DOWN: Duration = Duration::from_nanos(360_937_500);
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// A router and its time.
pub(super) struct Bench {
    pub(super) router: VirtualRouter,
    pub(super) now: Instant,
}

impl Bench {
    /// A router that serves, with its interface up.
    pub(super) fn new(config: RouterConfig) -> Self {
        let now = Instant::now();
        let mut router = VirtualRouter::new(config, now);
        router.handle_command(now, Command::Serving { until: now + Duration::from_secs(86_400) });
        let mut bench = Self { router, now };
        // It serves before the test begins, so that every test starts with the full priority.
        bench.advance(Duration::from_secs(10));
        bench.up();
        bench
    }

    pub(super) fn backup(config: RouterConfig) -> Self {
        let mut bench = Self::new(config);
        assert_eq!(bench.router.state(), StateName::Backup);
        bench.drain();
        bench
    }

    /// An Active with its addresses installed and its outputs drained.
    pub(super) fn active(config: RouterConfig) -> Self {
        let mut bench = Self::backup(config);
        let (at, _) = bench.router.poll_timeout().unwrap();
        bench.advance(at - bench.now);
        assert_eq!(bench.router.state(), StateName::Active);
        bench.router.handle_vip(bench.now, VipEvent::Installed);
        bench.advance(ms(50));
        bench.drain();
        bench
    }

    pub(super) fn up(&mut self) {
        self.router.handle_interface(self.now, InterfaceEvent::Up { v4: Some(OWN), v6: Some(OWN_V6) });
    }

    /// Lets time pass, handling each deadline when it is due.
    pub(super) fn advance(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some((at, _)) = self.router.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = at;
            self.router.handle_timeout(at);
        }
        self.now = end;
    }

    /// Lets time pass while the process does not run.
    pub(super) fn sleep(&mut self, duration: Duration) {
        self.now += duration;
    }

    pub(super) fn hear(&mut self, source: Ipv4Addr, priority: u8) {
        let message = self.message(priority);
        self.receive(source, &message).unwrap();
    }

    pub(super) fn receive(&mut self, source: Ipv4Addr, message: &Advertisement) -> Result<(), Discard> {
        self.router.handle_advertisement(self.now, &multicast(source.into()), message)
    }

    /// The advertisement of a peer with the same configuration.
    pub(super) fn message(&self, priority: u8) -> Advertisement {
        let config = self.router.config();
        Advertisement {
            version: config.version,
            vrid: config.vrid,
            priority: WirePriority(priority),
            interval: config.advert_interval,
            addresses: Addresses::V4(config.addresses_v4.clone()),
            auth: config.auth.filter(|_| config.version == Version::V2).map_or(Auth::None, Auth::Pass),
        }
    }

    /// Another node announces an address.
    pub(super) fn announced(&mut self, ip: impl Into<IpAddr>) {
        self.router.handle_announcement(self.now, announcement(ip));
    }

    /// The daemon knows these controllers.
    pub(super) fn know(&mut self, controllers: &[Ipv4Addr]) {
        let controllers = controllers.iter().map(|ip| IpAddr::V4(*ip)).collect();
        self.router.handle_command(self.now, Command::Controllers(controllers));
    }

    pub(super) fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.router.poll_output()).collect()
    }

    /// The outputs in short words.
    pub(super) fn said(&mut self) -> Vec<String> {
        self.drain().iter().map(|output| word(output, self.now)).collect()
    }

    /// The time left on a deadline.
    pub(super) fn left(&self, name: TimerName) -> Option<Duration> {
        self.router.core.timers.get(name).map(|at| at.saturating_duration_since(self.now))
    }
}

pub(super) fn announcement(ip: impl Into<IpAddr>) -> Announcement {
    Announcement { mac: MacAddr([2, 0, 0, 0, 0, 0x13]), ip: ip.into() }
}

pub(super) fn multicast(source: IpAddr) -> RxMeta {
    RxMeta { source, hop_limit: 255, delivery: Delivery::Multicast, signed: false }
}

fn word(output: &Output, now: Instant) -> String {
    match output {
        Output::Advertise(message) => format!("advertise {} {}", message.priority, message.family()),
        Output::Claim(claim) => format!("claim {:?}", claim.valid_until - now),
        Output::Release(release) => format!("release {release:?}"),
        Output::Announce => "announce".to_owned(),
        Output::Watch(watch) => format!("watch {watch:?}"),
        Output::Transition(transition) => format!("{} -> {}", transition.from, transition.to),
        Output::Warning(warning) => format!("warning {warning:?}"),
    }
}
