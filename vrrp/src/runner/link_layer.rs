//! AF_PACKET: sending announcements, watching for those of other nodes, and receiving IPv4 advertisements.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::types::{Family, IP_PROTOCOL};

/// An announcement fits (a gratuitous ARP has 42 bytes, an NA with its option 86); longer frames are cut.
pub(crate) const MAX_FRAME: usize = 256;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The announcements that a watching socket passes on. It stays open and bound either way, because binding waits for
/// every CPU of the host, and a successor's announcement may follow a resignation within microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watching<'a> {
    /// Those of these addresses. The receiver compares them again: of IPv6 addresses only the last four bytes are
    /// filtered, and of a long list none.
    For(&'a [IpAddr]),
    /// Those of these addresses, and every other ARP packet that one of them sends.
    Senders(&'a [IpAddr]),
    /// None.
    Off,
}

/// Opens a socket that sends whole frames through interface `index` and receives none.
pub(crate) fn open_sender(index: u32) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    bind_to(&socket, index)?;
    Ok(socket.into())
}

/// Opens a socket that receives the announcements on interface `index`, switched off at first.
pub(crate) fn open_watcher(index: u32, family: Family) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol_of(family)))?;
    socket.set_nonblocking(true)?;
    watch(socket.as_fd(), family, Watching::Off)?;
    bind_to(&socket, index)?;
    drain(&socket);
    Ok(socket.into())
}

/// Sets the announcements that a watcher receives.
pub(crate) fn watch(fd: BorrowedFd<'_>, family: Family, watching: Watching<'_>) -> io::Result<()> {
    match (watching, family) {
        (Watching::Off, _) => reject_all(fd),
        (Watching::For(addresses), Family::V4) => {
            SockRef::from(&fd).attach_filter(&filter::gratuitous_arp(addresses))
        }
        (Watching::Senders(addresses), Family::V4) => {
            SockRef::from(&fd).attach_filter(&filter::arp_sender(addresses))
        }
        (Watching::For(addresses) | Watching::Senders(addresses), Family::V6) => {
            SockRef::from(&fd).attach_filter(&filter::neighbour_advertisement(addresses))
        }
    }
}

/// Makes a socket receive nothing.
pub(super) fn reject_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).attach_filter(&[filter::reject()])
}

/// Opens a socket that receives the IPv4 packets of protocol 112 on interface `index`, from the IP header on, but for
/// those that this host sends or that are for another one.
pub(super) fn open_receiver(index: u32) -> io::Result<OwnedFd> {
    let protocol = Protocol::from(i32::from(ETHERTYPE_IPV4.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.set_nonblocking(true)?;
    reject_all(socket.as_fd())?;
    bind_to(&socket, index)?;
    drain(&socket);
    socket.attach_filter(&filter::advertisement())?;
    Ok(socket.into())
}

/// Discards queued packets: before its filter was attached, the socket received from every interface.
fn drain(socket: &Socket) {
    while recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()).is_ok() {}
}

/// The next frame; `WouldBlock` if there is none.
pub(crate) fn receive<'a>(fd: BorrowedFd<'_>, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let len = recv(fd.as_raw_fd(), buffer, MsgFlags::empty())?;
    Ok(&buffer[..len])
}

