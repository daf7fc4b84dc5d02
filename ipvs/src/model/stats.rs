//! Statistics of services and destinations.

use crate::wire::Attributes;

/// Traffic through a service or to a destination since it was added or last zeroed, and the current rates. The
/// kernel sums up and estimates every two seconds; all values are as old as that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub incoming_packets: u64,
    /// Packets to clients, as far as they pass through this director.
    pub outgoing_packets: u64,
    /// Bytes from clients.
    pub incoming_bytes: u64,
    /// Bytes to clients, as far as they pass through this director.
    pub outgoing_bytes: u64,
    /// Connections per second.
    pub connection_rate: u64,
    /// Packets from clients per second.
    pub incoming_packet_rate: u64,
    /// Packets to clients per second.
    pub outgoing_packet_rate: u64,
    /// Bytes from clients per second.
    pub incoming_byte_rate: u64,
    /// Bytes to clients per second.
    pub outgoing_byte_rate: u64,
    /// Attributes that this crate does not know.
    pub other: Attributes,
}

/// The same in the form of kernels before 4.1, whose counters of connections and packets, and whose rates, wrap
/// around at 2³². Later kernels send it beside [`Stats`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats32 {
    /// Connections scheduled.
    pub connections: u32,
    /// Packets from clients.
    pub incoming_packets: u32,
    /// Packets to clients.
    pub outgoing_packets: u32,
    /// Bytes from clients.
    pub incoming_bytes: u64,
    /// Bytes to clients.
    pub outgoing_bytes: u64,
    /// Connections per second.
    pub connection_rate: u32,
    /// Packets from clients per second.
    pub incoming_packet_rate: u32,
    /// Packets to clients per second.
    pub outgoing_packet_rate: u32,
    /// Bytes from clients per second.
    pub incoming_byte_rate: u32,
    /// Bytes to clients per second.
    pub outgoing_byte_rate: u32,
    /// Attributes that this crate does not know.
    pub other: Attributes,
}

impl From<&Stats32> for Stats {
    fn from(stats: &Stats32) -> Self {
        Self {
            connections: stats.connections.into(),
            incoming_packets: stats.incoming_packets.into(),
            outgoing_packets: stats.outgoing_packets.into(),
            incoming_bytes: stats.incoming_bytes,
            outgoing_bytes: stats.outgoing_bytes,
            connection_rate: stats.connection_rate.into(),
            incoming_packet_rate: stats.incoming_packet_rate.into(),
            outgoing_packet_rate: stats.outgoing_packet_rate.into(),
            incoming_byte_rate: stats.incoming_byte_rate.into(),
            outgoing_byte_rate: stats.outgoing_byte_rate.into(),
            other: stats.other.clone(),
        }
    }
}

/// The wider of the two forms that a message carried, zeros if it carried none.
pub(super) fn widest(wide: Option<&Stats>, narrow: Option<&Stats32>) -> Stats {
    wide.cloned().or_else(|| narrow.map(Stats::from)).unwrap_or_default()
}
