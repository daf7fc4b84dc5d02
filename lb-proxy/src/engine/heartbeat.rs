//! The heartbeat, which proves that the balancer can serve: every worker handles commands, and every listener accepts
//! and answers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures::future::{join, join_all};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::command::Command;
use super::error::HeartbeatError;

use super::shared::{HEARTBEAT_REPLY, Shared};
use super::socket::reset_on_close;
use crate::shortage::Shortage;

/// Succeeds if all workers and listeners answer within `timeout`. A frozen worker is reported before a silent listener,
/// which it causes.
pub(crate) async fn heartbeat(
    shared: &Shared,
    listeners: &[SocketAddr],
    timeout: Duration,
) -> Result<(), HeartbeatError> {
    let deadline = Instant::now() + timeout;
    let workers = ping_workers(shared, deadline, timeout);
    let started = shared.clock.now();
    let listeners = join_all(listeners.iter().map(|&addr| async move {
        match timeout_at(deadline, probe(shared, addr)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(failure(addr, source)),
            // A worker that cannot accept clients cannot accept a heartbeat either.
            Err(_) if shared.has_accept_failed_since(started) => {
                Err(HeartbeatError::Inconclusive { addr, shortage: Shortage::Descriptors })
            }
            Err(_) => Err(HeartbeatError::ListenerSilent { addr, timeout }),
        }
    }));
    let (workers, listeners) = join(workers, listeners).await;
    workers?;
    // A failed listener is more specific than one that could not be probed.
    let failures = listeners.into_iter().filter_map(Result::err);
    failures.min_by_key(HeartbeatError::is_inconclusive).map_or(Ok(()), Err)
}

fn failure(addr: SocketAddr, source: io::Error) -> HeartbeatError {
    match Shortage::of(&source) {
        Some(shortage) => HeartbeatError::Inconclusive { addr, shortage },
        None => HeartbeatError::ListenerUnreachable { addr, source },
    }
}

async fn ping_workers(shared: &Shared, deadline: Instant, timeout: Duration) -> Result<(), HeartbeatError> {
    let pings: Vec<_> = shared
        .workers
        .iter()
        .map(|worker| {
            let (reply, answer) = oneshot::channel();
            worker.commands.send(Command::Ping(reply)).map(|()| answer)
        })
        .collect();
    for (worker, ping) in pings.into_iter().enumerate() {
        let answer = ping.map_err(|_| HeartbeatError::WorkerGone { worker })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(HeartbeatError::WorkerGone { worker }),
            Err(_) => return Err(HeartbeatError::WorkerFrozen { worker, timeout }),
        }
    }
    Ok(())
}

/// The announcement of a heartbeat; dropping it withdraws one that was never accepted.
struct Announcement<'a>(&'a Shared, SocketAddr);

impl Drop for Announcement<'_> {
    fn drop(&mut self) {
        self.0.heartbeats.take(self.1);
    }
}

/// Maps the errors of `bind(2)` to those of `connect(2)`: there EADDRNOTAVAIL means that no port is free, here that the
/// address is missing.
fn bind_error(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(nix::libc::EADDRINUSE) => io::Error::from_raw_os_error(nix::libc::EADDRNOTAVAIL),
        Some(nix::libc::EADDRNOTAVAIL) => {
            io::Error::new(io::ErrorKind::AddrNotAvailable, "its address is not on this host")
        }
        _ => error,
    }
}

/// Connects to a listener from a port announced to the workers, and awaits their reply.
async fn probe(shared: &Shared, listener: SocketAddr) -> io::Result<()> {
    let ip = if listener.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listener.ip() };
    let target = SocketAddr::new(ip, listener.port());
    let socket =
        Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::new(ip, 0).into()).map_err(bind_error)?;
    let Some(source) = socket.local_addr()?.as_socket() else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    shared.heartbeats.announce(source);
    let _announcement = Announcement(shared, source);
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    // Leaves no socket in TIME_WAIT, however often heartbeats run.
    reset_on_close(&stream);
    let mut answer = [0; 2];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut answer) {
            Ok(n) if answer[..n] == *HEARTBEAT_REPLY => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
