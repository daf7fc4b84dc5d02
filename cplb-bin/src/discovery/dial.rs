//! Sends requests to the first API server of the cluster that can be connected to and verified.
//!
//! A kubeconfig names one server, which may be the one that is down, or a virtual IP of this program. All API servers of a
//! cluster return the same objects, so any verified one will do.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use lb_proxy::health::{explain_error, rustls};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::backoff::Backoff;
use super::kubeconfig::Access;

/// The time limit of a connect with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The next server is tried when a connect has failed, or after this time without a result.
const STAGGER: Duration = Duration::from_millis(200);
/// All servers are tried within this time: with many of them the stagger is shorter.
const MAX_TOTAL_STAGGER: Duration = Duration::from_secs(10);
/// The time limit for the head of a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum length of a response in bytes. Each watch is a response of its own.
const MAX_BODY: usize = 32 << 20;
/// A connection is dead if the server acknowledges neither data nor keepalives for this time.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of servers remembered as unhelpful.
const MAX_UNHELPFUL: usize = 32;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("cplb/", env!("CARGO_PKG_VERSION")));

/// The servers to try, and the results of requests to them; shared by clones.
#[derive(Debug, Clone, Default)]
pub(super) struct Candidates(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Servers that the API lists.
    discovered: Vec<SocketAddr>,
    /// Servers from other sources, such as the configuration.
    others: Vec<SocketAddr>,
    /// Addresses of the server in the kubeconfig.
    kubeconfig: Vec<SocketAddr>,
    /// The server of the last request.
    requested: Option<SocketAddr>,
    /// The server of the last useful response.
    answered: Option<(SocketAddr, Instant)>,
    /// Servers whose last request failed, the latest last.
    unhelpful: Vec<SocketAddr>,
}

impl Candidates {
    /// Replaces the servers to try, except those of the kubeconfig.
    pub(super) fn set(&self, discovered: Vec<SocketAddr>, others: Vec<SocketAddr>) {
        let mut known = self.known();
        (known.discovered, known.others) = (discovered, others);
    }

    /// Replaces the addresses of the server in the kubeconfig.
    pub(super) fn set_kubeconfig(&self, servers: Vec<SocketAddr>) {
        self.known().kubeconfig = servers;
    }

    /// The server of the last useful response, and its time.
    pub(super) fn answered(&self) -> Option<(SocketAddr, Instant)> {
        self.known().answered
    }

    /// All servers in the order in which they are tried: the one of the last useful response first, unhelpful ones last.
    /// All servers of one source may be gone, so the sources alternate.
    fn ordered(&self) -> Vec<SocketAddr> {
        let known = self.known();
        let sources = [&known.discovered, &known.others, &known.kubeconfig];
        let longest = sources.iter().map(|source| source.len()).max().unwrap_or_default();
        let all: Vec<SocketAddr> = (0..longest)
            .flat_map(|index| sources.iter().filter_map(move |source| source.get(index).copied()))
            .collect();
        let last = known.answered.map(|(server, _)| server).filter(|last| all.contains(last));
        let mut ordered: Vec<SocketAddr> = Vec::new();
        for server in last.into_iter().chain(all) {
            if !ordered.contains(&server) {
                ordered.push(server);
            }
        }
        ordered
            .sort_by_key(|server| known.unhelpful.iter().position(|it| it == server).map_or(0, |at| at + 1));
        ordered
    }

    fn record_request(&self, server: SocketAddr) {
        self.known().requested = Some(server);
    }

    /// Records that the last request had a useful response.
    pub(super) fn record_success(&self) {
        let mut known = self.known();
        let Some(server) = known.requested else { return };
        known.unhelpful.retain(|it| *it != server);
        known.answered = Some((server, Instant::now()));
    }

    /// Records that the last request had no useful response. The server is then tried last, so that one whose etcd is down
    /// does not hide the others.
    pub(super) fn record_failure(&self) {
        let mut known = self.known();
        let Some(server) = known.requested.take() else { return };
        known.unhelpful.retain(|it| *it != server);
        known.unhelpful.push(server);
        // The addresses of a cluster may change any number of times.
        if known.unhelpful.len() > MAX_UNHELPFUL {
            known.unhelpful.remove(0);
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reason why a request could not be sent, or got no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no API server is known yet")]
    NoServer,
    /// The most informative failure of a connect, and the number of servers tried.
    #[error("no API server answers: {server}: {reason}{}", and_others(*.count))]
    Unreachable { server: SocketAddr, reason: String, count: usize },
    #[error("{0} accepted the request and sent no response in time")]
    NoResponse(SocketAddr),
}

/// The end of a message about one of `count` servers.
fn and_others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        2 => "; nor does another one".to_owned(),
        more => format!("; nor do {} others", more - 1),
    }
}

/// A client that opens a connection for each request, of which there are a few per minute. Requests wait for `backoff`.
pub(super) fn client(
    access: &Access,
    candidates: &Candidates,
    mark: u32,
    backoff: &Arc<Mutex<Backoff>>,
) -> Client {
    let (access, candidates, backoff) = (access.clone(), candidates.clone(), Arc::clone(backoff));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (access, candidates, backoff) = (access.clone(), candidates.clone(), Arc::clone(&backoff));
        async move {
            let with_backoff = || backoff.lock().unwrap_or_else(PoisonError::into_inner);
            let pause = with_backoff().before_request(Instant::now());
            tokio::time::sleep(pause).await;
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let response = send(access, candidates, mark, request).await?;
            if is_watch {
                with_backoff().watch_started(Instant::now());
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(response)
        }
    });
    Client::new(service, "default")
}

