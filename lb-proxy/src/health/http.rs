//! Consecutive `GET` requests over one kept connection, with bounds on everything the server sends.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::outcome::{Answer, CheckFailure, Step, text};

/// Limit on the head of a response in bytes; the least that hyper allows.
const HEAD_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;
/// Limit on the part of a body that is read, in bytes: the status is enough.
const BODY_MAX: usize = 64 * 1024;

/// The part of the body that is examined if the server is not ready, in bytes.
const BODY_KEPT_MAX: usize = 16 * 1024;
/// Limit on the number of failing checks that are named, and on the length of a name.
const NAMES_MAX: usize = 8;
const NAME_MAX: usize = 100;
/// The check that fails from the moment that an API server of Kubernetes begins to shut down, while it goes on serving
/// for its `--shutdown-delay-duration`.
const SHUTDOWN: &str = "shutdown";

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

/// The HTTP request of a target, built once.
#[derive(Debug, Clone)]
pub(super) struct ProbeRequest {
    uri: Uri,
    host: HeaderValue,
    /// The statuses that mean ready; empty for the usual ones.
    statuses: Vec<u16>,
}

impl ProbeRequest {
    pub(super) fn new(path: PathAndQuery, host: HeaderValue, statuses: Vec<u16>) -> Self {
        Self { uri: path.into(), host, statuses }
    }

    fn classify(&self, status: StatusCode, body_text: &[u8]) -> CheckResult {
        let answer = match self.statuses.as_slice() {
            [] => default_answer(status),
            expected => expected.contains(&status.as_u16()).then_some(Answer::Ready),
        };
        classify(answer, status, body_text)
    }

    fn build(&self, authorization: Option<&HeaderValue>) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, AGENT);
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }
}

/// The result of a check over a working connection.
pub(super) type CheckResult = Result<Answer, CheckFailure>;

type Io = TokioIo<TlsStream<TcpStream>>;

/// A connection that is kept between two checks. hyper leaves the work on the socket to a future of its own, which is
/// polled beside the future in progress, so that a target needs one task and nothing runs while it sleeps.
pub(super) struct KeptConnection {
    sender: SendRequest<Empty<Bytes>>,
    connection: Pin<Box<Connection<Io, Empty<Bytes>>>>,
    ended: bool,
    responses: u32,
}

impl KeptConnection {
    pub(super) async fn new(stream: TlsStream<TcpStream>) -> Result<Self, CheckFailure> {
        let (sender, connection) = Builder::new()
            .max_buf_size(HEAD_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure(&error))?;
        Ok(Self { sender, connection: Box::pin(connection), ended: false, responses: 0 })
    }

    /// The number of responses that it has carried.
    pub(super) fn responses(&self) -> u32 {
        self.responses
    }

    /// Returns when the server has closed the connection, or has sent an unsolicited response.
    pub(super) async fn closed(&mut self) {
        if !self.ended {
            let _ = self.connection.as_mut().await;
            self.ended = true;
        }
    }

    /// Sends one request. An error is the connection's; the first part of the result is the server's answer. The
    /// connection can be used again if it is returned.
    pub(super) async fn send(
        mut self,
        request: &ProbeRequest,
        authorization: Option<&HeaderValue>,
    ) -> Result<(CheckResult, Option<Self>), CheckFailure> {
        let pending = self.sender.send_request(request.build(authorization));
        let response = match run_beside(&mut self.connection, &mut self.ended, pending).await {
            Ok(response) => response,
            Err(error) if is_certificate_demand(&error) => return Ok((Ok(Answer::Denied), None)),
            Err(error) => return Err(failure(&error)),
        };
        let status = response.status();
        let mut body = response.into_body();
        let (mut received, mut body_text) = (0usize, Vec::new());
        while let Some(frame) = run_beside(&mut self.connection, &mut self.ended, body.frame()).await {
            let frame = frame.map_err(|error| failure(&error))?;
            let Some(data) = frame.data_ref() else { continue };
            received = received.saturating_add(data.len());
            if body_text.len() < BODY_KEPT_MAX {
                body_text.extend_from_slice(&data[..data.len().min(BODY_KEPT_MAX - body_text.len())]);
            }
            if received > BODY_MAX {
                return Ok((request.classify(status, &body_text), None));
            }
        }
        self.responses = self.responses.saturating_add(1);
        Ok((request.classify(status, &body_text), Some(self)))
    }
}

