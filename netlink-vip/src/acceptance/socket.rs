//! The sockets to ask with.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::AcceptanceError;
use super::packet::{self, Reply, Segment};

/// Ethernet, IPv6 and TCP headers with all options fit; longer frames are cut.
const FRAME: usize = 192;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IP_IN_IP: i32 = 4;
const IPV6_IN_IP: i32 = 41;
/// Length of an Ethernet address, in bytes.
const MAC: usize = 6;
/// Less than a microsecond would become zero on the way to the kernel, which means for ever.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// Route of a segment to a server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Route {
    /// In a frame to this link-layer address.
    Link([u8; 6]),
    /// In another packet to this address.
    Tunnel(IpAddr),
}

/// Sends segments, without a TCP connection of this node.
pub(super) struct Sender {
    link: Socket,
    tunnel: Socket,
}

impl Sender {
    pub(super) fn open(interface: &LinkAddr, source: IpAddr) -> Result<Self, AcceptanceError> {
        let link =
            Socket::new(Domain::PACKET, Type::RAW, None).map_err(privileged("opening a packet socket"))?;
        bind(link.as_raw_fd(), interface).map_err(refused("binding a packet socket"))?;
        let inside = if source.is_ipv4() { IP_IN_IP } else { IPV6_IN_IP };
        let domain = Domain::for_address(SocketAddr::new(source, 0));
        let tunnel = Socket::new(domain, Type::RAW, Some(Protocol::from(inside)))
            .map_err(privileged("opening a raw socket"))?;
        // What other tunnels bring is not for this socket.
        tunnel.attach_filter(&[filter::reject()]).map_err(failed("filtering a raw socket"))?;
        for socket in [&link, &tunnel] {
            socket.set_nonblocking(true).map_err(failed("preparing a socket"))?;
        }
        Ok(Self { link, tunnel })
    }

    /// `source` is the link-layer address of a frame.
    pub(super) fn send(&self, source: [u8; 6], route: Route, segment: &Segment) -> io::Result<()> {
        let packet = packet::packet(segment).ok_or(io::ErrorKind::InvalidInput)?;
        match route {
            Route::Link(mac) => self.link.send(&packet::frame(source, mac, &packet)).map(drop),
            Route::Tunnel(server) => {
                self.tunnel.send_to(&packet, &SockAddr::from(SocketAddr::new(server, 0))).map(drop)
            }
        }
    }
}

/// A TCP port of this node, reserved. Nothing is accepted there.
pub(super) struct Port {
    _socket: Socket,
    local: SocketAddr,
}

impl Port {
    pub(super) fn reserve(address: IpAddr, interface: u32) -> Result<Self, AcceptanceError> {
        let at = |port| match address {
            IpAddr::V4(_) => SocketAddr::new(address, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope_id(ip, interface)).into(),
        };
        let socket = Socket::new(Domain::for_address(at(0)), Type::STREAM, None)
            .map_err(failed("opening a TCP socket"))?;
        socket.bind(&at(0).into()).map_err(failed("reserving a TCP port"))?;
        let local = socket.local_addr().map_err(failed("reserving a TCP port"))?;
        let port = local.as_socket().map_or(0, |local| local.port());
        Ok(Self { _socket: socket, local: SocketAddr::new(address, port) })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }
}

fn scope_id(ip: Ipv6Addr, interface: u32) -> u32 {
    if ip.is_unicast_link_local() { interface } else { 0 }
}

/// Hears TCP segments to one port of this node that come in through one interface.
pub(super) struct Receiver(Socket);

