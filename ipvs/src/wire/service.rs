//! Services.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use super::DecodeError;
use super::attribute::{Attributes, Raw, Writer, attributes};
use super::layout::service as kind;
use super::stats::{decode_stats, decode_stats32, put_stats, put_stats32};
use super::value::{address_of, family_number, family_of, put_address, text_of, u16_be_of, u16_of, u32_of};
use crate::model::{
    AddressFamily, EngineName, NameError, Netmask, Protocol, SchedulerName, Seconds, Service, ServiceEntry,
    ServiceFlags, ServiceKey, Stats, Stats32,
};

pub(super) fn put_key(writer: &mut Writer<'_>, key: &ServiceKey) {
    writer.u16(kind::FAMILY, family_number(key.family()));
    match *key {
        ServiceKey::Fwmark { mark, .. } => writer.u32(kind::FWMARK, mark.get()),
        ServiceKey::Address { protocol, address, port } => {
            writer.u16(kind::PROTOCOL, protocol.0);
            put_address(writer, kind::ADDRESS, address);
            writer.u16_be(kind::PORT, port);
        }
    }
}

pub(super) fn put_service(writer: &mut Writer<'_>, service: &Service) {
    put_key(writer, &service.key());
    writer.text(kind::SCHEDULER, service.scheduler.as_str());
    if let Some(engine) = service.engine {
        writer.text(kind::ENGINE, engine.as_str());
    }
    let [f0, f1, f2, f3] = service.flags.0.to_ne_bytes();
    let [m0, m1, m2, m3] = service.flags_mask.0.to_ne_bytes();
    writer.bytes(kind::FLAGS, &[f0, f1, f2, f3, m0, m1, m2, m3]);
    writer.u32(kind::TIMEOUT, service.timeout.0);
    match service.netmask() {
        Netmask::V4(mask) => writer.bytes(kind::NETMASK, &mask.octets()),
        Netmask::V6(length) => writer.u32(kind::NETMASK, length),
    }
}

pub(super) fn put_entry(writer: &mut Writer<'_>, entry: &ServiceEntry) {
    put_service(writer, &entry.service);
    if let Some(stats) = &entry.stats32 {
        writer.nest(kind::STATS, |writer| put_stats32(writer, stats));
    }
    if let Some(stats) = &entry.stats64 {
        writer.nest(kind::STATS64, |writer| put_stats(writer, stats));
    }
    writer.others(&entry.other);
}

/// Attributes of a service.
#[derive(Default)]
struct Fields<'a> {
    family: Option<AddressFamily>,
    protocol: Option<u16>,
    address: Option<&'a [u8]>,
    port: Option<u16>,
    fwmark: Option<u32>,
    scheduler: Option<SchedulerName>,
    engine: Option<EngineName>,
    flags: ServiceFlags,
    flags_mask: Option<ServiceFlags>,
    timeout: Seconds,
    netmask: Option<&'a [u8]>,
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
            kind::FAMILY => self.family = Some(family_of(u16_of("service family", value)?)?),
            kind::PROTOCOL => self.protocol = Some(u16_of("service protocol", value)?),
            kind::ADDRESS => self.address = Some(value),
            kind::PORT => self.port = Some(u16_be_of("service port", value)?),
            kind::FWMARK => self.fwmark = Some(u32_of("fwmark", value)?),
            kind::SCHEDULER => self.scheduler = name("scheduler", value, SchedulerName::new)?,
            kind::ENGINE => self.engine = name("persistence engine", value, EngineName::new)?,
            kind::FLAGS => {
                self.flags = ServiceFlags(u32_of("service flags", value)?);
                let mask = value.get(4..8).and_then(|mask| u32_of("service flags", mask).ok());
                self.flags_mask = mask.map(ServiceFlags);
            }
            kind::TIMEOUT => self.timeout = Seconds(u32_of("persistence timeout", value)?),
            kind::NETMASK => self.netmask = Some(value),
            kind::STATS => self.stats32 = Some(decode_stats32(value)?),
            kind::STATS64 => self.stats64 = Some(decode_stats(value)?),
            _ => self.other.push(attribute.kind, value)?,
        }
        Ok(())
    }

    fn key(&self) -> Result<ServiceKey, DecodeError> {
        let family = self.family.ok_or(DecodeError::Missing { what: "service family" })?;
        if let Some(mark) = self.fwmark.and_then(NonZeroU32::new) {
            return Ok(ServiceKey::Fwmark { family, mark });
        }
        let protocol = self.protocol.ok_or(DecodeError::Missing { what: "service protocol" })?;
        let address = self.address.ok_or(DecodeError::Missing { what: "service address" })?;
        let port = self.port.ok_or(DecodeError::Missing { what: "service port" })?;
        let address = address_of("service address", family, address)?;
        Ok(ServiceKey::Address { protocol: Protocol(protocol), address, port })
    }

    fn netmask(&self, family: AddressFamily) -> Result<Netmask, DecodeError> {
        let Some(value) = self.netmask else { return Ok(Netmask::full(family)) };
        match family {
            AddressFamily::V4 => match address_of("netmask", family, value)? {
                IpAddr::V4(mask) => Ok(Netmask::V4(mask)),
                IpAddr::V6(_) => Ok(Netmask::V4(Ipv4Addr::BROADCAST)),
            },
            AddressFamily::V6 => u32_of("netmask", value).map(Netmask::V6),
        }
    }

    fn service(&self) -> Result<Service, DecodeError> {
        let key = self.key()?;
        let scheduler = self.scheduler.ok_or(DecodeError::Missing { what: "scheduler" })?;
        let netmask = self.netmask(key.family())?;
        let mut service = Service::new(key, scheduler)
            .with_netmask(netmask)
            .map_err(|_| DecodeError::UnknownFamily { number: family_number(netmask.family()) })?;
        service.flags = self.flags;
        service.flags_mask = self.flags_mask.unwrap_or(ServiceFlags::ALL);
        service.timeout = self.timeout;
        service.engine = self.engine;
        Ok(service)
    }
}

/// A name, or none if it is empty, as the kernel reads an engine and `ipvsadm` leaves out a scheduler.
fn name<T>(
    what: &'static str,
    value: &[u8],
    check: impl Fn(&str) -> Result<T, NameError>,
) -> Result<Option<T>, DecodeError> {
    match check(text_of(what, value)?) {
        Ok(name) => Ok(Some(name)),
        Err(NameError::Empty) => Ok(None),
        Err(_) => Err(DecodeError::Text { what }),
    }
}

pub(super) fn decode_key(list: &[u8]) -> Result<ServiceKey, DecodeError> {
    Fields::read(list)?.key()
}

pub(super) fn decode_service(list: &[u8]) -> Result<Service, DecodeError> {
    Fields::read(list)?.service()
}

pub(super) fn decode_entry(list: &[u8]) -> Result<ServiceEntry, DecodeError> {
    let fields = Fields::read(list)?;
    let mut entry = ServiceEntry::new(fields.service()?);
    entry.stats32 = fields.stats32;
    entry.stats64 = fields.stats64;
    entry.other = fields.other;
    Ok(entry)
}
