//! Destinations.

use super::DecodeError;
use super::attribute::{Attributes, Raw, Writer, attributes};
use super::layout::destination as kind;
use super::stats::{decode_stats, decode_stats32, put_stats, put_stats32};
use super::value::{
    address_of, family_number, family_of, guess_family, put_address, u8_of, u16_be_of, u16_of, u32_of,
};
use crate::model::{
    AddressFamily, Destination, DestinationEntry, DestinationKey, ForwardMethod, Stats, Stats32, Tunnel,
    TunnelFlags, TunnelType, Weight,
};

/// In the order of a request.
pub(super) fn put_key(writer: &mut Writer<'_>, key: &DestinationKey) {
    writer.u16(kind::FAMILY, family_number(key.family()));
    put_address(writer, kind::ADDRESS, key.address);
    writer.u16_be(kind::PORT, key.port);
}

/// In the order of a request.
pub(super) fn put_destination(writer: &mut Writer<'_>, destination: &Destination) {
    put_key(writer, &destination.key);
    put_settings(writer, destination);
}

fn put_settings(writer: &mut Writer<'_>, destination: &Destination) {
    writer.u32(kind::METHOD, destination.method.0);
    writer.u32(kind::WEIGHT, destination.weight.0);
    writer.u8(kind::TUNNEL_TYPE, destination.tunnel.kind.0);
    writer.u16_be(kind::TUNNEL_PORT, destination.tunnel.port);
    writer.u16(kind::TUNNEL_FLAGS, destination.tunnel.flags.0);
    writer.u32(kind::UPPER_THRESHOLD, destination.upper_threshold);
    writer.u32(kind::LOWER_THRESHOLD, destination.lower_threshold);
}

/// In the order of a reply.
pub(super) fn put_entry(writer: &mut Writer<'_>, entry: &DestinationEntry) {
    let destination = &entry.destination;
    put_address(writer, kind::ADDRESS, destination.key.address);
    writer.u16_be(kind::PORT, destination.key.port);
    put_settings(writer, destination);
    writer.u32(kind::ACTIVE, entry.active_connections);
    writer.u32(kind::INACTIVE, entry.inactive_connections);
    writer.u32(kind::PERSISTENT, entry.persistent_connections);
    writer.u16(kind::FAMILY, family_number(destination.key.family()));
    if let Some(stats) = &entry.stats32 {
        writer.nest(kind::STATS, |writer| put_stats32(writer, stats));
    }
    if let Some(stats) = &entry.stats64 {
        writer.nest(kind::STATS64, |writer| put_stats(writer, stats));
    }
    writer.others(&entry.other);
}

/// Attributes of a destination. Kernels before 5.3 know of no tunnel types; what they leave out
/// is 0.
#[derive(Default)]
struct Fields<'a> {
    family: Option<AddressFamily>,
    address: Option<&'a [u8]>,
    port: Option<u16>,
    method: u32,
    weight: u32,
    tunnel: Tunnel,
    upper_threshold: u32,
    lower_threshold: u32,
    active: u32,
    inactive: u32,
    persistent: u32,
    stats32: Option<Stats32>,
    stats64: Option<Stats>,
    other: Attributes,
}

impl<'a> Fields<'a> {
    fn read(list: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Self::default();
        for attribute in attributes(list) {
            fields.take(attribute?)?;
        }
        Ok(fields)
    }

    fn take(&mut self, attribute: Raw<'a>) -> Result<(), DecodeError> {
        let value = attribute.value;
        match attribute.number() {
            kind::FAMILY => {
                // Old tools say 0 for "that of the service".
                let number = u16_of("destination family", value)?;
                self.family = (number != 0).then(|| family_of(number)).transpose()?;
            }
            kind::ADDRESS => self.address = Some(value),
            kind::PORT => self.port = Some(u16_be_of("destination port", value)?),
            kind::METHOD => self.method = u32_of("forwarding method", value)?,
            kind::WEIGHT => self.weight = u32_of("weight", value)?,
            kind::TUNNEL_TYPE => self.tunnel.kind = TunnelType(u8_of("tunnel type", value)?),
            kind::TUNNEL_PORT => self.tunnel.port = u16_be_of("tunnel port", value)?,
            kind::TUNNEL_FLAGS => self.tunnel.flags = TunnelFlags(u16_of("tunnel flags", value)?),
            kind::UPPER_THRESHOLD => self.upper_threshold = u32_of("upper threshold", value)?,
            kind::LOWER_THRESHOLD => self.lower_threshold = u32_of("lower threshold", value)?,
            kind::ACTIVE => self.active = u32_of("active connections", value)?,
            kind::INACTIVE => self.inactive = u32_of("inactive connections", value)?,
            kind::PERSISTENT => self.persistent = u32_of("persistent connections", value)?,
            kind::STATS => self.stats32 = Some(decode_stats32(value)?),
            kind::STATS64 => self.stats64 = Some(decode_stats(value)?),
            _ => self.other.push(attribute.kind, value)?,
        }
        Ok(())
    }

    fn key(&self) -> Result<DestinationKey, DecodeError> {
        let address = self.address.ok_or(DecodeError::Missing { what: "destination address" })?;
        let port = self.port.ok_or(DecodeError::Missing { what: "destination port" })?;
        let family = self.family.unwrap_or_else(|| guess_family(address));
        Ok(DestinationKey::new(address_of("destination address", family, address)?, port))
    }

    fn destination(&self) -> Result<Destination, DecodeError> {
        Ok(Destination {
            key: self.key()?,
            method: ForwardMethod(self.method),
            tunnel: self.tunnel,
            weight: Weight(self.weight),
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
        })
    }
}

pub(super) fn decode_key(list: &[u8]) -> Result<DestinationKey, DecodeError> {
    Fields::read(list)?.key()
}

pub(super) fn decode_destination(list: &[u8]) -> Result<Destination, DecodeError> {
    Fields::read(list)?.destination()
}

pub(super) fn decode_entry(list: &[u8]) -> Result<DestinationEntry, DecodeError> {
    let fields = Fields::read(list)?;
    let mut entry = DestinationEntry::new(fields.destination()?);
    entry.active_connections = fields.active;
    entry.inactive_connections = fields.inactive;
    entry.persistent_connections = fields.persistent;
    entry.stats32 = fields.stats32;
    entry.stats64 = fields.stats64;
    entry.other = fields.other;
    Ok(entry)
}
