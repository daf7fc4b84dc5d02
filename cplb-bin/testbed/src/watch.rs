//! When a node had which address.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, packet_core::NetlinkPayload};

use crate::{
    Address, Error, Node, Thread, netlink,
    urgency::{self, Urgency},
    wait_until,
};

/// What happened to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressChange {
    /// It was added, or its lifetime was renewed, or it was there when the watch began.
    Present,
    /// It was removed, or it expired.
    Removed,
}

/// A change of a node's addresses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AddressEvent {
    /// When the kernel's message was read.
    pub at: Instant,
    /// What happened.
    pub change: AddressChange,
    /// The address, as it is afterwards.
    pub address: Address,
}

/// A stretch of time during which a node had an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// Since when.
    pub from: Instant,
    /// Until when; `None` if the node still has it.
    pub until: Option<Instant>,
}

/// A record of a node's addresses, kept from the kernel's own messages, so that nothing is missed between two
/// looks. Dropping it ends it.
#[derive(Debug)]
pub struct AddressWatch {
    shared: Arc<Shared>,
    thread: Option<Thread<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    events: Mutex<Vec<AddressEvent>>,
}

impl AddressWatch {
    /// Begins to watch a node; the addresses that it has now come first.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel refuses the socket.
    pub fn on(node: &Node) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let worker = Arc::clone(&shared);
        let (ready, begun) = mpsc::sync_channel(1);
        let thread = node.thread("address watch", move || run(&worker, &ready))?;
        let watch = Self { shared, thread: Some(thread) };
        begun
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the watch has ended")))
            .map_err(Error::system(node.doing("watch addresses")))?;
        Ok(watch)
    }

    /// Everything so far.
    #[must_use]
    pub fn events(&self) -> Vec<AddressEvent> {
        self.shared.events().clone()
    }

    /// When the node had this address; renewals do not begin a new stretch.
    #[must_use]
    pub fn tenures(&self, ip: impl Into<IpAddr>) -> Vec<Tenure> {
        let ip = ip.into();
        let mut tenures: Vec<Tenure> = Vec::new();
        for event in self.shared.events().iter().filter(|event| event.address.ip == ip) {
            let current = tenures.last_mut().filter(|tenure| tenure.until.is_none());
            match (event.change, current) {
                (AddressChange::Present, None) => tenures.push(Tenure { from: event.at, until: None }),
                (AddressChange::Removed, Some(tenure)) => tenure.until = Some(event.at),
                _ => {}
            }
        }
        tenures
    }

    /// Whether the node has this address now.
    #[must_use]
    pub fn has(&self, ip: impl Into<IpAddr>) -> bool {
        self.tenures(ip).last().is_some_and(|tenure| tenure.until.is_none())
    }

    /// Waits until the node has this address, and returns since when.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_for(&self, ip: impl Into<IpAddr>, timeout: Duration) -> Result<Instant, Error> {
        let ip = ip.into();
        let mut since = None;
        wait_until(format!("the node has {ip}"), timeout, || {
            since = self.tenures(ip).last().filter(|tenure| tenure.until.is_none()).map(|tenure| tenure.from);
            since.is_some()
        })?;
        since.ok_or_else(|| Error::Misuse("an address was found and lost".into()))
    }

    /// Waits until the node does not have this address, and returns when it lost it; `None` if it never had it.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_for_loss(&self, ip: impl Into<IpAddr>, timeout: Duration) -> Result<Option<Instant>, Error> {
        let ip = ip.into();
        wait_until(format!("the node has lost {ip}"), timeout, || !self.has(ip))?;
        Ok(self.tenures(ip).last().and_then(|tenure| tenure.until))
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn events(&self) -> MutexGuard<'_, Vec<AddressEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often the watch looks whether it shall stop.
const POLL: Duration = Duration::from_millis(20);

fn run(shared: &Shared, ready: &mpsc::SyncSender<io::Result<()>>) {
    urgency::claim(Urgency::Measure);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(watch(shared, ready)),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        // Nobody listens any more if it fails later on.
        let _ = ready.try_send(Err(error));
    }
}

async fn watch(shared: &Shared, ready: &mpsc::SyncSender<io::Result<()>>) -> io::Result<()> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    let record = |change, address| {
        shared.events().push(AddressEvent { at: Instant::now(), change, address });
    };
    // Subscribed first and listed then: a change in between is seen twice rather than never.
    for address in netlink::addresses(&handle).await.map_err(io::Error::other)? {
        record(AddressChange::Present, address);
    }
    let _ = ready.send(Ok(()));
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok(message) = tokio::time::timeout(POLL, messages.next()).await else { continue };
        let Some((message, _)) = message else { return Ok(()) };
        let (change, message) = match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(it)) => (AddressChange::Present, it),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(it)) => (AddressChange::Removed, it),
            _ => continue,
        };
        if let Some(address) = netlink::address(&message) {
            record(change, address);
        }
    }
    Ok(())
}
