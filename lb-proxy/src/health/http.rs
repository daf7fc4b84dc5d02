//! One `GET` after the other over one kept connection, with bounds on everything the server sends.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::header::{HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::outcome::{Answer, CheckFailure, Step, text};

/// The head of an answer fits in this many bytes or is refused; the least that hyper allows.
const HEAD_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;
/// A body beyond this many bytes is not read to its end: the status has said it all.
const BODY_MAX: usize = 64 * 1024;

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

/// The request of a target, made once.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    uri: Uri,
    host: HeaderValue,
}

impl Ask {
    pub(super) fn new(path: PathAndQuery, host: HeaderValue) -> Self {
        Self { uri: path.into(), host }
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(HOST, self.host.clone());
        request.headers_mut().insert(USER_AGENT, AGENT);
        request
    }
}

/// What an HTTP status means.
pub(super) type Verdict = Result<Answer, CheckFailure>;

type Io = TokioIo<TlsStream<TcpStream>>;

/// A connection between two checks. hyper leaves the work on the socket to a future of its own, which is
/// polled beside whatever is waited for, so that a target needs one task and nothing runs while it sleeps.
pub(super) struct Kept {
    sender: SendRequest<Empty<Bytes>>,
    connection: Pin<Box<Connection<Io, Empty<Bytes>>>>,
    ended: bool,
    answers: u32,
}

impl Kept {
    pub(super) async fn new(stream: TlsStream<TcpStream>) -> Result<Self, CheckFailure> {
        let (sender, connection) = Builder::new()
            .max_buf_size(HEAD_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure(&error))?;
        Ok(Self { sender, connection: Box::pin(connection), ended: false, answers: 0 })
    }

    /// Answers it has given so far.
    pub(super) fn answers(&self) -> u32 {
        self.answers
    }

    /// Returns when the server has closed the connection, or said something that nobody asked for.
    pub(super) async fn lost(&mut self) {
        if !self.ended {
            let _ = self.connection.as_mut().await;
            self.ended = true;
        }
    }

    /// Asks once. An error is the connection's; what the server answered is the first part of the result. The
    /// connection may be used again if it is returned.
    pub(super) async fn ask(mut self, ask: &Ask) -> Result<(Verdict, Option<Self>), CheckFailure> {
        let request = self.sender.send_request(ask.request());
        let response = match drive(&mut self.connection, &mut self.ended, request).await {
            Ok(response) => response,
            Err(error) if demands_certificate(&error) => return Ok((Ok(Answer::Denied), None)),
            Err(error) => return Err(failure(&error)),
        };
        let verdict = judge(response.status());
        let mut body = response.into_body();
        let mut received = 0usize;
        while let Some(frame) = drive(&mut self.connection, &mut self.ended, body.frame()).await {
            let frame = frame.map_err(|error| failure(&error))?;
            received = received.saturating_add(frame.data_ref().map_or(0, Bytes::len));
            if received > BODY_MAX {
                return Ok((verdict, None));
            }
        }
        self.answers = self.answers.saturating_add(1);
        Ok((verdict, Some(self)))
    }
}

fn judge(status: StatusCode) -> Verdict {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Answer::Denied),
        // Priority and fairness refuse a request, not the service; taking a busy server out would load the others.
        StatusCode::TOO_MANY_REQUESTS => Ok(Answer::Denied),
        status if status.is_success() => Ok(Answer::Ready),
        status => Err(CheckFailure::Status(status.as_u16())),
    }
}

/// Waits for `future` while the connection does its work.
async fn drive<F: Future>(
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
    CheckFailure::closed(Step::Answer, &cause)
}

/// In TLS 1.3 a server refuses a client without a certificate only after the client's handshake is complete.
fn demands_certificate(error: &hyper::Error) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    io.is_some_and(certificate_demanded)
}

/// Whether a TLS server ended the handshake because we have no certificate: it is alive.
pub(super) fn certificate_demanded(error: &io::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            // RFC 8446 section 6.2; Go answers TLS 1.2 clients with bad_certificate.
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate
        ))
    )
}

/// The TLS library's own error, which tokio-rustls wraps; none if the connection failed.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
