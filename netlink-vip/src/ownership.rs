//! Which of the node's addresses are ours.

use crate::types::full_prefix;
use crate::wire::decode::ObservedAddress;
use crate::wire::{PERMANENT_PROTOCOL, PROTOCOL, address_flag};

/// The dummy link of a [`crate::RealServer`], unless its configuration has another name.
pub(crate) const DUMMY_LINK: &str = "dummyvip0";

/// Returns whether an observed address can be one that we put there: installed whole, and marked. A kernel without
/// marks shows what others hardly give: a lease together with our flags.
pub(crate) fn is_ours(address: &ObservedAddress, kernel_marks: bool) -> bool {
    if address.prefix_len != full_prefix(address.ip) {
        return false;
    }
    match address.protocol {
        Some(protocol) => protocol == PROTOCOL,
        None if kernel_marks => false,
        None => address.valid.is_some() && looks_like_ours(address),
    }
}

/// Returns whether an observed address can be one without end that we gave to a link of ours. A kernel without marks
/// shows flags that others hardly give.
pub(crate) fn is_our_permanent(address: &ObservedAddress, kernel_marks: bool) -> bool {
    if address.prefix_len != full_prefix(address.ip) || address.valid.is_some() {
        return false;
    }
    match address.protocol {
        Some(protocol) => protocol == PERMANENT_PROTOCOL,
        None => !kernel_marks && looks_like_ours(address),
    }
}

fn looks_like_ours(address: &ObservedAddress) -> bool {
    let v6_only = address_flag::NODAD | address_flag::DEPRECATED;
    let ours = address_flag::NOPREFIXROUTE | if address.ip.is_ipv6() { v6_only } else { 0 };
    address.flags & ours == ours
}
