//! Messages to and from the kernel: what we send is built from `netlink-packet-route`'s types, what we receive is
//! decoded here, attribute by attribute, so that one that cannot be read never costs the message it came in.

pub mod decode;
pub(crate) mod diag;
pub(crate) mod encode;
pub(crate) mod neighbour;

pub use decode::{DecodeError, Message, NetEvent, decode_event, decode_events, messages};

/// Marks addresses (`IFA_PROTO`, Linux 5.18) and routes (`rtm_protocol`) as ours. The value is registered with
/// nobody; it lies in the range left to users by the kernel's `rtnetlink.h` and `if_addr.h`.
pub const PROTOCOL: u8 = 203;

/// Marks the addresses without end of [`crate::DummyLink`] and [`crate::TunnelLink`]. Another mark than that of the
/// leases, because the same VIP can be both on a node, and the keeper removes whatever carries its own mark.
pub const PERMANENT_PROTOCOL: u8 = 204;

/// Metric of the prefix routes that we add: worse than any that the kernel adds with an address, so that a
/// covering address that appears later wins at once.
pub(crate) const ROUTE_METRIC: u32 = 1024;

/// Metric of the local routes of a dummy link's addresses: worse than that of the kernel's own, which is 0.
pub(crate) const LOCAL_METRIC: u32 = 203;

/// `RTPROT_KERNEL` of `rtnetlink.h`: a route that came with an address.
pub(crate) const PROTOCOL_KERNEL: u8 = 2;

/// Message types of `rtnetlink.h`.
pub(crate) mod kind {
    pub(crate) const NLMSG_ERROR: u16 = 2;
    pub(crate) const NLMSG_DONE: u16 = 3;
    pub(crate) const NEWLINK: u16 = 16;
    pub(crate) const DELLINK: u16 = 17;
    pub(crate) const NEWADDR: u16 = 20;
    pub(crate) const DELADDR: u16 = 21;
    pub(crate) const NEWROUTE: u16 = 24;
    pub(crate) const DELROUTE: u16 = 25;
    pub(crate) const NEWNEIGH: u16 = 28;
    pub(crate) const NEWADDRLABEL: u16 = 72;
}

/// Address families as the kernel numbers them.
pub(crate) mod family {
    pub(crate) const UNSPEC: u8 = 0;
    pub(crate) const INET: u8 = 2;
    pub(crate) const INET6: u8 = 10;
}

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
