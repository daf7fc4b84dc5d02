//! Answers of servers to the question whether they accept the packets of a director.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use netlink_vip::acceptance::{Acceptance, AcceptanceError, Answer, Path, Question};
use nix::unistd::{Uid, seteuid};
use testbed::{Capture, Frame, Lan, Node};

use crate::fixture::{Server, config, ip, lan, nft, until, vips};

const PORT: u16 = 6443;
const TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for servers that will not answer.
const SHORT: Duration = Duration::from_millis(600);

/// The node's own address of the VIP's family.
fn own(node: &Node, vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() { node.v4().into() } else { node.v6().into() }
}

fn question(vip: IpAddr, server: &Node, path: Path) -> Question {
    Question { virtual_address: (vip, PORT).into(), server: own(server, vip), path }
}

/// Asks, from the node's own address.
fn ask(node: &Node, questions: &[Question], timeout: Duration) -> HashMap<Question, Answer> {
    let source = own(node, questions[0].virtual_address.ip());
    node.run(|| {
        let mut acceptance = Acceptance::open("eth0", source).expect("sockets to ask with");
        acceptance.ask(questions, timeout).expect("a round of questions")
    })
}

fn ask_one(node: &Node, question: Question, timeout: Duration) -> Answer {
    ask(node, &[question], timeout)[&question]
}

fn listen(node: &Node, at: impl Into<SocketAddr>) -> TcpListener {
    let at = at.into();
    node.run(|| TcpListener::bind(at)).expect("a listener")
}

fn everywhere() -> SocketAddr {
    SocketAddr::new([0_u16; 8].into(), PORT)
}

/// TCP sockets that are neither listening nor closed, of the node's own kernel.
fn connections(node: &Node) -> Vec<String> {
    let tables = ["tcp", "tcp6"].map(|table| format!("/proc/thread-self/net/{table}"));
    let read = || tables.map(|table| std::fs::read_to_string(table).expect("a table")).concat();
    let table = node.run(read);
    let lines = table.lines().map(str::trim).filter(|line| !line.starts_with("sl"));
    lines
        .filter(|line| !matches!(line.split_whitespace().nth(3), Some("0A" | "07")))
        .map(str::to_owned)
        .collect()
}

/// The node becomes the holder of the VIPs.
fn hold(node: &Node, vips: &[IpAddr]) {
    for vip in vips {
        match vip {
            IpAddr::V4(_) => ip(node, &format!("addr add {vip}/32 dev eth0")),
            IpAddr::V6(_) => {
                ip(node, &format!("addr add {vip}/128 dev eth0 nodad preferred_lft 0 valid_lft forever"))
            }
        };
    }
}

/// Every path and family.
fn ways(lan: &Lan) -> Vec<(IpAddr, Path)> {
    let paths = [Path::Direct, Path::Tunnel];
    vips(lan).into_iter().flat_map(|vip| paths.map(|path| (vip, path))).collect()
}

pub(crate) fn answers() {
    let lan = lan(2);
    let (asker, node) = (lan.controller(0), lan.controller(1));
    // As every node of a cluster; and the holder of the VIP would accept.
    node.set_sysctl("net.ipv4.ip_forward", "1").expect("a sysctl");
    node.set_sysctl("net.ipv6.conf.all.forwarding", "1").expect("a sysctl");
    hold(lan.client(0), &vips(&lan));
    let _holder = listen(lan.client(0), everywhere());
    for (vip, path) in ways(&lan) {
        let question = question(vip, node, path);
        let says = |timeout| ask_one(asker, question, timeout);
        assert_eq!(says(SHORT), Answer::Silent, "no real server yet: {question:?}");
        let mut server = Server::with(node, config(&lan, node));
        assert_eq!(says(TIMEOUT), Answer::Refuses, "{question:?}");
        let listener = listen(node, (own(node, vip), PORT));
        assert_eq!(says(TIMEOUT), Answer::Refuses, "one address only: {question:?}");
        drop(listener);
        let listener = listen(node, (vip, PORT));
        assert_eq!(says(TIMEOUT), Answer::Accepts, "the VIP only: {question:?}");
        drop(listener);
        let _listener = listen(node, everywhere());
        assert_eq!(says(TIMEOUT), Answer::Accepts, "{question:?}");
        nft(node, "add table inet cut; add chain inet cut in { type filter hook input priority 0; }");
        nft(node, &format!("add rule inet cut in tcp dport {PORT} drop"));
        assert_eq!(says(SHORT), Answer::Silent, "filtered: {question:?}");
        nft(node, "flush chain inet cut in");
        nft(node, &format!("add rule inet cut in tcp dport {PORT} reject with tcp reset"));
        assert_eq!(says(TIMEOUT), Answer::Refuses, "reset: {question:?}");
        nft(node, "delete table inet cut");
        let gone = match path {
            Path::Direct => "dummyvip0",
            Path::Tunnel => {
                if vip.is_ipv4() {
                    "cplbtun4"
                } else {
                    "cplbtun6"
                }
            }
        };
        ip(node, &format!("link del {gone}"));
        assert_eq!(says(SHORT), Answer::Silent, "without {gone}: {question:?}");
        assert!(!server.repairs().is_empty());
        assert_eq!(says(TIMEOUT), Answer::Accepts, "mended: {question:?}");
        server.remove().expect("everything can be taken back");
        assert_eq!(connections(node), [""; 0]);
    }
}