async fn send(
    access: Access,
    candidates: Candidates,
    mark: u32,
    mut request: Request<Body>,
) -> Result<Response<Limited<Incoming>>, Box<dyn Error + Send + Sync>> {
    let (server, stream) = dial(&access, &candidates, mark).await?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&server.to_string())?);
    headers.insert(USER_AGENT, AGENT);
    if let Some(authorization) = access.trust.authorization() {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    let response = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    candidates.record_request(server);
    let response = tokio::time::timeout(RESPONSE_TIMEOUT, response)
        .await
        .map_err(|_| DialError::NoResponse(server))??;
    Ok(response.map(|body| Limited::new(body, MAX_BODY)))
}

/// Opens a connection to the first server that can be verified.
async fn dial(
    access: &Access,
    candidates: &Candidates,
    mark: u32,
) -> Result<(SocketAddr, TlsStream<TcpStream>), DialError> {
    let servers = candidates.ordered();
    let count = servers.len();
    let stagger = STAGGER.min(MAX_TOTAL_STAGGER / u32::try_from(count).unwrap_or(u32::MAX).max(1));
    let attempt = |(index, server): (usize, SocketAddr)| async move {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(access, server, mark)).await;
        (index, server, connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
    };
    let mut waiting = servers.into_iter().enumerate();
    let mut attempts: FuturesUnordered<_> = waiting.next().map(attempt).into_iter().collect();
    let mut failure: Option<(FailureRank, SocketAddr, io::Error)> = None;
    while !attempts.is_empty() {
        let ended = tokio::time::timeout(stagger, attempts.next()).await;
        if let Ok(Some((index, server, connected))) = ended {
            match connected {
                Ok(stream) => return Ok((server, stream)),
                Err(error) => {
                    let rank = FailureRank::of(server, &error, index);
                    if failure.as_ref().is_none_or(|(known, ..)| rank < *known) {
                        failure = Some((rank, server, error));
                    }
                }
            }
        }
        attempts.extend(waiting.next().map(attempt));
    }
    match failure {
        Some((_, server, error)) => Err(DialError::Unreachable { server, reason: describe(&error), count }),
        None => Err(DialError::NoServer),
    }
}

/// The order of failures by the information about their cause, the most informative first: an error of TLS, then one from
/// another host, then the server that was tried first. Loopback addresses are only guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FailureRank {
    has_no_tls_error: bool,
    is_loopback: bool,
    index: usize,
}

impl FailureRank {
    fn of(server: SocketAddr, error: &io::Error, index: usize) -> Self {
        Self { has_no_tls_error: tls_error(error).is_none(), is_loopback: server.ip().is_loopback(), index }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn describe(error: &io::Error) -> String {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            let reason = tls_error(error).map(explain_error).unwrap_or_default();
            format!("its certificate is not accepted: {reason}")
        }
        _ => error.to_string(),
    }
}

async fn connect(access: &Access, server: SocketAddr, mark: u32) -> io::Result<TlsStream<TcpStream>> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without the privilege the connection has no mark, as those of the load balancer.
    let _ = setsockopt(&socket, sockopt::Mark, &mark);
    let millis = u32::try_from(TCP_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    setsockopt(&socket, sockopt::TcpUserTimeout, &millis)?;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    let seconds = u32::try_from(TCP_TIMEOUT.as_secs() / 2).unwrap_or(u32::MAX);
    setsockopt(&socket, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &seconds)?;
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    let tls = access.trust.tls_at(server.ip(), true);
    TlsConnector::from(tls.config).connect(tls.name, stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_the_last_response_is_tried_first() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        let candidates = Candidates::default();
        assert!(candidates.ordered().is_empty());
        candidates.set(vec![a, b, c], Vec::new());
        candidates.record_request(c);
        candidates.record_success();
        assert_eq!(candidates.ordered(), [c, a, b]);
        candidates.set(vec![b, a], Vec::new());
        candidates.set_kubeconfig(vec![a, c]);
        assert_eq!(candidates.ordered(), [c, b, a], "the last response, then the sources in turn");
        candidates.set_kubeconfig(Vec::new());
        assert_eq!(candidates.ordered(), [b, a]);
    }

    #[test]
    fn servers_of_all_sources_alternate() {
        let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        let candidates = Candidates::default();
        candidates.set(vec![a, b, c], vec![d, a]);
        candidates.set_kubeconfig(vec![e]);
        assert_eq!(candidates.ordered(), [a, d, e, b, c]);
    }

    #[test]
    fn unhelpful_servers_are_tried_last() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        let candidates = Candidates::default();
        candidates.set(vec![a, b, c], Vec::new());
        let fail = |server| {
            candidates.record_request(server);
            candidates.record_failure();
        };
        fail(a);
        fail(b);
        assert_eq!(candidates.ordered(), [c, a, b]);
        fail(c);
        assert_eq!(candidates.ordered(), [a, b, c], "in turn");
        candidates.record_request(a);
        candidates.record_success();
        candidates.record_failure();
        assert_eq!(candidates.ordered(), [b, c, a], "a success before does not count");
        candidates.record_failure();
        assert_eq!(candidates.ordered(), [b, c, a], "no request since");
    }

    #[test]
    fn a_failure_names_one_server_and_counts_the_others() {
        let server = SocketAddr::from(([10, 0, 0, 1], 6443));
        let text = |count| DialError::Unreachable { server, reason: "refused".into(), count }.to_string();
        assert_eq!(text(1), "no API server answers: 10.0.0.1:6443: refused");
        assert_eq!(text(3), "no API server answers: 10.0.0.1:6443: refused; nor do 2 others");
    }
}