/// The meaning of a status where the configuration does not define one.
fn default_answer(status: StatusCode) -> Option<Answer> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Some(Answer::Denied),
        // Priority and fairness refuse a request, not the service; taking a busy server out would load the others.
        StatusCode::TOO_MANY_REQUESTS => Some(Answer::Throttled),
        status => status.is_success().then_some(Answer::Ready),
    }
}

fn classify(answer: Option<Answer>, status: StatusCode, body_text: &[u8]) -> CheckResult {
    match answer {
        Some(answer) => Ok(answer),
        // Other checks may fail as well during a shutdown.
        None if reports_shutdown(body_text) => Ok(Answer::Terminating),
        None => match failing_checks(body_text).as_slice() {
            [] => Err(CheckFailure::Status(status.as_u16())),
            checks => {
                Err(CheckFailure::NotReady { status: status.as_u16(), checks: checks.join(", ").into() })
            }
        },
    }
}

/// Returns the checks that an API server of Kubernetes reports as failing. It names them when it is not ready, one in a
/// line: `[-]etcd failed: reason withheld` (kubernetes, `apiserver/pkg/server/healthz`).
fn failing_checks(body_text: &[u8]) -> Vec<&str> {
    let lines = body_text.split(|byte| *byte == b'\n');
    lines.filter_map(failing_check).take(NAMES_MAX).collect()
}

fn reports_shutdown(body_text: &[u8]) -> bool {
    body_text.split(|byte| *byte == b'\n').filter_map(failing_check).any(|name| name == SHUTDOWN)
}

fn failing_check(line: &[u8]) -> Option<&str> {
    let rest = line.strip_prefix(b"[-]")?;
    let name = rest.split(u8::is_ascii_whitespace).next()?;
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./".contains(byte);
    let is_valid = !name.is_empty() && name.len() <= NAME_MAX && name.iter().all(is_plain);
    std::str::from_utf8(name).ok().filter(|_| is_valid)
}

/// Awaits `future` while driving the connection.
async fn run_beside<F: Future>(
    connection: &mut Pin<Box<Connection<Io, Empty<Bytes>>>>,
    ended: &mut bool,
    future: F,
) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        if !*ended && connection.as_mut().poll(context).is_ready() {
            *ended = true;
        }
        future.as_mut().poll(context)
    })
    .await
}

fn failure(error: &hyper::Error) -> CheckFailure {
    if error.is_parse() || error.is_parse_too_large() {
        return CheckFailure::Http(text(error));
    }
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    CheckFailure::closed(Step::Response, &cause)
}

/// Returns whether a server refused this client for want of a certificate; in TLS 1.3 that arrives only after the
/// client's handshake is complete.
fn is_certificate_demand(error: &hyper::Error) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    io.is_some_and(certificate_demanded)
}

/// Returns whether a TLS server ended the handshake because this program has no certificate that it accepts: it is
/// alive.
pub(super) fn certificate_demanded(error: &io::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            // RFC 8446 section 6.2; Go answers TLS 1.2 clients with bad_certificate. The other alerts concern this
            // program's certificate.
            AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
        ))
    )
}

/// Returns the TLS library's own error, which tokio-rustls wraps; `None` if the connection failed.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_checks_of_an_api_server_are_named() {
        let body_text = b"[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]informer-sync failed: x\nreadyz check failed\n";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let failure = classify(None, status, body_text).unwrap_err();
        assert_eq!(failure.to_string(), "not ready: etcd, informer-sync (HTTP status 500)");
        assert_eq!(classify(None, status, b"not ok"), Err(CheckFailure::Status(500)));
        let many = b"[-]etcd failed: reason withheld\n".repeat(NAMES_MAX + 1);
        let body_text =
            [&many, b"[-]shutdown failed: reason withheld\nreadyz check failed\n".as_slice()].concat();
        assert_eq!(classify(None, status, &body_text), Ok(Answer::Terminating));
    }

    #[test]
    fn names_of_failing_checks_are_bounded() {
        let long = [b"[-]".as_slice(), &[b'a'; NAME_MAX + 1], b" failed\n"].concat();
        assert!(failing_checks(&long).is_empty());
        assert_eq!(failing_checks(&b"[-]a failed\n".repeat(1000)).len(), NAMES_MAX);
        let odd = b"[-]\n[-] failed\n[-]\x1b[31m failed\n[-]\xff failed\n [-]late\n[-]last";
        assert_eq!(failing_checks(odd), ["last"]);
    }
}
