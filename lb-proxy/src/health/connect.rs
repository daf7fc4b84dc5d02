//! Connections of health checks.

use std::io;
use std::net::SocketAddr;

use nix::libc::EINPROGRESS;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::outcome::CheckFailure;
use crate::source::{connect_error, has_source};

/// Connects to `backend`. `mark` is the `SO_MARK` of the proxy's own connections, 0 for none; without the privilege
/// (`CAP_NET_ADMIN`) the connection stays unmarked, as the proxy's do.
pub(super) async fn connect(backend: SocketAddr, mark: u32) -> Result<TcpStream, CheckFailure> {
    let stream = start(backend, mark).map_err(|error| CheckFailure::connecting(&error))?;
    let done = async {
        stream.writable().await?;
        stream.take_error()?.map_or(Ok(()), Err)?;
        Ok((stream.local_addr()?, stream.peer_addr()?))
    };
    let (local, peer) = done.await.map_err(|error: io::Error| CheckFailure::connecting(&error))?;
    if local == peer {
        // An ephemeral port of this host happened to be the one that nothing listens on: TCP connected the
        // socket to itself (simultaneous open, RFC 9293 section 3.5).
        return Err(CheckFailure::Refused);
    }
    Ok(stream)
}

fn start(backend: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(backend), kind, Some(Protocol::TCP))?;
    if mark != 0 {
        let _ = socket.set_mark(mark);
    }
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&backend.into()) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => {
            Err(connect_error(error, || has_source(backend, mark)))
        }
        _ => TcpStream::from_std(socket.into()),
    }
}
