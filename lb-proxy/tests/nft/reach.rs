//! Effects of other software on packets to a virtual address: firewalls, kube-proxy, bridges, servers on the service's
//! own port.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::time::Duration;

use lb_proxy::nft::{Delivery, Table};
use socket2::SockRef;

use crate::ns::{Peer, accepted_at, add_address, connect, ip, is_idle, listen, listen_transparent, nft, run};
use crate::traffic::{VIP4, VIP6, apply, at, node_and_client};
use crate::{InMode, Mode, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_firewall_sees_the_port_that_clients_use", a_firewall_sees_the_port_that_clients_use),
    ("a_firewall_may_accept_translated_connections", a_firewall_may_accept_translated_connections),
    ("untracked_connections_reach_the_proxy", untracked_connections_reach_the_proxy),
    ("sessions_survive_a_change_of_delivery", sessions_survive_a_change_of_delivery),
    ("endpoints_of_ipvs_arrive_at_the_proxys_port", endpoints_of_ipvs_arrive_at_the_proxys_port),
    ("a_server_binds_the_services_port_beside_sessions", a_server_binds_the_services_port_beside_sessions),
];

pub(crate) const IN_BOTH_MODES: &[InMode] = &[
    ("later_dnat_takes_no_connection_away", later_dnat_takes_no_connection_away),
    ("bridged_packets_reach_the_proxy", bridged_packets_reach_the_proxy),
    ("a_server_on_the_services_port_gets_no_connection", a_server_on_the_services_port_gets_no_connection),
    ("other_hosts_are_refused_at_the_bind_port", other_hosts_are_refused_at_the_bind_port),
];

const SHORT: Duration = Duration::from_millis(300);

/// A usual host firewall: all but the API server's port and ssh is dropped.
const FIREWALL: &str = "
    add table inet fw
    add chain inet fw input { type filter hook input priority 0; policy drop; }
    add rule inet fw input iif lo accept
    add rule inet fw input ct state established,related accept
    add rule inet fw input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    add rule inet fw input tcp dport { 22, 6443 } accept
";

/// Two services with an external address that is the VIP, as kube-proxy's modes iptables and nftables write them: the
/// destination becomes a server's.
const EXTERNAL_IPS: &str = "
    add table ip nat
    add chain ip nat KUBE-SERVICES
    add chain ip nat PREROUTING { type nat hook prerouting priority -100; }
    add chain ip nat OUTPUT { type nat hook output priority -100; }
    add rule ip nat PREROUTING jump KUBE-SERVICES
    add rule ip nat OUTPUT jump KUBE-SERVICES
    add rule ip nat KUBE-SERVICES ip daddr 10.0.0.100 tcp dport 6443 meta mark set meta mark or 0x4000 dnat to 10.0.0.1:8443
    add table ip6 kube-proxy
    add map ip6 kube-proxy service-ips { type ipv6_addr . inet_proto . inet_service : verdict; }
    add chain ip6 kube-proxy external
    add chain ip6 kube-proxy nat-prerouting { type nat hook prerouting priority -100; }
    add chain ip6 kube-proxy nat-output { type nat hook output priority -100; }
    add rule ip6 kube-proxy external meta l4proto tcp dnat to [fd00::1]:8443
    add element ip6 kube-proxy service-ips { fd00::100 . tcp . 6443 : goto external }
    add rule ip6 kube-proxy nat-prerouting ip6 daddr . meta l4proto . th dport vmap @service-ips
    add rule ip6 kube-proxy nat-output ip6 daddr . meta l4proto . th dport vmap @service-ips
";

/// Runs several nft commands, one a line.
fn rules(commands: &str) {
    for command in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
        nft(command);
    }
}

/// A node that has the VIPs, and a client.
fn holder_and_client() -> Peer {
    let client = node_and_client();
    add_address("10.0.0.100/32", "lan");
    add_address("fd00::100/128", "lan");
    client
}

/// Returns the error of a connect that must fail.
fn failure(from: &Peer, to: SocketAddr) -> ErrorKind {
    from.run(move || TcpStream::connect_timeout(&to, SHORT)).expect_err("no connection").kind()
}

fn a_firewall_sees_the_port_that_clients_use() {
    let client = holder_and_client();
    let proxy = listen_transparent(6444);
    rules(FIREWALL);
    for vip in [VIP4, VIP6] {
        for (mode, reached) in [(Mode::Dnat, false), (Mode::Transparent, true)] {
            apply(&mode.table());
            let connected = client.run(move || TcpStream::connect_timeout(&vip, SHORT).is_ok());
            assert_eq!(connected, reached, "{mode:?} {vip}");
        }
        assert_eq!(accepted_at(&proxy), vip);
        // The table does not admit packets that the firewall does not accept.
        nft("flush chain inet fw input");
        assert_eq!(failure(&client, vip), ErrorKind::TimedOut);
        nft("delete table inet fw");
        rules(FIREWALL);
    }
}

