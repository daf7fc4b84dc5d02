//! A captured frame and its decoding.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use etherparse::{ArpOperation, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};

use crate::Mac;

/// The direction of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Travel {
    /// It arrived at the interface.
    In,
    /// It left by the interface.
    Out,
}

/// A captured Ethernet frame.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Frame {
    /// The time at which the kernel received it.
    pub at: Instant,
    /// The same time on the wall clock.
    pub wall: SystemTime,
    /// The direction, seen from the interface.
    pub travel: Travel,
    /// The interface that it passed; ports of the switch have the names of their nodes.
    pub interface: Arc<str>,
    /// The frame from its destination address on, without checksum. Checksums of TCP and UDP are not filled in.
    pub bytes: Vec<u8>,
}

/// A statement that a protocol address belongs to a hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Announcement {
    /// The address.
    pub ip: IpAddr,
    /// The hardware address that it belongs to.
    pub mac: Mac,
    /// The kind of message.
    pub kind: AnnouncementKind,
}

/// The message by which a node announces that it has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnnouncementKind {
    /// An ARP packet about the sender's own address, broadcast.
    GratuitousArp,
    /// An answer to an ARP request.
    ArpReply,
    /// An ARP request for another address, which also carries the sender's.
    ArpRequest,
    /// An unsolicited neighbour advertisement (RFC 4861 section 7.2.6).
    UnsolicitedNa {
        /// The Override flag: the advertisement replaces the receiver's cache entry.
        overrides: bool,
    },
    /// A neighbour advertisement that answers a solicitation.
    SolicitedNa {
        /// The Override flag: the advertisement replaces the receiver's cache entry.
        overrides: bool,
    },
}

/// A VRRP message, as far as tests need it; its checksum is not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VrrpAdvert {
    /// The hardware address of the frame's sender.
    pub mac: Mac,
    /// The IP source.
    pub source: IpAddr,
    /// The IP destination.
    pub destination: IpAddr,
    /// The time to live or hop limit.
    pub ttl: u8,
    /// 2 or 3.
    pub version: u8,
    /// The virtual router identifier.
    pub vrid: u8,
    /// The priority, 0 on resignation.
    pub priority: u8,
    /// The advertisement interval.
    pub interval: Duration,
    /// The bytes of the message.
    pub message: Vec<u8>,
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpSegment {
    /// The source address and port.
    pub source: SocketAddr,
    /// The destination address and port.
    pub destination: SocketAddr,
    /// The segment opens a connection.
    pub syn: bool,
    /// The segment acknowledges.
    pub ack: bool,
    /// The segment closes one direction.
    pub fin: bool,
    /// The segment resets the connection.
    pub rst: bool,
    /// Length of the payload, bytes.
    pub length: usize,
}

impl Frame {
    /// The hardware address of the sender.
    #[must_use]
    pub fn source_mac(&self) -> Option<Mac> {
        let packet = self.packet()?;
        Some(Mac(ethernet(&packet)?.source()))
    }

    /// The hardware address of the receiver or group.
    #[must_use]
    pub fn destination_mac(&self) -> Option<Mac> {
        let packet = self.packet()?;
        Some(Mac(ethernet(&packet)?.destination()))
    }

    /// The IP source.
    #[must_use]
    pub fn ip_source(&self) -> Option<IpAddr> {
        Some(Ip::of(&self.packet()?)?.source)
    }

    /// The IP destination.
    #[must_use]
    pub fn ip_destination(&self) -> Option<IpAddr> {
        Some(Ip::of(&self.packet()?)?.destination)
    }

    /// The remaining time to live or hop limit.
    #[must_use]
    pub fn hops(&self) -> Option<u8> {
        Some(Ip::of(&self.packet()?)?.ttl)
    }

    /// The announcement in it, if it is ARP or a neighbour advertisement.
    #[must_use]
    pub fn announcement(&self) -> Option<Announcement> {
        let packet = self.packet()?;
        match packet.net.as_ref()? {
            LaxNetSlice::Arp(arp) => {
                let arp = arp.to_packet();
                let sender = Ipv4Addr::from(<[u8; 4]>::try_from(arp.sender_protocol_addr()).ok()?);
                let mac = Mac(<[u8; 6]>::try_from(arp.sender_hw_addr()).ok()?);
                let kind = match arp.operation {
                    _ if arp.target_protocol_addr() == sender.octets() => AnnouncementKind::GratuitousArp,
                    ArpOperation::REPLY => AnnouncementKind::ArpReply,
                    _ => AnnouncementKind::ArpRequest,
                };
                // A probe (RFC 5227 section 1.1) has no sender address and announces nothing.
                (!sender.is_unspecified()).then_some(Announcement { ip: sender.into(), mac, kind })
            }
            LaxNetSlice::Ipv6(_) => neighbour_advertisement(&packet),
            LaxNetSlice::Ipv4(_) => None,
        }
    }

