//! Strict reverse path filtering on the interface of an instance.
//!
//! With two interfaces in one subnet the kernel answers that subnet by one of them. Under `rp_filter=1` it then drops
//! every packet of that subnet that arrives at the other one, so that clients of the subnet do not reach a virtual IP there.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;

use netlink_vip::{InterfaceAddress, InterfaceState};
use vrrp::LinkPrefix;

/// The mode of `rp_filter` that drops a packet whose sender is not reached by the interface it arrived at (RFC 3704 §2.2).
const STRICT: u8 = 1;

/// The problem of a network whose packets are dropped on `interface` although it is on that link, with the remedy.
pub(crate) fn problem(interface: &InterfaceState) -> Option<String> {
    let mode = mode("all").max(mode(&interface.name));
    if mode != STRICT {
        return None;
    }
    let name = &interface.name;
    let networks = interface.addresses.iter().filter_map(network);
    let (network, len) = networks
        .filter(|(network, len)| {
            neighbours(*network, *len, interface).any(|ip| {
                source_for(ip).is_some_and(|source| is_of_another_interface(source, ip, interface, *len))
            })
        })
        .min()?;
    Some(format!(
        "clients in {network}/{len} may not reach virtual IPs on {name}: rp_filter is 1, and packets to that network \
         leave by another interface, so the kernel drops packets that arrive at {name}: set net.ipv4.conf.{name}.rp_filter to 2, or \
         hold the virtual IPs on the other interface"
    ))
}

/// The effective mode of an interface: the kernel uses the maximum of its own and that of all. 0 where neither can be read.
fn mode(interface: &str) -> u8 {
    let path = Path::new("/proc/sys/net/ipv4/conf").join(interface).join("rp_filter");
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// The IPv4 network of an address, if its prefix leaves addresses for neighbours.
fn network(address: &InterfaceAddress) -> Option<(Ipv4Addr, u8)> {
    let IpAddr::V4(ip) = address.ip else { return None };
    let len = address.prefix_len;
    (1..=30).contains(&len).then(|| (Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << (32 - len))), len))
}

/// Up to four addresses of the network that this interface does not have. More than one, because another interface of
/// this node may have the first.
fn neighbours(network: Ipv4Addr, len: u8, interface: &InterfaceState) -> impl Iterator<Item = Ipv4Addr> {
    let hosts = (1..(u32::MAX >> len)).map(move |host| Ipv4Addr::from_bits(network.to_bits() | host));
    let free = |ip: &Ipv4Addr| interface.addresses.iter().all(|address| address.ip != IpAddr::V4(*ip));
    hosts.filter(free).take(4)
}

/// The source address that the kernel's routing chooses for packets to `ip`. Sends no packet.
fn source_for(ip: Ipv4Addr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // A missing route is another problem, and not reported here.
    socket.connect((ip, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Returns whether packets to `neighbour` with this source leave by another interface in the same network. A source
/// outside the network may belong to a route by this interface, and an address of this node is its own source.
fn is_of_another_interface(source: IpAddr, neighbour: Ipv4Addr, interface: &InterfaceState, len: u8) -> bool {
    let network = LinkPrefix { address: neighbour.into(), len };
    source != IpAddr::V4(neighbour) && network.contains(source) && !interface.has(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(addresses: &[(&str, u8)]) -> InterfaceState {
        let address = |(ip, prefix_len): &(&str, u8)| InterfaceAddress {
            ip: ip.parse().unwrap(),
            prefix_len: *prefix_len,
            scope: 0,
            flags: 0x80,
        };
        let addresses = addresses.iter().map(address).collect();
        InterfaceState {
            name: "eth1".into(),
            index: 3,
            mac: Some([2; 6]),
            up: true,
            addresses,
            kind: None,
            vrf: None,
        }
    }

    #[test]
    fn only_ipv4_networks_with_neighbours_are_probed() {
        let state = interface(&[("10.77.0.1", 24), ("10.0.0.5", 32), ("10.1.0.5", 31), ("fd00::1", 64)]);
        let networks: Vec<_> = state.addresses.iter().filter_map(network).collect();
        assert_eq!(networks, [(Ipv4Addr::new(10, 77, 0, 0), 24)]);
        let probed: Vec<_> = neighbours(networks[0].0, 24, &state).map(|ip| ip.octets()[3]).collect();
        assert_eq!(probed, [2, 3, 4, 5]);
        let probed: Vec<_> =
            neighbours(Ipv4Addr::new(10, 0, 0, 4), 30, &state).map(|ip| ip.octets()[3]).collect();
        assert_eq!(probed, [6]);
    }

    #[test]
    fn only_a_source_of_another_interface_in_the_network_is_a_problem() {
        let state = interface(&[("10.77.0.21", 24)]);
        let neighbour = Ipv4Addr::new(10, 77, 0, 2);
        for (source, counts) in [
            ([10, 77, 0, 11], true),
            ([10, 77, 0, 21], false),
            ([10, 77, 0, 2], false),
            ([192, 0, 2, 1], false),
        ] {
            assert_eq!(is_of_another_interface(source.into(), neighbour, &state, 24), counts, "{source:?}");
        }
    }

    #[test]
    fn the_source_is_the_one_that_routing_chooses() {
        assert_eq!(source_for(Ipv4Addr::new(127, 0, 0, 9)), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
