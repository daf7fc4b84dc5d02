//! Accepting clients on one listener of one worker.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::bind::BACKLOG;
use super::command::Command;
use super::event::Refusal;
use super::listener::Listening;
use super::session;
use super::shared::HEARTBEAT_REPLY;
use super::socket::reset_on_close;
use super::worker::Worker;
use crate::shortage::Shortage;

/// Clients accepted before other tasks get their turn.
const BATCH: usize = 64;
/// First and longest pause after the process ran out of descriptors.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);

type Stop = oneshot::Receiver<SyncSender<()>>;

/// Accepts until stopped, then serves the clients that are queued already, closes the listener and acknowledges.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    listener: TcpListener,
    listening: Arc<Listening>,
    mut stop: Stop,
) {
    let mut reserve = ReserveFd::new();
    let mut pause = PAUSE_MIN;
    loop {
        let turn = poll_fn(|cx| poll_batch(&worker, &listener, &listening, &mut stop, &mut pause, cx));
        let error = match turn.await {
            Ok(done) => {
                accept_queued(&worker, &listener, &listening).await;
                drop(listener);
                let _ = done.map(|done| done.send(()));
                return;
            }
            Err(error) => error,
        };
        if is_connection_error(&error) {
            continue;
        }
        worker.shared.record_accept_failure(&error);
        if pause > PAUSE_MIN && Shortage::of(&error).is_some() {
            reserve.refuse(&worker, &listener, &listening);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Ready when stopped or on an error. Each success resets the pause to its minimum.
fn poll_batch(
    worker: &Rc<Worker>,
    listener: &TcpListener,
    listening: &Listening,
    stop: &mut Stop,
    pause: &mut Duration,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<SyncSender<()>>>> {
    if let Poll::Ready(done) = Pin::new(stop).poll(cx) {
        return Poll::Ready(Ok(done.ok()));
    }
    for _ in 0..BATCH {
        let (client, peer) = ready!(listener.poll_accept(cx))?;
        dispatch(worker, listening, client, peer);
        *pause = PAUSE_MIN;
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Serves the queued clients: their connections are established, and closing the listener would reset them.
async fn accept_queued(worker: &Rc<Worker>, listener: &TcpListener, listening: &Listening) {
    let accept = poll_fn(|cx| {
        for _ in 0..BACKLOG {
            let Poll::Ready(Ok((client, peer))) = listener.poll_accept(cx) else { break };
            dispatch(worker, listening, client, peer);
        }
        Poll::Ready(())
    });
    tokio::task::coop::unconstrained(accept).await;
}

/// Returns whether an error belongs to the new connection: `accept(2)` passes on errors that it has met already.
fn is_connection_error(error: &io::Error) -> bool {
    use nix::libc::{ECONNABORTED, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, EPERM, EPROTO, ETIMEDOUT};
    matches!(
        error.raw_os_error(),
        Some(ECONNABORTED | EHOSTUNREACH | EINTR | ENETDOWN | ENETUNREACH | EPERM | EPROTO | ETIMEDOUT)
    )
}

/// Answers a heartbeat, refuses a client beyond a limit, and assigns any other client to a worker.
fn dispatch(worker: &Rc<Worker>, listening: &Listening, client: TcpStream, peer: SocketAddr) {
    if answer_heartbeat(worker, &client, peer) {
        return;
    }
    let service = listening.service.load_full();
    let Some(ticket) = worker.shared.admit(&service, peer.ip(), client.as_raw_fd()) else {
        reset_on_close(&client);
        return;
    };
    let own = &worker.shared.workers[worker.index];
    service.accepted.fetch_add(1, Relaxed);
    own.accepted.fetch_add(1, Relaxed);
    let Some(other) = worker.better_worker() else {
        own.load.fetch_add(1, Relaxed);
        session::start(worker, client, peer.ip(), ticket);
        return;
    };
    let other = &worker.shared.workers[other];
    let Ok(client) = client.into_std() else { return };
    other.load.fetch_add(1, Relaxed);
    other.waiting.fetch_add(1, Relaxed);
    own.handed_off.fetch_add(1, Relaxed);
    let command = Command::Serve { client, address: peer.ip(), ticket };
    if other.commands.send(command).is_err() {
        other.load.fetch_sub(1, Relaxed);
        other.waiting.fetch_sub(1, Relaxed);
    }
}

/// Answers a connection that is a heartbeat. Returns whether it is one.
fn answer_heartbeat(worker: &Worker, connection: &TcpStream, peer: SocketAddr) -> bool {
    let is_heartbeat = worker.shared.heartbeats.take(peer);
    if is_heartbeat {
        // A fresh socket has room for one byte; if not, the heartbeat fails as it should.
        let _ = connection.try_write(HEARTBEAT_REPLY);
    }
    is_heartbeat
}

/// A descriptor that each listener holds in reserve. When the process has no other left, it lets clients be accepted
/// and refused at once; without it they would wait without any answer.
struct ReserveFd(Option<File>);

impl ReserveFd {
    fn new() -> Self {
        ReserveFd(File::open("/dev/null").ok())
    }

    fn refuse(&mut self, worker: &Worker, listener: &TcpListener, listening: &Listening) {
        self.0 = None;
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..BATCH {
            let Poll::Ready(Ok((client, peer))) = listener.poll_accept(&mut cx) else { break };
            if answer_heartbeat(worker, &client, peer) {
                continue;
            }
            reset_on_close(&client);
            worker.shared.record_refusal(&listening.service.load(), Refusal::Descriptors, None);
        }
        *self = ReserveFd::new();
    }
}
