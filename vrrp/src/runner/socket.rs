//! The sockets that advertisements travel through, one pair per interface and family.
//!
//! One socket serves all routers of an interface. With a socket per router the kernel copies every advertisement for
//! each of them: with 255 routers an advertisement cost 7 µs of kernel time with one socket, 55 µs with 255 sockets
//! that filter by identifier, and 113 µs and 255 wake-ups with 255 sockets that do not.
//!
//! IPv4 messages are sent through a raw socket and received by AF_PACKET. With strict reverse path filtering and two
//! interfaces in one subnet, a raw socket receives no message from a sender that the kernel would answer by the other
//! interface, and a host firewall may drop protocol 112 before it: either makes a router that hears nothing, and so a
//! second Active. A packet socket comes before both, as that of a DHCP client does. IPv6 has no reverse path filter of
//! its own, and its messages may be fragmented, which only the kernel reassembles.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use etherparse::Ipv4HeaderSlice;
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn, SockaddrIn6, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};

use super::link_layer;
use crate::types::{Family, HOP_LIMIT, IP_PROTOCOL, MULTICAST_V4, MULTICAST_V6, MacAddr};

/// More than the largest advertisement (255 IPv6 addresses) with its IP header.
pub(super) const MAX_PACKET: usize = 8192;

/// Room for a burst of 255 routers, many times over, while the thread is held up.
const RECEIVE_BUFFER: usize = 4 << 20;

/// CS6, internetwork control.
const TRAFFIC_CLASS: u32 = 0xc0;

/// The interface a socket is bound to, and whether it listens to the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) index: u32,
    pub(super) family: Family,
    pub(super) join: bool,
}

/// A received message with the fields of its IP header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Received<'a> {
    /// The link-layer source, where the socket reports it.
    pub(super) mac: Option<MacAddr>,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) hop_limit: u8,
    pub(super) message: &'a [u8],
}

/// The sockets for the messages of one family.
#[derive(Debug)]
pub(super) struct Messages {
    pub(super) receiver: OwnedFd,
    /// Sends, and is a member of the group; none where the receiver does both.
    pub(super) sender: Option<OwnedFd>,
}

/// Opens the sockets for the runner. Joining a group waits for the kernel's global network lock.
pub(super) fn open(binding: Binding) -> io::Result<Messages> {
    let raw = open_raw(binding)?;
    if binding.family == Family::V6 {
        return Ok(Messages { receiver: raw, sender: None });
    }
    link_layer::reject_all(raw.as_fd())?;
    let receiver = link_layer::open_receiver(binding.index)?;
    enlarge_receive_buffer(&SockRef::from(&receiver));
    Ok(Messages { receiver, sender: Some(raw) })
}

fn open_raw(binding: Binding) -> io::Result<OwnedFd> {
    let protocol = Some(Protocol::from(i32::from(IP_PROTOCOL)));
    let domain = match binding.family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, protocol)?;
    socket.set_nonblocking(true)?;
    bind_to_device(&socket, binding.index)?;
    enlarge_receive_buffer(&socket);
    match binding.family {
        Family::V4 => set_up_v4(&socket, binding)?,
        Family::V6 => set_up_v6(&socket, binding)?,
    }
    Ok(socket.into())
}

fn bind_to_device(socket: &Socket, index: u32) -> io::Result<()> {
    match socket.bind_device_by_index_v4(NonZeroU32::new(index)) {
        // Kernels before 5.0 bind by name only.
        Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {
            socket.bind_device(Some(if_indextoname(index)?.as_bytes()))
        }
        bound => bound,
    }
}

fn enlarge_receive_buffer(socket: &Socket) {
    // Both are best effort: without privilege the kernel caps the size at net.core.rmem_max.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _capped = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
}

fn set_up_v4(socket: &Socket, binding: Binding) -> io::Result<()> {
    socket.set_multicast_loop_v4(false)?;
    socket.set_multicast_all_v4(false)?;
    socket.set_multicast_ttl_v4(HOP_LIMIT.into())?;
    socket.set_ttl_v4(HOP_LIMIT.into())?;
    socket.set_tos_v4(TRAFFIC_CLASS)?;
    if binding.join {
        socket.join_multicast_v4_n(&MULTICAST_V4, &InterfaceIndexOrAddress::Index(binding.index))?;
    }
    Ok(())
}

fn set_up_v6(socket: &Socket, binding: Binding) -> io::Result<()> {
    socket.set_multicast_loop_v6(false)?;
    // Before 4.20 the option does not exist, and other programs' groups are heard, too.
    let _unknown = socket.set_multicast_all_v6(false);
    socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
    socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
    socket.set_tclass_v6(TRAFFIC_CLASS)?;
    socket.set_multicast_if_v6(binding.index)?;
    setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?;
    if binding.join {
        socket.join_multicast_v6(&MULTICAST_V6, binding.index)?;
    }
    Ok(())
}

/// The next message, if there is one; `WouldBlock` if not, `InvalidData` for a packet without a usable IP header.
pub(super) fn receive<'a>(
    fd: BorrowedFd<'_>,
    family: Family,
    buffer: &'a mut [u8],
) -> io::Result<Received<'a>> {
    match family {
        Family::V4 => receive_v4(fd, buffer),
        Family::V6 => receive_v6(fd, buffer),
    }
}

