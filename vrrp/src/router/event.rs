//! The inputs of a [`VirtualRouter`](super::VirtualRouter).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::config::RouterConfig;

/// The kind of destination of an advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// To the group of its family.
    Multicast,
    /// To an address of this host.
    Unicast,
}

/// The circumstances of an advertisement: fields of its IP header, and its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RxMeta {
    /// The source address, which breaks ties.
    pub source: IpAddr,
    /// The TTL or hop limit; only 255 proves that a message was not forwarded.
    pub hop_limit: u8,
    /// The kind of destination.
    pub delivery: Delivery,
    /// Set if the message was signed and the signature verified; see [`hmac`](crate::hmac).
    pub signed: bool,
}

/// An event of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InterfaceEvent {
    /// It is up (with carrier) and has these source addresses. Also sent when the addresses change.
    Up {
        /// The source of IPv4 advertisements. Never a virtual address.
        v4: Option<Ipv4Addr>,
        /// The source of IPv6 advertisements, the link-local one for multicast. Never a virtual address.
        v6: Option<Ipv6Addr>,
    },
    /// It is down or gone.
    Down,
}

/// An event of the virtual addresses on the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VipEvent {
    /// All of them are there.
    Installed,
    /// Another program removed one. Drain the sockets before reporting it: a rival may be Active already.
    Missing,
    /// They could not be refreshed in time or at all.
    LeaseLost,
}

/// A command of the operator or the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// This node can serve, which is valid until the given time unless it is repeated.
    Serving {
        /// The time from which the evidence is too old.
        until: Instant,
    },
    /// This node cannot serve.
    NotServing,
    /// The addresses of the cluster's controllers as far as they are known, this node's own among them if it is
    /// listed; replaces the former set.
    Controllers(BTreeSet<IpAddr>),
    /// Hand the addresses over and stop for good.
    Resign,
    /// Hand the addresses over and wait behind the successor, without asking for them back during the hold time. If no
    /// router takes over within Active_Down_Interval, go on as Active. Without effect on a router that is not Active.
    HandOver,
    /// The router at `active` is about to hand over to the one at `successor`; to be given to every router of the group.
    ///
    /// If that Active resigns before `until`, the successor takes over at once, if it can serve. Each other router waits an
    /// interval longer than after any resignation, follows the successor whatever its priority, and does not ask for the
    /// addresses during the hold time.
    Succession {
        /// The source of the Active's advertisements.
        active: IpAddr,
        /// The source of the successor's advertisements.
        successor: IpAddr,
        /// The time from which a resignation is one like any other.
        until: Instant,
    },
    /// The addresses of the other routers; replaces [`RouterConfig::peers`]. Nothing else changes, also during a handover.
    Peers(Vec<IpAddr>),
    /// Go on with another configuration.
    ///
    /// The state is kept unless the identity of the router changes: its identifier, its deciding family or the version
    /// of that.
    Reconfigure(Box<RouterConfig>),
}
