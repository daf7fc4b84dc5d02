//! The counters of a virtual router.

use std::fmt;

use thiserror::Error;

use crate::hmac::VerifyError;
use crate::packet::DecodeError;

/// The reason for which an advertisement was discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
#[non_exhaustive]
pub enum Discard {
    /// Shorter than announced.
    #[error("truncated")]
    Truncated,
    /// Longer than announced.
    #[error("trailing bytes")]
    TrailingBytes,
    /// Another version than configured (RFC 9568 §7.1).
    #[error("wrong version")]
    Version,
    /// Not an advertisement.
    #[error("unknown message type")]
    Kind,
    /// The checksum is wrong (RFC 9568 §7.1).
    #[error("bad checksum")]
    Checksum,
    /// No virtual address (RFC 9568 §5.2.5).
    #[error("no virtual address")]
    NoAddresses,
    /// Interval 0.
    #[error("interval 0")]
    IntervalZero,
    /// A message that a router forwarded: by multicast (RFC 9568 §5.1.1.3), or by unicast from a peer on the link
    /// (RFC 5082).
    #[error("hop limit is not 255")]
    HopLimit,
    /// An IPv6 multicast message from an address that is not link-local (RFC 9568 §5.1.2.1).
    #[error("source is not link-local")]
    NotLinkLocal,
    /// For another virtual router (RFC 9568 §7.1).
    #[error("another virtual router")]
    ForeignVrid,
    /// For addresses of a family that this router has none of.
    #[error("no virtual address of this family here")]
    Family,
    /// Under the same identifier, but for a list of addresses that has none in common with this router's.
    #[error("another group of addresses under the same identifier")]
    OtherGroup,
    /// Another way to authenticate than configured (RFC 2338 §7.1).
    #[error("wrong authentication type")]
    AuthType,
    /// Another password than configured (RFC 2338 §7.1).
    #[error("wrong password")]
    Password,
    /// Not signed, and this router demands a signature.
    #[error("not signed")]
    Unsigned,
    /// Signed, and this router has no key.
    #[error("signed, and this router has no key")]
    UnexpectedSignature,
    /// The trailer is of another type than HMAC-SHA-256-128.
    #[error("unknown type of signature")]
    SignatureType,
    /// Signed with a key that this router does not have.
    #[error("signed with an unknown key")]
    UnknownKey,
    /// The digest is wrong: another key under the same identifier, or a forgery.
    #[error("wrong digest")]
    Digest,
    /// Signed at a time outside the window around this node's clock.
    #[error("signed outside the time window")]
    Stale,
    /// The sender has signed this message, or a later one, before.
    #[error("replayed")]
    Replayed,
    /// From a router that is not configured as a peer.
    #[error("unknown peer")]
    UnknownPeer,
    /// Sent by this node itself and returned by a bond or a switch.
    #[error("reflected")]
    Reflected,
    /// From this router's own address, sent by another host.
    #[error("sent from our own address")]
    OwnSource,
    /// Priority 255, which no router may have for a floating address.
    #[error("priority 255")]
    OwnerPriority,
    /// This router does not take part at the moment.
    #[error("not running")]
    NotRunning,
}

impl Discard {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 26] = [
        Self::Truncated,
        Self::TrailingBytes,
        Self::Version,
        Self::Kind,
        Self::Checksum,
        Self::NoAddresses,
        Self::IntervalZero,
        Self::HopLimit,
        Self::NotLinkLocal,
        Self::ForeignVrid,
        Self::Family,
        Self::OtherGroup,
        Self::AuthType,
        Self::Password,
        Self::Unsigned,
        Self::UnexpectedSignature,
        Self::SignatureType,
        Self::UnknownKey,
        Self::Digest,
        Self::Stale,
        Self::Replayed,
        Self::UnknownPeer,
        Self::Reflected,
        Self::OwnSource,
        Self::OwnerPriority,
        Self::NotRunning,
    ];

    /// The reason as one word in snake case, for metrics and status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::TrailingBytes => "trailing_bytes",
            Self::Version => "version",
            Self::Kind => "kind",
            Self::Checksum => "checksum",
            Self::NoAddresses => "no_addresses",
            Self::IntervalZero => "interval_zero",
            Self::HopLimit => "hop_limit",
            Self::NotLinkLocal => "not_link_local",
            Self::ForeignVrid => "foreign_vrid",
            Self::Family => "family",
            Self::OtherGroup => "other_group",
            Self::AuthType => "auth_type",
            Self::Password => "password",
            Self::Unsigned => "unsigned",
            Self::UnexpectedSignature => "unexpected_signature",
            Self::SignatureType => "signature_type",
            Self::UnknownKey => "unknown_key",
            Self::Digest => "digest",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
            Self::UnknownPeer => "unknown_peer",
            Self::Reflected => "reflected",
            Self::OwnSource => "own_source",
            Self::OwnerPriority => "owner_priority",
            Self::NotRunning => "not_running",
        }
    }
}

