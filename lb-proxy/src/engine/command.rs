//! Commands to workers, and the handle by which other threads send them.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::mpsc::SyncSender;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::listener::Listening;
use super::ticket::Ticket;

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

/// A worker as the others see it.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    /// Sessions, with those handed to it that it has not taken yet.
    pub load: AtomicUsize,
    /// Of these, those handed to it that it has not taken yet.
    pub waiting: AtomicUsize,
    pub accepted: AtomicU64,
    pub handed_off: AtomicU64,
    pub commands: UnboundedSender<Command>,
}
