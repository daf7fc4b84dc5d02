//! The places of the fields of a message (RFC 9568 §5.2, RFC 3768 §5.1).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::types::Family;

pub(super) const VERSION_AND_TYPE: usize = 0;
pub(super) const VRID: usize = 1;
pub(super) const PRIORITY: usize = 2;
pub(super) const COUNT: usize = 3;
/// Version 2 only.
pub(super) const AUTH_TYPE: usize = 4;
/// Version 2 only, in seconds.
pub(super) const INTERVAL_SECONDS: usize = 5;
/// Version 3 only: 4 reserved bits, then 12 bits of centiseconds.
pub(super) const INTERVAL_CENTISECONDS: usize = 4;
pub(super) const CHECKSUM: usize = 6;
pub(super) const HEADER_LEN: usize = 8;
/// Version 2 only, behind the addresses.
pub(super) const AUTH_DATA_LEN: usize = 8;

/// The type of an advertisement.
pub(super) const ADVERTISEMENT: u8 = 1;
pub(super) const AUTH_NONE: u8 = 0;
pub(super) const AUTH_PASS: u8 = 1;
/// The reserved bits of version 3 are sent as 0 and ignored (RFC 9568 §5.2.6).
pub(super) const CENTISECONDS_MASK: u16 = 0x0fff;

/// The length of one virtual address.
pub(super) const fn address_len(family: Family) -> usize {
    match family {
        Family::V4 => size_of::<Ipv4Addr>(),
        Family::V6 => size_of::<Ipv6Addr>(),
    }
}
