//! The configuration of a virtual router, and the intervals that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::hmac::{HmacConfig, Mode};
use crate::packet::Addresses;
use crate::types::{AdvertInterval, AuthPass, Family, Priority, Version, Vrid, WirePriority};

/// The conditions under which a Backup takes over from an Active that still advertises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Preempt {
    /// Never: only silence and resignation move the addresses (RFC 9568 §6.1, Preempt_Mode False).
    Never,
    /// From an Active that reports that it cannot serve, if this router can. No router fails back.
    #[default]
    Degraded,
    /// From any Active of lower priority, too (RFC 9568 §6.1, Preempt_Mode True).
    Always,
}

/// The configuration of one virtual router: one election over the addresses of one or two families.
///
/// IPv4 decides if it is present; IPv6 then follows, so that one router holds both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// The virtual router identifier, for both families.
    pub vrid: Vrid,
    /// The version of the IPv4 advertisements. Those of IPv6 are version 3.
    pub version: Version,
    /// The priority while this router can serve.
    pub priority: Priority,
    /// The interval of the own advertisements, rounded up to a value that the version can express.
    pub advert_interval: AdvertInterval,
    /// The password of version 2; ignored in version 3, and where advertisements are signed.
    pub auth: Option<AuthPass>,
    /// The former password, while it is rotated: accepted, too, and each advertisement is sent with either.
    pub auth_previous: Option<AuthPass>,
    /// The signatures of advertisements. [`VirtualRouter`](super::VirtualRouter) leaves signing and verifying to its
    /// caller.
    pub hmac: Option<HmacConfig>,
    /// The virtual IPv4 addresses in the order of the message, at most 255.
    ///
    /// Peers compare lists, and keepalived before 2.3.3 drops an advertisement with another list.
    pub addresses_v4: Vec<Ipv4Addr>,
    /// The virtual IPv6 addresses in the order of the message, at most 255.
    pub addresses_v6: Vec<Ipv6Addr>,
    /// The conditions for a takeover from an Active that still advertises.
    pub preempt: Preempt,
    /// The time that a router which gave the addresses away as degraded or unheard does not ask for them back.
    pub hold_time: Duration,
    /// The time that this router must have served before it takes over from a degraded Active.
    pub takeover_after: Duration,
    /// The addresses of the other routers, where they are known. They rank routers of equal priority.
    pub peers: Vec<IpAddr>,
    /// Discards advertisements from routers that are not in `peers`.
    pub only_peers: bool,
    /// Accepts them nevertheless by unicast from a router on the link, with hop limit 255: it may take part as it may by
    /// multicast. For a list of peers that may be incomplete.
    pub accept_neighbours: bool,
    /// Accepts priority 255. A floating address has no owner, so the default refuses it.
    pub accept_owner_priority: bool,
    /// The time that the kernel keeps an address that is not refreshed, at least 1 s; see [`RouterConfig::lease_for`].
    pub lease: Duration,
    /// Spreads periodic work of many routers; the election does not depend on it.
    pub seed: u64,
}

impl RouterConfig {
    /// The default of `hold_time`.
    pub const HOLD_TIME: Duration = Duration::from_secs(30);
    /// The default of `takeover_after`.
    pub const TAKEOVER_AFTER: Duration = Duration::from_secs(2);

    /// A configuration with the defaults and no address yet: priority 100, one second, `preempt: degraded`.
    #[must_use]
    pub fn new(vrid: Vrid, version: Version, priority: Priority, advert_interval: AdvertInterval) -> Self {
        let mut config = Self {
            vrid,
            version,
            priority,
            advert_interval,
            auth: None,
            auth_previous: None,
            hmac: None,
            addresses_v4: Vec::new(),
            addresses_v6: Vec::new(),
            preempt: Preempt::default(),
            hold_time: Self::HOLD_TIME,
            takeover_after: Self::TAKEOVER_AFTER,
            peers: Vec::new(),
            only_peers: false,
            accept_neighbours: false,
            accept_owner_priority: false,
            lease: Duration::ZERO,
            seed: u64::from(vrid.get()),
        };
        config.lease = Self::lease_for(config.down_interval());
        config
    }

    /// The lease of an address for an Active_Down_Interval: max(2, ⌊Down − 1.02 s⌋) seconds.
    ///
    /// A kernel removes an expired address up to 1.02 s late, so a dead router has lost the address before its
    /// successor takes over, as long as the interval is long enough for that.
    #[must_use]
    pub fn lease_for(down: Duration) -> Duration {
        let whole = down.saturating_sub(KERNEL_EXPIRY_DELAY).as_secs();
        Duration::from_secs(whole.max(2))
    }

