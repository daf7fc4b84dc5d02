//! Binding of listening sockets: one for each worker on the same port, shared with no other process.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use nix::libc::{EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT};
use socket2::{Domain, Protocol, Socket, Type};

use super::socket::{RefusedOption, Tuning};

/// Length of the accept queue of each socket; the system limits it to `net.core.somaxconn`.
pub(crate) const BACKLOG: i32 = 4096;

/// The sockets of one address, one for each worker.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The bound address: with the port chosen by the system, and after a fallback.
    pub actual: SocketAddr,
    /// The error of `[::]`, if IPv4 alone is bound instead.
    pub fallback: Option<io::Error>,
    /// The socket option that the system refused.
    pub refused: Option<RefusedOption>,
    pub sockets: Vec<TcpListener>,
}

/// Listens on `addr` with one socket for each worker.
pub(crate) fn bind(addr: SocketAddr, workers: usize, tuning: &Tuning) -> io::Result<Bound> {
    let (first, fallback) = match claim(addr, tuning) {
        Err(error) if addr.ip().is_unspecified() && addr.is_ipv6() && is_family_missing(&error) => {
            (claim((Ipv4Addr::UNSPECIFIED, addr.port()).into(), tuning)?, Some(error))
        }
        other => (other?, None),
    };
    let actual = first.local_addr()?.as_socket().unwrap_or(addr);
    let refused = transparent(&first, tuning).err().map(RefusedOption::Transparent);
    let mut sockets = vec![first.into()];
    for _ in 1..workers.max(1) {
        let socket = open(actual, tuning)?;
        // As for the first socket.
        let _ = transparent(&socket, tuning);
        socket.set_reuse_port(true)?;
        socket.bind(&actual.into())?;
        socket.listen(BACKLOG)?;
        sockets.push(socket.into());
    }
    Ok(Bound { actual, fallback, refused, sockets })
}

/// Lets `tproxy` assign connections to a socket; accepted sockets inherit that. The option of IPv4 covers IPv6, too:
/// the kernel keeps both in one place, on sockets of either family.
fn transparent(socket: &Socket, tuning: &Tuning) -> io::Result<()> {
    if tuning.transparent { socket.set_ip_transparent_v4(true) } else { Ok(()) }
}

pub(crate) fn is_in_use(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EADDRINUSE)
}

/// Binds the first socket without `SO_REUSEPORT`: that fails while any other socket listens there, even one with
/// `SO_REUSEPORT`, and of two processes at most one succeeds. Only then it is opened for its siblings.
fn claim(addr: SocketAddr, tuning: &Tuning) -> io::Result<Socket> {
    let socket = open(addr, tuning)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_reuse_port(true)?;
    Ok(socket)
}

fn open(addr: SocketAddr, tuning: &Tuning) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // Otherwise connections of a previous process in TIME_WAIT keep the port; an open listener still does.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    tuning.apply(&socket)?;
    Ok(socket)
}

/// Returns whether the kernel has no IPv6, or all interfaces have it disabled.
fn is_family_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::Options;
    use std::net::TcpStream;

    fn tuning() -> Tuning {
        Tuning::new(&Options::default())
    }

    fn any() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[test]
    fn a_port_of_a_second_balancer_or_a_plain_listener_is_in_use() {
        let bound = bind(any(), 2, &tuning()).unwrap();
        let error = bind(bound.actual, 2, &tuning()).unwrap_err();
        assert!(is_in_use(&error), "{error}");
        let plain = TcpListener::bind(any()).unwrap();
        let error = bind(plain.local_addr().unwrap(), 2, &tuning()).unwrap_err();
        assert!(is_in_use(&error), "{error}");
        let wildcard = ([0, 0, 0, 0], bound.actual.port()).into();
        assert!(is_in_use(&bind(wildcard, 1, &tuning()).unwrap_err()));
    }

    #[test]
    fn of_simultaneous_binds_at_most_one_succeeds() {
        let port = bind(any(), 1, &tuning()).unwrap().actual;
        let barrier = std::sync::Barrier::new(8);
        let wins: usize = std::thread::scope(|scope| {
            let claims: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        let bound = bind(port, 3, &tuning());
                        barrier.wait();
                        usize::from(bound.is_ok())
                    })
                })
                .collect();
            claims.into_iter().map(|claim| claim.join().unwrap()).sum()
        });
        // Simultaneous claims may all fail; never do two succeed.
        assert!(wins <= 1, "{wins} sockets listen on one port");
    }

    #[test]
    fn listeners_are_transparent_where_that_is_permitted() {
        let tuning = Tuning::new(&Options { transparent: true, ..Options::default() });
        let is_transparent =
            |socket: &TcpListener| socket2::SockRef::from(socket).ip_transparent_v4().unwrap();
        for addr in [any(), "[::]:0".parse().unwrap()] {
            let bound = bind(addr, 2, &tuning).unwrap();
            let permitted = bound.refused.is_none();
            assert!(bound.sockets.iter().all(|socket| is_transparent(socket) == permitted));
        }
        assert!(!is_transparent(&bind(any(), 1, &self::tuning()).unwrap().sockets[0]));
    }

    #[test]
    fn all_sockets_get_connections() {
        let bound = bind(any(), 3, &tuning()).unwrap();
        let clients: Vec<_> = (0..200).map(|_| TcpStream::connect(bound.actual).unwrap()).collect();
        let accepted = bound.sockets.iter().map(|socket| std::iter::from_fn(|| socket.accept().ok()).count());
        let accepted: Vec<usize> = accepted.collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len());
        assert!(accepted.iter().all(|&count| count > 20), "{accepted:?}");
    }

    #[test]
    fn the_unspecified_ipv6_address_accepts_ipv4() {
        let bound = bind("[::]:0".parse().unwrap(), 1, &tuning()).unwrap();
        TcpStream::connect((Ipv4Addr::LOCALHOST, bound.actual.port())).unwrap();
        assert!(bound.fallback.is_none());
        TcpStream::connect((std::net::Ipv6Addr::LOCALHOST, bound.actual.port())).unwrap();
    }
}
