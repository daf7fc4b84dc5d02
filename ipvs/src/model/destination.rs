//! Destinations, the real servers of a service.

use std::fmt;

use super::key::DestinationKey;
use super::stats::{Stats, Stats32, widest};
use crate::wire::Attributes;

/// A destination as it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Its key.
    pub key: DestinationKey,
    /// Forwarding method.
    pub method: ForwardMethod,
    /// Encapsulation; of no effect unless the method is [`ForwardMethod::TUNNEL`].
    pub tunnel: Tunnel,
    /// Its share.
    pub weight: Weight,
    /// From how many connections on it gets no new ones, up to 2³¹ − 1; 0 for no limit.
    pub upper_threshold: u32,
    /// Under how many connections it gets new ones again after that; at most the upper one, 0 for three quarters of
    /// it.
    pub lower_threshold: u32,
}

impl Destination {
    /// A destination of weight 1 without thresholds; tunnels are IPIP.
    #[must_use]
    pub const fn new(key: DestinationKey, method: ForwardMethod) -> Self {
        Self {
            key,
            method,
            tunnel: Tunnel::IPIP,
            weight: Weight::ONE,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }

    /// With another weight.
    #[must_use]
    pub const fn with_weight(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// With another tunnel.
    #[must_use]
    pub const fn with_tunnel(mut self, tunnel: Tunnel) -> Self {
        self.tunnel = tunnel;
        self
    }

    /// With thresholds, see [`Destination::upper_threshold`] and [`Destination::lower_threshold`].
    #[must_use]
    pub const fn with_thresholds(mut self, lower: u32, upper: u32) -> Self {
        self.lower_threshold = lower;
        self.upper_threshold = upper;
        self
    }
}

/// Forwarding method of a destination. The kernel keeps three bits of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardMethod(pub u32);

impl ForwardMethod {
    /// Masquerading (NAT): addresses are rewritten, replies come back through the director.
    pub const MASQUERADE: Self = Self(0);
    /// The destination is the director itself.
    pub const LOCAL: Self = Self(1);
    /// Packets are wrapped, see [`Tunnel`].
    pub const TUNNEL: Self = Self(2);
    /// Direct routing: packets go unchanged to the destination's link-layer address.
    pub const DIRECT_ROUTE: Self = Self(3);
    /// Around the cache to the original address; the kernel uses it by itself.
    pub const BYPASS: Self = Self(4);

    /// The bits that the kernel keeps.
    pub(crate) const MASK: u32 = 7;
}

impl fmt::Display for ForwardMethod {
    /// As `ipvsadm -L` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MASQUERADE => f.pad("Masq"),
            Self::LOCAL => f.pad("Local"),
            Self::TUNNEL => f.pad("Tunnel"),
            Self::DIRECT_ROUTE => f.pad("Route"),
            Self::BYPASS => f.pad("Bypass"),
            Self(other) => write!(f, "method {other}"),
        }
    }
}

impl fmt::Debug for ForwardMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Encapsulation of packets to a tunnelled destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tunnel {
    /// Encapsulation.
    pub kind: TunnelType,
    /// UDP port of the destination, for [`TunnelType::GUE`], where it must not be 0.
    pub port: u16,
    /// Checksums, for [`TunnelType::GUE`] and [`TunnelType::GRE`].
    pub flags: TunnelFlags,
}

impl Tunnel {
    /// IP in IP.
    pub const IPIP: Self = Self { kind: TunnelType::IPIP, port: 0, flags: TunnelFlags::NO_CHECKSUM };

    /// Generic UDP encapsulation (Linux 5.3) to `port`.
    #[must_use]
    pub const fn gue(port: u16, flags: TunnelFlags) -> Self {
        Self { kind: TunnelType::GUE, port, flags }
    }

    /// Generic routing encapsulation (Linux 5.3).
    #[must_use]
    pub const fn gre(flags: TunnelFlags) -> Self {
        Self { kind: TunnelType::GRE, port: 0, flags }
    }
}

/// An encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TunnelType(pub u8);

impl TunnelType {
    /// IP in IP.
    pub const IPIP: Self = Self(0);
    /// Generic UDP encapsulation.
    pub const GUE: Self = Self(1);
    /// Generic routing encapsulation.
    pub const GRE: Self = Self(2);
}

/// Checksum options of an encapsulation, `IP_VS_TUNNEL_ENCAP_FLAG_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TunnelFlags(pub u16);

impl TunnelFlags {
    /// Without.
    pub const NO_CHECKSUM: Self = Self(0);
    /// With.
    pub const CHECKSUM: Self = Self(1);
    /// Offloaded to the receiver (GUE only).
    pub const REMOTE_CHECKSUM: Self = Self(2);
}

/// The share of a destination, relative to the others of its service. The kernel accepts up to 2³¹ − 1, `ipvsadm`
/// up to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(pub u32);

impl Weight {
    /// Quiesced: no new connections, established ones go on.
    pub const QUIESCED: Self = Self(0);
    /// One share.
    pub const ONE: Self = Self(1);
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A destination as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DestinationEntry {
    /// Its configuration.
    pub destination: Destination,
    /// Established connections. For UDP the kernel counts every connection as inactive.
    pub active_connections: u32,
    /// All other connections.
    pub inactive_connections: u32,
    /// Clients that persistence binds to it.
    pub persistent_connections: u32,
    /// Statistics in the form of old kernels.
    pub stats32: Option<Stats32>,
    /// Statistics (Linux 4.1).
    pub stats64: Option<Stats>,
    /// Attributes that this crate does not know.
    pub other: Attributes,
}

impl DestinationEntry {
    /// A destination without connections and statistics.
    #[must_use]
    pub const fn new(destination: Destination) -> Self {
        Self {
            destination,
            active_connections: 0,
            inactive_connections: 0,
            persistent_connections: 0,
            stats32: None,
            stats64: None,
            other: Attributes::new(),
        }
    }

    /// The statistics, in the wider of the forms that the kernel sent.
    #[must_use]
    pub fn stats(&self) -> Stats {
        widest(self.stats64.as_ref(), self.stats32.as_ref())
    }
}
