//! Asks whichever API server of the cluster answers.
//!
//! A kubeconfig names one server, which may be the one that is down, or the address that this program is to bring up. All
//! of a cluster say the same, so any that proves to be one of them will do.

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

use super::kubeconfig::Access;
use super::pace::Pace;

/// How long a server may take for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// The next server is tried when the one before has failed, or has not answered for so long.
const STAGGER: Duration = Duration::from_millis(200);
/// Within this time all of them are tried, however many there are.
const ROUND: Duration = Duration::from_secs(10);
/// How long the head of an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// What a server may say in one answer. Each watch is a new one.
const BODY_MAX: usize = 32 << 20;
/// A connection whose other end is silent for so long, while it should confirm what it got, is dead.
const SILENCE: Duration = Duration::from_secs(10);
/// So many servers are remembered for answers of no use.
const USELESS_MAX: usize = 32;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("cplb/", env!("CARGO_PKG_VERSION")));

/// Who is asked, and who answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Those that were found.
    found: Vec<SocketAddr>,
    /// Those that are known otherwise.
    others: Vec<SocketAddr>,
    /// Where the server is that the kubeconfig names.
    named: Vec<SocketAddr>,
    /// Who was asked last.
    asked: Option<SocketAddr>,
    /// Who answered last.
    answered: Option<(SocketAddr, Instant)>,
    /// Those whose answers were of no use, the last one last.
    useless: Vec<SocketAddr>,
}

impl Directory {
    /// Who may be asked from now on.
    pub(super) fn set(&self, found: Vec<SocketAddr>, others: Vec<SocketAddr>) {
        let mut known = self.known();
        (known.found, known.others) = (found, others);
    }

    /// Who may be asked besides.
    pub(super) fn set_named(&self, servers: Vec<SocketAddr>) {
        self.known().named = servers;
    }

    /// Who answered last, and when.
    pub(super) fn answered(&self) -> Option<(SocketAddr, Instant)> {
        self.known().answered
    }

    /// Everybody, who answered last first, and those last whose answers were of no use. All of one kind may be gone, so
    /// the kinds take turns.
    fn candidates(&self) -> Vec<SocketAddr> {
        let known = self.known();
        let kinds = [&known.found, &known.others, &known.named];
        let longest = kinds.iter().map(|kind| kind.len()).max().unwrap_or_default();
        let all: Vec<SocketAddr> = (0..longest)
            .flat_map(|turn| kinds.iter().filter_map(move |kind| kind.get(turn).copied()))
            .collect();
        let last = known.answered.map(|(server, _)| server).filter(|last| all.contains(last));
        let mut candidates: Vec<SocketAddr> = Vec::new();
        for server in last.into_iter().chain(all) {
            if !candidates.contains(&server) {
                candidates.push(server);
            }
        }
        candidates
            .sort_by_key(|server| known.useless.iter().position(|it| it == server).map_or(0, |at| at + 1));
        candidates
    }

    fn asks(&self, server: SocketAddr) {
        self.known().asked = Some(server);
    }

    /// Who was asked last has said what we wanted to know.
    pub(super) fn praise(&self) {
        let mut known = self.known();
        let Some(asked) = known.asked else { return };
        known.useless.retain(|it| *it != asked);
        known.answered = Some((asked, Instant::now()));
    }

    /// Who was asked last has said nothing of use. One server whose etcd is down must not keep us from the others.
    pub(super) fn blame(&self) {
        let mut known = self.known();
        let Some(asked) = known.asked.take() else { return };
        known.useless.retain(|it| *it != asked);
        known.useless.push(asked);
        // Names may change without end.
        if known.useless.len() > USELESS_MAX {
            known.useless.remove(0);
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody could be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no API server is known yet")]
    Nobody,
    /// The failure of one of them, the most telling one.
    #[error("no API server answers: {server}: {why}{}", others(*.count))]
    Unreachable { server: SocketAddr, why: String, count: usize },
    #[error("{0} took a request and does not answer")]
    Silent(SocketAddr),
}

fn others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        2 => "; nor does another one".to_owned(),
        more => format!("; nor do {} others", more - 1),
    }
}

/// A client that opens a connection for each request, of which there are two in a minute. Requests wait as `pace` says.
pub(super) fn client(access: &Access, directory: &Directory, mark: u32, pace: &Arc<Mutex<Pace>>) -> Client {
    let (access, directory, pace) = (access.clone(), directory.clone(), Arc::clone(pace));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (access, directory, pace) = (access.clone(), directory.clone(), Arc::clone(&pace));
        async move {
            let with_pace = || pace.lock().unwrap_or_else(PoisonError::into_inner);
            let pause = with_pace().before_request(Instant::now());
            tokio::time::sleep(pause).await;
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let response = ask(access, directory, mark, request).await?;
            if is_watch {
                with_pace().watch_began(Instant::now());
            }
            Ok::<_, Box<dyn Error + Send + Sync>>(response)
        }
    });
    Client::new(service, "default")
}