impl From<DecodeError> for Discard {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated { .. } => Self::Truncated,
            DecodeError::TrailingBytes { .. } => Self::TrailingBytes,
            DecodeError::Version(_) => Self::Version,
            DecodeError::Kind(_) => Self::Kind,
            DecodeError::Checksum => Self::Checksum,
            DecodeError::Vrid => Self::ForeignVrid,
            DecodeError::NoAddresses => Self::NoAddresses,
            DecodeError::IntervalZero => Self::IntervalZero,
        }
    }
}

impl From<VerifyError> for Discard {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Unsigned => Self::Unsigned,
            VerifyError::SignatureType => Self::SignatureType,
            VerifyError::UnknownKey(_) => Self::UnknownKey,
            VerifyError::Digest => Self::Digest,
            VerifyError::Stale { .. } => Self::Stale,
            VerifyError::Replayed => Self::Replayed,
        }
    }
}

/// The number of discarded messages for each reason.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Discards([u64; Discard::ALL.len()]);

impl Discards {
    /// The number for one reason.
    #[must_use]
    pub const fn get(&self, reason: Discard) -> u64 {
        self.0[reason as usize]
    }

    /// The number for all reasons together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// All reasons with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Discard, u64)> + '_ {
        Discard::ALL.iter().map(|reason| (*reason, self.get(*reason)))
    }

    pub(super) const fn count(&mut self, reason: Discard) {
        self.0[reason as usize] += 1;
    }
}

impl fmt::Debug for Discards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().filter(|(_, count)| *count > 0)).finish()
    }
}

/// The counters since the router was made. None is ever reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Transitions to Active.
    pub became_active: u64,
    /// Transitions from Active to Backup.
    pub became_backup: u64,
    /// Advertisements sent, of all families, resignations included.
    pub advertisements_sent: u64,
    /// Advertisements that passed all checks, of all families.
    pub advertisements_received: u64,
    /// Advertisements of the family that does not decide, which are only watched.
    pub follower_received: u64,
    /// Resignations (priority 0) sent.
    pub resignations_sent: u64,
    /// Resignations (priority 0) received.
    pub resignations_received: u64,
    /// Announcement rounds.
    pub announcements: u64,
    /// Advertisements of a version 2 peer with another interval.
    pub interval_mismatches: u64,
    /// Advertisements that share virtual addresses with this router but have another list.
    pub address_list_mismatches: u64,
    /// Advertisements of another router while this one was Active.
    pub rival_advertisements: u64,
    /// Advertisements of routers that are no known controllers, of any priority.
    pub stranger_advertisements: u64,
    /// Times this router gave up because a rival did not hear it.
    pub unheard: u64,
    /// Times a deadline was handled so late that it did not count.
    pub overslept: u64,
    /// Times a virtual address was removed by another program.
    pub missing: u64,
    /// Further copies of advertisements, for routers that know only another key or password while these are rotated.
    pub copies: u64,
    /// Messages discarded, by reason.
    pub discarded: Discards,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place() {
        let mut discards = Discards::default();
        for (index, reason) in Discard::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason} stands at its own index");
            discards.count(reason);
        }
        assert!(discards.iter().all(|(_, count)| count == 1));
        assert_eq!(discards.total(), Discard::ALL.len() as u64);
    }
}
