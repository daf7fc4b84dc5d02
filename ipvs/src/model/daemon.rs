//! Sync daemons, timeouts, and what the kernel says about itself.

use std::fmt;
use std::net::IpAddr;

use super::name::InterfaceName;
use super::service::Seconds;
use crate::wire::Attributes;

/// A daemon of the kernel that keeps the connection tables of several directors alike by multicast.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncDaemon {
    /// Sending or receiving. There can be one of each.
    pub state: SyncState,
    /// The interface of the multicast.
    pub interface: InterfaceName,
    /// Number that tells several groups of directors on a network apart, 0 to 255. A backup with 0 accepts all.
    pub sync_id: u32,
    /// The longest message in bytes, without IP and UDP headers; by default as the interface allows, at most 1472.
    pub max_length: Option<u16>,
    /// The multicast group; by default 224.0.0.81.
    pub group: Option<IpAddr>,
    /// The UDP port; by default 8848.
    pub port: Option<u16>,
    /// The time to live of the messages; by default 1.
    pub ttl: Option<u8>,
    /// Attributes that this crate does not know.
    pub other: Attributes,
}

impl SyncDaemon {
    /// A daemon with the kernel's defaults.
    #[must_use]
    pub const fn new(state: SyncState, interface: InterfaceName, sync_id: u32) -> Self {
        Self {
            state,
            interface,
            sync_id,
            max_length: None,
            group: None,
            port: None,
            ttl: None,
            other: Attributes::new(),
        }
    }
}

/// The side of a sync daemon.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncState(pub u32);

impl SyncState {
    /// Sends.
    pub const MASTER: Self = Self(1);
    /// Receives.
    pub const BACKUP: Self = Self(2);
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MASTER => f.pad("master"),
            Self::BACKUP => f.pad("backup"),
            Self(other) => write!(f, "state {other}"),
        }
    }
}

impl fmt::Debug for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// After how much silence the kernel forgets a connection. A protocol that it was built without has 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// An established TCP connection; 900 s unless set.
    pub tcp: Seconds,
    /// A TCP connection after a FIN; 120 s unless set.
    pub tcp_fin: Seconds,
    /// UDP; 300 s unless set.
    pub udp: Seconds,
}

/// New timeouts; what is `None` stays as it is. The kernel takes up to 2³¹ − 1 divided by its tick rate, which is
/// 24 days at the least, and reads 0 as "as it is".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeoutChange {
    /// For [`Timeouts::tcp`].
    pub tcp: Option<Seconds>,
    /// For [`Timeouts::tcp_fin`].
    pub tcp_fin: Option<Seconds>,
    /// For [`Timeouts::udp`].
    pub udp: Option<Seconds>,
}

impl From<Timeouts> for TimeoutChange {
    fn from(timeouts: Timeouts) -> Self {
        Self { tcp: Some(timeouts.tcp), tcp_fin: Some(timeouts.tcp_fin), udp: Some(timeouts.udp) }
    }
}

/// Version and size of the kernel's IPVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Its version.
    pub version: Version,
    /// Rows of the connection table (a module parameter, 4096 unless set).
    pub connection_table_size: u32,
}

impl Info {
    /// The information of a kernel of a version.
    #[must_use]
    pub const fn new(version: Version, connection_table_size: u32) -> Self {
        Self { version, connection_table_size }
    }
}

/// A version of IPVS: 8 bits each of major, minor and patch number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, major, minor, patch] = self.0.to_be_bytes();
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_like_in_ipvsadm() {
        assert_eq!(Version(0x01_02_01).to_string(), "1.2.1");
    }
}
