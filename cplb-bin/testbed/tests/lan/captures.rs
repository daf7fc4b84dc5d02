//! Tests of captures and of frame decoding.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use testbed::{AnnouncementKind, Backend, Capture, Direction, Lan, Test, Tool, Travel, eventually};

use crate::network::{gets_no_reply, pings};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("switch_capture_records_each_frame_once", switch_capture_records_each_frame_once)
            .needs([Tool::Ping]),
        Test::new(
            "reading_a_capture_includes_all_earlier_frames",
            reading_a_capture_includes_all_earlier_frames,
        )
        .needs([Tool::Ping]),
        Test::new("announcements_contain_the_answering_node", announcements_contain_the_answering_node)
            .needs([Tool::Ping]),
        Test::new("gratuitous_arp_is_recognised", gratuitous_arp_is_recognised).needs([Tool::Arping]),
        Test::new("tcp_segments_are_decoded", tcp_segments_are_decoded),
        Test::new("dropped_frames_are_counted", dropped_frames_are_counted),
        Test::new(
            "port_capture_records_frames_that_a_cut_drops",
            port_capture_records_frames_that_a_cut_drops,
        )
        .needs([Tool::Nft, Tool::Ping]),
        Test::new("pcap_file_is_readable_by_tshark", pcap_file_is_readable_by_tshark)
            .needs([Tool::Tshark, Tool::Ping]),
    ]
}

const LONG: Duration = Duration::from_secs(5);

fn switch_capture_records_each_frame_once() {
    let lan = Lan::builder().build().expect("a LAN");
    let (client, node) = (lan.client(0), lan.controller(1));
    let (switch, own) = (lan.capture().expect("a capture"), Capture::on(node).expect("a capture"));
    let before = Instant::now();
    assert!(pings(client, node.v4()));
    let request = switch.wait_for("the reply", LONG, |frame| frame.ip_source() == Some(node.v4().into()));
    let request = request.expect("a frame");
    assert!(request.at >= before && request.at <= Instant::now());
    assert!(request.wall.elapsed().expect("the past") < LONG);
    assert_eq!((&*request.interface, request.source_mac()), ("c2", Some(node.mac())));
    assert_eq!(lan.node_with_mac(request.source_mac().expect("a source")).expect("a node").name(), "c2");
    assert_eq!(switch.sent_as(client.v4()).len(), 1);
    assert_eq!(switch.sent_as(node.v4()).len(), 1);
    own.wait_for("the reply", LONG, |frame| frame.ip_source() == Some(node.v4().into())).expect("a frame");
    let travels = |ip: IpAddr| own.sent_as(ip).iter().map(|frame| frame.travel).collect::<Vec<_>>();
    assert_eq!(travels(client.v4().into()), [Travel::In]);
    assert_eq!(travels(node.v4().into()), [Travel::Out]);
}

fn reading_a_capture_includes_all_earlier_frames() {
    let lan = Lan::builder().controllers(1).build().expect("a LAN");
    let (node, target) = (lan.controller(0), SocketAddr::from((lan.client(0).v4(), 9)));
    let capture = Capture::on(node).expect("a capture");
    let socket = node.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    // The first datagram is delayed by neighbour resolution.
    assert!(pings(node, target.ip()));
    let ours = |frame: &testbed::Frame| frame.travel == Travel::Out && frame.bytes.len() == 14 + 20 + 8 + 1;
    for round in 1..=60 {
        // The reader is blocked while the frames are read, so all of these are still unread afterwards.
        let sent = Cell::new(false);
        let _ = capture.count(|_| {
            if !sent.replace(true) {
                for _ in 0..50 {
                    // The receiver refuses the datagrams, and every second call reports that error instead of sending.
                    socket.send_to(b"x", target).or_else(|_| socket.send_to(b"x", target)).expect("sent");
                }
            }
            false
        });
        assert_eq!(capture.count(ours), 50 * round);
    }
}

fn announcements_contain_the_answering_node() {
    let lan = Lan::builder().build().expect("a LAN");
    let (client, node) = (lan.client(0), lan.controller(2));
    let capture = lan.capture().expect("a capture");
    for (ip, len) in [(IpAddr::from(lan.v4(100)), 32), (lan.v6(100).into(), 128)] {
        node.add_address(ip, len).expect("an address");
        assert!(pings(client, ip));
        capture
            .wait_for("an answer", LONG, |frame| frame.announcement().is_some_and(|a| a.ip == ip))
            .expect("one");
        let answers: Vec<_> =
            capture.announcements(ip).into_iter().map(|(_, answer)| (answer.mac, answer.kind)).collect();
        let kind = if ip.is_ipv4() {
            AnnouncementKind::ArpReply
        } else {
            AnnouncementKind::SolicitedNa { overrides: true }
        };
        assert_eq!(answers, [(node.mac(), kind)]);
    }
    let asked = capture.announcements(client.v4());
    assert_eq!((asked[0].1.mac, asked[0].1.kind), (client.mac(), AnnouncementKind::ArpRequest));
}

