//! Virtual addresses that IPVS balances. This kernel may have no IPVS: what is looked at is which packets it would see
//! with its mark, and where all others go.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::num::{NonZeroU16, NonZeroU32};

use lb_proxy::director_marks;
use lb_proxy::nft::{Director, Presence, Reach, Table, TableName};

use crate::ns::{Peer, accepted_at, add_address, connect, ip, listen, nft, run};
use crate::{block_on, find, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_director_marks_only_where_the_address_is", a_director_marks_only_where_the_address_is),
    ("an_address_of_somebody_else_is_directed_wherever_it_is", an_address_of_somebody_else_is_directed),
    ("others_still_reach_the_proxy", others_still_reach_the_proxy),
    ("a_director_masquerades_what_it_forwards", a_director_masquerades_what_it_forwards),
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
        masquerade: false,
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
            // The addresses are on the node, wherever the peer is.
            run("ip", &["route", "replace", "10.0.0.100/32", "via", &format!("{v4}.1")]);
            run("ip", &["-6", "route", "replace", "fd00::100/128", "via", &format!("{v6}:1")]);
        });
        peer
    });
    for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
        add_address(&format!("{vip}/{prefix}"), interface);
    }
    // After our chain, before IPVS.
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

/// Whether packets with the mark of `vip` were seen.
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
        assert!(!is_marked(&client, index, &server), "{vip} is on another link, like a dummy");
    }
    for (vip, prefix) in VIPS.into_iter().zip([32, 128]) {
        run("ip", &["addr", "del", &format!("{vip}/{prefix}"), "dev", "cali0"]);
        add_address(&format!("{vip}/{prefix}"), "lan");
    }
    for (index, vip) in VIPS.iter().enumerate() {
        assert!(is_marked(&client, index, &server), "{vip} is where the packet arrives");
    }
}

fn an_address_of_somebody_else_is_directed() {
    let [client, workload] = node("lo");
    let server = listen(6443);
    block_on(find().apply(&directed(Reach::Node, &[]))).unwrap();
    for (index, peer) in [client, workload].iter().enumerate() {
        assert!(is_marked(peer, index, &server), "{}", VIPS[index]);
    }
}

fn others_still_reach_the_proxy() {
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

/// IPVS forwards from within the input hook; here packets with its mark are simply sent.
fn a_director_masquerades_what_it_forwards() {
    let [client, _workload] = node("lan");
    let table = directed(Reach::ArrivalInterface, &["lan"]);
    let masquerading = |director: Director| Director { masquerade: true, ..director };
    let first = masquerading(table.directors[0].clone());
    block_on(find().apply(&Table { directors: vec![first, table.directors[1].clone()], ..table.clone() }))
        .unwrap();
    add_address("10.0.0.2/24", "lan");
    let source = |mark: u32| {
        let server = client.run(|| TcpListener::bind(("10.0.0.9", 80)).unwrap());
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_mark(mark).unwrap();
        socket.bind(&SocketAddr::from(([10, 0, 0, 2], 0)).into()).unwrap();
        socket.connect(&SocketAddr::from(([10, 0, 0, 9], 80)).into()).unwrap();
        client.run(move || server.accept().unwrap().1.ip())
    };
    assert_eq!(source(mark(0).get()), ip("10.0.0.1"));
    assert_eq!(source(mark(0).get() | 0x8000_0000), ip("10.0.0.1"), "bits of others do not matter");
    for other in [0, mark(1).get(), lb_proxy::MARK] {
        assert_eq!(source(other), ip("10.0.0.2"), "{other:#x}");
    }
}

fn the_rules_of_directors_are_watched() {
    let mut guard = find();
    let mut table = directed(Reach::ArrivalInterface, &["lan", "cplbtun4"]);
    table.directors[0].masquerade = true;
    block_on(guard.apply(&table)).unwrap();
    assert_eq!(guard.present(&table).unwrap(), Presence::Intact);
    for change in
        ["flush chain inet cplb direct", "flush chain inet cplb forwarded", "add chain inet cplb more"]
    {
        nft(change);
        assert_eq!(guard.present(&table).unwrap(), Presence::Missing, "{change}");
        block_on(guard.apply(&table)).unwrap();
        assert_eq!(guard.present(&table).unwrap(), Presence::Intact);
    }
    block_on(guard.remove(&TableName::default())).unwrap();
    assert_eq!(nft("list ruleset"), "");
}
