//! Servers that take the place of API servers.

mod client;
mod http;
mod server;
mod tls;

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use tokio::sync::mpsc::UnboundedSender;

pub use client::peer_certificate;

use crate::{
    Error, Node, Thread,
    api::{Authority, Identity},
};

/// A server in a node, on its own thread. Dropping it closes its port and its connections.
///
/// It answers any request with its name, so that a client can tell backends apart, and can be made to fail in all the
/// ways in which API servers fail. Connections that it closes on command are reset, as those of a killed process are.
/// It runs at the lowest real-time priority where that is permitted, because it represents a separate machine.
#[derive(Debug)]
pub struct Backend {
    name: String,
    address: SocketAddr,
    certificate: Option<String>,
    shared: Arc<Shared>,
    commands: UnboundedSender<PendingCommand>,
    thread: Option<Thread<()>>,
}

/// The treatment of accepted connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Behaviour {
    /// Answers requests.
    #[default]
    Serve,
    /// Accepts, reads nothing and answers nothing.
    Hang,
    /// Closes every connection as soon as it has accepted it.
    Close,
}

/// The response of a TLS backend to `/readyz`, `/healthz` and `/livez`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// This HTTP status; 200 means ready, 401 or 403 that anonymous requests are refused.
    Status(u16),
    /// The response of an API server that shuts down: status 500, with `shutdown` as the failed check.
    Terminating,
    /// None: the connection is closed.
    Close,
    /// None: the connection stays open.
    Hang,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::Status(200)
    }
}

/// Counters of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendStats {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// TLS handshakes that succeeded.
    pub handshakes: u64,
    /// HTTP requests for readiness.
    pub checks: u64,
    /// Other requests: HTTP over TLS, and first lines of plain connections.
    pub requests: u64,
}

impl Backend {
    /// A plain server on `[::]:port` (which includes IPv4): sends its name and a line end to each client, then echoes
    /// all data until the client closes the connection.
    ///
    /// # Errors
    /// [`Error::System`] if the port is in use.
    pub fn echo(node: &Node, name: &str, port: u16) -> Result<Self, Error> {
        Self::start(node, name, wildcard(port), Protocol::Echo, None)
    }

    /// Like [`Backend::echo`] on one address.
    ///
    /// # Errors
    /// [`Error::System`] if the port is in use or the node does not have the address.
    pub fn echo_on(node: &Node, name: &str, address: SocketAddr) -> Result<Self, Error> {
        Self::start(node, name, address, Protocol::Echo, None)
    }

    /// A TLS server on `[::]:port` (which includes IPv4) with a self-signed certificate for `name`. Over TLS it speaks
    /// HTTP/1.1: readiness paths are answered as [`Backend::set_readiness`] sets, any other path with the server's
    /// name. On a connection that does not begin with TLS, the server reads one line, sends its name and a line end,
    /// then echoes.
    ///
    /// # Errors
    /// [`Error::System`] if the port is in use; [`Error::Certificate`].
    pub fn tls(node: &Node, name: &str, port: u16) -> Result<Self, Error> {
        Self::tls_on(node, name, wildcard(port))
    }

    /// Like [`Backend::tls`] on one address.
    ///
    /// # Errors
    /// As [`Backend::tls`], also if the node does not have the address.
    pub fn tls_on(node: &Node, name: &str, address: SocketAddr) -> Result<Self, Error> {
        let (acceptor, certificate) = tls::acceptor(name, node.own_ips())?;
        Self::start(node, name, address, Protocol::Tls(acceptor), Some(certificate))
    }

    /// Like [`Backend::tls`] with a certificate of a cluster's authority. As k0s's API server, it answers readiness
    /// requests without a client certificate of the authority with 401.
    ///
    /// # Errors
    /// As [`Backend::tls`].
    pub fn certified(
        node: &Node,
        name: &str,
        port: u16,
        authority: &Authority,
        identity: &Identity,
    ) -> Result<Self, Error> {
        let protocol = Protocol::Certified(authority.acceptor(identity)?);
        Self::start(node, name, wildcard(port), protocol, Some(identity.certificate_pem.clone()))
    }

