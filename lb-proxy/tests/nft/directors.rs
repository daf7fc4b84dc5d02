//! Virtual addresses that IPVS balances. This kernel may have no IPVS: the tests observe which packets carry its mark,
//! and the destination of all others.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use lb_proxy::director_marks;
use lb_proxy::nft::{Director, Presence, Reach, Table, TableName};
use netlink_vip::acceptance::{Acceptance, Answer, Path, Question};

use crate::ns::{Peer, accepted_at, add_address, connect, ip, listen, nft, run};
use crate::{block_on, find, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_director_marks_only_where_the_address_is", a_director_marks_only_where_the_address_is),
    (
        "an_address_that_other_software_manages_is_directed",
        an_address_that_other_software_manages_is_directed,
    ),
    (
        "a_node_that_only_serves_a_foreign_address_does_not_direct",
        a_node_that_only_serves_a_foreign_address_does_not_direct,
    ),
    (
        "packets_of_another_director_go_to_the_local_server",
        packets_of_another_director_go_to_the_local_server,
    ),
    ("packets_without_a_hop_left_go_to_the_local_server", packets_without_a_hop_left_go_to_the_local_server),
    ("a_departing_node_rejects_probes", a_departing_node_rejects_probes),
    (
        "clients_behind_other_interfaces_still_reach_the_proxy",
        clients_behind_other_interfaces_still_reach_the_proxy,
    ),
    ("a_director_masquerades_what_it_forwards", a_director_masquerades_what_it_forwards),
    ("probe_replies_reach_the_prober_but_not_the_kernel", probe_replies_reach_the_prober_but_not_the_kernel),
    (
        "a_node_without_the_address_receives_packets_from_it",
        a_node_without_the_address_receives_packets_from_it,
    ),
    ("the_rules_of_directors_are_watched", the_rules_of_directors_are_watched),
];

const VIPS: [&str; 2] = ["10.0.0.100", "fd00::100"];

fn mark(index: usize) -> NonZeroU32 {
    director_marks().nth(index).and_then(NonZeroU32::new).unwrap()
}

/// One director for each family, with the first two marks.
fn directed(reach: Reach, from: &[&str]) -> Table {
    let directors = VIPS.into_iter().enumerate().map(|(index, vip)| Director {
        vip: ip(vip),
        port: NonZeroU16::new(6443).unwrap(),
        mark: mark(index),
        from: from.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>(),
        reach,
        peers: BTreeSet::new(),
        masquerade: false,
        departing: false,
    });
    Table { directors: directors.collect(), ..table() }
}

/// A node that has the addresses on `interface`, with a client behind `lan` and a workload behind `cali0`.
fn node(interface: &str) -> [Peer; 2] {
    let peers = [("lan", "10.0.0", "fd00:"), ("cali0", "10.7.0", "fd07:")].map(|(name, v4, v6)| {
        let peer = Peer::new(name);
        add_address(&format!("{v4}.1/24"), name);
        add_address(&format!("{v6}:1/64"), name);
        let (v4, v6) = (v4.to_owned(), v6.to_owned());
        peer.run(move || {
            add_address(&format!("{v4}.9/24"), "eth0");
            add_address(&format!("{v6}:9/64"), "eth0");
            // The addresses are on the node, for any position of the peer.
            run("ip", &["route", "replace", "10.0.0.100/32", "via", &format!("{v4}.1")]);
            run("ip", &["-6", "route", "replace", "fd00::100/128", "via", &format!("{v6}:1")]);
        });
        peer
    });
    for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
        add_address(&format!("{vip}/{prefix}"), interface);
    }
    // After the table's chain, before IPVS.
    nft("add table inet seen");
    nft("add chain inet seen input { type filter hook input priority 95; }");
    for index in 0..VIPS.len() {
        nft(&format!("add rule inet seen input meta mark {:#x} counter", mark(index)));
    }
    peers
}

fn target(vip: &str) -> SocketAddr {
    SocketAddr::new(vip.parse::<IpAddr>().unwrap(), 6443)
}

/// Returns whether packets with the mark of `vip` were seen.
fn seen(vip: usize) -> bool {
    let rules = nft("list chain inet seen input");
    let rule = rules.lines().filter(|line| line.contains("counter")).nth(vip).unwrap();
    !rule.contains("packets 0 ")
}

fn is_marked(from: &Peer, index: usize, server: &TcpListener) -> bool {
    let vip = VIPS[index];
    let _stream = from.run(move || connect(target(vip)));
    assert_eq!(accepted_at(server), target(vip), "a server on this node gets it, as there is no IPVS");
    seen(index)
}

fn a_director_marks_only_where_the_address_is() {
    let [client, _workload] = node("cali0");
    let server = listen(6443);
    block_on(find().apply(&directed(Reach::ArrivalInterface, &["lan"]))).unwrap();
    for (index, vip) in VIPS.iter().enumerate() {
        assert!(!is_marked(&client, index, &server), "{vip} is on another link, such as a dummy");
    }
    for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
        run("ip", &["addr", "del", &format!("{vip}/{prefix}"), "dev", "cali0"]);
        add_address(&format!("{vip}/{prefix}"), "lan");
    }
    for (index, vip) in VIPS.iter().enumerate() {
        assert!(is_marked(&client, index, &server), "{vip} is on the arrival interface");
    }
}

