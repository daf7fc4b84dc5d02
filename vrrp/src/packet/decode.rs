//! Bytes to values. Every refusal has its reason, and no input makes it panic.

use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use super::checksum::{ChecksumPolicy, PseudoHeader, Sum};
use super::{Addresses, Advertisement, Auth, layout};
use crate::types::{AdvertInterval, AuthPass, Family, Version, Vrid, WirePriority};

/// The reason why bytes are not an advertisement: always a fault of the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than the header and its count of addresses announce.
    #[error("truncated: {len} bytes, {expected} announced")]
    Truncated {
        /// The length received.
        len: usize,
        /// The length that the header announces.
        expected: usize,
    },
    /// More bytes than the header and its count of addresses announce.
    #[error("trailing bytes: {len} bytes, {expected} announced")]
    TrailingBytes {
        /// The length received.
        len: usize,
        /// The length that the header announces.
        expected: usize,
    },
    /// Neither version 3 nor, over IPv4, version 2.
    #[error("version {0} is unknown or does not exist over this family")]
    Version(u8),
    /// Not an advertisement.
    #[error("message type {0} is unknown")]
    Kind(u8),
    /// The checksum is wrong.
    #[error("bad checksum")]
    Checksum,
    /// Identifier 0 does not exist.
    #[error("virtual router identifier 0")]
    Vrid,
    /// No virtual address (RFC 9568 §5.2.5: ignore).
    #[error("no virtual address")]
    NoAddresses,
    /// An interval of 0, which would make every receiver take over at once.
    #[error("advertisement interval 0")]
    IntervalZero,
}

impl Advertisement {
    /// Decodes a whole message, without its IP header.
    ///
    /// `pseudo` holds the addresses of the IP header; its family decides how the virtual addresses are read.
    ///
    /// # Errors
    ///
    /// The checks of RFC 9568 §7.1 that need no configuration: version, type, exact length, checksum, and fields that
    /// must not be 0. The hop limit and the virtual router are the caller's to check.
    pub fn decode(
        message: &[u8],
        pseudo: &PseudoHeader,
        policy: ChecksumPolicy,
    ) -> Result<Self, DecodeError> {
        Self::decode_signed(message, message, pseudo, policy)
    }

    /// Decodes a message whose trailer has been split off `payload` (see [`hmac`](crate::hmac)). Over IPv6 the checksum
    /// covers the trailer, too.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn decode_signed(
        message: &[u8],
        payload: &[u8],
        pseudo: &PseudoHeader,
        policy: ChecksumPolicy,
    ) -> Result<Self, DecodeError> {
        let covered = if pseudo.family() == Family::V6 { payload } else { message };
        let Some((header, body)) = message.split_first_chunk::<{ layout::HEADER_LEN }>() else {
            return Err(DecodeError::Truncated { len: message.len(), expected: layout::HEADER_LEN });
        };
        let family = pseudo.family();
        let version = version_of(header[layout::VERSION_AND_TYPE], family)?;
        check_length(message, version, family)?;
        if !checksum_is_good(covered, version, pseudo, policy) {
            return Err(DecodeError::Checksum);
        }
        let vrid = Vrid::new(header[layout::VRID]).ok_or(DecodeError::Vrid)?;
        let interval = interval_of(header, version).ok_or(DecodeError::IntervalZero)?;
        let (addresses, auth_data) = addresses_of(body, family, header[layout::COUNT].into());
        if addresses.is_empty() {
            return Err(DecodeError::NoAddresses);
        }
        let auth = match version {
            Version::V2 => auth_of(header[layout::AUTH_TYPE], auth_data),
            Version::V3 => Auth::None,
        };
        Ok(Self {
            version,
            vrid,
            priority: WirePriority(header[layout::PRIORITY]),
            interval,
            addresses,
            auth,
        })
    }
}

fn version_of(version_and_type: u8, family: Family) -> Result<Version, DecodeError> {
    let version = match (version_and_type >> 4, family) {
        (2, Family::V4) => Version::V2,
        (3, _) => Version::V3,
        (other, _) => return Err(DecodeError::Version(other)),
    };
    match version_and_type & 0x0f {
        layout::ADVERTISEMENT => Ok(version),
        other => Err(DecodeError::Kind(other)),
    }
}

fn check_length(message: &[u8], version: Version, family: Family) -> Result<(), DecodeError> {
    let len = message.len();
    let expected = len_for(message[layout::COUNT], version, family);
    match len.cmp(&expected) {
        std::cmp::Ordering::Less => Err(DecodeError::Truncated { len, expected }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(DecodeError::TrailingBytes { len, expected }),
    }
}

/// The length of a message with `count` addresses.
fn len_for(count: u8, version: Version, family: Family) -> usize {
    let trailer = match version {
        Version::V2 => layout::AUTH_DATA_LEN,
        Version::V3 => 0,
    };
    layout::HEADER_LEN + usize::from(count) * layout::address_len(family) + trailer
}

/// The length that the header of a message announces, if it has one and its version exists over the family.
pub(crate) fn announced_len(message: &[u8], family: Family) -> Option<usize> {
    let header = message.first_chunk::<{ layout::HEADER_LEN }>()?;
    let version = version_of(header[layout::VERSION_AND_TYPE], family).ok()?;
    Some(len_for(header[layout::COUNT], version, family))
}

fn checksum_is_good(message: &[u8], version: Version, pseudo: &PseudoHeader, policy: ChecksumPolicy) -> bool {
    let plain = Sum::of(message);
    let mut covered = plain;
    pseudo.add_to(&mut covered, message.len());
    match (version, pseudo.family(), policy) {
        (Version::V2, ..) => plain.is_good(),
        (Version::V3, Family::V4, ChecksumPolicy::Lenient) => covered.is_good() || plain.is_good(),
        (Version::V3, Family::V4, ChecksumPolicy::Strict) | (Version::V3, Family::V6, _) => covered.is_good(),
    }
}

fn interval_of(header: &[u8; layout::HEADER_LEN], version: Version) -> Option<AdvertInterval> {
    match version {
        Version::V2 => AdvertInterval::from_seconds(header[layout::INTERVAL_SECONDS]),
        Version::V3 => {
            let at = layout::INTERVAL_CENTISECONDS;
            let field = u16::from_be_bytes([header[at], header[at + 1]]);
            AdvertInterval::from_centiseconds(field & layout::CENTISECONDS_MASK)
        }
    }
}

/// The first `count` addresses of `body` and the bytes behind them.
fn addresses_of(body: &[u8], family: Family, count: usize) -> (Addresses, &[u8]) {
    match family {
        Family::V4 => {
            let (octets, _) = body.as_chunks::<4>();
            let addresses = octets.iter().take(count).map(|octets| Ipv4Addr::from(*octets)).collect();
            (Addresses::V4(addresses), body.get(count * 4..).unwrap_or_default())
        }
        Family::V6 => {
            let (octets, _) = body.as_chunks::<16>();
            let addresses = octets.iter().take(count).map(|octets| Ipv6Addr::from(*octets)).collect();
            (Addresses::V6(addresses), body.get(count * 16..).unwrap_or_default())
        }
    }
}

fn auth_of(kind: u8, field: &[u8]) -> Auth {
    let data = field.first_chunk().copied().unwrap_or_default();
    match kind {
        layout::AUTH_NONE => Auth::None,
        layout::AUTH_PASS => Auth::Pass(AuthPass::from_wire(data)),
        kind => Auth::Other { kind, data },
    }
}
