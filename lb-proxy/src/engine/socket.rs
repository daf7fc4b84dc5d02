//! Socket options, and socket calls that tokio does not offer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::admission::Descriptors;
use super::config::Options;
use crate::source::{connect_error, has_source};

/// Number of unacknowledged keepalive probes after which a connection is reset.
const KEEPALIVE_PROBES: u32 = 3;
/// The lowest port that may be an ephemeral one; Linux starts at 32768 by default.
const EPHEMERAL_MIN: u16 = 10_240;

/// Options of all sockets of a balancer.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub mark: u32,
    /// Set if listeners accept the connections that `tproxy` assigns to them.
    pub transparent: bool,
    pub congestion: Option<String>,
    keepalive: TcpKeepalive,
    user_timeout: Option<Duration>,
}

/// A socket option that the system refused; the socket works without it.
#[derive(Debug)]
pub(crate) enum RefusedOption {
    Mark(io::Error),
    Transparent(io::Error),
    Congestion(io::Error),
}

impl Tuning {
    pub(crate) fn new(options: &Options) -> Self {
        let second = Duration::from_secs(1);
        let keepalive = TcpKeepalive::new()
            .with_time(options.keepalive.max(second))
            .with_interval((options.keepalive / 3).max(second))
            .with_retries(KEEPALIVE_PROBES);
        let user_timeout = Some(options.user_timeout).filter(|timeout| !timeout.is_zero());
        Tuning {
            mark: options.mark,
            transparent: options.transparent,
            congestion: options.congestion.clone(),
            keepalive,
            user_timeout,
        }
    }

    /// Sets the options of both sides of a pair. On a listener one call serves all accepted sockets, which inherit
    /// them.
    pub(crate) fn apply(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&self.keepalive)?;
        socket.set_tcp_user_timeout(self.user_timeout)
    }

    /// Starts to connect to a backend, with a descriptor that `descriptors` leaves to sessions, and from a local port
    /// of the kernel's choice unless one is given. Calls `refused` for each option that the system refused.
    pub(crate) fn connect(
        &self,
        addr: SocketAddr,
        port: Option<u16>,
        descriptors: &Descriptors,
        mut refused: impl FnMut(RefusedOption),
    ) -> io::Result<TcpStream> {
        let socket = Socket::new(
            Domain::for_address(addr),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        if descriptors.is_kept_back(socket.as_raw_fd()) {
            return Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        }
        // Set on both the closed connection and the new one, or the port cannot be reused.
        socket.set_reuse_address(true)?;
        if let Some(port) = port {
            bind_port(&socket, addr, port)?;
        }
        self.apply(&socket)?;
        if self.mark != 0 {
            socket.set_mark(self.mark).unwrap_or_else(|error| refused(RefusedOption::Mark(error)));
        }
        if let Some(congestion) = &self.congestion {
            let result = socket.set_tcp_congestion(congestion.as_bytes());
            result.unwrap_or_else(|error| refused(RefusedOption::Congestion(error)));
        }
        match socket.connect(&addr.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => {
                // A port is given only where the kernel found none, and so an address exists.
                Err(connect_error(error, || port.is_some() || has_source(addr, self.mark)))
            }
            _ => TcpStream::from_std(socket.into()),
        }
    }
}

fn bind_port(socket: &Socket, addr: SocketAddr, port: u16) -> io::Result<()> {
    let unspecified = match addr {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => {
            // The port of an IPv4 connection is free for this one.
            socket.set_only_v6(true)?;
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        }
    };
    socket.bind(&SocketAddr::new(unspecified, port).into())
}

/// Returns whether a socket is connected to itself, which happens on loopback when its local port is the very one it
/// connects to: no server listens there.
pub(crate) fn is_self_connected(stream: &TcpStream, backend: SocketAddr) -> bool {
    backend.port() >= EPHEMERAL_MIN && stream.local_addr().is_ok_and(|local| local == backend)
}

/// Lets the close of a socket send RST instead of FIN, and discard unsent bytes.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // Only an invalid descriptor or argument can fail here.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let tuning = Tuning::new(&Options { keepalive: Duration::from_secs(21), ..Options::default() });
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        tuning.apply(&listener).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let addr = listener.local_addr().unwrap().as_socket().unwrap();
        let _client = std::net::TcpStream::connect(addr).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(21));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(accepted.tcp_user_timeout().unwrap(), None, "a peer that does not read is not dead");

        let tuning = Tuning::new(&Options { user_timeout: Duration::from_secs(900), ..Options::default() });
        tuning.apply(&listener).unwrap();
        assert_eq!(listener.tcp_user_timeout().unwrap(), Some(Duration::from_secs(900)));
    }

    #[tokio::test]
    async fn a_connection_to_itself_is_recognised() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let own = socket.local_addr().unwrap();
        // The kernel does this by chance when it picks the port, this test on purpose.
        socket.connect(&own).unwrap();
        socket.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(socket.into()).unwrap();
        assert!(is_self_connected(&stream, own.as_socket().unwrap()));

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let stream = TcpStream::connect(addr).await.unwrap();
        assert!(!is_self_connected(&stream, addr));
    }

    #[tokio::test]
    async fn connections_are_marked_where_that_is_permitted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tuning =
            Tuning::new(&Options { mark: 0x77, congestion: Some("reno".into()), ..Options::default() });
        let mut refused = Vec::new();
        let stream = tuning
            .connect(listener.local_addr().unwrap(), None, &Descriptors::of_process(0), |option| {
                refused.push(format!("{option:?}"));
            })
            .unwrap();
        let socket = SockRef::from(&stream);
        let is_refused = refused.iter().any(|option| option.starts_with("Mark"));
        assert_eq!(socket.mark().unwrap() == 0x77, !is_refused, "{refused:?}");
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
    }
}
