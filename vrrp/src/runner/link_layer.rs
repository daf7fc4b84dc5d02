//! AF_PACKET: sending announcements, and watching for those of other nodes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::types::Family;

/// An announcement fits (a gratuitous ARP has 42 bytes, an NA with its option 86); longer frames are cut.
pub(super) const MAX_FRAME: usize = 256;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Whether a watching socket passes announcements on. It stays open and bound either way, because binding waits for
/// every CPU of the host, and a successor's announcement may follow a resignation within microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    On,
    Off,
}

/// Opens a socket that sends whole frames through interface `index` and receives none.
pub(super) fn open_sender(index: u32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    bind_to(&socket, index)?;
    Ok(socket.into())
}

/// Opens a socket that receives the announcements on interface `index`, switched off at first.
pub(super) fn open_watcher(index: u32, family: Family) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol_of(family)))?;
    socket.set_nonblocking(true)?;
    watch(socket.as_fd(), family, Watching::Off)?;
    bind_to(&socket, index)?;
    // Between its creation and the filter the socket heard every interface.
    while recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()).is_ok() {}
    Ok(socket.into())
}

/// Switches a watcher on or off.
pub(super) fn watch(fd: BorrowedFd<'_>, family: Family, watching: Watching) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    match (watching, family) {
        (Watching::Off, _) => socket.attach_filter(&[filter::reject()]),
        (Watching::On, Family::V4) => socket.attach_filter(&filter::gratuitous_arp()),
        (Watching::On, Family::V6) => socket.attach_filter(&filter::neighbour_advertisement()),
    }
}

/// The next frame; `WouldBlock` if there is none.
pub(super) fn receive<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let len = recv(fd.as_raw_fd(), buffer, MsgFlags::empty())?;
    Ok(&buffer[..len])
}

/// Sends one frame.
pub(super) fn send(fd: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    nix::sys::socket::send(fd.as_raw_fd(), frame, MsgFlags::empty())?;
    Ok(())
}

fn protocol_of(family: Family) -> Protocol {
    let ether_type = match family {
        Family::V4 => ETHERTYPE_ARP,
        Family::V6 => ETHERTYPE_IPV6,
    };
    Protocol::from(i32::from(ether_type.to_be()))
}

/// Binds to an interface and keeps the protocol the socket was created with.
fn bind_to(socket: &Socket, index: u32) -> io::Result<()> {
    bind(socket.as_raw_fd(), &link_address(index)?)?;
    Ok(())
}

/// The link-layer address of an interface, as the C library reports it: there is no safe constructor of one.
fn link_address(index: u32) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter_map(|interface| interface.address?.as_link_addr().copied())
        .find(|address| u32::try_from(address.ifindex()) == Ok(index))
        .ok_or_else(|| io::Error::from(Errno::ENODEV))
}

/// Classic BPF programs over whole Ethernet frames.
mod filter {
    use super::{ETHERTYPE_ARP, ETHERTYPE_IPV6, SockFilter, libc};

    const ETHER_TYPE: u32 = 12;
    const ARP_SENDER_IP: u32 = 28;
    const ARP_TARGET_IP: u32 = 38;
    const IPV6_NEXT_HEADER: u32 = 20;
    const ICMPV6_TYPE: u32 = 54;

    const ICMPV6: u32 = 58;
    const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
    const WHOLE: u32 = u32::MAX;

    pub(super) fn reject() -> SockFilter {
        statement(libc::BPF_RET | libc::BPF_K, 0)
    }

    fn accept() -> SockFilter {
        statement(libc::BPF_RET | libc::BPF_K, WHOLE)
    }

    /// ARP about the sender's own address, as request or reply.
    pub(super) fn gratuitous_arp() -> [SockFilter; 8] {
        [
            load(libc::BPF_H, ETHER_TYPE),
            unless_equal(ETHERTYPE_ARP.into(), 5),
            load(libc::BPF_W, ARP_SENDER_IP),
            statement(libc::BPF_MISC | libc::BPF_TAX, 0),
            load(libc::BPF_W, ARP_TARGET_IP),
            jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X, 0, 0, 1),
            accept(),
            reject(),
        ]
    }

    /// Any neighbour advertisement without extension headers.
    pub(super) fn neighbour_advertisement() -> [SockFilter; 8] {
        [
            load(libc::BPF_H, ETHER_TYPE),
            unless_equal(ETHERTYPE_IPV6.into(), 5),
            load(libc::BPF_B, IPV6_NEXT_HEADER),
            unless_equal(ICMPV6, 3),
            load(libc::BPF_B, ICMPV6_TYPE),
            unless_equal(NEIGHBOUR_ADVERTISEMENT, 1),
            accept(),
            reject(),
        ]
    }

    fn load(size: u32, offset: u32) -> SockFilter {
        statement(libc::BPF_LD | size | libc::BPF_ABS, offset)
    }

    /// Skips `skipped` statements unless the accumulator is `value`.
    fn unless_equal(value: u32, skipped: u8) -> SockFilter {
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skipped)
    }

    fn statement(code: u32, k: u32) -> SockFilter {
        jump(code, k, 0, 0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "every opcode of classic BPF fits into 16 bits")]
    fn jump(code: u32, k: u32, if_true: u8, if_false: u8) -> SockFilter {
        SockFilter::new(code as u16, if_true, if_false, k)
    }
}
