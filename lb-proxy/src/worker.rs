//! A worker: one thread with its own runtime, listeners and sessions.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;

use nix::sys::socket::{SockaddrStorage, getsockname};
use slab::Slab;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::accept::accept;
use crate::admission::Ticket;
use crate::event::Event;
use crate::ports::close_due;
use crate::relay::Tools;
use crate::session::Session;
use crate::shared::{Listening, Shared};

/// Sessions that this worker may have more than another before it hands a new one over. A hand-off costs a wake-up of
/// another thread, so short imbalances are not worth it.
const HAND_OFF_SLACK: usize = 4;
/// Sessions that may wait for another worker to take them. With more it seems to hang.
const HAND_OFFS_WAITING: usize = 16;
/// Entries above which the table of sessions is shrunk when it is empty.
const TABLE_KEPT: usize = 1024;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve a client that another worker accepted; it counts as this worker's load already.
    Serve {
        client: TcpStream,
        address: IpAddr,
        ticket: Ticket,
    },
    Listen {
        listening: Arc<Listening>,
        socket: TcpListener,
    },
    /// Accept what is queued, then close. Acknowledged when closed.
    Unlisten {
        id: u32,
        done: SyncSender<()>,
    },
    /// Close the listeners that linger, when their time is over.
    CloseDueLater,
    /// Answer.
    Ping(oneshot::Sender<()>),
    /// Reset the sessions of a backend.
    ResetBackend(u32),
    /// Reset the sessions whose clients connected to one of these addresses; answer with their number when their
    /// sockets are closed.
    ResetLocal(Arc<[IpAddr]>, oneshot::Sender<usize>),
    /// Answer when there are no sessions.
    Drain(oneshot::Sender<()>),
    /// Reset all sessions and end.
    Stop,
}

/// What finds a session again. The descriptor is valid as long as the entry exists: a session removes it first.
#[derive(Debug)]
struct Entry {
    abort: Option<AbortHandle>,
    client: RawFd,
    /// 0 while it connects.
    backend: u32,
    /// Gives the client's place back when the entry goes.
    _ticket: Ticket,
}

/// State of one worker, for its own thread.
pub(crate) struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub tools: Tools,
    sessions: RefCell<Slab<Entry>>,
    drained: RefCell<Vec<oneshot::Sender<()>>>,
    random: Cell<u64>,
}

/// The thread. Reports through `ready` whether its runtime could be built.
pub(crate) fn run(
    index: usize,
    shared: Arc<Shared>,
    commands: UnboundedReceiver<Command>,
    ready: &SyncSender<io::Result<()>>,
) {
    let bulk = Arc::new(AtomicBool::new(false));
    let before_sleep = Arc::clone(&bulk);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(move || {
            if before_sleep.load(Relaxed) {
                before_sleep.store(false, Relaxed);
                let _ = nix::sched::sched_yield();
            }
        })
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let gone = Gone { index, shared: Arc::clone(&shared) };
    let worker = Rc::new(Worker {
        index,
        tools: Tools::new(shared.relay, shared.pipes, bulk),
        shared,
        sessions: RefCell::default(),
        drained: RefCell::default(),
        random: Cell::new(0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1)),
    });
    runtime.block_on(worker.serve(commands));
    // Only an orderly end gets here; sessions are reset as the runtime drops them.
    std::mem::forget(gone);
}

/// Reports the end of a worker unless forgotten.
struct Gone {
    index: usize,
    shared: Arc<Shared>,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.shared.tell(Event::WorkerGone { worker: self.index });
    }
}