fn an_address_that_other_software_manages_is_directed() {
    let [client, workload] = node("lo");
    let server = listen(6443);
    block_on(find().apply(&directed(Reach::Node, &[]))).unwrap();
    for (index, peer) in [client, workload].iter().enumerate() {
        assert!(is_marked(peer, index, &server), "{}", VIPS[index]);
    }
}

fn a_node_that_only_serves_a_foreign_address_does_not_direct() {
    let [client, _workload] = node("lo");
    let server = listen(6443);
    block_on(find().apply(&directed(Reach::From, &[]))).unwrap();
    for (index, vip) in VIPS.iter().enumerate() {
        assert!(!is_marked(&client, index, &server), "{vip} is for the local server");
    }
    block_on(find().apply(&directed(Reach::From, &["lan"]))).unwrap();
    for (index, vip) in VIPS.iter().enumerate() {
        assert!(is_marked(&client, index, &server), "{vip} is directed here");
    }
}

/// Applies `change` to each director and the table to the kernel.
fn apply(change: impl Fn(Director) -> Director) {
    let mut table = directed(Reach::ArrivalInterface, &["lan"]);
    table.directors = table.directors.into_iter().map(change).collect();
    block_on(find().apply(&table)).unwrap();
}

fn packets_of_another_director_go_to_the_local_server() {
    let [client, _workload] = node("lan");
    let server = listen(6443);
    let link = client.run(|| run("ip", &["-o", "link", "show", "dev", "eth0"]));
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether").skip(1);
    let octets = words.next().unwrap().split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap());
    let mac: [u8; 6] = octets.collect::<Vec<_>>().try_into().unwrap();
    apply(|director| Director { peers: [mac, [2; 6]].into(), ..director });
    for index in 0..VIPS.len() {
        assert!(!is_marked(&client, index, &server));
    }
    apply(|director| Director { peers: [[2; 6]].into(), ..director });
    for index in 0..VIPS.len() {
        assert!(is_marked(&client, index, &server), "from another interface");
    }
}

/// A connection with packets that may make one hop only.
fn connect_by_one_hop(vip: &str) -> std::io::Result<socket2::Socket> {
    let domain = socket2::Domain::for_address(target(vip));
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    if domain == socket2::Domain::IPV4 {
        socket.set_ttl_v4(1)?;
    } else {
        socket.set_unicast_hops_v6(1)?;
    }
    socket.connect(&target(vip).into())?;
    Ok(socket)
}

fn packets_without_a_hop_left_go_to_the_local_server() {
    let [client, _workload] = node("lan");
    let server = listen(6443);
    apply(|director| director);
    for (index, vip) in VIPS.into_iter().enumerate() {
        let _stream = client.run(move || connect_by_one_hop(vip).unwrap());
        assert_eq!(accepted_at(&server), target(vip));
        assert!(!seen(index));
    }
}

fn a_departing_node_rejects_probes() {
    let [client, _workload] = node("lan");
    let server = listen(6443);
    apply(|director| director);
    let mut open: Vec<_> = VIPS
        .iter()
        .map(|vip| (client.run(move || connect(target(vip))), server.accept().unwrap().0))
        .collect();
    apply(|director| Director { departing: true, ..director });
    for (vip, (stream, accepted)) in VIPS.into_iter().zip(&mut open) {
        accepted.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(b"y").unwrap();
        accepted.read_exact(&mut [0]).unwrap_or_else(|error| panic!("{vip}: open connections stay: {error}"));
        let refused = client.run(move || connect_by_one_hop(vip).unwrap_err().kind());
        assert_eq!(refused, ErrorKind::ConnectionRefused);
        let _stream = client.run(move || connect(target(vip)));
        assert_eq!(accepted_at(&server), target(vip), "a client is not refused");
    }
}

fn clients_behind_other_interfaces_still_reach_the_proxy() {
    let [client, workload] = node("lan");
    let (server, proxy) = (listen(6443), listen(6444));
    block_on(find().apply(&directed(Reach::ArrivalInterface, &["lan"]))).unwrap();
    for (index, vip) in VIPS.into_iter().enumerate() {
        let expected = SocketAddr::new(ip(vip), 6444);
        let _stream = workload.run(move || connect(target(vip)));
        assert_eq!(accepted_at(&proxy), expected, "from another interface");
        let _stream = connect(target(vip));
        assert_eq!(accepted_at(&proxy), expected, "from the node itself");
        assert!(!seen(index));
        assert!(is_marked(&client, index, &server));
    }
}