/// The documented firewall rule for connections that are translated.
fn a_firewall_may_accept_translated_connections() {
    let client = holder_and_client();
    let proxy = listen(6444);
    rules(FIREWALL);
    nft("add rule inet fw input ct status dnat accept");
    apply(&Mode::Dnat.table());
    for vip in [VIP4, VIP6] {
        let _stream = client.run(move || connect(vip));
        assert_eq!(accepted_at(&proxy), at(6444, vip));
    }
    assert_eq!(
        failure(&client, ([10, 0, 0, 1], 6444).into()),
        ErrorKind::TimedOut,
        "the firewall's own verdict"
    );
}

fn untracked_connections_reach_the_proxy() {
    let client = holder_and_client();
    let proxy = listen_transparent(6444);
    rules(
        "add table inet untracked
        add chain inet untracked arriving { type filter hook prerouting priority -300; }
        add chain inet untracked leaving { type filter hook output priority -300; }
        add rule inet untracked arriving tcp dport 6443 notrack
        add rule inet untracked leaving tcp sport 6443 notrack
        add rule inet untracked leaving tcp dport 6443 notrack",
    );
    apply(&table());
    for vip in [VIP4, VIP6] {
        let _stream = client.run(move || connect(vip));
        assert_eq!(accepted_at(&proxy), vip);
        let _own = connect(vip);
        assert_eq!(accepted_at(&proxy), vip, "the node itself");
    }
}

fn later_dnat_takes_no_connection_away(mode: Mode) {
    let client = holder_and_client();
    let (proxy, server) = (mode.listen(6444), listen(8443));
    apply(&mode.table());
    rules(EXTERNAL_IPS);
    for vip in [VIP4, VIP6] {
        let _remote = client.run(move || connect(vip));
        assert_eq!(accepted_at(&proxy), mode.arrival(vip, 6444));
        let _own = connect(vip);
        assert_eq!(accepted_at(&proxy), at(6444, vip));
    }
    assert!(is_idle(&server));
    nft("delete table inet cplb");
    for vip in [VIP4, VIP6] {
        let _remote = client.run(move || connect(vip));
        assert_eq!(accepted_at(&server).port(), 8443, "control: the foreign rules apply");
    }
}

/// Client and workload on bridges of the node: their packets visit the hooks of IP twice.
fn bridged_packets_reach_the_proxy(mode: Mode) {
    let (client, workload) = (Peer::new("uplink"), Peer::new("veth0"));
    for (bridge, port) in [("br0", "uplink"), ("cni0", "veth0")] {
        run("ip", &["link", "add", bridge, "type", "bridge"]);
        run("ip", &["link", "set", port, "master", bridge]);
        run("ip", &["link", "set", bridge, "up"]);
    }
    for table in ["iptables", "ip6tables"] {
        fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{table}"), "1").expect("br_netfilter");
    }
    for address in ["10.0.0.1/24", "fd00::1/64", "10.0.0.100/32", "fd00::100/128"] {
        add_address(address, "br0");
    }
    for address in ["10.7.0.1/24", "fd07::1/64"] {
        add_address(address, "cni0");
    }
    client.run(|| {
        add_address("10.0.0.9/24", "eth0");
        add_address("fd00::9/64", "eth0");
    });
    workload.run(|| {
        add_address("10.7.0.9/24", "eth0");
        add_address("fd07::9/64", "eth0");
        run("ip", &["route", "add", "default", "via", "10.7.0.1"]);
        run("ip", &["-6", "route", "add", "default", "via", "fd07::1"]);
    });
    let (proxy, server) = (mode.listen(6444), listen(6443));
    apply(&mode.table());
    for vip in [VIP4, VIP6] {
        for peer in [&client, &workload] {
            let mut stream = peer.run(move || connect(vip));
            assert_eq!(accepted_at(&proxy), at(6444, vip));
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed in order");
        }
    }
    assert!(is_idle(&server));
}