    /// The passwords of version 2 that are sent and accepted, the current one first; none where advertisements are
    /// signed.
    pub(super) fn passwords(&self) -> impl Iterator<Item = AuthPass> {
        let signs = self.hmac.as_ref().is_some_and(HmacConfig::signs);
        let previous = self.auth.and(self.auth_previous).filter(|previous| Some(*previous) != self.auth);
        [self.auth, previous].into_iter().flatten().filter(move |_| !signs)
    }

    /// Returns whether a message must be signed.
    pub(super) fn demands_signature(&self) -> bool {
        self.hmac.as_ref().is_some_and(|hmac| hmac.mode == Mode::Enforce)
    }

    /// The family of the advertisements that decide.
    #[must_use]
    pub const fn deciding_family(&self) -> Family {
        if self.addresses_v4.is_empty() && !self.addresses_v6.is_empty() { Family::V6 } else { Family::V4 }
    }

    /// The version of the advertisements of a family.
    #[must_use]
    pub const fn version_of(&self, family: Family) -> Version {
        match family {
            Family::V4 => self.version,
            Family::V6 => Version::V3,
        }
    }

    /// The version of the advertisements that decide.
    #[must_use]
    pub const fn deciding_version(&self) -> Version {
        self.version_of(self.deciding_family())
    }

    /// The interval of the advertisements that decide.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.advert_interval.in_version(self.deciding_version()).get()
    }

    /// Active_Down_Interval (RFC 9568 §6.1) at the configured priority and the own interval.
    #[must_use]
    pub fn down_interval(&self) -> Duration {
        let interval = self.interval();
        3 * interval + skew_time(self.deciding_version(), self.priority.full(), interval)
    }

    /// The validity of a claim after an advertisement: until 0.9 of the lease or Active_Down_Interval is over.
    ///
    /// It never ends before the next advertisement is due, however short the configured lease is.
    #[must_use]
    pub fn claim_span(&self) -> Duration {
        let interval = self.interval();
        (self.lease.min(MAX_DURATION) * 9 / 10).min(self.down_interval()).max(interval + interval / 4)
    }

    /// The configuration with durations that no sum of the state machine overflows and no timer spins on.
    pub(super) fn bounded(mut self) -> Self {
        for duration in [&mut self.hold_time, &mut self.takeover_after] {
            *duration = (*duration).min(MAX_DURATION);
        }
        // A fraction of the lease is a timer's period.
        self.lease = self.lease.clamp(MIN_LEASE, MAX_DURATION);
        self
    }

    /// The time that a predecessor can still hold an address after its last refresh: its lease and the kernel's delay.
    pub(super) fn predecessor_span(&self) -> Duration {
        self.lease.max(Duration::from_secs(2)) + KERNEL_EXPIRY_DELAY
    }

    /// The addresses of a family in the order of the message, if there are any.
    pub(super) fn addresses(&self, family: Family) -> Option<Addresses> {
        match family {
            Family::V4 if !self.addresses_v4.is_empty() => Some(Addresses::V4(self.addresses_v4.clone())),
            Family::V6 if !self.addresses_v6.is_empty() => Some(Addresses::V6(self.addresses_v6.clone())),
            _ => None,
        }
    }

    /// Returns whether `received` names the same addresses, in any order.
    ///
    /// RFC 9568 §5.2.9 puts a link-local address first in an IPv6 list, and some routers add one of their own. Where
    /// this router has none, theirs make no difference.
    pub(super) fn same_addresses(&self, received: &Addresses) -> bool {
        match received {
            Addresses::V4(received) => same_set(&self.addresses_v4, received),
            Addresses::V6(received) if self.addresses_v6.iter().any(Ipv6Addr::is_unicast_link_local) => {
                same_set(&self.addresses_v6, received)
            }
            Addresses::V6(received) => {
                let global = received.iter().filter(|address| !address.is_unicast_link_local());
                same_set(&self.addresses_v6, &global.copied().collect::<Vec<_>>())
            }
        }
    }

    /// Returns whether `received` has at least one of this router's addresses.
    pub(super) fn shares_addresses(&self, received: &Addresses) -> bool {
        match received {
            Addresses::V4(received) => received.iter().any(|address| self.addresses_v4.contains(address)),
            Addresses::V6(received) => received.iter().any(|address| self.addresses_v6.contains(address)),
        }
    }
}