impl Worker {
    async fn serve(self: Rc<Self>, mut commands: UnboundedReceiver<Command>) {
        let mut listeners: HashMap<u32, oneshot::Sender<SyncSender<()>>> = HashMap::new();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Serve { client, address, ticket } => self.take_over(client, address, ticket),
                Command::Listen { listening, socket } => match tokio::net::TcpListener::from_std(socket) {
                    Ok(socket) => {
                        let (stop, stopped) = oneshot::channel();
                        listeners.insert(listening.id, stop);
                        tokio::task::spawn_local(accept(Rc::clone(&self), socket, listening, stopped));
                    }
                    Err(error) => self.shared.exhausted(None, &error),
                },
                Command::Unlisten { id, done } => {
                    if let Some(stop) = listeners.remove(&id) {
                        let _ = stop.send(done);
                    }
                }
                Command::CloseDueLater => {
                    let shared = Arc::clone(&self.shared);
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(shared.linger).await;
                        close_due(&shared);
                    });
                }
                Command::Ping(reply) => {
                    let _ = reply.send(());
                }
                Command::ResetBackend(id) => {
                    self.reset(|entry| entry.backend == id);
                }
                Command::ResetLocal(addresses, reply) => {
                    let reset = self.reset(|entry| is_local(entry.client, &addresses));
                    tokio::task::spawn_local(tell_when_over(reset, reply));
                }
                Command::Drain(reply) => {
                    self.drained.borrow_mut().push(reply);
                    self.tell_if_drained();
                }
                Command::Stop => return,
            }
        }
    }

    /// The worker that should have a new client instead of this one: another, chosen at random, with clearly fewer.
    pub(crate) fn better_worker(&self) -> Option<usize> {
        let workers = &self.shared.workers;
        if workers.len() < 2 {
            return None;
        }
        let step = 1 + self.random_below(workers.len() - 1);
        let other = (self.index + step) % workers.len();
        let own = workers[self.index].load.load(Relaxed);
        let other_has_fewer = own >= workers[other].load.load(Relaxed) + HAND_OFF_SLACK;
        let other_is_awake = workers[other].waiting.load(Relaxed) < HAND_OFFS_WAITING;
        (other_has_fewer && other_is_awake).then_some(other)
    }

    /// xorshift64; evenly enough spread for a choice between workers.
    fn random_below(&self, bound: usize) -> usize {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x % bound.max(1) as u64) as usize
    }

    fn take_over(self: &Rc<Self>, client: TcpStream, address: IpAddr, ticket: Ticket) {
        self.shared.workers[self.index].waiting.fetch_sub(1, Relaxed);
        match tokio::net::TcpStream::from_std(client) {
            Ok(client) => self.start(client, address, ticket),
            Err(error) => {
                self.shared.workers[self.index].load.fetch_sub(1, Relaxed);
                self.shared.exhausted(None, &error);
            }
        }
    }

    /// Begins a session, whose load has been counted.
    pub(crate) fn start(self: &Rc<Self>, client: tokio::net::TcpStream, address: IpAddr, ticket: Ticket) {
        let service = Arc::clone(ticket.service());
        let entry = Entry { abort: None, client: client.as_raw_fd(), backend: 0, _ticket: ticket };
        let key = self.sessions.borrow_mut().insert(entry);
        let session = Session::new(Rc::clone(self), key, client, address, service);
        let task = tokio::task::spawn_local(session);
        if let Some(entry) = self.sessions.borrow_mut().get_mut(key) {
            entry.abort = Some(task.abort_handle());
        }
    }

    /// A session has found its backend.
    pub(crate) fn connected(&self, key: usize, backend: u32) {
        if let Some(entry) = self.sessions.borrow_mut().get_mut(key) {
            entry.backend = backend;
        }
    }

    /// A session has ended.
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
            self.tell_if_drained();
        }
    }

    fn tell_if_drained(&self) {
        if self.sessions.borrow().is_empty() {
            for waiting in self.drained.borrow_mut().drain(..) {
                let _ = waiting.send(());
            }
        }
    }

    /// Has the chosen sessions end with a reset to both sides. The runtime does it at their next turn.
    fn reset(&self, chosen: impl Fn(&Entry) -> bool) -> Vec<AbortHandle> {
        let sessions = self.sessions.borrow();
        let chosen = sessions.iter().map(|(_, entry)| entry).filter(|entry| chosen(entry));
        let chosen: Vec<_> = chosen.filter_map(|entry| entry.abort.clone()).collect();
        chosen.iter().for_each(AbortHandle::abort);
        chosen
    }
}

/// Answers once aborted sessions are gone. They are in the queue of the runtime already, so this takes a turn of it.
async fn tell_when_over(sessions: Vec<AbortHandle>, reply: oneshot::Sender<usize>) {
    for session in &sessions {
        while !session.is_finished() {
            tokio::task::yield_now().await;
        }
    }
    let _ = reply.send(sessions.len());
}

fn is_local(socket: RawFd, addresses: &[IpAddr]) -> bool {
    let Ok(local) = getsockname::<SockaddrStorage>(socket) else { return false };
    let v4 = local.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    let v6 = local.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()).to_canonical());
    v4.or(v6).is_some_and(|ip| addresses.contains(&ip))
}
