//! Which advertisements count (RFC 9568 §7.1, RFC 2338 §7.1).

use super::common::{Core, Heard};
use super::config::RouterConfig;
use super::counters::Discard;
use super::event::{Delivery, RxMeta};
use super::output::Warning;
use crate::packet::{Advertisement, Auth};
use crate::types::{Family, HOP_LIMIT, Version, WirePriority};

/// What an advertisement that passed the checks is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    /// It decides.
    Decides(Heard),
    /// It belongs to the family that follows.
    Follows(Heard),
}

impl Core {
    /// Checks an advertisement and counts what is odd about it. Discards are counted by the caller.
    pub(super) fn accept(&mut self, meta: &RxMeta, received: &Advertisement) -> Result<Accepted, Discard> {
        let config = &self.config;
        if meta.delivery == Delivery::Multicast && meta.hop_limit != HOP_LIMIT {
            return Err(Discard::HopLimit);
        }
        if received.vrid != config.vrid {
            return Err(Discard::ForeignVrid);
        }
        let family = received.family();
        if Family::of(meta.source) != family || !has_addresses(config, family) {
            return Err(Discard::Family);
        }
        if received.version != config.version_of(family) {
            return Err(Discard::Version);
        }
        check_auth(config, received)?;
        if self.sources.of(family) == Some(meta.source) {
            self.warn(Warning::Conflict { source: meta.source });
            return Err(Discard::OwnSource);
        }
        check_peer(config, meta, family)?;
        if received.priority == WirePriority::OWNER && !config.accept_owner_priority {
            return Err(Discard::OwnerPriority);
        }
        self.counters.advertisements_received += 1;
        self.note_mismatches(meta, received);
        let heard =
            Heard { source: meta.source, priority: received.priority, interval: received.interval.get() };
        if family == self.config.deciding_family() {
            Ok(Accepted::Decides(heard))
        } else {
            self.counters.follower_received += 1;
            Ok(Accepted::Follows(heard))
        }
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

fn check_auth(config: &RouterConfig, received: &Advertisement) -> Result<(), Discard> {
    let expected = config.auth.filter(|_| received.version == Version::V2);
    match (expected, received.auth) {
        (None, Auth::None) => Ok(()),
        (Some(expected), Auth::Pass(pass)) if expected == pass => Ok(()),
        (Some(_), Auth::Pass(_)) => Err(Discard::Password),
        _ => Err(Discard::AuthType),
    }
}

/// A unicast message has no hop limit to prove that its sender is a neighbour, so only a peer may send one.
fn check_peer(config: &RouterConfig, meta: &RxMeta, family: Family) -> Result<(), Discard> {
    // IPv6 peers may be unlisted where IPv4 decides.
    let listed =
        family == config.deciding_family() || config.peers.iter().any(|peer| Family::of(*peer) == family);
    let must_be_peer = meta.delivery == Delivery::Unicast || (config.only_peers && listed);
    if must_be_peer && !config.peers.contains(&meta.source) {
        return Err(Discard::UnknownPeer);
    }
    Ok(())
}