async fn ask(
    access: Access,
    directory: Directory,
    mark: u32,
    mut request: Request<Body>,
) -> Result<Response<Limited<Incoming>>, Box<dyn Error + Send + Sync>> {
    let (server, stream) = dial(&access, &directory, mark).await?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&server.to_string())?);
    headers.insert(USER_AGENT, AGENT);
    if let Some(authorization) = access.trust.authorization() {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    let asked = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    directory.asks(server);
    let response = tokio::time::timeout(ANSWER, asked).await.map_err(|_| DialError::Silent(server))??;
    Ok(response.map(|body| Limited::new(body, BODY_MAX)))
}

/// A connection to the first server that proves to be one.
async fn dial(
    access: &Access,
    directory: &Directory,
    mark: u32,
) -> Result<(SocketAddr, TlsStream<TcpStream>), DialError> {
    let candidates = directory.candidates();
    let count = candidates.len();
    let stagger = STAGGER.min(ROUND / u32::try_from(count).unwrap_or(u32::MAX).max(1));
    let attempt = |(turn, server): (usize, SocketAddr)| async move {
        let connected = tokio::time::timeout(CONNECT, connect(access, server, mark)).await;
        (turn, server, connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
    };
    let mut waiting = candidates.into_iter().enumerate();
    let mut attempts: FuturesUnordered<_> = waiting.next().map(attempt).into_iter().collect();
    let mut worst: Option<(Telling, SocketAddr, io::Error)> = None;
    while !attempts.is_empty() {
        let ended = tokio::time::timeout(stagger, attempts.next()).await;
        if let Ok(Some((turn, server, connected))) = ended {
            match connected {
                Ok(stream) => return Ok((server, stream)),
                Err(error) => {
                    let telling = Telling::of(server, &error, turn);
                    if worst.as_ref().is_none_or(|(known, ..)| telling < *known) {
                        worst = Some((telling, server, error));
                    }
                }
            }
        }
        attempts.extend(waiting.next().map(attempt));
    }
    match worst {
        Some((_, server, why)) => Err(DialError::Unreachable { server, why: explain(&why), count }),
        None => Err(DialError::Nobody),
    }
}

/// How much a failure says about its cause, the most telling one first: a server that answered with TLS, then one of
/// another host, then the one that was asked first. Loopback addresses are mere guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Telling {
    is_silent: bool,
    is_loopback: bool,
    turn: usize,
}

impl Telling {
    fn of(server: SocketAddr, error: &io::Error, turn: usize) -> Self {
        Self { is_silent: tls_error(error).is_none(), is_loopback: server.ip().is_loopback(), turn }
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn explain(error: &io::Error) -> String {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            let why = tls_error(error).map(explain_error).unwrap_or_default();
            format!("its certificate is not accepted: {why}")
        }
        _ => error.to_string(),
    }
}

async fn connect(access: &Access, server: SocketAddr, mark: u32) -> io::Result<TlsStream<TcpStream>> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without the privilege the connection goes unmarked, as the load balancer's do.
    let _ = setsockopt(&socket, sockopt::Mark, &mark);
    let millis = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    setsockopt(&socket, sockopt::TcpUserTimeout, &millis)?;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    let seconds = u32::try_from(SILENCE.as_secs() / 2).unwrap_or(u32::MAX);
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
    fn who_answered_last_is_asked_first_while_it_is_known() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        let directory = Directory::default();
        assert!(directory.candidates().is_empty());
        directory.set(vec![a, b, c], Vec::new());
        directory.asks(c);
        directory.praise();
        assert_eq!(directory.candidates(), [c, a, b]);
        directory.set(vec![b, a], Vec::new());
        directory.set_named(vec![a, c]);
        assert_eq!(directory.candidates(), [c, b, a], "who answered, then the kinds in turn");
        directory.set_named(Vec::new());
        assert_eq!(directory.candidates(), [b, a]);
    }

    #[test]
    fn no_kind_of_server_hides_the_others() {
        let [a, b, c, d, e] = [1, 2, 3, 4, 5].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        let directory = Directory::default();
        directory.set(vec![a, b, c], vec![d, a]);
        directory.set_named(vec![e]);
        assert_eq!(directory.candidates(), [a, d, e, b, c]);
    }

    #[test]
    fn who_says_nothing_of_use_is_asked_after_all_others() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([10, 0, 0, host], 6443)));
        let directory = Directory::default();
        directory.set(vec![a, b, c], Vec::new());
        let blame = |server| {
            directory.asks(server);
            directory.blame();
        };
        blame(a);
        blame(b);
        assert_eq!(directory.candidates(), [c, a, b]);
        blame(c);
        assert_eq!(directory.candidates(), [a, b, c], "in turn");
        directory.asks(a);
        directory.praise();
        directory.blame();
        assert_eq!(directory.candidates(), [b, c, a], "whatever it said before");
        directory.blame();
        assert_eq!(directory.candidates(), [b, c, a], "nobody was asked since");
    }

    #[test]
    fn failures_name_the_first_and_count_the_others() {
        let server = SocketAddr::from(([10, 0, 0, 1], 6443));
        let text = |count| DialError::Unreachable { server, why: "refused".into(), count }.to_string();
        assert_eq!(text(1), "no API server answers: 10.0.0.1:6443: refused");
        assert_eq!(text(3), "no API server answers: 10.0.0.1:6443: refused; nor do 2 others");
    }
}