/// Sends one frame.
pub(crate) fn send(fd: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
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

/// Classic BPF programs, over whole Ethernet frames but for [`advertisement`].
mod filter {
    use super::{ETHERTYPE_ARP, ETHERTYPE_IPV6, IP_PROTOCOL, IpAddr, SockFilter, libc};

    /// The offset at which the kernel shows the kind of a packet instead of its bytes.
    const PACKET_KIND: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    const ETHER_TYPE: u32 = 12;
    const ARP_SENDER_IP: u32 = 28;
    const ARP_TARGET_IP: u32 = 38;
    const IPV6_NEXT_HEADER: u32 = 20;
    const ICMPV6_TYPE: u32 = 54;

    const NA_TARGET_LAST_WORD: u32 = 14 + 40 + 8 + 12;
    const IPV4_FRAGMENT: u32 = 6;
    const IPV4_PROTOCOL: u32 = 9;

    /// More fragments, or an offset.
    const FRAGMENTED: u32 = 0x3fff;
    /// The first kind of packet that is not for this host (`PACKET_OTHERHOST`); the next one is sent by it.
    const OTHER_HOST: u32 = 3;
    /// Skips count up to 255; a list of so many addresses is compared by the receiver only.
    const LONGEST_LIST: usize = 200;
    const ICMPV6: u32 = 58;
    const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
    const WHOLE: u32 = u32::MAX;

    pub(super) fn reject() -> SockFilter {
        statement(libc::BPF_RET | libc::BPF_K, 0)
    }

    fn accept() -> SockFilter {
        statement(libc::BPF_RET | libc::BPF_K, WHOLE)
    }

    /// A whole VRRP packet over IPv4, from its IP header on, that is for this host.
    pub(super) fn advertisement() -> [SockFilter; 8] {
        [
            load(libc::BPF_B, PACKET_KIND),
            jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, OTHER_HOST, 5, 0),
            load(libc::BPF_B, IPV4_PROTOCOL),
            unless_equal(IP_PROTOCOL.into(), 3),
            load(libc::BPF_H, IPV4_FRAGMENT),
            jump(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, FRAGMENTED, 1, 0),
            accept(),
            reject(),
        ]
    }

    /// ARP about the sender's own address, as request or reply, if that is one of `addresses`.
    pub(super) fn gratuitous_arp(addresses: &[IpAddr]) -> Vec<SockFilter> {
        let mut program = vec![
            load(libc::BPF_H, ETHER_TYPE),
            if_equal(ETHERTYPE_ARP.into()),
            reject(),
            load(libc::BPF_W, ARP_SENDER_IP),
            statement(libc::BPF_MISC | libc::BPF_TAX, 0),
            load(libc::BPF_W, ARP_TARGET_IP),
            jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_X, 0, 1, 0),
            reject(),
        ];
        accept_one_of(&mut program, v4_words(addresses));
        program
    }

    /// ARP with one of `addresses` as its sender.
    pub(super) fn arp_sender(addresses: &[IpAddr]) -> Vec<SockFilter> {
        let mut program = vec![
            load(libc::BPF_H, ETHER_TYPE),
            if_equal(ETHERTYPE_ARP.into()),
            reject(),
            load(libc::BPF_W, ARP_SENDER_IP),
        ];
        accept_one_of(&mut program, v4_words(addresses));
        program
    }

    fn v4_words(addresses: &[IpAddr]) -> Vec<u32> {
        let words = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4.to_bits()),
            IpAddr::V6(_) => None,
        });
        words.collect()
    }

    /// A neighbour advertisement without extension headers with a target that ends as one of `addresses` does.
    pub(super) fn neighbour_advertisement(addresses: &[IpAddr]) -> Vec<SockFilter> {
        let mut program = vec![
            load(libc::BPF_H, ETHER_TYPE),
            if_equal(ETHERTYPE_IPV6.into()),
            reject(),
            load(libc::BPF_B, IPV6_NEXT_HEADER),
            if_equal(ICMPV6),
            reject(),
            load(libc::BPF_B, ICMPV6_TYPE),
            if_equal(NEIGHBOUR_ADVERTISEMENT),
            reject(),
            load(libc::BPF_W, NA_TARGET_LAST_WORD),
        ];
        let words = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => v6.octets().last_chunk().copied().map(u32::from_be_bytes),
        });
        accept_one_of(&mut program, words.collect());
        program
    }

    /// Ends a program: accepts if the accumulator is one of `words`.
    fn accept_one_of(program: &mut Vec<SockFilter>, words: Vec<u32>) {
        if words.len() <= LONGEST_LIST {
            let count = words.len();
            program.extend(words.into_iter().enumerate().map(|(index, word)| {
                let skipped = u8::try_from(count - index).unwrap_or(u8::MAX);
                jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, word, skipped, 0)
            }));
            program.push(reject());
        }
        program.push(accept());
    }

    fn load(size: u32, offset: u32) -> SockFilter {
        statement(libc::BPF_LD | size | libc::BPF_ABS, offset)
    }

    /// Skips the next statement if the accumulator is `value`.
    fn if_equal(value: u32) -> SockFilter {
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 1, 0)
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
