//! Captures of the frames on the LAN.

mod filter;
mod frame;
mod pcap;

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut},
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
            recvmsg, setsockopt, socket, sockopt,
        },
        time::{TimeSpec, TimeVal, TimeValLike},
    },
};

use socket2::SockRef;

pub use frame::{Announcement, AnnouncementKind, Frame, TcpSegment, Travel, VrrpAdvert};

use crate::{
    Error, Lan, Mac, Node, Thread, netlink,
    node::INTERFACE,
    urgency::{self, Urgency},
    wait_until,
};

/// Frames that pass an interface, recorded from its start on. Dropping it ends it.
///
/// Reading the frames waits for a few milliseconds until all earlier frames are recorded, so a test may assert that a
/// frame was not sent.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<Thread<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Number of times that the reader has found the socket's queue empty.
    idle: AtomicU64,
    dropped: AtomicU32,
    frames: Mutex<Vec<Frame>>,
}

impl Lan {
    /// Records every frame once as it arrives at the switch; [`Frame::interface`] is the node that sent it. Frames that
    /// a cut then drops are included. Frames of the gateway are not.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel refuses the socket.
    pub fn capture(&self) -> Result<Capture, Error> {
        let ports =
            self.controllers().iter().chain(self.clients()).map(|node| node.name().to_owned()).collect();
        Capture::start(self.switch(), ports, Some(Travel::In))
    }

    /// Records the frames on the node's cable, in both directions, at the switch: frames from the node travel
    /// [`Travel::In`], also those that a cut then drops; frames to the node travel [`Travel::Out`].
    ///
    /// # Errors
    /// [`Error::System`] if the kernel refuses the socket; [`Error::Misuse`] for a node that has no port.
    pub fn capture_port(&self, node: &Node) -> Result<Capture, Error> {
        Capture::start(self.switch(), vec![self.port(node)?.to_owned()], None)
    }

    /// The node with this hardware address.
    #[must_use]
    pub fn node_with_mac(&self, mac: Mac) -> Option<&Node> {
        self.nodes().find(|node| node.mac() == mac)
    }
}

impl Capture {
    /// Records the frames at the node's own interface: frames that it sends travel [`Travel::Out`].
    ///
    /// # Errors
    /// [`Error::System`] if the kernel refuses the socket.
    pub fn on(node: &Node) -> Result<Self, Error> {
        Self::start(node, vec![INTERFACE.to_owned()], None)
    }

