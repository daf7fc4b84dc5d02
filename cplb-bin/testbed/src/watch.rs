//! A record of the addresses of a node over time.

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

/// The kind of an address change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressChange {
    /// The address was added, or its lifetime was renewed, or it was present when the watch began.
    Present,
    /// The address was removed, or it expired.
    Removed,
}

/// A change of a node's addresses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AddressEvent {
    /// The time at which the kernel's message was read.
    pub at: Instant,
    /// The kind of change.
    pub change: AddressChange,
    /// The address after the change.
    pub address: Address,
}

/// A period during which a node had an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPeriod {
    /// The beginning.
    pub from: Instant,
    /// The end; `None` if the node still has it.
    pub until: Option<Instant>,
}

/// A record of a node's addresses, built from the kernel's notifications, so that short changes are not missed.
/// Dropping it ends it.
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
    /// Begins to watch a node; the addresses that it has now are the first events.
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

    /// All events so far.
    #[must_use]
    pub fn events(&self) -> Vec<AddressEvent> {
        self.shared.events().clone()
    }

    /// The periods during which the node had this address; renewals do not begin a new period.
    #[must_use]
    pub fn periods(&self, ip: impl Into<IpAddr>) -> Vec<AddressPeriod> {
        let ip = ip.into();
        let mut periods: Vec<AddressPeriod> = Vec::new();
        for event in self.shared.events().iter().filter(|event| event.address.ip == ip) {
            let current = periods.last_mut().filter(|period| period.until.is_none());
            match (event.change, current) {
                (AddressChange::Present, None) => periods.push(AddressPeriod { from: event.at, until: None }),
                (AddressChange::Removed, Some(period)) => period.until = Some(event.at),
                _ => {}
            }
        }
        periods
    }

    /// Returns whether the node has this address now.
    #[must_use]
    pub fn has(&self, ip: impl Into<IpAddr>) -> bool {
        self.periods(ip).last().is_some_and(|period| period.until.is_none())
    }

    /// Waits until the node has this address, and returns the beginning of the period.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_for(&self, ip: impl Into<IpAddr>, timeout: Duration) -> Result<Instant, Error> {
        let ip = ip.into();
        let mut since = None;
        wait_until(format!("the node has {ip}"), timeout, || {
            since = self.periods(ip).last().filter(|period| period.until.is_none()).map(|period| period.from);
            since.is_some()
        })?;
        since.ok_or_else(|| Error::Misuse("an address was found and lost".into()))
    }

    /// Waits until the node does not have this address, and returns the time of the loss; `None` if it never had it.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub fn wait_for_loss(&self, ip: impl Into<IpAddr>, timeout: Duration) -> Result<Option<Instant>, Error> {
        let ip = ip.into();
        wait_until(format!("the node has lost {ip}"), timeout, || !self.has(ip))?;
        Ok(self.periods(ip).last().and_then(|period| period.until))
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

/// Interval at which the watch checks whether to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

fn run(shared: &Shared, ready: &mpsc::SyncSender<io::Result<()>>) {
    urgency::claim(Urgency::Measure);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(watch(shared, ready)),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        // The receiver is gone if the failure comes after the start.
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
    // Subscribed first and listed then: a change in between is recorded twice rather than never.
    for address in netlink::addresses(&handle).await.map_err(io::Error::other)? {
        record(AddressChange::Present, address);
    }
    let _ = ready.send(Ok(()));
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok(message) = tokio::time::timeout(POLL_INTERVAL, messages.next()).await else { continue };
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