/// The proxy is dead, as after SIGKILL; the node's own API server listens on all addresses.
fn a_server_on_the_services_port_gets_no_connection(mode: Mode) {
    let client = holder_and_client();
    let server = listen(6443);
    // Connected before the table was applied; the table must not disturb it.
    let [mut early4, mut early6] = [VIP4, VIP6].map(|vip| client.run(move || connect(vip)));
    let accepted = [(); 2].map(|()| server.accept().unwrap().0);
    let proxy = mode.listen(6444);
    apply(&mode.table());
    let sessions = [VIP4, VIP6].map(|vip| (client.run(move || connect(vip)), proxy.accept().unwrap().0));
    // A process that another test starts at this moment may hold the descriptor, too.
    SockRef::from(&proxy).shutdown(Shutdown::Both).unwrap();
    for vip in [VIP4, VIP6] {
        assert_eq!(failure(&client, vip), ErrorKind::TimedOut, "{vip}");
    }
    assert!(is_idle(&server));
    for (mut far, mut near) in sessions {
        exchange(&mut far, &mut near);
    }
    // Where packets are translated, the first tracked packet counts as a new connection.
    for mut near in accepted.into_iter().filter(|_| mode == Mode::Transparent) {
        let is_v6 = near.local_addr().unwrap().ip().to_canonical().is_ipv6();
        exchange(if is_v6 { &mut early6 } else { &mut early4 }, &mut near);
    }
    let _other = client.run(|| connect(([10, 0, 0, 1], 6443).into()));
    assert_eq!(accepted_at(&server).ip(), ip("10.0.0.1"), "its own address is not touched");
}

/// Exchanges one word each way.
fn exchange(far: &mut TcpStream, near: &mut TcpStream) {
    pass(far, near);
    pass(near, far);
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"alive").unwrap();
    to.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    to.read_exact(&mut [0; 5]).unwrap();
}

fn other_hosts_are_refused_at_the_bind_port(mode: Mode) {
    let client = holder_and_client();
    let proxy = mode.listen(6444);
    let direct: [SocketAddr; 4] = ["10.0.0.1:6444", "[fd00::1]:6444", "10.0.0.100:6444", "[fd00::100]:6444"]
        .map(|address| address.parse().unwrap());
    let with = |bind_address: Option<&str>| {
        apply(&Table { bind_address: bind_address.map(ip), ..mode.table() });
    };
    let open = |proxy: &TcpListener| {
        direct.map(|target| match client.run(move || TcpStream::connect_timeout(&target, SHORT)) {
            Ok(_stream) => accepted_at(proxy) == target,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
            Err(error) => panic!("{target}: {error}"),
        })
    };
    with(None);
    assert_eq!(open(&proxy), [false; 4]);
    for own in ["127.0.0.1:6444", "[::1]:6444", "10.0.0.1:6444"] {
        let own: SocketAddr = own.parse().unwrap();
        let _stream = connect(own);
        assert_eq!(accepted_at(&proxy), own, "this node itself");
    }
    let _stream = client.run(|| connect(VIP4));
    assert_eq!(accepted_at(&proxy), mode.arrival(VIP4, 6444), "the service is open");
    for (bind_address, expected) in [
        ("10.0.0.1", [true, false, false, false]),
        ("fd00::1", [false, true, false, false]),
        ("0.0.0.0", [true, false, true, false]),
        ("::", [true; 4]),
    ] {
        with(Some(bind_address));
        assert_eq!(open(&proxy), expected, "{bind_address}");
    }
    // A service at the proxy's own port is open at the virtual addresses, and nowhere else.
    let port = NonZeroU16::new(6444).unwrap();
    apply(&Table { redirects: [(port, port)].into(), ..mode.table() });
    assert_eq!(open(&proxy), [false, false, true, true]);
}

fn sessions_survive_a_change_of_delivery() {
    let client = holder_and_client();
    let proxy = listen_transparent(6444);
    let except = Delivery::Transparent { except: [VIP4, VIP6].into() };
    let mut sessions = Vec::new();
    for delivery in [Delivery::Dnat, Delivery::default(), except, Delivery::default(), Delivery::Dnat] {
        apply(&Table { delivery, ..table() });
        for vip in [VIP4, VIP6] {
            let far = client.run(move || connect(vip));
            sessions.push((far, proxy.accept().unwrap().0));
        }
        for (far, near) in &mut sessions {
            exchange(far, near);
        }
    }
}

fn endpoints_of_ipvs_arrive_at_the_proxys_port() {
    let client = holder_and_client();
    let proxy = listen_transparent(6444);
    apply(&Table { delivery: Delivery::Transparent { except: [VIP4].into() }, ..table() });
    for (vip, arrival) in [(VIP4, at(6444, VIP4)), (VIP6, VIP6)] {
        let _stream = client.run(move || connect(vip));
        assert_eq!(accepted_at(&proxy), arrival);
    }
}

/// Sockets of sessions have the service's port, which an API server that restarts binds on all addresses.
fn a_server_binds_the_services_port_beside_sessions() {
    let client = holder_and_client();
    let proxy = listen_transparent(6444);
    apply(&table());
    let mut sessions: Vec<_> =
        [VIP4, VIP6].map(|vip| (client.run(move || connect(vip)), proxy.accept().unwrap().0)).into();
    for _ in 0..2 {
        let server = listen(6443);
        let _direct = client.run(|| connect(([10, 0, 0, 1], 6443).into()));
        assert_eq!(accepted_at(&server).ip(), ip("10.0.0.1"));
        for (far, near) in &mut sessions {
            exchange(far, near);
        }
    }
}
