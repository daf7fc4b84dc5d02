//! Who goes first among routers of equal priority.
//!
//! RFC 9568 leaves equal priorities to collide: Backups with the same Skew_Time expire together, two become Active and
//! one of them yields, so that the addresses move twice. Here every router waits a little longer than Skew_Time, by a
//! place in a *spread* that no two routers share. Only routers that know of no other priority use the whole spread:
//!
//! * equal to the last Active, or nobody heard yet: a place within the spread,
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

/// How much longer than Active_Down_Interval or Skew_Time this router waits.
///
/// `effective` is what it would advertise now, `active` the full priority of the last Active as far as known.
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