    /// All frames so far, in the order in which the kernel saw them.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        self.read().clone()
    }

    /// The frames so far that `matches`.
    #[must_use]
    pub fn select(&self, matches: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        self.read().iter().filter(|frame| matches(frame)).cloned().collect()
    }

    /// The number of frames so far that `matches`.
    #[must_use]
    pub fn count(&self, matches: impl Fn(&Frame) -> bool) -> usize {
        self.read().iter().filter(|frame| matches(frame)).count()
    }

    /// The number of frames that the kernel has dropped because they came faster than they were read. The kernel
    /// reports the count with the next frame. A test that asserts that a frame was *not* sent should check it.
    #[must_use]
    pub fn dropped(&self) -> u32 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits for a frame that `matches`, and returns the first one; it may already be there.
    ///
    /// # Errors
    /// [`Error::TimedOut`] with `what`.
    pub fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        matches: impl Fn(&Frame) -> bool,
    ) -> Result<Frame, Error> {
        let mut found = None;
        let mut seen = 0;
        wait_until(format!("a frame: {what}"), timeout, || {
            let frames = self.shared.frames();
            found = frames.iter().skip(seen).find(|frame| matches(frame)).cloned();
            seen = frames.len();
            found.is_some()
        })?;
        found.ok_or_else(|| Error::Misuse("a frame was found and lost".into()))
    }

    /// The announcements of this address, in ARP or neighbour discovery, each with its frame's time.
    #[must_use]
    pub fn announcements(&self, ip: impl Into<IpAddr>) -> Vec<(Instant, Announcement)> {
        let ip = ip.into();
        let frames = self.read();
        let announced = frames.iter().filter_map(|frame| Some((frame.at, frame.announcement()?)));
        announced.filter(|(_, announcement)| announcement.ip == ip).collect()
    }

    /// All VRRP advertisements with this virtual router id, each with its frame's time.
    #[must_use]
    pub fn adverts(&self, vrid: u8) -> Vec<(Instant, VrrpAdvert)> {
        let frames = self.read();
        let adverts = frames.iter().filter_map(|frame| Some((frame.at, frame.vrrp()?)));
        adverts.filter(|(_, advert)| advert.vrid == vrid).collect()
    }

    /// The frames with this address as their IP source. ARP and neighbour advertisements about it are not among
    /// them unless they carry it in their IP header.
    #[must_use]
    pub fn sent_as(&self, ip: impl Into<IpAddr>) -> Vec<Frame> {
        let ip = ip.into();
        self.select(|frame| frame.ip_source() == Some(ip))
    }

    /// Writes the frames so far to a file that tshark and tcpdump read, with the kernel's times to the
    /// nanosecond.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn to_pcap(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        pcap::write(path.as_ref(), &self.read()).map_err(Error::file(path.as_ref()))
    }

    /// The frames, once all that had passed before this call are recorded.
    fn read(&self) -> MutexGuard<'_, Vec<Frame>> {
        let (now, idle) = (Instant::now(), self.shared.idle.load(Ordering::Relaxed));
        // A reader that lags for longer loses frames and counts them.
        let _ = wait_until("the capture has caught up", CATCH_UP_TIMEOUT, || {
            let empty = self.shared.idle.load(Ordering::Relaxed) != idle;
            empty || self.shared.frames().last().is_some_and(|frame| frame.at > now)
        });
        self.shared.frames()
    }

    fn start(node: &Node, interfaces: Vec<String>, only: Option<Travel>) -> Result<Self, Error> {
        let names = netlink::request(node.netns(), node.doing("find interfaces"), |handle| async move {
            let mut names = BTreeMap::new();
            for name in interfaces {
                names.insert(netlink::index(&handle, &name).await? as usize, Arc::from(name));
            }
            Ok(names)
        })?;
        let shared = Arc::new(Shared::default());
        let socket = node
            .try_run(|| open(names.keys().copied(), only))?
            .map_err(Error::system(node.doing("open a packet socket")))?;
        let tap = Tap { socket, names, only, shared: Arc::clone(&shared) };
        // The socket already queues frames, so nothing is missed until the thread runs.
        let thread = node.thread("capture", move || tap.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn frames(&self) -> MutexGuard<'_, Vec<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Interval at which a tap without traffic checks whether to stop.
const POLL_MS: i64 = 5;

/// Longest time that reading the frames waits for a reader that lags.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// The requested socket buffer; an ordinary user gets at most `net.core.rmem_max`.
const BUFFER: usize = 16 << 20;

/// The longest frame; segmentation offload makes them longer than any wire would carry.
const MAX_FRAME: usize = 68 * 1024;

struct Tap {
    socket: OwnedFd,
    names: BTreeMap<usize, Arc<str>>,
    only: Option<Travel>,
    shared: Arc<Shared>,
}

impl Tap {
    fn run(self) {
        urgency::claim(Urgency::Measure);
        let mut buffer = vec![0; MAX_FRAME];
        let mut control = cmsg_space!(TimeSpec, u32);
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.receive(&mut buffer, &mut control) {
                Ok(Some(frame)) => self.shared.frames().push(frame),
                Err(Errno::EAGAIN) => drop(self.shared.idle.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        }
    }

    /// The next frame, unless it passed another interface or travelled the other way.
    fn receive(&self, buffer: &mut [u8], control: &mut [u8]) -> nix::Result<Option<Frame>> {
        let mut parts = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::empty())?;
        let mut stamp = None;
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::ScmTimestampns(time) => stamp = Some(Duration::from(time)),
                ControlMessageOwned::RxqOvfl(dropped) => {
                    self.shared.dropped.store(dropped, Ordering::Relaxed);
                }
                _ => {}
            }
        }
        let (Some(address), length) = (message.address, message.bytes) else { return Ok(None) };
        let travel = if address.pkttype() == PACKET_OUTGOING { Travel::Out } else { Travel::In };
        let Some(name) = self.names.get(&address.ifindex()) else { return Ok(None) };
        if self.only.is_some_and(|only| only != travel) {
            return Ok(None);
        }
        let (now, wall_now) = (Instant::now(), SystemTime::now());
        let wall = stamp.map_or(wall_now, |stamp| SystemTime::UNIX_EPOCH + stamp);
        // The kernel stamps frames with the wall clock; the difference to the current time converts the stamp to an
        // instant.
        let at = now.checked_sub(wall_now.duration_since(wall).unwrap_or_default()).unwrap_or(now);
        Ok(Some(Frame { at, wall, travel, interface: Arc::clone(name), bytes: buffer[..length].to_vec() }))
    }
}

/// The packet type of `linux/if_packet.h`.
const PACKET_OUTGOING: u8 = 4;

fn open(interfaces: impl Iterator<Item = usize>, only: Option<Travel>) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    SockRef::from(&socket).attach_filter(&filter::filter(interfaces, only))?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(POLL_MS))?;
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    Ok(socket)
}
