//! Statistics. A list may lack fields, which are then 0.

use super::DecodeError;
use super::attribute::{Attributes, Writer, attributes};
use super::layout::stats as kind;
use super::value::{u32_of, u64_of};
use crate::model::{Stats, Stats32};

pub(super) fn decode_stats(list: &[u8]) -> Result<Stats, DecodeError> {
    let mut stats = Stats::default();
    let number = |value| u64_of("stats64", value);
    for attribute in attributes(list) {
        let attribute = attribute?;
        let value = attribute.value;
        match attribute.number() {
            kind::CONNECTIONS => stats.connections = number(value)?,
            kind::INCOMING_PACKETS => stats.incoming_packets = number(value)?,
            kind::OUTGOING_PACKETS => stats.outgoing_packets = number(value)?,
            kind::INCOMING_BYTES => stats.incoming_bytes = number(value)?,
            kind::OUTGOING_BYTES => stats.outgoing_bytes = number(value)?,
            kind::CONNECTION_RATE => stats.connection_rate = number(value)?,
            kind::INCOMING_PACKET_RATE => stats.incoming_packet_rate = number(value)?,
            kind::OUTGOING_PACKET_RATE => stats.outgoing_packet_rate = number(value)?,
            kind::INCOMING_BYTE_RATE => stats.incoming_byte_rate = number(value)?,
            kind::OUTGOING_BYTE_RATE => stats.outgoing_byte_rate = number(value)?,
            _ => keep(&mut stats.other, attribute.kind, value)?,
        }
    }
    Ok(stats)
}

pub(super) fn put_stats(writer: &mut Writer<'_>, stats: &Stats) {
    writer.u64(kind::CONNECTIONS, stats.connections);
    writer.u64(kind::INCOMING_PACKETS, stats.incoming_packets);
    writer.u64(kind::OUTGOING_PACKETS, stats.outgoing_packets);
    writer.u64(kind::INCOMING_BYTES, stats.incoming_bytes);
    writer.u64(kind::OUTGOING_BYTES, stats.outgoing_bytes);
    writer.u64(kind::CONNECTION_RATE, stats.connection_rate);
    writer.u64(kind::INCOMING_PACKET_RATE, stats.incoming_packet_rate);
    writer.u64(kind::OUTGOING_PACKET_RATE, stats.outgoing_packet_rate);
    writer.u64(kind::INCOMING_BYTE_RATE, stats.incoming_byte_rate);
    writer.u64(kind::OUTGOING_BYTE_RATE, stats.outgoing_byte_rate);
    writer.others(&stats.other);
}

pub(super) fn decode_stats32(list: &[u8]) -> Result<Stats32, DecodeError> {
    let mut stats = Stats32::default();
    let number = |value| u32_of("stats", value);
    for attribute in attributes(list) {
        let attribute = attribute?;
        let value = attribute.value;
        match attribute.number() {
            kind::CONNECTIONS => stats.connections = number(value)?,
            kind::INCOMING_PACKETS => stats.incoming_packets = number(value)?,
            kind::OUTGOING_PACKETS => stats.outgoing_packets = number(value)?,
            kind::INCOMING_BYTES => stats.incoming_bytes = u64_of("stats", value)?,
            kind::OUTGOING_BYTES => stats.outgoing_bytes = u64_of("stats", value)?,
            kind::CONNECTION_RATE => stats.connection_rate = number(value)?,
            kind::INCOMING_PACKET_RATE => stats.incoming_packet_rate = number(value)?,
            kind::OUTGOING_PACKET_RATE => stats.outgoing_packet_rate = number(value)?,
            kind::INCOMING_BYTE_RATE => stats.incoming_byte_rate = number(value)?,
            kind::OUTGOING_BYTE_RATE => stats.outgoing_byte_rate = number(value)?,
            _ => keep(&mut stats.other, attribute.kind, value)?,
        }
    }
    Ok(stats)
}

pub(super) fn put_stats32(writer: &mut Writer<'_>, stats: &Stats32) {
    writer.u32(kind::CONNECTIONS, stats.connections);
    writer.u32(kind::INCOMING_PACKETS, stats.incoming_packets);
    writer.u32(kind::OUTGOING_PACKETS, stats.outgoing_packets);
    writer.u64(kind::INCOMING_BYTES, stats.incoming_bytes);
    writer.u64(kind::OUTGOING_BYTES, stats.outgoing_bytes);
    writer.u32(kind::CONNECTION_RATE, stats.connection_rate);
    writer.u32(kind::INCOMING_PACKET_RATE, stats.incoming_packet_rate);
    writer.u32(kind::OUTGOING_PACKET_RATE, stats.outgoing_packet_rate);
    writer.u32(kind::INCOMING_BYTE_RATE, stats.incoming_byte_rate);
    writer.u32(kind::OUTGOING_BYTE_RATE, stats.outgoing_byte_rate);
    writer.others(&stats.other);
}

/// Padding aligns the counters on some machines and says nothing.
fn keep(other: &mut Attributes, raw_kind: u16, value: &[u8]) -> Result<(), DecodeError> {
    if raw_kind == kind::PADDING && value.is_empty() {
        return Ok(());
    }
    other.push(raw_kind, value)
}
