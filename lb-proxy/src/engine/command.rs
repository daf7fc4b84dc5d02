//! Commands to workers, and the handle by which other threads send them.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::mpsc::SyncSender;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::listener::Listening;
use super::ticket::Ticket;

/// A command to a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve a client that another worker accepted and that counts as this worker's load already.
    Serve {
        client: TcpStream,
        address: IpAddr,
        ticket: Ticket,
    },
    Listen {
        listening: Arc<Listening>,
        socket: TcpListener,
    },
    /// Serve the clients in a listener's queue, then close it and acknowledge.
    Unlisten {
        id: u32,
        done: SyncSender<()>,
    },
    /// Close the lingering listeners once their time is over.
    CloseDueLater,
    /// Reply at once.
    Ping(oneshot::Sender<()>),
    /// Reset the sessions with a backend.
    ResetBackend(u32),
    /// Reset the sessions whose clients connected to one of these addresses; reply with their number when their sockets
    /// are closed.
    ResetLocal(Arc<[IpAddr]>, oneshot::Sender<usize>),
    /// Reply with the sessions.
    List(oneshot::Sender<Vec<Listed>>),
    /// Reply when there are no sessions.
    Drain(oneshot::Sender<()>),
    /// Reset all sessions and end.
    Stop,
}

/// A session of a worker.
#[derive(Debug)]
pub(crate) struct Listed {
    pub service: Arc<str>,
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// The backend's id; 0 while the session connects.
    pub backend: u32,
}

/// The part of a worker that other threads use.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    /// Its sessions and the clients handed to it that it has not taken yet.
    pub load: AtomicUsize,
    /// Of these, the clients that it has not taken yet.
    pub waiting: AtomicUsize,
    pub accepted: AtomicU64,
    pub handed_off: AtomicU64,
    pub commands: UnboundedSender<Command>,
}