/// Drops answers as the nftables table of lb-proxy does, and counts what the kernel sends itself.
fn drop_answers(node: &Node) {
    nft(node, "add table inet t; add chain inet t answers { type filter hook prerouting priority raw; }");
    let here = "fib saddr type local fib daddr type local";
    nft(node, &format!("add rule inet t answers iifname eth0 tcp sport {PORT} {here} counter drop"));
    nft(node, "add chain inet t out { type filter hook output priority 0; }");
    nft(node, "add rule inet t out tcp flags & rst == rst counter");
}

/// The SYN, ACK and RST flags of the segments that have passed to and from the port.
fn flags(capture: &Capture) -> Vec<[bool; 3]> {
    let frames = capture.frames();
    let segments = frames.iter().filter_map(Frame::tcp);
    let segments = segments.filter(|tcp| [tcp.source.port(), tcp.destination.port()].contains(&PORT));
    segments.map(|tcp| [tcp.syn, tcp.ack, tcp.rst]).collect()
}

/// Asks in every way, and looks at what passes the asker's port.
fn assert_heard(lan: &Lan, asker: &Node, server: &Node) {
    for (vip, path) in ways(lan) {
        let question = question(vip, server, path);
        let capture = lan.capture_port(asker).expect("frames");
        assert_eq!(ask_one(asker, question, TIMEOUT), Answer::Accepts, "{}: {question:?}", asker.name());
        until("the connection is reset", || connections(server).is_empty());
        let (syn, accepted, reset) = ([true, false, false], [true, true, false], [false, false, true]);
        // What is in a tunnel is no TCP segment to the capture.
        let expected = if path == Path::Direct { vec![syn, accepted, reset] } else { vec![accepted] };
        until("the conversation", || flags(&capture).len() >= expected.len());
        assert_eq!(flags(&capture), expected, "{}: {question:?}", asker.name());
        for frame in capture.select(|frame| frame.ip_destination() == Some(vip)) {
            assert_eq!(frame.destination_mac(), Some(server.mac()));
        }
        assert_eq!(capture.dropped(), 0);
    }
}

pub(crate) fn any_node() {
    let lan = lan(3);
    let server = lan.controller(2);
    let _server = Server::with(server, config(&lan, server));
    let _listener = listen(server, everywhere());
    let askers = [lan.controller(0), lan.controller(1)];
    let _servers = askers.map(|node| Server::with(node, config(&lan, node)));
    // The first one directs. Processes of theirs listen too, and are not asked about.
    hold(askers[0], &vips(&lan));
    let _own = askers.map(|node| listen(node, everywhere()));
    for asker in askers {
        assert_heard(&lan, asker, server);
        drop_answers(asker);
        assert_heard(&lan, asker, server);
        let counted = nft(asker, "list table inet t");
        assert!(counted.contains("type local counter packets 4 "), "every answer is dropped: {counted}");
        assert!(counted.contains("rst counter packets 0 "), "the kernel says nothing: {counted}");
        assert_eq!(connections(asker), [""; 0]);
    }
    // A director is no server to ask: it does not let another one answer in its place.
    for (vip, path) in ways(&lan).into_iter().filter(|(_, path)| *path == Path::Direct) {
        let service = SocketAddr::new(vip, PORT);
        let destination = SocketAddr::new(own(server, vip), PORT);
        for arguments in [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {destination} -g")] {
            askers[0].exec("ipvsadm", arguments.split_whitespace()).expect("a service");
        }
        assert_eq!(ask_one(askers[1], question(vip, askers[0], path), SHORT), Answer::Silent);
        assert_eq!(ask_one(askers[0], question(vip, server, path), TIMEOUT), Answer::Accepts);
    }
    // One that does not have the VIP may ask as well. Its kernel resets what it does not know, by the holder.
    for (vip, path) in ways(&lan) {
        let question = question(vip, server, path);
        assert_eq!(ask_one(lan.client(0), question, TIMEOUT), Answer::Accepts, "{question:?}");
    }
}

