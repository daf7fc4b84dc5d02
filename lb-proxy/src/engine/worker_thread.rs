//! The thread of a worker: its runtime and its command loop.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;

use tokio::runtime::{LocalOptions, LocalRuntime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::accept::accept;
use super::command::Command;
use super::event::Event;
use super::listeners::close_due;
use super::session;
use super::shared::Shared;
use super::ticket::Ticket;
use super::worker::Worker;

/// Runs a worker until [`Command::Stop`]. Reports through `ready` whether its runtime could be built.
pub(crate) fn run(
    index: usize,
    shared: Arc<Shared>,
    commands: UnboundedReceiver<Command>,
    ready: &SyncSender<io::Result<()>>,
) {
    let bulk = Arc::new(AtomicBool::new(false));
    let runtime = match runtime(Arc::clone(&bulk)) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let guard = WorkerExitGuard { index, shared: Arc::clone(&shared) };
    let worker = Rc::new(Worker::new(index, shared, bulk));
    runtime.block_on(handle_commands(worker, commands));
    // Only an orderly end gets here; sessions are reset as the runtime drops them.
    std::mem::forget(guard);
}

/// Yields the processor once before the thread sleeps if `bulk` is set; see [`super::relay::Tools`].
fn runtime(bulk: Arc<AtomicBool>) -> io::Result<LocalRuntime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(move || {
            if bulk.load(Relaxed) {
                bulk.store(false, Relaxed);
                let _ = nix::sched::sched_yield();
            }
        })
        .build_local(LocalOptions::default())
}

/// Reports the end of a worker thread unless it is forgotten.
struct WorkerExitGuard {
    index: usize,
    shared: Arc<Shared>,
}

impl Drop for WorkerExitGuard {
    fn drop(&mut self) {
        self.shared.emit(Event::WorkerGone { worker: self.index });
    }
}

async fn handle_commands(worker: Rc<Worker>, mut commands: UnboundedReceiver<Command>) {
    let mut listeners: HashMap<u32, oneshot::Sender<SyncSender<()>>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Serve { client, address, ticket } => take_over(&worker, client, address, ticket),
            Command::Listen { listening, socket } => match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => {
                    let (stop, stopped) = oneshot::channel();
                    listeners.insert(listening.id, stop);
                    tokio::task::spawn_local(accept(Rc::clone(&worker), socket, listening, stopped));
                }
                Err(error) => worker.shared.report_exhaustion(None, &error),
            },
            Command::Unlisten { id, done } => {
                if let Some(stop) = listeners.remove(&id) {
                    let _ = stop.send(done);
                }
            }
            Command::CloseDueLater => {
                let shared = Arc::clone(&worker.shared);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(shared.linger).await;
                    close_due(&shared);
                });
            }
            Command::Ping(reply) => {
                let _ = reply.send(());
            }
            Command::ResetBackend(id) => worker.reset_backend(id),
            Command::ResetLocal(addresses, reply) => {
                let reset = worker.reset_local(&addresses);
                tokio::task::spawn_local(reply_when_finished(reset, reply));
            }
            Command::List(reply) => {
                let worker = Rc::clone(&worker);
                tokio::task::spawn_local(async move {
                    let _ = reply.send(worker.list().await);
                });
            }
            Command::Drain(reply) => worker.notify_when_drained(reply),
            Command::Stop => return,
        }
    }
}

/// Starts the session of a client that another worker accepted.
fn take_over(worker: &Rc<Worker>, client: TcpStream, address: IpAddr, ticket: Ticket) {
    let own = &worker.shared.workers[worker.index];
    own.waiting.fetch_sub(1, Relaxed);
    match tokio::net::TcpStream::from_std(client) {
        Ok(client) => session::start(worker, client, address, ticket),
        Err(error) => {
            own.load.fetch_sub(1, Relaxed);
            worker.shared.report_exhaustion(None, &error);
        }
    }
}

/// Answers once aborted sessions are gone. They are in the runtime's queue already, so this takes one pass over it.
async fn reply_when_finished(sessions: Vec<AbortHandle>, reply: oneshot::Sender<usize>) {
    for session in &sessions {
        while !session.is_finished() {
            tokio::task::yield_now().await;
        }
    }
    let _ = reply.send(sessions.len());
}
