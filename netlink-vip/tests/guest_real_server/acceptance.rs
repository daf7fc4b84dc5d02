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

/// Probes from the node's own address.
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

fn any_address() -> SocketAddr {
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

/// Gives the VIPs to the node.
fn add_vips(node: &Node, vips: &[IpAddr]) {
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
fn paths(lan: &Lan) -> Vec<(IpAddr, Path)> {
    let paths = [Path::Direct, Path::Tunnel];
    vips(lan).into_iter().flat_map(|vip| paths.map(|path| (vip, path))).collect()
}

pub(crate) fn answers() {
    let lan = lan(2);
    let (prober, node) = (lan.controller(0), lan.controller(1));
    // This is the state of every node of a cluster; the VIP's owner would accept.
    node.set_sysctl("net.ipv4.ip_forward", "1").expect("a sysctl");
    node.set_sysctl("net.ipv6.conf.all.forwarding", "1").expect("a sysctl");
    add_vips(lan.client(0), &vips(&lan));
    let _owner = listen(lan.client(0), any_address());
    for (vip, path) in paths(&lan) {
        let question = question(vip, node, path);
        let says = |timeout| ask_one(prober, question, timeout);
        assert_eq!(says(SHORT), Answer::Silent, "no real server yet: {question:?}");
        let mut server = Server::with(node, config(&lan, node));
        assert_eq!(says(TIMEOUT), Answer::Refuses, "{question:?}");
        let listener = listen(node, (own(node, vip), PORT));
        assert_eq!(says(TIMEOUT), Answer::Refuses, "one address only: {question:?}");
        drop(listener);
        let listener = listen(node, (vip, PORT));
        assert_eq!(says(TIMEOUT), Answer::Accepts, "the VIP only: {question:?}");
        drop(listener);
        let _listener = listen(node, any_address());
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

/// Probes in every direction, and checks the frames at the prober's port.
fn assert_answers_arrive(lan: &Lan, prober: &Node, server: &Node) {
    for (vip, path) in paths(lan) {
        let question = question(vip, server, path);
        let capture = lan.capture_port(prober).expect("frames");
        assert_eq!(ask_one(prober, question, TIMEOUT), Answer::Accepts, "{}: {question:?}", prober.name());
        until("the connection is reset", || connections(server).is_empty());
        let (syn, accepted, reset) = ([true, false, false], [true, true, false], [false, false, true]);
        // A tunnelled packet is no TCP segment to the capture.
        let expected = if path == Path::Direct { vec![syn, accepted, reset] } else { vec![accepted] };
        until("the conversation", || flags(&capture).len() >= expected.len());
        assert_eq!(flags(&capture), expected, "{}: {question:?}", prober.name());
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
    let _listener = listen(server, any_address());
    let probers = [lan.controller(0), lan.controller(1)];
    let _servers = probers.map(|node| Server::with(node, config(&lan, node)));
    // The first one directs. Processes of theirs listen too, and are not asked about.
    add_vips(probers[0], &vips(&lan));
    let _own = probers.map(|node| listen(node, any_address()));
    for prober in probers {
        assert_answers_arrive(&lan, prober, server);
        drop_answers(prober);
        assert_answers_arrive(&lan, prober, server);
        let counted = nft(prober, "list table inet t");
        assert!(counted.contains("type local counter packets 4 "), "every answer is dropped: {counted}");
        assert!(counted.contains("rst counter packets 0 "), "the kernel says nothing: {counted}");
        assert_eq!(connections(prober), [""; 0]);
    }
    // A director is not probed: it does not let another server answer in its place.
    for (vip, path) in paths(&lan).into_iter().filter(|(_, path)| *path == Path::Direct) {
        let service = SocketAddr::new(vip, PORT);
        let destination = SocketAddr::new(own(server, vip), PORT);
        for arguments in [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {destination} -g")] {
            probers[0].exec("ipvsadm", arguments.split_whitespace()).expect("a service");
        }
        assert_eq!(ask_one(probers[1], question(vip, probers[0], path), SHORT), Answer::Silent);
        assert_eq!(ask_one(probers[0], question(vip, server, path), TIMEOUT), Answer::Accepts);
    }
    // A node without the VIP may probe as well. Its kernel resets unknown connections, through the VIP's owner.
    for (vip, path) in paths(&lan) {
        let question = question(vip, server, path);
        assert_eq!(ask_one(lan.client(0), question, TIMEOUT), Answer::Accepts, "{question:?}");
    }
}

pub(crate) fn many() {
    const SERVED: u16 = 40;
    let lan = lan(2);
    let (prober, node) = (lan.controller(0), lan.controller(1));
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
        let answers = ask(prober, &twice, 3 * TIMEOUT);
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
    let (prober, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(node, config(&lan, node));
    let _listener = listen(node, any_address());
    nft(node, "add table inet cut; add chain inet cut out { type filter hook output priority 0; }");
    nft(node, &format!("add rule inet cut out tcp sport {PORT} counter drop"));
    for (vip, path) in paths(&lan) {
        let question = question(vip, node, path);
        let half_open = prober.thread("ask", {
            let prober = prober.clone();
            move || ask_one(&prober, question, SHORT)
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
        for (vip, path) in paths(&lan) {
            let question = question(vip, node, path);
            assert_eq!(ask_one(prober, question, TIMEOUT), Answer::Accepts, "{question:?}");
        }
    }
}

pub(crate) fn neighbours() {
    let lan = lan(2);
    let (prober, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(node, config(&lan, node));
    let _listener = listen(node, any_address());
    let wrong = "02:00:00:00:77:77";
    ip(prober, "route add 192.0.2.0/24 dev eth0");
    ip(prober, &format!("route add 198.51.100.0/24 via {}", node.v4()));
    ip(prober, "-6 route add 2001:db8::/32 dev eth0");
    ip(prober, &format!("-6 route add 3fff::/32 via {}", node.v6()));
    for (vip, absent, routed) in
        [(vips(&lan)[0], "192.0.2.9", "198.51.100.9"), (vips(&lan)[1], "2001:db8::9", "3fff::9")]
    {
        let question = question(vip, node, Path::Direct);
        let address = question.server;
        let shown = || ip(prober, &format!("neigh show {address} dev eth0"));
        ip(prober, &format!("neigh flush to {address}"));
        assert_eq!(ask_one(prober, question, TIMEOUT), Answer::Accepts, "the address is found out");
        ip(prober, &format!("neigh replace {address} lladdr {} dev eth0 nud stale", node.mac()));
        assert_eq!(ask_one(prober, question, TIMEOUT), Answer::Accepts);
        assert!(!shown().contains("STALE"), "it is being confirmed: {}", shown());
        // The server has another network card now.
        let v = if vip.is_ipv4() { "ipv4" } else { "ipv6" };
        prober.set_sysctl(&format!("net.{v}.neigh.eth0.delay_first_probe_time"), "1").expect("a sysctl");
        ip(prober, &format!("neigh replace {address} lladdr {wrong} dev eth0 nud stale"));
        assert_eq!(ask_one(prober, question, SHORT), Answer::Silent);
        until("the new one is found", || ask_one(prober, question, SHORT) == Answer::Accepts);
        // An entry of the administrator stays.
        ip(prober, &format!("neigh replace {address} lladdr {} dev eth0 nud permanent", node.mac()));
        assert_eq!(ask_one(prober, question, TIMEOUT), Answer::Accepts);
        assert!(shown().contains("PERMANENT"), "{}", shown());
        ip(prober, &format!("neigh del {address} dev eth0"));

        let other = |server: &str| Question { server: server.parse().expect("an address"), ..question };
        let itself = Question { server: own(prober, vip), ..question };
        let nowhere = other(if vip.is_ipv4() { "203.0.113.9" } else { "4000::9" });
        let questions = [other(absent), other(routed), itself, nowhere, question];
        let capture = lan.capture_port(prober).expect("frames");
        let answers = ask(prober, &questions, TIMEOUT);
        assert_eq!(answers[&questions[0]], Answer::Unresolved);
        for elsewhere in &questions[1..4] {
            assert_eq!(answers[elsewhere], Answer::NotOnLink, "{elsewhere:?}");
        }
        assert_eq!(answers[&question], Answer::Accepts, "it does not wait for the others");
        let asked = capture.select(|frame| frame.tcp().is_some_and(|tcp| tcp.destination.ip() == vip));
        assert!(asked.iter().all(|frame| frame.destination_mac() == Some(node.mac())));
        let start = Instant::now();
        assert_eq!(ask_one(prober, other(routed), TIMEOUT), Answer::NotOnLink);
        assert!(start.elapsed() < TIMEOUT, "there is nothing to wait for");
    }
}

/// An interface with a tag on the same wire.
pub(crate) fn vlan() {
    let lan = lan(2);
    let (prober, node) = (lan.controller(0), lan.controller(1));
    for (node, host) in [(prober, 1), (node, 2)] {
        ip(node, "link add link eth0 name eth0.5 type vlan id 5");
        ip(node, "link set eth0.5 up");
        ip(node, &format!("addr add 10.55.0.{host}/24 dev eth0.5"));
        ip(node, &format!("addr add fd55::{host}/64 dev eth0.5 nodad"));
    }
    let _server = Server::with(node, config(&lan, node));
    let _listener = listen(node, any_address());
    for (vip, host, source) in
        [(vips(&lan)[0], "10.55.0.2", "10.55.0.1"), (vips(&lan)[1], "fd55::2", "fd55::1")]
    {
        let server: IpAddr = host.parse().expect("an address");
        let question = Question { virtual_address: (vip, PORT).into(), server, path: Path::Direct };
        let answers = prober.run(|| {
            let source = source.parse().expect("an address");
            let mut acceptance = Acceptance::open("eth0.5", source).expect("sockets to ask with");
            acceptance.ask(&[question], TIMEOUT).expect("a round of questions")
        });
        assert_eq!(answers[&question], Answer::Accepts);
        assert_eq!(ask_one(prober, question, TIMEOUT), Answer::NotOnLink, "not through eth0");
    }
}

pub(crate) fn errors() {
    let lan = lan(2);
    let (prober, node) = (lan.controller(0), lan.controller(1));
    let _server = Server::with(prober, config(&lan, prober));
    let own: IpAddr = prober.v4().into();
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    let open = |interface: &str, source: IpAddr| prober.run(|| Acceptance::open(interface, source));
    let refusal = |interface: &str, source: IpAddr| open(interface, source).err().expect("no sockets");
    let absent = refusal("eth7", own);
    assert!(matches!(&absent, AcceptanceError::NoInterface(name) if name == "eth7"), "{absent}");
    for (name, address) in
        [("lo", [127, 0, 0, 1].into()), ("cplbtun4", own), ("cplbtun6", prober.v6().into())]
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
    let ordinary = prober.run(|| {
        seteuid(Uid::from_raw(65534)).expect("an ordinary user");
        let opened = Acceptance::open("eth0", own);
        seteuid(Uid::from_raw(0)).expect("root again");
        opened.err().expect("no sockets")
    });
    assert_eq!(ordinary.to_string(), "asking servers needs CAP_NET_RAW");

    let mut acceptance = open("eth0", own).expect("sockets to ask with");
    let good = question(v4, node, Path::Direct);
    for question in [question(v6, node, Path::Direct), Question { server: node.v6().into(), ..good }] {
        let error = prober.run(|| acceptance.ask(&[question], SHORT)).expect_err("two families");
        assert!(matches!(error, AcceptanceError::Family { .. }), "{error}");
    }
    assert!(prober.run(|| acceptance.ask(&[], TIMEOUT)).expect("no server to ask").is_empty());

    // The interface disappears between two rounds, in several ways.
    ip(prober, "link add eth1 type veth peer name eth2");
    ip(prober, "link set eth1 up");
    ip(prober, "link set eth2 up");
    ip(prober, "addr add 192.0.2.1/24 dev eth1");
    let mut acceptance = open("eth1", [192, 0, 2, 1].into()).expect("sockets to ask with");
    let question = Question { server: [192, 0, 2, 2].into(), ..good };
    let mut says =
        |timeout| prober.run(|| acceptance.ask(&[question], timeout)).map(|answers| answers[&question]);
    assert_eq!(says(SHORT).expect("a round"), Answer::Unresolved);
    ip(prober, "link set eth1 down");
    let down = says(SHORT).expect_err("it is down");
    assert!(matches!(down, AcceptanceError::Down(_)), "{down}");
    ip(prober, "link set eth1 up");
    ip(prober, "link set eth2 down");
    let cut = says(SHORT).expect_err("no server is at the other end");
    assert!(matches!(cut, AcceptanceError::Down(_)), "{cut}");
    ip(prober, "link set eth2 up");
    assert_eq!(says(SHORT).expect("a round"), Answer::Unresolved);
    ip(prober, "addr del 192.0.2.1/24 dev eth1");
    let no_source = says(SHORT).expect_err("the address is gone");
    assert!(matches!(no_source, AcceptanceError::NoSource { .. }), "{no_source}");
    ip(prober, "addr add 192.0.2.1/24 dev eth1");
    assert_eq!(says(SHORT).expect("a round"), Answer::Unresolved);
    // In the middle of a round.
    ip(prober, "neigh flush dev eth1");
    let breaker = prober.clone();
    let breaks = prober.thread("break", move || {
        until("a neighbour is looked for", || ip(&breaker, "neigh show dev eth1").contains("INCOMPLETE"));
        ip(&breaker, "link del eth1");
    });
    let gone = says(10 * TIMEOUT).expect_err("it is deleted");
    assert!(matches!(gone, AcceptanceError::Down(_) | AcceptanceError::NoInterface(_)), "{gone}");
    breaks.expect("a thread").join().expect("a broken link");
    ip(prober, "link add eth1 type dummy");
    ip(prober, "link set eth1 up");
    ip(prober, "addr add 192.0.2.1/24 dev eth1");
    let other = says(SHORT).expect_err("another interface has the name");
    assert!(matches!(other, AcceptanceError::NoInterface(_)), "{other}");
}