    /// The VRRP message in it.
    #[must_use]
    pub fn vrrp(&self) -> Option<VrrpAdvert> {
        let packet = self.packet()?;
        let ip = Ip::of(&packet)?;
        if ip.protocol != VRRP {
            return None;
        }
        let &[version_and_type, vrid, priority, _, high, low, ..] = ip.payload else { return None };
        let version = version_and_type >> 4;
        // Version 2 has an authentication type and seconds there, version 3 twelve bits of centiseconds.
        let interval = if version == 2 {
            Duration::from_secs(low.into())
        } else {
            Duration::from_millis(10 * u64::from(u16::from_be_bytes([high & 0x0f, low])))
        };
        Some(VrrpAdvert {
            mac: Mac(ethernet(&packet)?.source()),
            source: ip.source,
            destination: ip.destination,
            ttl: ip.ttl,
            version,
            vrid,
            priority,
            interval,
            message: ip.payload.to_vec(),
        })
    }

    /// The TCP segment in it.
    #[must_use]
    pub fn tcp(&self) -> Option<TcpSegment> {
        let packet = self.packet()?;
        let ip = Ip::of(&packet)?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        Some(TcpSegment {
            source: (ip.source, tcp.source_port()).into(),
            destination: (ip.destination, tcp.destination_port()).into(),
            syn: tcp.syn(),
            ack: tcp.ack(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            length: tcp.payload().len(),
        })
    }

    fn packet(&self) -> Option<LaxSlicedPacket<'_>> {
        LaxSlicedPacket::from_ethernet(&self.bytes).ok()
    }
}

/// The IP protocol of VRRP.
const VRRP: u8 = 112;

/// The fields that IPv4 and IPv6 headers have in common.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    protocol: u8,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn of(packet: &LaxSlicedPacket<'a>) -> Option<Self> {
        let (source, destination, ttl, payload) = match packet.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                let header = ip.header();
                (
                    IpAddr::from(header.source_addr()),
                    IpAddr::from(header.destination_addr()),
                    header.ttl(),
                    ip.payload(),
                )
            }
            LaxNetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    IpAddr::from(header.source_addr()),
                    IpAddr::from(header.destination_addr()),
                    header.hop_limit(),
                    ip.payload(),
                )
            }
            LaxNetSlice::Arp(_) => return None,
        };
        Some(Self { source, destination, ttl, protocol: payload.ip_number.0, payload: payload.payload })
    }
}

fn ethernet<'a>(packet: &LaxSlicedPacket<'a>) -> Option<etherparse::Ethernet2Slice<'a>> {
    match packet.link.as_ref()? {
        LinkSlice::Ethernet2(ethernet) => Some(ethernet.clone()),
        _ => None,
    }
}

/// Offsets within a neighbour advertisement (RFC 4861 section 4.4), and the flags in its fifth byte.
mod na {
    pub(super) const TYPE: u8 = 136;
    pub(super) const FLAGS: usize = 4;
    pub(super) const SOLICITED: u8 = 0x40;
    pub(super) const OVERRIDE: u8 = 0x20;
    pub(super) const TARGET: std::ops::Range<usize> = 8..24;
    /// The option "target link-layer address" of an Ethernet: type 2, length 1 unit of 8 bytes.
    pub(super) const TARGET_MAC: [u8; 2] = [2, 1];
}

fn neighbour_advertisement(packet: &LaxSlicedPacket<'_>) -> Option<Announcement> {
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { return None };
    let message = icmp.slice();
    if message.first() != Some(&na::TYPE) {
        return None;
    }
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(message.get(na::TARGET)?).ok()?);
    let flags = *message.get(na::FLAGS)?;
    let overrides = flags & na::OVERRIDE != 0;
    let kind = if flags & na::SOLICITED == 0 {
        AnnouncementKind::UnsolicitedNa { overrides }
    } else {
        AnnouncementKind::SolicitedNa { overrides }
    };
    let options = message.get(na::TARGET.end..)?.chunks_exact(8);
    let stated =
        options.filter(|option| option.starts_with(&na::TARGET_MAC)).find_map(|option| option.get(2..8));
    // Without the option, the announced address is the frame's sender.
    let mac = match stated {
        Some(mac) => Mac(mac.try_into().ok()?),
        None => Mac(ethernet(packet)?.source()),
    };
    Some(Announcement { ip: target.into(), mac, kind })
}
