//! Messages to and from the kernel, in the types of `netlink-packet-route` and, where nothing in real time waits for
//! them, of `rtnetlink`'s builders. Received messages are decoded attribute by attribute, so that an attribute that
//! cannot be read never costs the message that it came in.

pub mod decode;
pub(crate) mod diag;
pub(crate) mod encode;
#[cfg(feature = "real-server")]
pub(crate) mod neighbour;

pub use decode::{DecodeError, Message, NetEvent, decode_event, decode_events, messages};

/// The scope of an IPv4 VIP; IPv6 has none to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VipScope {
    /// Valid everywhere, where the interface has an address of the node of any subnet: the kernel then lists the
    /// VIP after it, so that the kernel chooses the node's as a source, and programs that take an interface's first
    /// address do so, too.
    Universe,
    /// Valid on this host, where the VIP is the only address: the kernel lists it first, but never chooses it as a
    /// source towards others.
    Host,
}

/// Marks addresses (`IFA_PROTO`, Linux 5.18) and routes (`rtm_protocol`) as ours. The value is not registered
/// anywhere; it lies in the range left to users by the kernel's `rtnetlink.h` and `if_addr.h`.
pub const PROTOCOL: u8 = 203;

/// Marks the addresses without end of [`crate::DummyLink`] and [`crate::TunnelLink`]. Another mark than that of the
/// leases, because the same VIP can be both on a node, and the keeper removes whatever carries its own mark.
pub const PERMANENT_PROTOCOL: u8 = 204;

/// Metric of the prefix routes that we add: worse than any that the kernel adds with an address, so that a
/// covering address that appears later wins at once.
pub(crate) const ROUTE_METRIC: u32 = 1024;

/// Metric of the local routes of a dummy link's addresses: worse than that of the kernel's own, which is 0.
pub(crate) const LOCAL_METRIC: u32 = 203;

/// Address flags of `if_addr.h`.
pub mod address_flag {
    /// An IPv4 address that shares its subnet with an earlier one; `temporary` for IPv6.
    pub const SECONDARY: u32 = 0x01;
    /// No duplicate address detection.
    pub const NODAD: u32 = 0x02;
    /// Duplicate address detection found another owner.
    pub const DADFAILED: u32 = 0x08;
    /// Not to be chosen as a source.
    pub const DEPRECATED: u32 = 0x20;
    /// Duplicate address detection has not ended.
    pub const TENTATIVE: u32 = 0x40;
    /// Without a lifetime.
    pub const PERMANENT: u32 = 0x80;
    /// The kernel adds no route for the prefix.
    pub const NOPREFIXROUTE: u32 = 0x200;
}

/// Address and route scopes of `rtnetlink.h`.
pub mod scope {
    /// Valid everywhere.
    pub const UNIVERSE: u8 = 0;
    /// Valid on the link.
    pub const LINK: u8 = 253;
    /// Valid on this host.
    pub const HOST: u8 = 254;
}

/// A netlink message of a kind, with its body.
#[cfg(test)]
pub(crate) fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 16 + body.len()];
    let mut message = netlink_packet_core::NetlinkBuffer::new(&mut bytes);
    message.set_length(16 + u32::try_from(body.len()).unwrap());
    message.set_message_type(kind);
    message.payload_mut().copy_from_slice(body);
    bytes
}
