//! Source addresses of outgoing connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc::EADDRNOTAVAIL;
use socket2::{Domain, Protocol, Socket, Type};

/// Distinguishes the two meanings of EADDRNOTAVAIL from `connect(2)`: no local port is free, which says nothing about
/// the backend, or this host has no source address for the backend, as for every IPv6 address where IPv6 is disabled.
/// The second becomes [`io::ErrorKind::NetworkUnreachable`].
pub(crate) fn connect_error(error: io::Error, has_source: impl FnOnce() -> bool) -> io::Error {
    if error.raw_os_error() != Some(EADDRNOTAVAIL) || has_source() {
        return error;
    }
    io::Error::new(io::ErrorKind::NetworkUnreachable, "this host has no source address for it")
}

/// Returns whether this host has a source address for packets to `target` with this `SO_MARK` (0 for none). Sends
/// nothing. An inconclusive test, for instance without a free descriptor, returns `true`.
pub(crate) fn has_source(target: SocketAddr, mark: u32) -> bool {
    let unspecified: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let kind = Type::DGRAM.nonblocking().cloexec();
    let Ok(socket) = Socket::new(Domain::for_address(target), kind, Some(Protocol::UDP)) else { return true };
    if mark != 0 {
        let _ = socket.set_mark(mark);
    }
    // The socket has a port already, so only an address can be missing.
    if socket.bind(&SocketAddr::new(unspecified, 0).into()).is_err() {
        return true;
    }
    !socket.connect(&target.into()).is_err_and(|error| error.raw_os_error() == Some(EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shortage::Shortage;

    #[test]
    fn eaddrnotavail_means_a_missing_port_only_with_a_source_address() {
        let error = || io::Error::from_raw_os_error(EADDRNOTAVAIL);
        assert_eq!(Shortage::of(&connect_error(error(), || true)), Some(Shortage::Ports));
        let unreachable = connect_error(error(), || false);
        assert_eq!(unreachable.kind(), io::ErrorKind::NetworkUnreachable);
        assert_eq!(Shortage::of(&unreachable), None);
        let other = connect_error(io::Error::from_raw_os_error(nix::libc::EMFILE), || false);
        assert_eq!(Shortage::of(&other), Some(Shortage::Descriptors));
        assert!(has_source("127.0.0.1:9".parse().unwrap(), 0));
    }
}
