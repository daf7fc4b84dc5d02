//! The UDP socket of a channel on one interface.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::wire::PORT;
use crate::types::{Family, HOP_LIMIT};

/// The socket of a channel: bound to one interface, and deaf to what a router has forwarded (RFC 5082).
#[derive(Debug)]
pub struct ChannelSocket {
    socket: UdpSocket,
    index: u32,
    source: IpAddr,
}

impl ChannelSocket {
    /// Opens a socket that sends from `source` on an interface, and receives what is sent there to this host or to the
    /// group of VRRP. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// The operating system refuses: the interface is gone, its address too, or another process has the port.
    pub fn open(interface: &str, index: u32, source: IpAddr) -> io::Result<Self> {
        let family = Family::of(source);
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        // Before it is bound, so that nothing of another interface arrives.
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.attach_filter(&near_only(family))?;
        match family.multicast() {
            IpAddr::V4(group) => {
                socket.set_ttl_v4(HOP_LIMIT.into())?;
                socket.set_multicast_ttl_v4(HOP_LIMIT.into())?;
                socket.set_multicast_loop_v4(false)?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
                socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))?;
            }
            IpAddr::V6(group) => {
                socket.set_only_v6(true)?;
                socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
                socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
                socket.set_multicast_loop_v6(false)?;
                socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
                socket.join_multicast_v6(&group, index)?;
            }
        }
        Ok(Self { socket: UdpSocket::from_std(socket.into())?, index, source })
    }

    /// The next datagram: its length and its source.
    ///
    /// # Errors
    ///
    /// The operating system reports an error of the interface.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, IpAddr)> {
        let (len, from) = self.socket.recv_from(buffer).await?;
        Ok((len, from.ip()))
    }

    /// Sends a datagram. One that does not fit the socket's buffer is lost, as on the network.
    ///
    /// # Errors
    ///
    /// The operating system refuses, for instance because there is no route.
    pub fn send(&self, to: IpAddr, bytes: &[u8]) -> io::Result<()> {
        self.socket.try_io(Interest::WRITABLE, || self.send_now(to, bytes)).or_else(|error| {
            if error.kind() == io::ErrorKind::WouldBlock { self.send_now(to, bytes) } else { Err(error) }
        })
    }

    /// The group of the socket's family.
    #[must_use]
    pub const fn group(&self) -> IpAddr {
        Family::of(self.source).multicast()
    }

    /// The address that it sends from.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        self.source
    }

    /// The index of the interface and the address that it sends from.
    #[must_use]
    pub const fn place(&self) -> (u32, IpAddr) {
        (self.index, self.source)
    }

    fn send_now(&self, to: IpAddr, bytes: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(bytes)];
        let fd = self.socket.as_raw_fd();
        match (self.source, to) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: libc::c_int::try_from(self.index)
                        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let to = SockaddrIn::from(SocketAddrV4::new(to, PORT));
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&to))?;
            }
            (IpAddr::V6(source), IpAddr::V6(to)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: self.index,
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(to, PORT, 0, self.index));
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(fd, &parts, &control, MsgFlags::empty(), Some(&to))?;
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }
}

/// Accepts packets whose TTL or hop limit says that no router has forwarded them.
fn near_only(family: Family) -> [SockFilter; 4] {
    // The TTL in the header of IPv4 (RFC 791 §3.1), the hop limit in that of IPv6 (RFC 8200 §3).
    let offset: u32 = if family == Family::V4 { 8 } else { 7 };
    let load = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    let jump_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        // Offsets from here on count from the header of the network layer.
        SockFilter::new(load, 0, 0, libc::SKF_NET_OFF.cast_unsigned() + offset),
        SockFilter::new(jump_equal, 0, 1, HOP_LIMIT.into()),
        SockFilter::new(give, 0, 0, u32::MAX),
        SockFilter::new(give, 0, 0, 0),
    ]
}
