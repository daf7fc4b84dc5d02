//! The check that a server on this node listens on a virtual address.
//!
//! It reads the kernel's list of sockets, because the server would log a test connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_vip::sessions::Listener;

/// The addresses on which a port is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listening {
    /// On the virtual address, or on all.
    Reachable,
    /// On other addresses only.
    Elsewhere,
}

/// Classifies the listeners of the port of `vip`; `None` without any.
pub(super) fn classify(vip: SocketAddr, listeners: &[Listener]) -> Option<Listening> {
    let mut at_port = listeners.iter().filter(|listener| listener.local.port() == vip.port()).peekable();
    at_port.peek()?;
    let reachable = at_port.any(|listener| accepts(listener, vip.ip()));
    Some(if reachable { Listening::Reachable } else { Listening::Elsewhere })
}

/// Returns whether the listener accepts connections to the address.
fn accepts(listener: &Listener, vip: IpAddr) -> bool {
    let all = match listener.local.ip().to_canonical() {
        IpAddr::V4(ip) => ip == Ipv4Addr::UNSPECIFIED && vip.is_ipv4(),
        // IPv6 listeners accept IPv4 connections, too, unless IPV6_V6ONLY is set.
        IpAddr::V6(ip) => ip == Ipv6Addr::UNSPECIFIED && (vip.is_ipv6() || !listener.is_v6_only),
    };
    all || listener.local.ip().to_canonical() == vip
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use netlink_vip::sessions::{self, SessionsError};

    use super::*;

    fn classified(vip: &str, all: &[&str], is_v6_only: bool) -> Option<Listening> {
        let listener = |local: &&str| Listener { local: local.parse().unwrap(), is_v6_only };
        classify(vip.parse().unwrap(), &all.iter().map(listener).collect::<Vec<_>>())
    }

    #[test]
    fn a_listener_on_all_addresses_or_the_virtual_one_is_reachable() {
        let classified = |vip: &str, all: &[&str]| classified(vip, all, false);
        assert_eq!(classified("10.0.0.100:6443", &[]), None);
        assert_eq!(classified("10.0.0.100:6443", &["0.0.0.0:6444"]), None);
        assert_eq!(classified("10.0.0.100:6443", &["10.0.0.11:6443"]), Some(Listening::Elsewhere));
        for good in [
            "0.0.0.0:6443",
            "[::]:6443",
            "[::ffff:0.0.0.0]:6443",
            "10.0.0.100:6443",
            "[::ffff:10.0.0.100]:6443",
        ] {
            assert_eq!(classified("10.0.0.100:6443", &["10.0.0.11:6443", good]), Some(Listening::Reachable));
        }
        for other in ["0.0.0.0:6443", "[::ffff:0.0.0.0]:6443", "[fd00::11]:6443"] {
            assert_eq!(classified("[fd00::100]:6443", &[other]), Some(Listening::Elsewhere));
        }
        assert_eq!(classified("[fd00::100]:6443", &["[::]:6443"]), Some(Listening::Reachable));
    }

    #[test]
    fn a_v6_only_listener_is_not_reachable_over_ipv4() {
        assert_eq!(classified("10.0.0.100:6443", &["[::]:6443"], true), Some(Listening::Elsewhere));
        assert_eq!(classified("[fd00::100]:6443", &["[::]:6443"], true), Some(Listening::Reachable));
    }

    #[test]
    fn listeners_of_the_kernel_are_classified_by_address() {
        let v4 = TcpListener::bind("127.0.0.1:0").unwrap();
        let all = TcpListener::bind("[::]:0").unwrap();
        let listeners = match sessions::listeners() {
            Err(SessionsError::Unsupported) => return,
            listed => listed.unwrap(),
        };
        let at = |host: u8, socket: &TcpListener| {
            classify(([127, 0, 0, host], socket.local_addr().unwrap().port()).into(), &listeners)
        };
        assert_eq!(at(1, &v4), Some(Listening::Reachable));
        assert_eq!(at(2, &v4), Some(Listening::Elsewhere));
        assert_eq!(at(2, &all), Some(Listening::Reachable));
    }
}
