//! Sync daemons, timeouts, information.

use std::net::IpAddr;

use super::DecodeError;
use super::attribute::{Attributes, Writer, attributes};
use super::layout::{command, daemon as kind, info};
use super::value::{address_of, text_of, u8_of, u16_of, u32_of};
use crate::model::{
    AddressFamily, Info, InterfaceName, Seconds, SyncDaemon, SyncState, TimeoutChange, Timeouts, Version,
};

pub(super) fn put_state(writer: &mut Writer<'_>, state: SyncState) {
    writer.u32(kind::STATE, state.0);
}

pub(super) fn put_daemon(writer: &mut Writer<'_>, daemon: &SyncDaemon) {
    put_state(writer, daemon.state);
    writer.text(kind::INTERFACE, daemon.interface.as_str());
    writer.u32(kind::SYNC_ID, daemon.sync_id);
    if let Some(length) = daemon.max_length {
        writer.u16(kind::MAX_LENGTH, length);
    }
    // Unlike the other ports, this one is in the byte order of the machine.
    if let Some(port) = daemon.port {
        writer.u16(kind::PORT, port);
    }
    if let Some(ttl) = daemon.ttl {
        writer.u8(kind::TTL, ttl);
    }
    match daemon.group {
        Some(IpAddr::V4(group)) => writer.bytes(kind::GROUP, &group.octets()),
        Some(IpAddr::V6(group)) => writer.bytes(kind::GROUP6, &group.octets()),
        None => {}
    }
    writer.others(&daemon.other);
}

pub(super) fn decode_state(list: &[u8]) -> Result<SyncState, DecodeError> {
    let mut state = None;
    for attribute in attributes(list) {
        let attribute = attribute?;
        if attribute.number() == kind::STATE {
            state = Some(SyncState(u32_of("sync state", attribute.value)?));
        }
    }
    state.ok_or(DecodeError::Missing { what: "sync state" })
}

pub(super) fn decode_daemon(list: &[u8]) -> Result<SyncDaemon, DecodeError> {
    let (mut state, mut interface, mut sync_id) = (None, None, 0);
    let (mut max_length, mut group, mut port, mut ttl) = (None, None, None, None);
    let mut other = Attributes::new();
    for attribute in attributes(list) {
        let attribute = attribute?;
        let value = attribute.value;
        match attribute.number() {
            kind::STATE => state = Some(SyncState(u32_of("sync state", value)?)),
            kind::INTERFACE => {
                let name = InterfaceName::new(text_of("sync interface", value)?);
                interface = Some(name.map_err(|_| DecodeError::Text { what: "sync interface" })?);
            }
            kind::SYNC_ID => sync_id = u32_of("sync id", value)?,
            kind::MAX_LENGTH => max_length = Some(u16_of("sync message length", value)?),
            kind::GROUP => group = Some(address_of("sync group", AddressFamily::V4, value)?),
            kind::GROUP6 => group = Some(address_of("sync group", AddressFamily::V6, value)?),
            kind::PORT => port = Some(u16_of("sync port", value)?),
            kind::TTL => ttl = Some(u8_of("sync TTL", value)?),
            _ => other.push(attribute.kind, value)?,
        }
    }
    let state = state.ok_or(DecodeError::Missing { what: "sync state" })?;
    let interface = interface.ok_or(DecodeError::Missing { what: "sync interface" })?;
    let mut daemon = SyncDaemon::new(state, interface, sync_id);
    daemon.max_length = max_length;
    daemon.group = group;
    daemon.port = port;
    daemon.ttl = ttl;
    daemon.other = other;
    Ok(daemon)
}

pub(super) fn put_timeouts(writer: &mut Writer<'_>, change: &TimeoutChange) {
    let fields = [
        (command::TIMEOUT_TCP, change.tcp),
        (command::TIMEOUT_TCP_FIN, change.tcp_fin),
        (command::TIMEOUT_UDP, change.udp),
    ];
    for (kind, timeout) in fields {
        if let Some(Seconds(timeout)) = timeout {
            writer.u32(kind, timeout);
        }
    }
}

pub(super) fn decode_timeouts(list: &[u8]) -> Result<(TimeoutChange, Attributes), DecodeError> {
    let (mut change, mut other) = (TimeoutChange::default(), Attributes::new());
    for attribute in attributes(list) {
        let attribute = attribute?;
        let seconds = || u32_of("timeout", attribute.value).map(|seconds| Some(Seconds(seconds)));
        match attribute.number() {
            command::TIMEOUT_TCP => change.tcp = seconds()?,
            command::TIMEOUT_TCP_FIN => change.tcp_fin = seconds()?,
            command::TIMEOUT_UDP => change.udp = seconds()?,
            _ => other.push(attribute.kind, attribute.value)?,
        }
    }
    Ok((change, other))
}

pub(super) fn timeouts(change: TimeoutChange) -> Timeouts {
    Timeouts {
        tcp: change.tcp.unwrap_or_default(),
        tcp_fin: change.tcp_fin.unwrap_or_default(),
        udp: change.udp.unwrap_or_default(),
    }
}

pub(super) fn put_info(writer: &mut Writer<'_>, value: &Info) {
    writer.u32(info::VERSION, value.version.0);
    writer.u32(info::CONNECTION_TABLE_SIZE, value.connection_table_size);
}

pub(super) fn decode_info(list: &[u8]) -> Result<(Info, Attributes), DecodeError> {
    let (mut version, mut size, mut other) = (None, None, Attributes::new());
    for attribute in attributes(list) {
        let attribute = attribute?;
        match attribute.number() {
            info::VERSION => version = Some(Version(u32_of("version", attribute.value)?)),
            info::CONNECTION_TABLE_SIZE => size = Some(u32_of("connection table size", attribute.value)?),
            _ => other.push(attribute.kind, attribute.value)?,
        }
    }
    let version = version.ok_or(DecodeError::Missing { what: "version" })?;
    let size = size.ok_or(DecodeError::Missing { what: "connection table size" })?;
    Ok((Info::new(version, size), other))
}
