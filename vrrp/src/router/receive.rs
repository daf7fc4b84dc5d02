//! The checks that advertisements pass before they count (RFC 9568 §7.1, RFC 2338 §7.1).

use std::net::IpAddr;
use std::time::Instant;

use super::common::{Core, Heard};
use super::config::RouterConfig;
use super::counters::Discard;
use super::event::{Delivery, RxMeta};
use super::output::Warning;
use super::standing::Standing;
use crate::packet::{Advertisement, Auth};
use crate::types::{Family, HOP_LIMIT, Version, WirePriority};

/// The use of an advertisement that passed the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    /// It decides.
    Decides(Heard),
    /// It belongs to the family that follows.
    Follows(Heard),
    /// It was accepted before, with another password.
    Copy,
}

impl Core {
    /// Checks an advertisement and counts its mismatches. Discards are counted by the caller.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        meta: &RxMeta,
        received: &Advertisement,
    ) -> Result<Accepted, Discard> {
        self.check_origin(meta)?;
        let config = &self.config;
        if received.vrid != config.vrid {
            return Err(Discard::ForeignVrid);
        }
        let family = received.family();
        if Family::of(meta.source) != family || !has_addresses(config, family) {
            return Err(Discard::Family);
        }
        // This comes before the checks that a peer must pass: another group is reported whatever its version and
        // password are.
        if !config.shares_addresses(&received.addresses) {
            let (source, addresses) = (meta.source, received.addresses.clone());
            self.warn(Warning::OtherGroup { source, addresses });
            return Err(Discard::OtherGroup);
        }
        if received.version != config.version_of(family) {
            return Err(Discard::Version);
        }
        if self.sources.of(family) == Some(meta.source) {
            self.warn(Warning::Conflict { source: meta.source });
            return Err(Discard::OwnSource);
        }
        let config = &self.config;
        let password = check_auth(config, meta, received)?;
        if let Err(reason) = self.check_peer(meta, family) {
            self.warn(Warning::Stranger { source: meta.source, priority: received.priority });
            return Err(reason);
        }
        if received.priority == WirePriority::OWNER && !config.accept_owner_priority {
            return Err(Discard::OwnerPriority);
        }
        if self.is_copy(now, meta, received, password) {
            self.counters.copies += 1;
            return Ok(Accepted::Copy);
        }
        self.counters.advertisements_received += 1;
        self.note_mismatches(meta, received);
        let standing = self.standing(meta.source);
        if standing == Standing::Stranger {
            self.counters.stranger_advertisements += 1;
            self.warn(Warning::Stranger { source: meta.source, priority: received.priority });
        }
        let interval = received.interval.get();
        let heard = Heard { source: meta.source, priority: received.priority, interval, standing };
        if family == self.config.deciding_family() {
            Ok(Accepted::Decides(heard))
        } else {
            self.counters.follower_received += 1;
            Ok(Accepted::Follows(heard))
        }
    }

    /// Only a neighbour may take part. Multicast never leaves the link (RFC 9568 §5.1.1.3, §5.1.2.3), and IPv4 unicast
    /// from a peer on the link has not been forwarded either (RFC 5082); peers behind a router are the operator's to
    /// list. keepalived leaves the hop limit of IPv6 unicast to the kernel (64), so there it proves nothing.
    fn check_origin(&self, meta: &RxMeta) -> Result<(), Discard> {
        let is_unicast_neighbour = meta.source.is_ipv4() && self.is_on_link(meta.source);
        let neighbour = meta.delivery == Delivery::Multicast || is_unicast_neighbour;
        if neighbour && meta.hop_limit != HOP_LIMIT {
            return Err(Discard::HopLimit);
        }
        let scoped = match meta.source {
            IpAddr::V4(_) => true,
            IpAddr::V6(source) => source.is_unicast_link_local(),
        };
        if meta.delivery == Delivery::Multicast && !scoped {
            return Err(Discard::NotLinkLocal);
        }
        Ok(())
    }

    /// A unicast message may come from behind a router, so only a peer may send one, or a neighbour that the configuration
    /// admits.
    fn check_peer(&self, meta: &RxMeta, family: Family) -> Result<(), Discard> {
        let config = &self.config;
        // IPv6 peers may be unlisted where IPv4 decides.
        let listed =
            family == config.deciding_family() || config.peers.iter().any(|peer| Family::of(*peer) == family);
        let must_be_peer = meta.delivery == Delivery::Unicast || (config.only_peers && listed);
        let is_admitted =
            config.accept_neighbours && meta.hop_limit == HOP_LIMIT && self.is_on_link(meta.source);
        if must_be_peer && !is_admitted && !config.peers.contains(&meta.source) {
            return Err(Discard::UnknownPeer);
        }
        Ok(())
    }

    pub(super) fn is_on_link(&self, source: IpAddr) -> bool {
        let link_local = match source {
            IpAddr::V4(source) => source.is_link_local(),
            IpAddr::V6(source) => source.is_unicast_link_local(),
        };
        link_local || self.prefixes.iter().any(|prefix| prefix.contains(source))
    }

    /// Returns whether the sender repeats, for routers that know only the other password, what it has just sent. Both
    /// copies leave together and can change places; what comes later is the next advertisement.
    fn is_copy(&mut self, now: Instant, meta: &RxMeta, received: &Advertisement, password: Password) -> bool {
        if password == Password::None || self.config.auth_previous.is_none() {
            return false;
        }
        let is_copy = self.first_copies.remove(&meta.source).is_some_and(|first| {
            let soon = now.saturating_duration_since(first.at) < received.interval.get() / 2;
            soon && first.password != password && first.priority == received.priority
        });
        if !is_copy {
            if self.first_copies.len() >= MAX_FIRST_COPIES {
                self.first_copies.clear();
            }
            let first = FirstCopy { priority: received.priority, password, at: now };
            self.first_copies.insert(meta.source, first);
        }
        is_copy
    }

    /// Mismatches are worth a warning, but discarding such a message would make a second Active.
    fn note_mismatches(&mut self, meta: &RxMeta, received: &Advertisement) {
        let source = meta.source;
        if !self.config.same_addresses(&received.addresses) {
            self.counters.address_list_mismatches += 1;
            self.warn(Warning::AddressListMismatch { source });
        }
        // RFC 3768 §7.1 discards these; the longer of the two intervals is safe with either peer.
        let ours = self.config.advert_interval.in_version(received.version);
        if received.version == Version::V2 && received.interval != ours {
            self.counters.interval_mismatches += 1;
            self.warn(Warning::IntervalMismatch { source, theirs: received.interval.get() });
        }
    }
}

