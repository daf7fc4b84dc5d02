//! Listening sockets of servers.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

const BACKLOG: i32 = 1024;

/// Longest time that a port stays in use after its listener was closed: a process that another test has forked shares
/// the descriptors of this one until it executes its program.
const INHERITED: Duration = Duration::from_secs(2);

/// Listens on an address; the unspecified IPv6 address accepts IPv4, too.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + INHERITED;
    loop {
        match try_listen(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(INHERITED / 400);
            }
            result => return result,
        }
    }
}

fn try_listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
