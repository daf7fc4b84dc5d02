//! The view of other hosts on the network.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use testbed::{Node, Thread};

use crate::fixture::{SOON, Server, config, ip, lan, until, vips};

/// Resolves addresses over and over.
struct Asker {
    stop: Arc<AtomicBool>,
    thread: Thread<u32>,
}

impl Asker {
    fn on(node: &Node, vips: Vec<IpAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let asking = node.clone();
        let ask = move || {
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) {
                for &vip in &vips {
                    let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                    let socket = UdpSocket::bind((any, 0)).expect("a socket");
                    // A VIP that no node has cannot be sent to.
                    let _ = socket.send_to(b"?", (vip, 9));
                    asked += 1;
                }
                std::thread::sleep(Duration::from_millis(20));
                asking.flush_neighbours().expect("an empty cache");
            }
            asked
        };
        let thread = node.thread("asker", ask).expect("a thread");
        Self { stop, thread }
    }

    fn stop(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a count")
    }
}

pub(crate) fn silence() {
    let lan = lan(2);
    let (first, second) = (lan.controller(0), lan.controller(1));
    let capture = lan.capture().expect("frames");
    let told_by = |node: &Node| {
        let macs = vips(&lan).into_iter().flat_map(|vip| capture.announcements(vip));
        macs.filter(|(_, announcement)| announcement.mac == node.mac()).count()
    };
    let asker = Asker::on(lan.client(0), vips(&lan));
    std::thread::sleep(Duration::from_millis(300));
    let mut servers = [first, second].map(|node| Server::with(node, config(&lan, node)));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((told_by(first), told_by(second)), (0, 0), "from the first moment on");

    // The second node holds the VIPs.
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    ip(second, &format!("addr add {v4}/32 dev eth0 valid_lft 3 preferred_lft 3"));
    ip(second, &format!("addr add {v6}/128 dev eth0 nodad valid_lft 3 preferred_lft 0"));
    for vip in [v4, v6] {
        until("the holder answers", || {
            capture.announcements(vip).iter().any(|(_, announcement)| announcement.mac == second.mac())
        });
    }
    until("the lease ends", || !ip(second, "addr show dev eth0").contains(&format!("{v4}/32")));
    until("the lease ends", || !ip(second, "addr show dev eth0").contains(&format!("{v6}/128")));
    std::thread::sleep(Duration::from_millis(200));
    let before = told_by(second);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(told_by(second), before, "the dummy has them still, and is not asked");

    for server in &mut servers {
        server.remove().expect("everything can be taken back");
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((told_by(first), told_by(second)), (0, before), "until the last moment");
    assert_eq!(capture.dropped(), 0);
    println!("asked {} times", asker.stop());
}

/// Answers every connection with the length of what it has received.
fn counting_server(node: &Node) {
    let serve = || {
        let listener = TcpListener::bind("[::]:6443").expect("a listener");
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut received = Vec::new();
            if stream.read_to_end(&mut received).is_ok() {
                let _ = stream.write_all(received.len().to_string().as_bytes());
            }
        }
    };
    node.thread("server", serve).expect("a thread");
}

/// Sends this many bytes and returns the answer.
fn upload(node: &Node, to: SocketAddr, length: usize) -> Option<String> {
    node.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        stream.write_all(&vec![7; length]).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

pub(crate) fn tunnels() {
    let lan = lan(2);
    let (director, real) = (lan.controller(0), lan.controller(1));
    let [v4, v6] = vips(&lan)[..] else { unreachable!() };
    ip(director, &format!("addr add {v4}/32 dev eth0"));
    ip(director, &format!("addr add {v6}/128 dev eth0 nodad preferred_lft 0 valid_lft forever"));
    counting_server(real);
    let ipvs = |arguments: &str| {
        director.exec("ipvsadm", arguments.split_whitespace()).unwrap_or_else(|error| panic!("{error}"))
    };
    // IPv4 in IPv4, IPv6 in IPv6, and IPv4 in IPv6.
    for (service, destination) in [
        (format!("{v4}:6443"), format!("{}:6443", real.v4())),
        (format!("[{v6}]:6443"), format!("[{}]:6443", real.v6())),
        (format!("{v4}:6443"), format!("[{}]:6443", real.v6())),
    ] {
        ipvs(&format!("-A -t {service} -s rr"));
        ipvs(&format!("-a -t {service} -r {destination} -i"));
        let to: SocketAddr = service.parse().expect("an address");
        // Not even strict filters, the default of some distributions, keep the packets out.
        for filter in ["0", "1", "2"] {
            real.set_sysctl("net.ipv4.conf.all.rp_filter", filter).expect("a sysctl");
            real.set_sysctl("net.ipv4.conf.default.rp_filter", filter).expect("a sysctl");
            let before = upload(lan.client(0), to, 10);
            assert_eq!(before, None, "no tunnel unpacks yet: {service} to {destination}");
            let mut server = Server::with(real, config(&lan, real));
            for length in [10, 300_000] {
                let said = upload(lan.client(0), to, length);
                assert_eq!(said, Some(length.to_string()), "{service} to {destination}, filter {filter}");
            }
            let shown = ip(real, "link show");
            assert!(shown.contains("cplbtun4@NONE: <NOARP,UP,LOWER_UP> mtu 1480"), "{shown}");
            assert!(shown.contains("cplbtun6@NONE: <NOARP,UP,LOWER_UP> mtu 1460"), "{shown}");
            server.remove().expect("everything can be taken back");
        }
        ipvs(&format!("-D -t {service}"));
    }
}