/// The largest delay with which the kernel removes an expired address.
const KERNEL_EXPIRY_DELAY: Duration = Duration::from_millis(1020);

/// The kernel counts leases in whole seconds.
const MIN_LEASE: Duration = Duration::from_secs(1);

/// The longest configurable time, far above every useful one.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

fn same_set<T: PartialEq>(ours: &[T], theirs: &[T]) -> bool {
    ours == theirs || (ours.len() == theirs.len() && ours.iter().all(|address| theirs.contains(address)))
}

/// Skew_Time (RFC 9568 §6.1; RFC 3768 §6.1): (256 − priority) / 256 of the interval, in version 2 of a second.
///
/// Nanoseconds keep the steps between priorities apart at any interval.
#[must_use]
pub fn skew_time(version: Version, priority: WirePriority, interval: Duration) -> Duration {
    let unit = skew_unit(version, interval);
    unit * (256 - u32::from(priority.0)) / 256
}

pub(super) const fn skew_unit(version: Version, interval: Duration) -> Duration {
    match version {
        Version::V2 => Duration::from_secs(1),
        Version::V3 => interval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(version: Version, priority: u8, milliseconds: u64) -> RouterConfig {
        let interval = AdvertInterval::new(Version::V3, Duration::from_millis(milliseconds)).unwrap();
        let (vrid, priority) = (Vrid::new(51).unwrap(), Priority::new(priority).unwrap());
        let mut config = RouterConfig::new(vrid, version, priority, interval);
        config.addresses_v4 = vec![Ipv4Addr::new(10, 9, 0, 100)];
        config
    }

    #[test]
    fn skew_keeps_every_step_at_every_interval() {
        let skew = |version, priority, interval| skew_time(version, WirePriority(priority), interval);
        let fastest = Duration::from_millis(10);
        assert_eq!(skew(Version::V3, 254, fastest), Duration::from_nanos(78_125));
        assert_eq!(skew(Version::V3, 255, fastest), Duration::from_nanos(39_062), "39 µs a step");
        assert_eq!(skew(Version::V2, 200, Duration::from_secs(7)), Duration::from_nanos(218_750_000));
        for priority in 1..=254 {
            for interval in [fastest, Duration::from_millis(40_950)] {
                assert!(skew(Version::V3, priority, interval) < skew(Version::V3, priority - 1, interval));
            }
        }
    }

    #[test]
    fn leases_end_before_a_successor_takes_over_where_a_kernel_can_do_that() {
        assert_eq!(config(Version::V2, 200, 1000).down_interval(), Duration::from_nanos(3_218_750_000));
        for (milliseconds, lease) in [(10, 2), (100, 2), (1000, 2), (2000, 5), (5000, 15)] {
            let config = config(Version::V3, 200, milliseconds);
            assert_eq!(RouterConfig::lease_for(config.down_interval()).as_secs(), lease, "{milliseconds} ms");
        }
    }

    #[test]
    fn claims_outlive_an_interval_and_end_with_lease_or_down() {
        assert_eq!(config(Version::V2, 200, 1000).claim_span(), Duration::from_millis(1800));
        let fast = config(Version::V3, 200, 100);
        assert_eq!(fast.claim_span(), fast.down_interval());
        let mut absurd = config(Version::V3, 200, 1000);
        absurd.lease = Duration::ZERO;
        assert_eq!(absurd.claim_span(), Duration::from_millis(1250));
        absurd.lease = Duration::MAX;
        assert_eq!(absurd.claim_span(), absurd.down_interval());
    }

    #[test]
    fn version_2_rounds_fractions_of_a_second_up() {
        assert_eq!(config(Version::V2, 200, 100).interval(), Duration::from_secs(1));
        assert_eq!(config(Version::V2, 200, 2500).interval(), Duration::from_secs(3));
    }

    #[test]
    fn ipv4_decides_where_there_is_any() {
        let mut config = config(Version::V2, 200, 1000);
        config.addresses_v6 = vec!["fe80::1".parse().unwrap()];
        assert_eq!((config.deciding_family(), config.deciding_version()), (Family::V4, Version::V2));
        config.addresses_v4.clear();
        assert_eq!((config.deciding_family(), config.deciding_version()), (Family::V6, Version::V3));
    }
}
