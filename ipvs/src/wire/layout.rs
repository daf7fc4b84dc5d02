//! Numbers of the family (`linux/ip_vs.h`), in one place.

/// The name of the family.
pub const FAMILY_NAME: &str = "IPVS";
/// The version of the family.
pub const FAMILY_VERSION: u8 = 1;

/// `CTRL_ATTR_FAMILY_ID`, in messages of the controller of generic netlink.
#[cfg(feature = "client")]
pub(super) const CONTROL_FAMILY_ID: u16 = 1;

/// Address families.
pub(super) mod family {
    pub(in crate::wire) const INET: u16 = 2;
    pub(in crate::wire) const INET6: u16 = 10;
}

/// `IPVS_CMD_ATTR_*`
pub(super) mod command {
    pub(in crate::wire) const SERVICE: u16 = 1;
    pub(in crate::wire) const DESTINATION: u16 = 2;
    pub(in crate::wire) const DAEMON: u16 = 3;
    pub(in crate::wire) const TIMEOUT_TCP: u16 = 4;
    pub(in crate::wire) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(in crate::wire) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`
pub(super) mod service {
    pub(in crate::wire) const FAMILY: u16 = 1;
    pub(in crate::wire) const PROTOCOL: u16 = 2;
    pub(in crate::wire) const ADDRESS: u16 = 3;
    pub(in crate::wire) const PORT: u16 = 4;
    pub(in crate::wire) const FWMARK: u16 = 5;
    pub(in crate::wire) const SCHEDULER: u16 = 6;
    pub(in crate::wire) const FLAGS: u16 = 7;
    pub(in crate::wire) const TIMEOUT: u16 = 8;
    pub(in crate::wire) const NETMASK: u16 = 9;
    pub(in crate::wire) const STATS: u16 = 10;
    pub(in crate::wire) const ENGINE: u16 = 11;
    pub(in crate::wire) const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`
pub(super) mod destination {
    pub(in crate::wire) const ADDRESS: u16 = 1;
    pub(in crate::wire) const PORT: u16 = 2;
    pub(in crate::wire) const METHOD: u16 = 3;
    pub(in crate::wire) const WEIGHT: u16 = 4;
    pub(in crate::wire) const UPPER_THRESHOLD: u16 = 5;
    pub(in crate::wire) const LOWER_THRESHOLD: u16 = 6;
    pub(in crate::wire) const ACTIVE: u16 = 7;
    pub(in crate::wire) const INACTIVE: u16 = 8;
    pub(in crate::wire) const PERSISTENT: u16 = 9;
    pub(in crate::wire) const STATS: u16 = 10;
    pub(in crate::wire) const FAMILY: u16 = 11;
    pub(in crate::wire) const STATS64: u16 = 12;
    pub(in crate::wire) const TUNNEL_TYPE: u16 = 13;
    pub(in crate::wire) const TUNNEL_PORT: u16 = 14;
    pub(in crate::wire) const TUNNEL_FLAGS: u16 = 15;
}

/// `IPVS_DAEMON_ATTR_*`
pub(super) mod daemon {
    pub(in crate::wire) const STATE: u16 = 1;
    pub(in crate::wire) const INTERFACE: u16 = 2;
    pub(in crate::wire) const SYNC_ID: u16 = 3;
    pub(in crate::wire) const MAX_LENGTH: u16 = 4;
    pub(in crate::wire) const GROUP: u16 = 5;
    pub(in crate::wire) const GROUP6: u16 = 6;
    pub(in crate::wire) const PORT: u16 = 7;
    pub(in crate::wire) const TTL: u16 = 8;
}

/// `IPVS_STATS_ATTR_*`, the same for both forms.
pub(super) mod stats {
    pub(in crate::wire) const CONNECTIONS: u16 = 1;
    pub(in crate::wire) const INCOMING_PACKETS: u16 = 2;
    pub(in crate::wire) const OUTGOING_PACKETS: u16 = 3;
    pub(in crate::wire) const INCOMING_BYTES: u16 = 4;
    pub(in crate::wire) const OUTGOING_BYTES: u16 = 5;
    pub(in crate::wire) const CONNECTION_RATE: u16 = 6;
    pub(in crate::wire) const INCOMING_PACKET_RATE: u16 = 7;
    pub(in crate::wire) const OUTGOING_PACKET_RATE: u16 = 8;
    pub(in crate::wire) const INCOMING_BYTE_RATE: u16 = 9;
    pub(in crate::wire) const OUTGOING_BYTE_RATE: u16 = 10;
    pub(in crate::wire) const PADDING: u16 = 11;
}

/// `IPVS_INFO_ATTR_*`
pub(super) mod info {
    pub(in crate::wire) const VERSION: u16 = 1;
    pub(in crate::wire) const CONNECTION_TABLE_SIZE: u16 = 2;
}
