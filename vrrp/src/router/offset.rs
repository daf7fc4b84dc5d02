//! The order among routers of equal priority.
//!
//! RFC 9568 leaves equal priorities to collide: Backups with the same Skew_Time expire together, two become Active and
//! one of them yields, so that the addresses move twice. Here every router waits a little longer than Skew_Time, by a
//! place in a *spread* that no two routers share. Only routers that know of no other priority use the whole spread:
//!
//! * equal to the last Active, or none heard yet: a place within the spread,
//! * below the last Active, or degraded: the whole spread, so that its equals go first, and a place in half a step,
//! * above the last Active: a place in half a step.
//!
//! A *step* is what one priority makes in Skew_Time. Two routers of different priority that know the last Active thus
//! keep the order of RFC 9568; [`Backup`](super::backup::Backup) covers those that do not know it.

use std::net::IpAddr;
use std::time::Duration;

use super::config::{RouterConfig, skew_unit};
use crate::types::{Family, WirePriority};

/// The largest distance between two known peers; 4 ms and 20 ms both kept equal routers apart where none did not.
const STEP: Duration = Duration::from_millis(20);
/// The largest spread where the peers are not known.
const SPREAD: Duration = Duration::from_millis(100);

/// A router's place among its equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    spread: Duration,
    /// Below `spread`.
    at: Duration,
}

/// The time that this router waits in addition to Active_Down_Interval or Skew_Time.
///
/// `effective` is the priority that it would advertise now, `active` the full priority of the last Active as far as
/// known.
pub(super) fn offset(
    config: &RouterConfig,
    own: IpAddr,
    interval: Duration,
    effective: WirePriority,
    active: Option<WirePriority>,
) -> Duration {
    let full = config.priority.full();
    let place = Place::of(config, own, interval);
    // An Active known only as degraded is most likely an equal that lost its backends.
    let equal = active.is_none_or(|active| active == full || active == config.priority.degraded());
    if effective < full {
        return place.spread + if equal { place.at } else { place.within_half_a_step(config, interval) };
    }
    match active {
        Some(active) if !equal && full < active => place.spread + place.within_half_a_step(config, interval),
        Some(_) if !equal => place.within_half_a_step(config, interval),
        _ => place.at,
    }
}

impl Place {
    fn of(config: &RouterConfig, own: IpAddr, interval: Duration) -> Self {
        let family = Family::of(own);
        let others = config.peers.iter().filter(|peer| Family::of(**peer) == family && **peer != own);
        let number = u32::try_from(others.clone().count()).unwrap_or(u32::MAX).saturating_add(1);
        if number == 1 {
            return Self::of_stranger(own, interval);
        }
        // The highest address first: it wins ties anyway (RFC 9568 §6.4.3).
        let rank = u32::try_from(others.filter(|peer| **peer > own).count()).unwrap_or(u32::MAX);
        let step = STEP.min(interval / 8).min(interval / 2 / number);
        Self { spread: step * number, at: step * rank }
    }

    /// Neighbouring addresses differ in their last bits, so the reversed byte sets them far apart.
    fn of_stranger(own: IpAddr, interval: Duration) -> Self {
        let low = match own {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        let spread = SPREAD.min(interval / 4);
        Self { spread, at: spread * u32::from(low.reverse_bits()) / 256 }
    }

    /// The same place in half of what one priority makes in Skew_Time.
    fn within_half_a_step(self, config: &RouterConfig, interval: Duration) -> Duration {
        let half = skew_unit(config.deciding_version(), interval) / 512;
        let share = self.at.as_nanos() * half.as_nanos() / self.spread.as_nanos().max(1);
        Duration::from_nanos(u64::try_from(share).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::super::config::skew_time;
    use super::*;
    use crate::types::{AdvertInterval, Priority, Version, Vrid};

    const SECOND: Duration = Duration::from_secs(1);

    fn address(low: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 9, 0, low))
    }

    fn config(version: Version, priority: u8, peers: &[u8]) -> RouterConfig {
        let (vrid, priority) = (Vrid::new(51).unwrap(), Priority::new(priority).unwrap());
        let mut config = RouterConfig::new(vrid, version, priority, AdvertInterval::DEFAULT);
        config.peers = peers.iter().map(|low| address(*low)).collect();
        config.addresses_v4 = vec![Ipv4Addr::new(10, 9, 0, 100)];
        config
    }

    fn of(config: &RouterConfig, low: u8, interval: Duration, active: Option<u8>) -> Duration {
        let active = active.map(WirePriority);
        offset(config, address(low), interval, config.priority.full(), active)
    }

    #[test]
    fn peers_take_turns_from_the_highest_address() {
        let config = config(Version::V2, 200, &[11, 12, 13]);
        let offsets = [13, 12, 11].map(|low| of(&config, low, SECOND, None).as_millis());
        assert_eq!(offsets, [0, 20, 40]);
        assert_eq!(of(&config, 11, SECOND, Some(200)).as_millis(), 40, "an equal Active changes nothing");
        assert_eq!(of(&config, 11, SECOND, Some(40)).as_millis(), 40, "nor does an equal that is degraded");
        let fast = Duration::from_millis(10);
        assert!(of(&config, 11, fast, None) <= fast / 2, "short intervals take shorter turns");
    }

    #[test]
    fn neighbouring_strangers_are_far_apart() {
        let config = config(Version::V2, 200, &[]);
        for start in 0..=252 {
            let offsets: BTreeSet<_> = (start..start + 3).map(|low| of(&config, low, SECOND, None)).collect();
            let steps = offsets.iter().zip(offsets.iter().skip(1)).map(|(low, high)| *high - *low);
            let least = steps.min().unwrap();
            assert!(least >= Duration::from_millis(12), "{start}: {least:?}");
            assert!(offsets.iter().all(|offset| *offset < SPREAD));
        }
    }

    /// For all pairs of different priorities, all places and any Active: the higher one expires first.
    #[test]
    fn no_offset_changes_the_order_of_priorities() {
        let peers: [&[u8]; 2] = [&[1, 2, 3, 4, 5, 6, 7], &[]];
        for (version, peers) in [Version::V2, Version::V3].into_iter().flat_map(|v| peers.map(|p| (v, p))) {
            for interval in [SECOND, Duration::from_millis(10), Duration::from_secs(40)] {
                for low_priority in [50u8, 99, 200, 253] {
                    let high_priority = low_priority + 1;
                    for active in (low_priority - 1..=high_priority).chain([254]) {
                        let expiry = |priority: u8, low: u8| {
                            let config = config(version, priority, peers);
                            let skew = skew_time(version, config.priority.full(), interval);
                            skew + of(&config, low, interval, Some(active))
                        };
                        // An Active of the group's own degraded priority would be taken for an equal.
                        for (high, low) in [(1, 7), (7, 1), (255, 254), (128, 127)] {
                            assert!(
                                expiry(high_priority, high) < expiry(low_priority, low),
                                "{version} {interval:?} {high_priority} at {high} behind {low_priority} at {low}, active {active}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_degraded_wait_for_the_whole_spread() {
        let config = config(Version::V3, 200, &[11, 12]);
        let degraded =
            offset(&config, address(12), SECOND, config.priority.degraded(), Some(WirePriority(200)));
        assert_eq!(degraded.as_millis(), 40);
    }
}