const fn has_addresses(config: &RouterConfig, family: Family) -> bool {
    match family {
        Family::V4 => !config.addresses_v4.is_empty(),
        Family::V6 => !config.addresses_v6.is_empty(),
    }
}

/// The password of an advertisement that passed the checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Password {
    None,
    Current,
    Previous,
}

/// The most senders whose first copies are remembered: more than a group has.
const MAX_FIRST_COPIES: usize = 16;

/// An advertisement of which a copy with another password may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FirstCopy {
    priority: WirePriority,
    password: Password,
    at: Instant,
}

/// A signed message has no password (draft-cassen-vrrp-auth-hmac).
fn check_auth(config: &RouterConfig, meta: &RxMeta, received: &Advertisement) -> Result<Password, Discard> {
    if !meta.signed && config.demands_signature() {
        return Err(Discard::Unsigned);
    }
    let expected = config.auth.filter(|_| received.version == Version::V2 && !meta.signed);
    match (expected, received.auth) {
        (None, Auth::None) => Ok(Password::None),
        (Some(expected), Auth::Pass(pass)) if expected == pass => Ok(Password::Current),
        (Some(_), Auth::Pass(pass)) if config.auth_previous == Some(pass) => Ok(Password::Previous),
        (Some(_), Auth::Pass(_)) => Err(Discard::Password),
        _ => Err(Discard::AuthType),
    }
}
