//! VRRP messages as bytes and as values.
//!
//! A message is what follows the IP header. [`Advertisement::decode`] accepts it only at its exact length, so bytes
//! behind it are an error and nothing in front of it is skipped.

mod checksum;
mod decode;
mod encode;
mod layout;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use checksum::{ChecksumPolicy, PseudoHeader};
pub use decode::DecodeError;
pub(crate) use decode::announced_len;
pub(crate) use encode::write_checksum;

use crate::types::{AdvertInterval, AuthPass, Family, Version, Vrid, WirePriority};

/// An advertisement (RFC 9568 §5.2, RFC 3768 §5.3), the only message VRRP has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// The version of the message. IPv6 addresses are always sent as version 3.
    pub version: Version,
    /// The virtual router the sender speaks for.
    pub vrid: Vrid,
    /// The sender's priority; 0 resigns.
    pub priority: WirePriority,
    /// The sender's interval; encoded in the unit of `version`, rounded up.
    pub interval: AdvertInterval,
    /// The virtual addresses, in the order of the message. At most 255 are encoded.
    pub addresses: Addresses,
    /// The authentication of version 2; not encoded in version 3, which has none.
    pub auth: Auth,
}

impl Advertisement {
    /// The family of the virtual addresses, which is that of the IP header, too.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.addresses.family()
    }
}

/// The virtual addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4 addresses.
    V4(Vec<Ipv4Addr>),
    /// IPv6 addresses; RFC 9568 §5.2.9 wants the link-local one first.
    V6(Vec<Ipv6Addr>),
}

impl Addresses {
    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The number of addresses.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::V4(addresses) => addresses.len(),
            Self::V6(addresses) => addresses.len(),
        }
    }

    /// Returns whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each of them, in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let (v4, v6): (&[Ipv4Addr], &[Ipv6Addr]) = match self {
            Self::V4(addresses) => (addresses, &[]),
            Self::V6(addresses) => (&[], addresses),
        };
        v4.iter().map(|address| IpAddr::V4(*address)).chain(v6.iter().map(|address| IpAddr::V6(*address)))
    }

    /// Returns whether `address` is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4(addresses), IpAddr::V4(address)) => addresses.contains(&address),
            (Self::V6(addresses), IpAddr::V6(address)) => addresses.contains(&address),
            _ => false,
        }
    }
}

/// The authentication of an advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// Not at all: version 3, or authentication type 0 of version 2.
    None,
    /// By a plain-text password, authentication type 1 (RFC 2338 §5.3.6.2).
    Pass(AuthPass),
    /// By a type this crate does not know, kept as received.
    Other {
        /// The type, 2 to 255; 2 is the IP authentication header.
        kind: u8,
        /// The field behind the addresses.
        data: [u8; 8],
    },
}