/// IPVS forwards from within the input hook; here packets with its mark are sent instead.
fn a_director_masquerades_what_it_forwards() {
    let [client, _workload] = node("lan");
    let table = directed(Reach::ArrivalInterface, &["lan"]);
    let masquerading = |director: Director| Director { masquerade: true, ..director };
    let first = masquerading(table.directors[0].clone());
    block_on(find().apply(&Table { directors: vec![first, table.directors[1].clone()], ..table.clone() }))
        .unwrap();
    add_address("10.0.0.2/24", "lan");
    // One listener for all: a process that another test starts may have a closed one for a moment, and its port with it.
    let server = client.run(|| TcpListener::bind(("10.0.0.9", 80)).unwrap());
    let source = |mark: u32| {
        let server = server.try_clone().unwrap();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_mark(mark).unwrap();
        socket.bind(&SocketAddr::from(([10, 0, 0, 2], 0)).into()).unwrap();
        socket.connect(&SocketAddr::from(([10, 0, 0, 9], 80)).into()).unwrap();
        client.run(move || server.accept().unwrap().1.ip())
    };
    assert_eq!(source(mark(0).get()), ip("10.0.0.1"));
    assert_eq!(source(mark(0).get() | 0x8000_0000), ip("10.0.0.1"), "foreign bits do not matter");
    for other in [0, mark(1).get(), lb_proxy::MARK] {
        assert_eq!(source(other), ip("10.0.0.2"), "{other:#x}");
    }
}

/// Counts replies of servers that pass the table's chain, and resets of this node's kernel.
fn count_replies() {
    nft("add table inet observed; delete table inet observed; add table inet observed");
    nft("add chain inet observed replies { type filter hook prerouting priority -299; }");
    nft("add rule inet observed replies iifname lan tcp sport 6443 counter");
    nft("add chain inet observed resets { type filter hook output priority 0; }");
    nft("add rule inet observed resets tcp flags & rst == rst counter");
}

/// Returns whether a chain of [`count_replies`] has counted nothing.
fn is_quiet(chain: &str) -> bool {
    nft(&format!("list chain inet observed {chain}")).contains("counter packets 0 ")
}

/// The client's node is a server too: it has the addresses, and its processes reply from them.
fn probe_replies_reach_the_prober_but_not_the_kernel() {
    let [server, _workload] = node("lan");
    let _listener = server.run(|| {
        for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
            add_address(&format!("{vip}/{prefix}"), "lo");
        }
        listen(6443)
    });
    let table = directed(Reach::ArrivalInterface, &["lan"]);
    for (vip, [source, other]) in VIPS.into_iter().zip([["10.0.0.1", "10.0.0.9"], ["fd00::1", "fd00::9"]]) {
        let question = Question { virtual_address: target(vip), server: ip(other), path: Path::Direct };
        let mut acceptance = Acceptance::open("lan", ip(source)).unwrap();
        // IPv6 neighbours are looked for with a link-local address, which may take a moment.
        let mut answer = || acceptance.ask(&[question], Duration::from_secs(6)).unwrap()[&question];
        block_on(find().apply(&table)).unwrap();
        count_replies();
        assert_eq!(answer(), Answer::Accepts, "{vip}");
        assert!(is_quiet("replies") && is_quiet("resets"), "{vip}: the kernel neither sees nor answers them");
        // Without the rule the kernel handles them, and resets for IPv6.
        block_on(find().remove(&table.name)).unwrap();
        assert_eq!(answer(), Answer::Accepts, "{vip}");
        assert_eq!((is_quiet("replies"), is_quiet("resets")), (false, ip(vip).is_ipv4()), "{vip}");
    }
}

/// Another node holds the address, and this one is its client.
fn a_node_without_the_address_receives_packets_from_it() {
    let [holder, _workload] = node("lan");
    for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
        run("ip", &["addr", "del", &format!("{vip}/{prefix}"), "dev", "lan"]);
    }
    let server = holder.run(|| {
        for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
            add_address(&format!("{vip}/{prefix}"), "eth0");
        }
        listen(6443)
    });
    block_on(find().apply(&directed(Reach::Node, &["lan"]))).unwrap();
    for vip in VIPS {
        let _stream = connect(target(vip));
        assert_eq!(accepted_at(&server), target(vip));
    }
}

fn the_rules_of_directors_are_watched() {
    let mut guard = find();
    let mut table = directed(Reach::ArrivalInterface, &["lan", "cplbtun4"]);
    table.directors[0].masquerade = true;
    table.directors[0].peers = [[2; 6]].into();
    table.directors[1].departing = true;
    let other = Director { vip: ip("10.0.0.101"), reach: Reach::From, ..table.directors[1].clone() };
    table.directors.push(Director { from: BTreeSet::new(), ..other });
    block_on(guard.apply(&table)).unwrap();
    assert_eq!(guard.present(&table).unwrap(), Presence::Intact);
    for change in [
        "flush chain inet cplb ipvs_mark",
        "flush chain inet cplb ipvs_masquerade",
        "flush chain inet cplb reject_probes",
        "flush chain inet cplb drop_probe_replies",
        "add chain inet cplb more",
    ] {
        nft(change);
        assert_eq!(guard.present(&table).unwrap(), Presence::Missing, "{change}");
        block_on(guard.apply(&table)).unwrap();
        assert_eq!(guard.present(&table).unwrap(), Presence::Intact);
    }
    block_on(guard.remove(&TableName::default())).unwrap();
    assert_eq!(nft("list ruleset"), "");
}
