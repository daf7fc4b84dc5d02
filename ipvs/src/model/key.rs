//! Keys of services and destinations.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressFamily {
    /// IPv4 (`AF_INET`).
    V4,
    /// IPv6 (`AF_INET6`).
    V6,
}

impl AddressFamily {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport protocol, by its IP protocol number. The kernel balances the three that have a name here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u16);

impl Protocol {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.pad("TCP"),
            Self::UDP => f.pad("UDP"),
            Self::SCTP => f.pad("SCTP"),
            Self(other) => write!(f, "protocol {other}"),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Key of a service, by which packets belong to it: addressed to an address, protocol and port, or carrying a firewall
/// mark. This is the whole identity of a service; everything else about it can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// By address.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// The virtual address.
        address: IpAddr,
        /// The port. 0 stands for all ports without a service of their own; such a service has to be persistent, or it
        /// refuses all connections.
        port: u16,
    },
    /// By firewall mark, whatever the addresses, protocols and ports are.
    Fwmark {
        /// The family of the packets: a mark has one service for each.
        family: AddressFamily,
        /// The mark.
        mark: NonZeroU32,
    },
}

impl ServiceKey {
    /// A TCP service.
    #[must_use]
    pub const fn tcp(address: IpAddr, port: u16) -> Self {
        Self::Address { protocol: Protocol::TCP, address, port }
    }

    /// A UDP service.
    #[must_use]
    pub const fn udp(address: IpAddr, port: u16) -> Self {
        Self::Address { protocol: Protocol::UDP, address, port }
    }

    /// An SCTP service.
    #[must_use]
    pub const fn sctp(address: IpAddr, port: u16) -> Self {
        Self::Address { protocol: Protocol::SCTP, address, port }
    }

    /// A service by firewall mark.
    #[must_use]
    pub const fn fwmark(family: AddressFamily, mark: NonZeroU32) -> Self {
        Self::Fwmark { family, mark }
    }

    /// The family of the service.
    #[must_use]
    pub const fn family(&self) -> AddressFamily {
        match *self {
            Self::Address { address, .. } => AddressFamily::of(address),
            Self::Fwmark { family, .. } => family,
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address { protocol, address, port } => {
                write!(f, "{protocol} {}", SocketAddr::new(address, port))
            }
            Self::Fwmark { family, mark } => write!(f, "fwmark {mark} ({family})"),
        }
    }
}

/// Key of a destination within its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// Address of the real server. Its family may differ from that of the service, but only with
    /// [`ForwardMethod::TUNNEL`](crate::ForwardMethod::TUNNEL) and while no sync daemon runs.
    pub address: IpAddr,
    /// Its port. Only masquerading changes the port of a packet; with the other methods `ipvsadm` always gives the
    /// port of the service, and so should you. 0 stands for the port of the packet.
    pub port: u16,
}

impl DestinationKey {
    /// A destination.
    #[must_use]
    pub const fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port }
    }

    /// The family of the destination.
    #[must_use]
    pub const fn family(&self) -> AddressFamily {
        AddressFamily::of(self.address)
    }
}

impl From<SocketAddr> for DestinationKey {
    /// Flow information and scope of an IPv6 address are left out.
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_like_in_ipvsadm() {
        let mark = ServiceKey::fwmark(AddressFamily::V6, NonZeroU32::MIN);
        assert_eq!(ServiceKey::tcp([10, 0, 0, 1].into(), 80).to_string(), "TCP 10.0.0.1:80");
        assert_eq!(ServiceKey::udp("fd00::1".parse().unwrap(), 53).to_string(), "UDP [fd00::1]:53");
        assert_eq!(mark.to_string(), "fwmark 1 (IPv6)");
        assert_eq!(Protocol(200).to_string(), "protocol 200");
    }
}
