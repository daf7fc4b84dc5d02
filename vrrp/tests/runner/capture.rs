//! Captures packets on the wire, and injects them.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};
use vrrp::{Advertisement, Announcement, ChecksumPolicy, PseudoHeader, parse_announcement};

use crate::fixture::Node;

const ETH_P_ALL: u16 = 3;

/// A frame and when it was read.
type Frame = (Instant, Vec<u8>);

/// All frames that reach a node's interfaces, until it is dropped.
pub(crate) struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An advertisement with its IP header.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) source: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) traffic_class: u8,
    pub(crate) advertisement: Advertisement,
}

impl Capture {
    pub(crate) fn on(node: &Node) -> Self {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (Arc::clone(&frames), Arc::clone(&stop));
        let socket = node.run(|| {
            let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("a packet socket");
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
            socket.set_recv_buffer_size(8 << 20).expect("a buffer");
            socket
        });
        let thread = std::thread::spawn(move || {
            let mut frame = vec![0; 65536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(len) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                    sink.lock().expect("frames").push((Instant::now(), frame[..len].to_vec()));
                }
            }
        });
        Self { frames, stop, thread: Some(thread) }
    }

    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.frames.lock().expect("frames").clone()
    }

    /// Well-formed advertisements at or after `since`.
    pub(crate) fn advertisements(&self, since: Instant) -> Vec<Seen> {
        let frames = self.frames.lock().expect("frames");
        frames.iter().filter(|(at, _)| *at >= since).filter_map(|(at, frame)| parse(*at, frame)).collect()
    }

    /// Announcements at or after `since`.
    pub(crate) fn announcements(&self, since: Instant) -> Vec<(Instant, Announcement)> {
        let frames = self.frames.lock().expect("frames");
        frames
            .iter()
            .filter(|(at, _)| *at >= since)
            .filter_map(|(at, frame)| Some((*at, parse_announcement(frame)?)))
            .collect()
    }

    /// Writes all frames as a pcap file.
    pub(crate) fn save(&self, path: &std::path::Path) {
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65536, 1] {
            file.extend(word.to_ne_bytes());
        }
        for (number, (_, frame)) in self.frames().iter().enumerate() {
            let len = u32::try_from(frame.len()).expect("a frame's length");
            for word in [u32::try_from(number).expect("few frames"), 0, len, len] {
                file.extend(word.to_ne_bytes());
            }
            file.extend(frame);
        }
        std::fs::write(path, file).expect("a pcap file");
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn parse(at: Instant, frame: &[u8]) -> Option<Seen> {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, ttl, traffic_class, number, message) = match sliced.net? {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let class = header.dcp().value() << 2;
            let (from, to): (IpAddr, IpAddr) =
                (header.source_addr().into(), header.destination_addr().into());
            (from, to, header.ttl(), class, header.protocol(), ip.payload().payload)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (from, to): (IpAddr, IpAddr) =
                (header.source_addr().into(), header.destination_addr().into());
            (from, to, header.hop_limit(), header.traffic_class(), header.next_header(), ip.payload().payload)
        }
        etherparse::NetSlice::Arp(_) => return None,
    };
    if number.0 != vrrp::IP_PROTOCOL {
        return None;
    }
    let pseudo = PseudoHeader::new(source, destination)?;
    let advertisement = Advertisement::decode(message, &pseudo, ChecksumPolicy::Strict).ok()?;
    Some(Seen { at, source, ttl, traffic_class, advertisement })
}

/// Sends a message to the IPv4 group as any host could.
pub(crate) fn inject(node: &Node, ttl: u32, message: Vec<u8>) {
    node.run(move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(112))).expect("a raw socket");
        socket.set_multicast_ttl_v4(ttl).expect("a TTL");
        socket.bind_device(Some(b"eth0")).expect("the interface");
        let group = std::net::SocketAddrV4::new(vrrp::MULTICAST_V4, 0);
        socket.send_to(&message, &group.into()).expect("sent");
    });
}

/// The bytes of an advertisement that `node` could send to the IPv4 group.
pub(crate) fn encoded(source: Ipv4Addr, advertisement: &Advertisement) -> Vec<u8> {
    let mut message = Vec::new();
    advertisement.encode(&PseudoHeader::V4 { source, destination: vrrp::MULTICAST_V4 }, &mut message);
    message
}
