//! The state of one worker: its sessions, its relay tools and the choice of a less loaded worker.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use slab::Slab;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::command::Listed;
use super::relay::Tools;
use super::shared::Shared;
use super::ticket::Ticket;

/// Sessions that this worker may have more than another before it hands a new one over. A hand-off costs a wake-up of
/// another thread, so short imbalances are not worth it.
const HAND_OFF_SLACK: usize = 4;
/// Clients that may wait in the queue of another worker. A worker with more is taken to hang.
const HAND_OFFS_WAITING: usize = 16;
/// Sessions that are listed before others are served again; each takes two system calls.
const LISTED_AT_ONCE: usize = 500;
/// Capacity above which the session table is shrunk when it is empty.
const TABLE_KEPT: usize = 1024;

/// A session in the worker's table. The descriptor is valid as long as the entry exists: a session removes its entry
/// before it closes its sockets.
#[derive(Debug)]
struct Entry {
    abort: Option<AbortHandle>,
    client: RawFd,
    /// The backend's id; 0 while the session connects.
    backend: u32,
    /// Counts the client as open as long as the entry exists.
    ticket: Ticket,
}

impl Entry {
    /// `None` if the client has left.
    fn listed(&self) -> Option<Listed> {
        let client = socket_address(&getpeername::<SockaddrStorage>(self.client).ok()?)?;
        let local = socket_address(&getsockname::<SockaddrStorage>(self.client).ok()?)?;
        let service = Arc::clone(&self.ticket.service().name);
        Some(Listed { service, client, local, backend: self.backend })
    }
}

/// State of one worker, used only on its own thread.
pub(crate) struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub tools: Tools,
    sessions: RefCell<Slab<Entry>>,
    drained: RefCell<Vec<oneshot::Sender<()>>>,
    random: Cell<u64>,
}

impl Worker {
    /// A worker without sessions. The relay sets `bulk` after a large splice.
    pub(crate) fn new(index: usize, shared: Arc<Shared>, bulk: Arc<AtomicBool>) -> Self {
        Worker {
            index,
            tools: Tools::new(shared.relay, shared.pipes, bulk),
            shared,
            sessions: RefCell::default(),
            drained: RefCell::default(),
            random: Cell::new(0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1)),
        }
    }

    /// Another worker, chosen at random, that should get a new client because it has clearly fewer sessions; `None` if
    /// this worker should keep the client.
    pub(crate) fn better_worker(&self) -> Option<usize> {
        let workers = &self.shared.workers;
        if workers.len() < 2 {
            return None;
        }
        let step = 1 + self.random_below(workers.len() - 1);
        let other = (self.index + step) % workers.len();
        let own = workers[self.index].load.load(Relaxed);
        let other_has_fewer = own >= workers[other].load.load(Relaxed) + HAND_OFF_SLACK;
        let other_is_responsive = workers[other].waiting.load(Relaxed) < HAND_OFFS_WAITING;
        (other_has_fewer && other_is_responsive).then_some(other)
    }

    /// A number below `bound` by xorshift64; evenly enough spread for a choice between workers.
    fn random_below(&self, bound: usize) -> usize {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x % bound.max(1) as u64) as usize
    }

    /// Enters a session with the descriptor of its client into the table. Returns its key.
    pub(crate) fn register(&self, client: RawFd, ticket: Ticket) -> usize {
        self.sessions.borrow_mut().insert(Entry { abort: None, client, backend: 0, ticket })
    }

    /// Stores the handle that aborts a session's task.
    pub(crate) fn set_abort_handle(&self, key: usize, abort: AbortHandle) {
        if let Some(entry) = self.sessions.borrow_mut().get_mut(key) {
            entry.abort = Some(abort);
        }
    }

    /// Stores the backend that a session has connected to.
    pub(crate) fn connected(&self, key: usize, backend: u32) {
        if let Some(entry) = self.sessions.borrow_mut().get_mut(key) {
            entry.backend = backend;
        }
    }

    /// Removes a session that has ended.
    pub(crate) fn ended(&self, key: usize) {
        self.shared.workers[self.index].load.fetch_sub(1, Relaxed);
        let mut sessions = self.sessions.borrow_mut();
        sessions.try_remove(key);
        if sessions.is_empty() {
            if sessions.capacity() > TABLE_KEPT {
                sessions.shrink_to_fit();
            }
            drop(sessions);
            self.tools.close_idle_pipes();
            self.notify_if_drained();
        }
    }

    /// Answers `reply` once there are no sessions.
    pub(crate) fn notify_when_drained(&self, reply: oneshot::Sender<()>) {
        self.drained.borrow_mut().push(reply);
        self.notify_if_drained();
    }

    fn notify_if_drained(&self) {
        if self.sessions.borrow().is_empty() {
            for waiting in self.drained.borrow_mut().drain(..) {
                let _ = waiting.send(());
            }
        }
    }

    /// The sessions, some at a time, so that the others are not delayed.
    pub(crate) async fn list(&self) -> Vec<Listed> {
        let (mut listed, mut next) = (Vec::new(), 0);
        loop {
            {
                let sessions = self.sessions.borrow();
                let end = sessions.capacity();
                if next >= end {
                    return listed;
                }
                let some = next..(next + LISTED_AT_ONCE).min(end);
                listed.extend(some.clone().filter_map(|key| sessions.get(key)?.listed()));
                next = some.end;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends the sessions with a backend by a reset to both sides.
    pub(crate) fn reset_backend(&self, backend: u32) {
        self.reset(|entry| entry.backend == backend);
    }

    /// Ends the sessions whose clients connected to one of `addresses` by a reset to both sides. Returns the handles of
    /// their tasks.
    pub(crate) fn reset_local(&self, addresses: &[IpAddr]) -> Vec<AbortHandle> {
        self.reset(|entry| is_bound_to(entry.client, addresses))
    }

    /// Aborts the selected sessions. The runtime drops them, which resets both sides, when it next polls their tasks.
    fn reset(&self, is_selected: impl Fn(&Entry) -> bool) -> Vec<AbortHandle> {
        let sessions = self.sessions.borrow();
        let selected = sessions.iter().map(|(_, entry)| entry).filter(|entry| is_selected(entry));
        let selected: Vec<_> = selected.filter_map(|entry| entry.abort.clone()).collect();
        selected.iter().for_each(AbortHandle::abort);
        selected
    }
}

fn is_bound_to(socket: RawFd, addresses: &[IpAddr]) -> bool {
    let Ok(local) = getsockname::<SockaddrStorage>(socket) else { return false };
    socket_address(&local).is_some_and(|local| addresses.contains(&local.ip()))
}

/// The address of a TCP socket; IPv4 as such, also on a socket of IPv6.
fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::new(IpAddr::V4(a.ip()), a.port()));
    let v6 = address.as_sockaddr_in6().map(|a| SocketAddr::new(IpAddr::V6(a.ip()).to_canonical(), a.port()));
    v4.or(v6)
}