fn gratuitous_arp_is_recognised() {
    let lan = Lan::builder().build().expect("a LAN");
    let (node, ip) = (lan.controller(0), lan.v4(100));
    node.add_address(ip, 32).expect("an address");
    let capture = lan.capture().expect("a capture");
    // As a request and as a reply.
    for form in ["-U", "-A"] {
        node.exec("arping", [form, "-c1", "-I", "eth0", &ip.to_string()]).expect("sent");
    }
    eventually("both announcements are recorded", LONG, || capture.announcements(ip).len() == 2);
    for (_, announcement) in capture.announcements(ip) {
        assert_eq!((announcement.mac, announcement.kind), (node.mac(), AnnouncementKind::GratuitousArp));
    }
}

fn tcp_segments_are_decoded() {
    let lan = Lan::builder().build().expect("a LAN");
    let node = lan.controller(0);
    let backend = Backend::echo(node, "one", 7000).expect("a backend");
    let capture = lan.capture().expect("a capture");
    for ip in node.own_ips() {
        let target = (ip, 7000).into();
        let stream = lan.client(0).run(|| std::net::TcpStream::connect(target)).expect("a connection");
        let local = stream.local_addr().expect("an address");
        let greeting =
            |frame: &testbed::Frame| frame.tcp().is_some_and(|tcp| tcp.source == target && tcp.length == 4);
        let greeting =
            capture.wait_for("the greeting", LONG, greeting).expect("a frame").tcp().expect("a segment");
        assert_eq!((greeting.destination, greeting.syn, greeting.ack), (local, false, true));
        assert_eq!(
            capture.count(|frame| frame.tcp().is_some_and(|tcp| tcp.syn && !tcp.ack && tcp.source == local)),
            1
        );
        backend.close_all().expect("closed");
        let reset = |frame: &testbed::Frame| frame.tcp().is_some_and(|tcp| tcp.rst && tcp.source == target);
        capture.wait_for("a reset", LONG, reset).expect("a frame");
    }
}

fn dropped_frames_are_counted() {
    let lan = Lan::builder().controllers(1).build().expect("a LAN");
    let (node, target) = (lan.controller(0), SocketAddr::from((lan.client(0).v4(), 9)));
    let capture = Capture::on(node).expect("a capture");
    let flood = |count: u32| {
        node.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            // The errors of refused datagrams do not matter.
            (0..count).for_each(|_| drop(socket.send_to(&[0; 60_000], target)));
        });
    };
    flood(1);
    capture
        .wait_for("a datagram", LONG, |frame| frame.ip_source() == Some(node.v4().into()))
        .expect("a frame");
    assert_eq!(capture.dropped(), 0);
    // The reader is blocked while the frames are read; meanwhile more arrive than its buffer can hold.
    let flooded = Cell::new(false);
    let _ = capture.count(|_| {
        if !flooded.replace(true) {
            flood(1000);
        }
        false
    });
    eventually("frames are lost and counted", LONG, || {
        flood(1);
        capture.dropped() > 0
    });
}

fn port_capture_records_frames_that_a_cut_drops() {
    let lan = Lan::builder().build().expect("a LAN");
    let (client, node) = (lan.client(0), lan.controller(0));
    assert!(pings(client, node.v4()));
    lan.cut(node, Direction::From).expect("a cut");
    let (cut_port, client_port) =
        (lan.capture_port(node).expect("a capture"), lan.capture_port(client).expect("one"));
    assert!(gets_no_reply(client, node.v4()));
    let from_node = |frame: &testbed::Frame| frame.ip_source() == Some(node.v4().into());
    cut_port
        .wait_for("the reply", LONG, |frame| from_node(frame) && frame.travel == Travel::In)
        .expect("a frame");
    client_port.wait_for("the request", LONG, |frame| frame.travel == Travel::In).expect("a frame");
    assert_eq!(client_port.count(from_node), 0);
}

fn pcap_file_is_readable_by_tshark() {
    let lan = Lan::builder().build().expect("a LAN");
    let capture = lan.capture().expect("a capture");
    assert!(pings(lan.client(0), lan.controller(0).v4()));
    let reply = |frame: &testbed::Frame| frame.ip_source() == Some(lan.controller(0).v4().into());
    let seen = capture.wait_for("the reply", LONG, reply).expect("a frame");
    let path = lan.directory().join("ping.pcap");
    capture.to_pcap(&path).expect("a file");
    let path = path.to_string_lossy();
    let fields =
        ["-r", &path, "-Y", "icmp.type == 0", "-T", "fields", "-e", "ip.src", "-e", "frame.time_epoch"];
    let output = lan.controller(0).exec("tshark", fields).expect("tshark reads it");
    let (ip, time) = output.trim().split_once('\t').expect("two fields");
    let nanoseconds = seen.wall.duration_since(std::time::UNIX_EPOCH).expect("a time").as_nanos();
    assert_eq!((ip, time.replace('.', "")), (&*lan.controller(0).v4().to_string(), nanoseconds.to_string()));
}