    /// The backend's name: its answer, and the subject of its certificate.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address that the backend listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The backend's certificate, PEM; `None` for a plain server.
    #[must_use]
    pub fn certificate_pem(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The backend's counters.
    #[must_use]
    pub fn stats(&self) -> BackendStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (opened, closed) = (read(&self.shared.accepted), read(&self.shared.closed));
        BackendStats {
            accepted: opened,
            open: opened.saturating_sub(closed),
            handshakes: read(&self.shared.handshakes),
            checks: read(&self.shared.checks),
            requests: read(&self.shared.requests),
        }
    }

    /// Changes the treatment of connections that are accepted from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.shared.settings().behaviour = behaviour;
    }

    /// Changes the response to readiness requests from now on, also on open connections.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.shared.settings().readiness = readiness;
    }

    /// Closes the port, so that new connections are refused, and resets the open ones, as if the server had been
    /// killed.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the server thread has ended.
    pub fn refuse(&self) -> Result<(), Error> {
        self.execute(Command::Refuse)?;
        self.execute(Command::ResetAll)
    }

    /// Closes the port, so that new connections are refused, and keeps the open ones.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the server thread has ended.
    pub fn refuse_new(&self) -> Result<(), Error> {
        self.execute(Command::Refuse)
    }

    /// Drops every packet that arrives for the port, of new and of open connections, as if the node's cable were
    /// broken.
    ///
    /// # Errors
    /// [`Error::System`] if the kernel refuses the filter.
    pub fn blackhole(&self) -> Result<(), Error> {
        self.execute(Command::Blackhole)
    }

    /// Ends [`Backend::refuse`] and [`Backend::blackhole`].
    ///
    /// # Errors
    /// [`Error::System`] if the port has been taken meanwhile.
    pub fn accept(&self) -> Result<(), Error> {
        self.execute(Command::Listen)
    }

    /// Resets all open connections.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the server thread has ended.
    pub fn close_all(&self) -> Result<(), Error> {
        self.execute(Command::ResetAll)
    }

    fn start(
        node: &Node,
        name: &str,
        address: SocketAddr,
        protocol: Protocol,
        certificate: Option<String>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared { name: name.to_owned(), ..Shared::default() });
        let (commands, requests) = tokio::sync::mpsc::unbounded_channel();
        let server = server::Server::new(address, protocol, Arc::clone(&shared), requests);
        let thread = node.thread(&format!("backend {name}"), move || server.run())?;
        let backend =
            Self { name: name.to_owned(), address, certificate, shared, commands, thread: Some(thread) };
        backend.execute(Command::Listen)?;
        Ok(backend)
    }

    /// Sends a command to the server thread and waits until it is done.
    fn execute(&self, command: Command) -> Result<(), Error> {
        let (done, result) = mpsc::sync_channel(1);
        let gone = || Error::Misuse(format!("backend {} has ended", self.name));
        self.commands.send(PendingCommand { command, done }).map_err(|_| gone())?;
        result
            .recv_timeout(COMMAND_TIMEOUT)
            .map_err(|_| gone())?
            .map_err(Error::system(format!("{command:?} on backend {} ({})", self.name, self.address)))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.execute(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Longest time for the server thread to carry out a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
enum Protocol {
    Echo,
    Tls(tokio_rustls::TlsAcceptor),
    /// Like `Tls`, for an authority that verifies client certificates.
    Certified(tokio_rustls::TlsAcceptor),
}

#[derive(Debug, Default)]
struct Shared {
    name: String,
    settings: Mutex<Settings>,
    accepted: AtomicU64,
    closed: AtomicU64,
    handshakes: AtomicU64,
    checks: AtomicU64,
    requests: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Settings {
    behaviour: Behaviour,
    readiness: Readiness,
}

impl Shared {
    fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Listen,
    Refuse,
    Blackhole,
    ResetAll,
    Stop,
}

struct PendingCommand {
    command: Command,
    done: mpsc::SyncSender<std::io::Result<()>>,
}

fn wildcard(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}
