//! The destination of connections to a VIP while the table is applied.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lb_proxy::MARK;
use lb_proxy::nft::Table;
use socket2::{Domain, Protocol, Socket, Type};

use crate::ns::{Peer, accepted_at, add_address, connect, ip, is_idle, listen, nft, run};
use crate::{InMode, Mode, block_on, find, redirects};

pub(crate) const TESTS: &[InMode] = &[
    ("the_node_itself_reaches_the_proxy_through_the_vip", the_node_itself_reaches_the_proxy_through_the_vip),
    ("another_host_reaches_the_proxy_through_the_vip", another_host_reaches_the_proxy_through_the_vip),
    ("a_link_local_vip_is_redirected", a_link_local_vip_is_redirected),
    (
        "clients_behind_an_interface_without_addresses_reach_the_proxy",
        clients_behind_an_interface_without_addresses_reach_the_proxy,
    ),
    ("a_vip_on_another_host_is_left_alone", a_vip_on_another_host_is_left_alone),
    ("no_packet_leaves_from_a_removed_vip", no_packet_leaves_from_a_removed_vip),
    ("without_a_proxy_clients_get_no_refusal", without_a_proxy_clients_get_no_refusal),
    ("marked_connections_are_not_redirected", marked_connections_are_not_redirected),
    ("each_service_reaches_its_own_port", each_service_reaches_its_own_port),
    ("replacing_the_table_loses_no_connection", replacing_the_table_loses_no_connection),
];

pub(crate) const ONCE: &[(&str, fn())] =
    &[("kube_proxys_rules_leave_marked_connections_alone", kube_proxys_rules_leave_marked_connections_alone)];

pub(crate) const VIP4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 100)), 6443);
pub(crate) const VIP6: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100)), 6443);

pub(crate) fn at(port: u16, of: SocketAddr) -> SocketAddr {
    SocketAddr::new(of.ip(), port)
}

pub(crate) fn apply(table: &Table) {
    block_on(find().apply(table)).unwrap();
}

/// A node with a client beside it on 10.0.0.0/24 and fd00::/64.
pub(crate) fn node_and_client() -> Peer {
    let client = Peer::new("lan");
    add_address("10.0.0.1/24", "lan");
    add_address("fd00::1/64", "lan");
    client.run(|| {
        add_address("10.0.0.9/24", "eth0");
        add_address("fd00::9/64", "eth0");
    });
    client
}

fn the_node_itself_reaches_the_proxy_through_the_vip(mode: Mode) {
    let _client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    let proxy = mode.listen(6444);
    for vip in [VIP4, VIP6] {
        let refused = TcpStream::connect_timeout(&vip, Duration::from_secs(5));
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{vip}: nothing applied yet"
        );
    }
    apply(&mode.table());
    for vip in [VIP4, VIP6] {
        let _stream = connect(vip);
        assert_eq!(accepted_at(&proxy), at(6444, vip));
        // The port itself stays reachable, and other addresses of the node are not touched.
        let _direct = connect(at(6444, vip));
        assert_eq!(accepted_at(&proxy), at(6444, vip));
    }
    assert!(TcpStream::connect(("10.0.0.1", 6443)).is_err());
}

/// After a dropped SYN a client connects by its next one.
fn without_a_proxy_clients_get_no_refusal(mode: Mode) {
    const SHORT: Duration = Duration::from_millis(300);
    let client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    apply(&mode.table());
    let connect_error =
        |to: SocketAddr| TcpStream::connect_timeout(&to, SHORT).expect_err("no socket listens").kind();
    for vip in [VIP4, VIP6] {
        assert_eq!(client.run(move || connect_error(vip)), std::io::ErrorKind::TimedOut, "{vip}");
        assert_eq!(connect_error(vip), std::io::ErrorKind::TimedOut, "{vip}, from the node itself");
    }
    // Other addresses of the node still refuse.
    assert_eq!(connect_error(([10, 0, 0, 1], 6444).into()), std::io::ErrorKind::ConnectionRefused);
    for vip in [VIP4, VIP6] {
        std::thread::scope(|scope| {
            let patient = move || TcpStream::connect_timeout(&vip, Duration::from_secs(8));
            let client = &client;
            let connecting = scope.spawn(move || client.run(patient));
            std::thread::sleep(SHORT);
            let proxy = mode.listen(6444);
            let mut stream = connecting.join().unwrap().expect("the second SYN is accepted");
            // Resets that the proxy itself sends arrive.
            let (accepted, _) = proxy.accept().unwrap();
            socket2::SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
            drop(accepted);
            let refused = stream.read(&mut [0]).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset, "{vip}");
            // A process that another test starts at this moment holds the descriptor, too, and would accept the next SYN.
            socket2::SockRef::from(&proxy).shutdown(std::net::Shutdown::Both).unwrap();
        });
    }
}

fn another_host_reaches_the_proxy_through_the_vip(mode: Mode) {
    let client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    let proxy = mode.listen(6444);
    apply(&mode.table());
    for vip in [VIP4, VIP6] {
        let _stream = client.run(move || connect(vip));
        assert_eq!(accepted_at(&proxy), mode.arrival(vip, 6444));
    }
}

