//! Cuts, partitions and cables.

use std::{
    io::ErrorKind,
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use testbed::{Direction, Lan, Node, Test, Tool, eventually};

use crate::network::{gets_no_reply, pings, reaches};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("cut_drops_frames_per_direction", cut_drops_frames_per_direction)
            .needs([Tool::Nft, Tool::Ping]),
        Test::new("partition_separates_groups", partition_separates_groups).needs([Tool::Nft, Tool::Ping]),
        Test::new("cut_between_is_one_way", cut_between_is_one_way).needs([Tool::Nft]),
        Test::new("unplugged_node_has_no_carrier", unplugged_node_has_no_carrier)
            .needs([Tool::Ip, Tool::Ping]),
    ]
}

/// Returns whether a datagram arrives from one node at the other, in that direction.
fn receives(to: &Node, from: &Node, ip: IpAddr) -> bool {
    let receiver = to.run(|| UdpSocket::bind((ip, 0))).expect("a socket");
    receiver.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let address = receiver.local_addr().expect("an address");
    from.run(|| {
        let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        UdpSocket::bind((any, 0))
            .and_then(|socket| socket.send_to(b"x", address))
            .expect("a datagram leaves");
    });
    match receiver.recv(&mut [0]) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

fn cut_drops_frames_per_direction() {
    let lan = Lan::builder().build().expect("a LAN");
    let (node, other) = (lan.controller(0), lan.controller(1));
    for (direction, node_receives, other_receives) in
        [(Direction::To, false, true), (Direction::From, true, false), (Direction::Both, false, false)]
    {
        for (ip, other_ip) in node.own_ips().into_iter().zip(other.own_ips()) {
            // Neighbours must know each other, since a one-way cut stops resolution in both directions.
            assert!(pings(node, other_ip) && pings(other, ip));
            lan.cut(node, direction).expect("a cut");
            assert_eq!(receives(node, other, ip), node_receives, "{direction:?} {ip}");
            assert_eq!(receives(other, node, other_ip), other_receives, "{direction:?} {ip}");
            assert!(pings(other, lan.client(0).v4()), "the cut affects other nodes");
            assert!(carrier(node));
            lan.heal(node).expect("healed");
            assert!(receives(node, other, ip) && receives(other, node, other_ip));
        }
    }
}

fn partition_separates_groups() {
    let lan = Lan::builder().build().expect("a LAN");
    let [c1, c2, c3] = [0, 1, 2].map(|index| lan.controller(index));
    let client = lan.client(0);
    lan.partition(&[&[c1], &[c2, c3]]).expect("a partition");
    for ip in [0, 1].map(|family| c1.own_ips()[family]) {
        assert!(gets_no_reply(c2, ip) && gets_no_reply(c3, ip) && pings(client, ip));
    }
    assert!(pings(c2, c3.v4()) && pings(c2, client.v4()) && pings(c1, lan.v4(254)));
    lan.heal(c2).expect("healed");
    reaches(c2, c1.v4());
    assert!(gets_no_reply(c3, c1.v4()));
    lan.heal_all().expect("healed");
    reaches(c3, c1.v4());
}

fn cut_between_is_one_way() {
    let lan = Lan::builder().build().expect("a LAN");
    let [c1, c2] = [0, 1].map(|index| lan.controller(index));
    assert!(pings(c1, c2.v4()));
    lan.cut_between(&[c1], &[c2]).expect("a cut");
    assert!(!receives(c2, c1, c2.v4().into()) && receives(c1, c2, c1.v4().into()));
}

fn unplugged_node_has_no_carrier() {
    let lan = Lan::builder().build().expect("a LAN");
    let (node, client) = (lan.controller(0), lan.client(0));
    assert!(carrier(node));
    lan.unplug(node).expect("unplugged");
    eventually("the node has lost the carrier", Duration::from_secs(2), || !carrier(node));
    assert!(gets_no_reply(client, node.v4()));
    assert!(node.has_address(node.v4()) && node.has_address(node.v6()), "the addresses were removed");
    lan.plug(node).expect("plugged");
    eventually("the node has a carrier", Duration::from_secs(2), || carrier(node));
    reaches(client, node.v4());
    reaches(client, node.v6());
}

fn carrier(node: &Node) -> bool {
    node.exec("ip", ["link", "show", "eth0"]).expect("a link").contains("LOWER_UP")
}