impl Receiver {
    pub(super) fn open(interface: &LinkAddr, source: IpAddr) -> Result<Self, AcceptanceError> {
        let ether_type = if source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let protocol = Protocol::from(i32::from(ether_type.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
            .map_err(privileged("opening a packet socket"))?;
        socket.attach_filter(&[filter::reject()]).map_err(failed("filtering a packet socket"))?;
        bind(socket.as_raw_fd(), interface).map_err(refused("binding a packet socket"))?;
        Ok(Self(socket))
    }

    /// From now on only what comes to this port counts.
    pub(super) fn listen_to(&self, local: SocketAddr) -> Result<(), AcceptanceError> {
        let filter =
            if local.is_ipv4() { filter::tcp_to_v4(local.port()) } else { filter::tcp_to_v6(local.port()) };
        self.0.attach_filter(&filter).map_err(failed("filtering a packet socket"))?;
        loop {
            match recv(self.0.as_raw_fd(), &mut [0; FRAME], MsgFlags::MSG_DONTWAIT) {
                // That the interface was down meanwhile is reported once.
                Ok(_) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
                // Nothing is left, or what is wrong shows when answers are waited for.
                Err(_) => return Ok(()),
            }
        }
    }

    /// The next answer of a server, if one comes in time.
    pub(super) fn receive(&self, deadline: Instant) -> io::Result<Option<Reply>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.0.set_read_timeout(Some(left.max(MIN_WAIT)))?;
            let mut frame = [0; FRAME];
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(reply) = frame.get(..length).and_then(packet::reply) {
                        return Ok(Some(reply));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// The interface as packet sockets name it.
pub(super) fn ethernet_address(interface: &str) -> Result<LinkAddr, AcceptanceError> {
    let mut all = getifaddrs().map_err(refused("listing interfaces"))?;
    let found = all.find_map(|found| {
        if found.interface_name != interface {
            return None;
        }
        found.address?.as_link_addr().copied()
    });
    let address = found.ok_or_else(|| AcceptanceError::NoInterface(interface.to_owned()))?;
    if address.hatype() != libc::ARPHRD_ETHER || address.halen() != MAC {
        return Err(AcceptanceError::NotEthernet(interface.to_owned()));
    }
    Ok(address)
}

pub(super) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> AcceptanceError {
    move |source| AcceptanceError::Socket { operation, source }
}

fn refused(operation: &'static str) -> impl FnOnce(Errno) -> AcceptanceError {
    move |errno| AcceptanceError::Socket { operation, source: errno.into() }
}

fn privileged(operation: &'static str) -> impl FnOnce(io::Error) -> AcceptanceError {
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => AcceptanceError::Permission("CAP_NET_RAW"),
        _ => AcceptanceError::Socket { operation, source },
    }
}

/// Classic BPF programs over whole Ethernet frames.
mod filter {
    use super::{SockFilter, libc};

    const ETHERNET: u32 = 14;
    const IPV4_PROTOCOL: u32 = ETHERNET + 9;
    const IPV4_FRAGMENT: u32 = ETHERNET + 6;
    const IPV6_NEXT_HEADER: u32 = ETHERNET + 6;
    const IPV6_HEADER: u32 = 40;
    const DESTINATION_PORT: u32 = 2;
    const TCP: u32 = 6;
    /// Anything but the first piece of a packet.
    const FRAGMENT_OFFSET: u32 = 0x1fff;
    const WHOLE: u32 = u32::MAX;

    pub(super) fn reject() -> SockFilter {
        statement(libc::BPF_RET | libc::BPF_K, 0)
    }

    pub(super) fn tcp_to_v4(port: u16) -> Vec<SockFilter> {
        vec![
            statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, IPV4_PROTOCOL),
            jump(libc::BPF_JEQ, TCP, 0, 6),
            statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, IPV4_FRAGMENT),
            jump(libc::BPF_JSET, FRAGMENT_OFFSET, 4, 0),
            statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, ETHERNET),
            statement(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, ETHERNET + DESTINATION_PORT),
            jump(libc::BPF_JEQ, port.into(), 0, 1),
            statement(libc::BPF_RET | libc::BPF_K, WHOLE),
            reject(),
        ]
    }

    pub(super) fn tcp_to_v6(port: u16) -> Vec<SockFilter> {
        vec![
            statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, IPV6_NEXT_HEADER),
            jump(libc::BPF_JEQ, TCP, 0, 3),
            statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, ETHERNET + IPV6_HEADER + DESTINATION_PORT),
            jump(libc::BPF_JEQ, port.into(), 0, 1),
            statement(libc::BPF_RET | libc::BPF_K, WHOLE),
            reject(),
        ]
    }

    fn jump(condition: u32, k: u32, if_true: u8, if_false: u8) -> SockFilter {
        instruction(libc::BPF_JMP | condition | libc::BPF_K, k, if_true, if_false)
    }

    fn statement(code: u32, k: u32) -> SockFilter {
        instruction(code, k, 0, 0)
    }

    #[expect(clippy::cast_possible_truncation, reason = "every opcode of classic BPF fits into 16 bits")]
    fn instruction(code: u32, k: u32, if_true: u8, if_false: u8) -> SockFilter {
        SockFilter::new(code as u16, if_true, if_false, k)
    }
}
