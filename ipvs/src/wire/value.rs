//! Values of attributes. An integer may be followed by more bytes than it has, as the kernel allows, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attribute::Writer;
use super::{DecodeError, layout};
use crate::model::AddressFamily;

/// Bytes of `union nf_inet_addr`.
const ADDRESS: usize = 16;

fn first<const N: usize>(what: &'static str, value: &[u8]) -> Result<[u8; N], DecodeError> {
    let short = DecodeError::ShortValue { what, length: value.len(), need: N };
    value.first_chunk::<N>().copied().ok_or(short)
}

pub(super) fn u8_of(what: &'static str, value: &[u8]) -> Result<u8, DecodeError> {
    first::<1>(what, value).map(|[byte]| byte)
}

pub(super) fn u16_of(what: &'static str, value: &[u8]) -> Result<u16, DecodeError> {
    first(what, value).map(u16::from_ne_bytes)
}

pub(super) fn u16_be_of(what: &'static str, value: &[u8]) -> Result<u16, DecodeError> {
    first(what, value).map(u16::from_be_bytes)
}

pub(super) fn u32_of(what: &'static str, value: &[u8]) -> Result<u32, DecodeError> {
    first(what, value).map(u32::from_ne_bytes)
}

pub(super) fn u64_of(what: &'static str, value: &[u8]) -> Result<u64, DecodeError> {
    first(what, value).map(u64::from_ne_bytes)
}

/// A text up to its NUL, or whole if it has none.
pub(super) fn text_of<'a>(what: &'static str, value: &'a [u8]) -> Result<&'a str, DecodeError> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    let text = value.get(..end).unwrap_or_default();
    std::str::from_utf8(text).map_err(|_| DecodeError::Text { what })
}

pub(super) fn family_of(number: u16) -> Result<AddressFamily, DecodeError> {
    match number {
        layout::family::INET => Ok(AddressFamily::V4),
        layout::family::INET6 => Ok(AddressFamily::V6),
        number => Err(DecodeError::UnknownFamily { number }),
    }
}

pub(super) const fn family_number(family: AddressFamily) -> u16 {
    match family {
        AddressFamily::V4 => layout::family::INET,
        AddressFamily::V6 => layout::family::INET6,
    }
}

/// An address in a field for either family.
pub(super) fn address_of(
    what: &'static str,
    family: AddressFamily,
    value: &[u8],
) -> Result<IpAddr, DecodeError> {
    match family {
        AddressFamily::V4 => first::<4>(what, value).map(|bytes| Ipv4Addr::from(bytes).into()),
        AddressFamily::V6 => first::<16>(what, value).map(|bytes| Ipv6Addr::from(bytes).into()),
    }
}

/// The family that an address without one (Linux before 3.18) must be of: no host's IPv6 address ends with twelve
/// zeros.
pub(super) fn guess_family(value: &[u8]) -> AddressFamily {
    let rest = value.get(4..ADDRESS).unwrap_or_default();
    if rest.iter().all(|&byte| byte == 0) { AddressFamily::V4 } else { AddressFamily::V6 }
}

pub(super) fn put_address(writer: &mut Writer<'_>, kind: u16, address: IpAddr) {
    let mut value = [0; ADDRESS];
    match address {
        IpAddr::V4(v4) => value[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => value = v6.octets(),
    }
    writer.bytes(kind, &value);
}