fn receive_v4<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
    let (len, mac) = {
        let mut parts = [IoSliceMut::new(&mut *buffer)];
        let received = recvmsg::<LinkAddr>(fd.as_raw_fd(), &mut parts, None, MsgFlags::MSG_TRUNC)?;
        (received.bytes, received.address.and_then(|address| address.addr()).map(MacAddr))
    };
    // MSG_TRUNC makes `len` the length of the packet, which may exceed the buffer.
    let packet = buffer.get(..len).ok_or_else(|| invalid("a packet larger than any advertisement"))?;
    parse_v4(packet, mac)
}

/// Takes an IPv4 packet apart as the kernel would: short frames are padded behind it, and its header has a checksum.
fn parse_v4(packet: &[u8], mac: Option<MacAddr>) -> io::Result<Received<'_>> {
    let header =
        Ipv4HeaderSlice::from_slice(packet).map_err(|_| invalid("an IPv4 header that cannot be read"))?;
    if header.to_header().calc_header_checksum() != header.header_checksum() {
        return Err(invalid("an IPv4 header with a bad checksum"));
    }
    let message = packet.get(header.slice().len()..header.total_len().into());
    Ok(Received {
        mac,
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        hop_limit: header.ttl(),
        message: message.ok_or_else(|| invalid("an IPv4 packet that is cut short"))?,
    })
}

fn receive_v6<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<Received<'a>> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let (len, source, destination, hop_limit) = {
        let mut parts = [IoSliceMut::new(&mut *buffer)];
        let received =
            recvmsg::<SockaddrIn6>(fd.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_TRUNC)?;
        let mut destination = None;
        let mut hop_limit = None;
        for message in received.cmsgs()? {
            match message {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = u8::try_from(limit).ok(),
                _ => {}
            }
        }
        (received.bytes, received.address.map(|address| address.ip()), destination, hop_limit)
    };
    let message = buffer.get(..len).ok_or_else(|| invalid("a packet larger than any advertisement"))?;
    let (Some(source), Some(destination), Some(hop_limit)) = (source, destination, hop_limit) else {
        return Err(invalid("the kernel did not report source, destination and hop limit"));
    };
    Ok(Received { mac: None, source: source.into(), destination: destination.into(), hop_limit, message })
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends `message` to `destination` from `source` through interface `index`; both addresses are of one family.
pub(super) fn send(
    fd: BorrowedFd<'_>,
    index: u32,
    source: IpAddr,
    destination: IpAddr,
    message: &[u8],
) -> io::Result<()> {
    let parts = [IoSlice::new(message)];
    let sent = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let info = packet_info_v4(index, source)?;
            let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
            sendmsg(
                fd.as_raw_fd(),
                &parts,
                &[ControlMessage::Ipv4PacketInfo(&info)],
                MsgFlags::empty(),
                Some(&to),
            )
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                ipi6_ifindex: index,
            };
            let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, index));
            sendmsg(
                fd.as_raw_fd(),
                &parts,
                &[ControlMessage::Ipv6PacketInfo(&info)],
                MsgFlags::empty(),
                Some(&to),
            )
        }
        _ => Err(Errno::EAFNOSUPPORT),
    };
    sent?;
    Ok(())
}

fn packet_info_v4(index: u32, source: Ipv4Addr) -> io::Result<libc::in_pktinfo> {
    Ok(libc::in_pktinfo {
        ipi_ifindex: libc::c_int::try_from(index).map_err(|_| invalid("an interface index out of range"))?,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
        ipi_addr: libc::in_addr { s_addr: 0 },
    })
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, Ipv4Header};

    use super::*;

    fn packet(message: &[u8]) -> Vec<u8> {
        let len = u16::try_from(message.len()).unwrap();
        let header = Ipv4Header::new(len, 255, IpNumber(IP_PROTOCOL), [10, 9, 0, 9], MULTICAST_V4.octets());
        let mut packet = header.unwrap().to_bytes().to_vec();
        packet.extend_from_slice(message);
        let checksum = Ipv4HeaderSlice::from_slice(&packet).unwrap().to_header().calc_header_checksum();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    #[test]
    fn a_message_ends_where_its_ip_packet_ends() {
        let mut padded = packet(&[1, 2, 3]);
        padded.resize(46, 0);
        let received = parse_v4(&padded, None).unwrap();
        assert_eq!((received.message, received.hop_limit), (&[1, 2, 3][..], 255));
        assert_eq!(received.source, IpAddr::from([10, 9, 0, 9]));
    }

    #[test]
    fn packets_that_the_ip_layer_would_drop_are_refused() {
        let good = packet(&[1, 2, 3]);
        assert!(parse_v4(&good, None).is_ok());
        for len in 0..good.len() {
            assert!(parse_v4(&good[..len], None).is_err(), "{len} bytes");
        }
        for at in 0..20 {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            assert!(parse_v4(&damaged, None).is_err(), "byte {at}");
        }
    }
}