fn a_link_local_vip_is_redirected(mode: Mode) {
    let client = node_and_client();
    add_address("fe80::100/128", "lan");
    run("ip", &["-6", "route", "add", "fe80::/64", "dev", "lan", "metric", "1"]);
    let proxy = mode.listen(6444);
    apply(&Table { vips: [ip("fe80::100")].into(), ..mode.table() });
    let target = |scope| SocketAddr::V6(SocketAddrV6::new("fe80::100".parse().unwrap(), 6443, 0, scope));
    let scope_of = |output: String| output.split(':').next().unwrap().parse::<u32>().unwrap();
    // The interface's index is the address's scope.
    let remote = client.run(move || scope_of(run("ip", &["-o", "link", "show", "eth0"])));
    let _stream = client.run(move || connect(target(remote)));
    assert_eq!(accepted_at(&proxy).ip(), ip("fe80::100"));
    let local = scope_of(run("ip", &["-o", "link", "show", "lan"]));
    let _stream = connect(target(local));
    assert_eq!(accepted_at(&proxy).ip(), ip("fe80::100"));
}

fn mac_of(interface: &str) -> String {
    let link = run("ip", &["-o", "link", "show", interface]);
    link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

/// A veth as Calico makes it: the node's end has no address, only a route to the workload.
fn clients_behind_an_interface_without_addresses_reach_the_proxy(mode: Mode) {
    let _client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    let workload = Peer::new("cali0");
    fs::write("/proc/sys/net/ipv6/conf/cali0/disable_ipv6", "1").unwrap();
    fs::write("/proc/sys/net/ipv6/conf/cali0/addr_gen_mode", "1").unwrap();
    fs::write("/proc/sys/net/ipv6/conf/cali0/disable_ipv6", "0").unwrap();
    run("ip", &["route", "add", "192.168.7.7/32", "dev", "cali0", "scope", "link"]);
    run("ip", &["-6", "route", "add", "fd07::7/128", "dev", "cali0"]);
    assert_eq!(run("ip", &["-o", "addr", "show", "dev", "cali0"]), "");
    // Without an address of its own, the node cannot answer neighbour solicitations here.
    let node_mac = mac_of("cali0");
    let workload_mac = workload.run(|| mac_of("eth0"));
    run("ip", &["-6", "neigh", "add", "fd07::7", "lladdr", &workload_mac, "dev", "cali0"]);
    workload.run(move || {
        run("ip", &["-6", "neigh", "add", "fd00::100", "lladdr", &node_mac, "dev", "eth0"]);
        add_address("192.168.7.7/32", "eth0");
        add_address("fd07::7/128", "eth0");
        run("ip", &["route", "add", "default", "dev", "eth0"]);
        run("ip", &["-6", "route", "add", "default", "dev", "eth0"]);
    });
    let proxy = mode.listen(6444);
    apply(&mode.table());
    for vip in [VIP4, VIP6] {
        let _stream = workload.run(move || connect(vip));
        assert_eq!(accepted_at(&proxy), mode.arrival(vip, 6444));
    }
}

fn a_vip_on_another_host_is_left_alone(mode: Mode) {
    let owner = node_and_client();
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let remote = owner.run(|| {
        add_address("10.0.0.100/32", "eth0");
        add_address("fd00::100/128", "eth0");
        listen(6443)
    });
    let proxy = mode.listen(6444);
    apply(&mode.table());
    for vip in [VIP4, VIP6] {
        let _stream = connect(vip);
        assert_eq!(accepted_at(&remote), vip, "the other host owns it");
    }
    // A forwarded packet keeps its port, too.
    let visitor = Peer::new("side");
    add_address("172.16.0.1/24", "side");
    visitor.run(|| {
        add_address("172.16.0.2/24", "eth0");
        run("ip", &["route", "add", "default", "via", "172.16.0.1"]);
    });
    owner.run(|| run("ip", &["route", "add", "172.16.0.0/24", "via", "10.0.0.1"]));
    let _stream = visitor.run(|| connect(VIP4));
    assert_eq!(accepted_at(&remote), VIP4);
    assert!(is_idle(&proxy));
    // The address moves here: the same rules now apply.
    owner.run(|| run("ip", &["addr", "del", "10.0.0.100/32", "dev", "eth0"]));
    add_address("10.0.0.100/32", "lan");
    let _stream = visitor.run(|| connect(VIP4));
    assert_eq!(accepted_at(&proxy), mode.arrival(VIP4, 6444));
}

/// The kernel sends data and resets for sockets of a removed address.
fn no_packet_leaves_from_a_removed_vip(mode: Mode) {
    for guarded in [false, true] {
        let client = node_and_client();
        add_address("10.0.0.100/32", "lan");
        add_address("fd00::100/128", "lan");
        let proxy = mode.listen(6444);
        apply(&mode.table());
        if !guarded {
            run("nft", &["flush", "chain", "inet", "cplb", "guard"]);
        }
        for (vip, address) in [(VIP4, "10.0.0.100/32"), (VIP6, "fd00::100/128")] {
            let mut far = client.run(move || connect(vip));
            let (mut near, _) = proxy.accept().unwrap();
            run("ip", &["addr", "del", address, "dev", "lan"]);
            near.write_all(b"from nowhere").unwrap();
            far.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let received = far.read(&mut [0; 32]).map_err(|error| error.kind());
            // A transparent socket may send from any address, in IPv4, too.
            let speaks = !guarded && (vip == VIP6 || mode == Mode::Transparent);
            let expected = if speaks { Ok(12) } else { Err(std::io::ErrorKind::WouldBlock) };
            assert_eq!(received, expected, "guarded: {guarded}, {vip}");
        }
        run("ip", &["link", "del", "lan"]);
    }
}

fn marked_connections_are_not_redirected(mode: Mode) {
    let _client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    let (proxy, direct) = (mode.listen(6444), listen(6443));
    apply(&mode.table());
    let marked = |vip: SocketAddr, mark: u32| -> TcpStream {
        let socket = Socket::new(Domain::for_address(vip), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_mark(mark).unwrap();
        socket.connect_timeout(&vip.into(), Duration::from_secs(5)).unwrap();
        socket.into()
    };
    for vip in [VIP4, VIP6] {
        for mark in [MARK, MARK | 0x4000_0000] {
            let _stream = marked(vip, mark);
            assert_eq!(accepted_at(&direct), vip);
        }
        for mark in [0, 0x4000_0000, MARK & 0xff] {
            let _stream = marked(vip, mark);
            assert_eq!(accepted_at(&proxy), at(6444, vip));
        }
    }
    apply(&Table { mark: None, ..mode.table() });
    let _stream = marked(VIP4, MARK);
    assert_eq!(accepted_at(&proxy), at(6444, VIP4));
}

/// kube-proxy and the CNI plugin portmap masquerade and drop by bits of the mark.
fn kube_proxys_rules_leave_marked_connections_alone() {
    let peer = node_and_client();
    add_address("10.0.0.2/24", "lan");
    nft("add table ip others");
    nft("add chain ip others leaving { type nat hook postrouting priority 100; }");
    for bit in ["0x4000", "0x2000"] {
        nft(&format!("add rule ip others leaving meta mark & {bit} == {bit} masquerade"));
    }
    nft("add chain ip others sent { type filter hook output priority 0; }");
    nft("add rule ip others sent meta mark & 0x8000 == 0x8000 drop");
    let backend = peer.run(|| listen(6443));
    let source_seen = |mark: u32| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_mark(mark).unwrap();
        // An address that masquerading does not choose.
        socket.bind(&SocketAddr::from(([10, 0, 0, 2], 0)).into()).unwrap();
        let target = SocketAddr::from(([10, 0, 0, 9], 6443));
        socket.connect_timeout(&target.into(), Duration::from_millis(500)).ok()?;
        Some(backend.accept().unwrap().1.ip().to_canonical())
    };
    assert_eq!(source_seen(MARK), Some(ip("10.0.0.2")));
    assert_eq!(source_seen(MARK | 0x4000), Some(ip("10.0.0.1")), "control: the foreign rules apply");
    assert_eq!(source_seen(MARK | 0x8000), None, "control: the foreign rules apply");
}

fn each_service_reaches_its_own_port(mode: Mode) {
    let client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    add_address("10.0.0.101/32", "lan");
    let ports = [(6443, 6444), (8132, 8133), (9443, 6446)];
    let vips = ["10.0.0.100", "10.0.0.101", "fd00::100"].map(ip);
    let listeners: Vec<TcpListener> = ports.iter().map(|(_, bind_port)| mode.listen(*bind_port)).collect();
    apply(&Table { vips: vips.into(), redirects: redirects(&ports), ..mode.table() });
    for vip in vips {
        for ((port, bind_port), listener) in ports.iter().zip(&listeners) {
            let target = SocketAddr::new(vip, *port);
            let _remote = client.run(move || connect(target));
            assert_eq!(accepted_at(listener), mode.arrival(target, *bind_port));
            let _local = connect(target);
            assert_eq!(accepted_at(listener), SocketAddr::new(vip, *bind_port));
        }
    }
}

fn replacing_the_table_loses_no_connection(mode: Mode) {
    const REPLACEMENTS: usize = 50;
    let client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    let proxy = mode.listen(6444);
    apply(&mode.table());
    let is_over = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let stop = Arc::clone(&is_over);
        let client = scope.spawn(move || {
            client.run(move || {
                let connections = (0..).map(|_| connect(VIP4));
                connections.take_while(|_| !stop.load(Ordering::Relaxed)).count()
            })
        });
        let proxy = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) || !is_idle(&proxy) {
                if !is_idle(&proxy) {
                    accepted_at(&proxy);
                }
            }
        });
        (0..REPLACEMENTS).for_each(|_| apply(&mode.table()));
        is_over.store(true, Ordering::Relaxed);
        let count = client.join().expect("every connection is made");
        proxy.join().expect("every connection is accepted");
        println!("{count} connections while the table was replaced {REPLACEMENTS} times");
        assert!(count >= REPLACEMENTS, "only {count} connections");
    });
}