pub(crate) fn many() {
    const SERVED: u16 = 40;
    let lan = lan(2);
    let (asker, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(node, config(&lan, node));
    let listeners: Vec<_> =
        (0..SERVED).map(|n| listen(node, SocketAddr::new([0_u16; 8].into(), PORT + n))).collect();
    for vip in vips(&lan) {
        let questions: Vec<Question> = (0..64)
            .map(|n| Question {
                virtual_address: (vip, PORT + n).into(),
                ..question(vip, node, if n % 2 == 0 { Path::Direct } else { Path::Tunnel })
            })
            .collect();
        // One that is asked twice is one question.
        let twice = [questions.clone(), questions.clone()].concat();
        let start = Instant::now();
        let answers = ask(asker, &twice, 3 * TIMEOUT);
        println!("{:?} for {} answers", start.elapsed(), answers.len());
        assert!(start.elapsed() < TIMEOUT, "no server is waited for or asked again");
        assert_eq!(answers.len(), questions.len());
        for question in questions {
            let is_served = question.virtual_address.port() < PORT + SERVED;
            let expected = if is_served { Answer::Accepts } else { Answer::Refuses };
            assert_eq!(answers[&question], expected, "{question:?}");
        }
        until("all connections are reset", || connections(node).is_empty());
    }
    drop(listeners);
}

/// Also where the answer never came.
pub(crate) fn taken_back() {
    let lan = lan(2);
    let (asker, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(node, config(&lan, node));
    let _listener = listen(node, everywhere());
    nft(node, "add table inet cut; add chain inet cut out { type filter hook output priority 0; }");
    nft(node, &format!("add rule inet cut out tcp sport {PORT} counter drop"));
    for (vip, path) in ways(&lan) {
        let question = question(vip, node, path);
        let half_open = asker.thread("ask", {
            let asker = asker.clone();
            move || ask_one(&asker, question, SHORT)
        });
        until("half a connection", || !connections(node).is_empty());
        assert_eq!(half_open.expect("a thread").join().expect("an answer"), Answer::Silent);
        until("none is left", || connections(node).is_empty());
    }
    nft(node, "flush chain inet cut out");
    // A lost reset does not matter to the next question.
    nft(node, "add chain inet cut in { type filter hook input priority 0; }");
    nft(node, &format!("add rule inet cut in tcp dport {PORT} tcp flags & rst == rst drop"));
    for _ in 0..2 {
        for (vip, path) in ways(&lan) {
            let question = question(vip, node, path);
            assert_eq!(ask_one(asker, question, TIMEOUT), Answer::Accepts, "{question:?}");
        }
    }
}

pub(crate) fn neighbours() {
    let lan = lan(2);
    let (asker, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(node, config(&lan, node));
    let _listener = listen(node, everywhere());
    let wrong = "02:00:00:00:77:77";
    ip(asker, "route add 192.0.2.0/24 dev eth0");
    ip(asker, &format!("route add 198.51.100.0/24 via {}", node.v4()));
    ip(asker, "-6 route add 2001:db8::/32 dev eth0");
    ip(asker, &format!("-6 route add 3fff::/32 via {}", node.v6()));
    for (vip, absent, routed) in
        [(vips(&lan)[0], "192.0.2.9", "198.51.100.9"), (vips(&lan)[1], "2001:db8::9", "3fff::9")]
    {
        let question = question(vip, node, Path::Direct);
        let address = question.server;
        let shown = || ip(asker, &format!("neigh show {address} dev eth0"));
        ip(asker, &format!("neigh flush to {address}"));
        assert_eq!(ask_one(asker, question, TIMEOUT), Answer::Accepts, "the address is found out");
        ip(asker, &format!("neigh replace {address} lladdr {} dev eth0 nud stale", node.mac()));
        assert_eq!(ask_one(asker, question, TIMEOUT), Answer::Accepts);
        assert!(!shown().contains("STALE"), "it is being confirmed: {}", shown());
        // The server has another network card now.
        let v = if vip.is_ipv4() { "ipv4" } else { "ipv6" };
        asker.set_sysctl(&format!("net.{v}.neigh.eth0.delay_first_probe_time"), "1").expect("a sysctl");
        ip(asker, &format!("neigh replace {address} lladdr {wrong} dev eth0 nud stale"));
        assert_eq!(ask_one(asker, question, SHORT), Answer::Silent);
        until("the new one is found", || ask_one(asker, question, SHORT) == Answer::Accepts);
        // What an administrator has entered stays.
        ip(asker, &format!("neigh replace {address} lladdr {} dev eth0 nud permanent", node.mac()));
        assert_eq!(ask_one(asker, question, TIMEOUT), Answer::Accepts);
        assert!(shown().contains("PERMANENT"), "{}", shown());
        ip(asker, &format!("neigh del {address} dev eth0"));

        let other = |server: &str| Question { server: server.parse().expect("an address"), ..question };
        let itself = Question { server: own(asker, vip), ..question };
        let nowhere = other(if vip.is_ipv4() { "203.0.113.9" } else { "4000::9" });
        let questions = [other(absent), other(routed), itself, nowhere, question];
        let capture = lan.capture_port(asker).expect("frames");
        let answers = ask(asker, &questions, TIMEOUT);
        assert_eq!(answers[&questions[0]], Answer::Unresolved);
        for elsewhere in &questions[1..4] {
            assert_eq!(answers[elsewhere], Answer::NotOnLink, "{elsewhere:?}");
        }
        assert_eq!(answers[&question], Answer::Accepts, "it does not wait for the others");
        let asked = capture.select(|frame| frame.tcp().is_some_and(|tcp| tcp.destination.ip() == vip));
        assert!(asked.iter().all(|frame| frame.destination_mac() == Some(node.mac())));
        let start = Instant::now();
        assert_eq!(ask_one(asker, other(routed), TIMEOUT), Answer::NotOnLink);
        assert!(start.elapsed() < TIMEOUT, "there is nothing to wait for");
    }
}

/// An interface with a tag on the same wire.
pub(crate) fn vlan() {
    let lan = lan(2);
    let (asker, node) = (lan.controller(0), lan.controller(1));
    for (node, host) in [(asker, 1), (node, 2)] {
        ip(node, "link add link eth0 name eth0.5 type vlan id 5");
        ip(node, "link set eth0.5 up");
        ip(node, &format!("addr add 10.55.0.{host}/24 dev eth0.5"));
        ip(node, &format!("addr add fd55::{host}/64 dev eth0.5 nodad"));
    }
    let _server = Server::with(node, config(&lan, node));
    let _listener = listen(node, everywhere());
    for (vip, host, source) in
        [(vips(&lan)[0], "10.55.0.2", "10.55.0.1"), (vips(&lan)[1], "fd55::2", "fd55::1")]
    {
        let server: IpAddr = host.parse().expect("an address");
        let question = Question { virtual_address: (vip, PORT).into(), server, path: Path::Direct };
        let answers = asker.run(|| {
            let source = source.parse().expect("an address");
            let mut acceptance = Acceptance::open("eth0.5", source).expect("sockets to ask with");
            acceptance.ask(&[question], TIMEOUT).expect("a round of questions")
        });
        assert_eq!(answers[&question], Answer::Accepts);
        assert_eq!(ask_one(asker, question, TIMEOUT), Answer::NotOnLink, "not through eth0");
    }
}

pub(crate) fn errors() {
    let lan = lan(2);
    let (asker, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(asker, config(&lan, asker));
    let own: IpAddr = asker.v4().into();
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    let open = |interface: &str, source: IpAddr| asker.run(|| Acceptance::open(interface, source));
    let refusal = |interface: &str, source: IpAddr| open(interface, source).err().expect("no sockets");
    let absent = refusal("eth7", own);
    assert!(matches!(&absent, AcceptanceError::NoInterface(name) if name == "eth7"), "{absent}");
    for (name, address) in [("lo", [127, 0, 0, 1].into()), ("cplbtun4", own), ("cplbtun6", asker.v6().into())]
    {
        let other = refusal(name, address);
        assert!(matches!(&other, AcceptanceError::NotEthernet(found) if found == name), "{other}");
    }
    for address in [node.v4().into(), v4, v6] {
        let elsewhere = refusal("eth0", address);
        assert!(
            matches!(&elsewhere, AcceptanceError::NoSource { address: found, .. } if *found == address),
            "{elsewhere}"
        );
    }
    let ordinary = asker.run(|| {
        seteuid(Uid::from_raw(65534)).expect("an ordinary user");
        let opened = Acceptance::open("eth0", own);
        seteuid(Uid::from_raw(0)).expect("root again");
        opened.err().expect("no sockets")
    });
    assert_eq!(ordinary.to_string(), "asking servers needs CAP_NET_RAW");

    let mut acceptance = open("eth0", own).expect("sockets to ask with");
    let good = question(v4, node, Path::Direct);
    for question in [question(v6, node, Path::Direct), Question { server: node.v6().into(), ..good }] {
        let error = asker.run(|| acceptance.ask(&[question], SHORT)).expect_err("two families");
        assert!(matches!(error, AcceptanceError::Family { .. }), "{error}");
    }
    assert!(asker.run(|| acceptance.ask(&[], TIMEOUT)).expect("no server to ask").is_empty());

    // The interface disappears between two rounds, in several ways.
    ip(asker, "link add eth1 type veth peer name eth2");
    ip(asker, "link set eth1 up");
    ip(asker, "link set eth2 up");
    ip(asker, "addr add 192.0.2.1/24 dev eth1");
    let mut acceptance = open("eth1", [192, 0, 2, 1].into()).expect("sockets to ask with");
    let question = Question { server: [192, 0, 2, 2].into(), ..good };
    let mut says =
        |timeout| asker.run(|| acceptance.ask(&[question], timeout)).map(|answers| answers[&question]);
    assert_eq!(says(SHORT).expect("a round"), Answer::Unresolved);
    ip(asker, "link set eth1 down");
    let down = says(SHORT).expect_err("it is down");
    assert!(matches!(down, AcceptanceError::Down(_)), "{down}");
    ip(asker, "link set eth1 up");
    ip(asker, "link set eth2 down");
    let cut = says(SHORT).expect_err("no server is at the other end");
    assert!(matches!(cut, AcceptanceError::Down(_)), "{cut}");
    ip(asker, "link set eth2 up");
    assert_eq!(says(SHORT).expect("a round"), Answer::Unresolved);
    ip(asker, "addr del 192.0.2.1/24 dev eth1");
    let no_source = says(SHORT).expect_err("the address is gone");
    assert!(matches!(no_source, AcceptanceError::NoSource { .. }), "{no_source}");
    ip(asker, "addr add 192.0.2.1/24 dev eth1");
    assert_eq!(says(SHORT).expect("a round"), Answer::Unresolved);
    // In the middle of a round.
    ip(asker, "neigh flush dev eth1");
    let breaker = asker.clone();
    let breaks = asker.thread("break", move || {
        until("a neighbour is looked for", || ip(&breaker, "neigh show dev eth1").contains("INCOMPLETE"));
        ip(&breaker, "link del eth1");
    });
    let gone = says(10 * TIMEOUT).expect_err("it is deleted");
    assert!(matches!(gone, AcceptanceError::Down(_) | AcceptanceError::NoInterface(_)), "{gone}");
    breaks.expect("a thread").join().expect("a broken link");
    ip(asker, "link add eth1 type dummy");
    ip(asker, "link set eth1 up");
    ip(asker, "addr add 192.0.2.1/24 dev eth1");
    let other = says(SHORT).expect_err("another interface has the name");
    assert!(matches!(other, AcceptanceError::NoInterface(_)), "{other}");
}
