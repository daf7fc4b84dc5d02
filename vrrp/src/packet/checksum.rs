//! The Internet checksum (RFC 1071) and the pseudo-headers it may cover.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{Family, IP_PROTOCOL};

/// The addresses of the IP header around a message, which some checksums cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PseudoHeader {
    /// Of IPv4 (RFC 9293 §3.1).
    V4 {
        /// The source address of the IP header.
        source: Ipv4Addr,
        /// The destination address of the IP header.
        destination: Ipv4Addr,
    },
    /// Of IPv6 (RFC 8200 §8.1).
    V6 {
        /// The source address of the IP header.
        source: Ipv6Addr,
        /// The destination address of the IP header.
        destination: Ipv6Addr,
    },
}

impl PseudoHeader {
    /// The header between two addresses, if they are of one family.
    #[must_use]
    pub const fn new(source: IpAddr, destination: IpAddr) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Self::V4 { source, destination }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Self::V6 { source, destination }),
            _ => None,
        }
    }

    /// The source address of the IP header.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        match self {
            Self::V4 { source, .. } => IpAddr::V4(*source),
            Self::V6 { source, .. } => IpAddr::V6(*source),
        }
    }

    /// The family of the addresses.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            Self::V4 { .. } => Family::V4,
            Self::V6 { .. } => Family::V6,
        }
    }

    pub(super) fn add_to(&self, sum: &mut Sum, message_len: usize) {
        match self {
            Self::V4 { source, destination } => {
                sum.add(&source.octets());
                sum.add(&destination.octets());
            }
            Self::V6 { source, destination } => {
                sum.add(&source.octets());
                sum.add(&destination.octets());
            }
        }
        // A message has at most 8 + 255 × 16 bytes, so the upper half of the 32-bit length of IPv6 is always 0.
        sum.add_word(u16::try_from(message_len).unwrap_or(u16::MAX));
        sum.add_word(IP_PROTOCOL.into());
    }
}

/// The checksums of a version 3 message over IPv4 that are accepted.
///
/// RFC 9568 §5.2.8 covers the message only; keepalived and FRR cover a pseudo-header, too, as RFC 5798 could be read,
/// and refuse the other form. This crate sends what they accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumPolicy {
    /// Either form.
    #[default]
    Lenient,
    /// Only the form with the pseudo-header, which this crate sends.
    Strict,
}

/// A ones' complement sum in progress.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum(u32);

impl Sum {
    pub(super) fn of(message: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(message);
        sum
    }

    /// Adds bytes that start at an even offset. 4 KiB of them cannot overflow 32 bits.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<2>();
        for word in words {
            self.add_word(u16::from_be_bytes(*word));
        }
        if let [last] = rest {
            self.add_word(u16::from_be_bytes([*last, 0]));
        }
    }

    fn add_word(&mut self, word: u16) {
        self.0 += u32::from(word);
    }

    /// The sum folded to 16 bits: all ones over a message with a good checksum.
    pub(super) fn fold(self) -> u16 {
        let mut sum = self.0;
        while let high @ 1.. = sum >> 16 {
            sum = (sum & 0xffff) + high;
        }
        sum as u16
    }

    pub(super) fn is_good(self) -> bool {
        self.fold() == 0xffff
    }
}
