//! The server's thread: listens, reads requests, writes answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http_body_util::channel::Channel;
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::events::Events;
use super::page::{SAMPLE_INTERVAL, Samples};
use super::process::ProcessUsage;
use super::reply::{EVENTS, Question, Reply, answer, refusal, too_many_streams};
use super::snapshots::{Snapshots, ViewRequest};

/// Connections that may be open at once. The oldest one makes room for a new one.
const MAX_CONNECTIONS: usize = 128;
/// The longest time in which a client must send the head of its next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest life of a connection without an event stream. Clients connect again.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// The longest life of a connection with an event stream.
const STREAM_TIME: Duration = Duration::from_secs(3600);
/// The largest head of a request, bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The sources of what a browser may use in a page: of this server, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// The pause after a connection could not be accepted, such as without free descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A running server. Dropping it closes its port and its connections.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `address`, and answers with what `ask` returns by the request.
    ///
    /// # Errors
    ///
    /// If the address cannot be bound, or no thread can be started.
    pub(crate) fn start(
        address: SocketAddr,
        ask: impl Fn(ViewRequest) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let address = listener.local_addr()?;
        let shown = Arc::new(Shown {
            snapshots: Snapshots::new(ask),
            samples: Mutex::default(),
            events: Events::default(),
        });
        let thread = thread::Builder::new().name("http".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Only a failure of the runtime itself ends it: see the error below.
                    result = accept(listener, &shown) => {
                        if let Err(error) = result {
                            tracing::error!(%address, %error, "status page ended");
                        }
                    }
                    () = take_samples(&shown) => {}
                    () = shown.events.publish(&shown.snapshots) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns whether the server has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It panicked: its message is in the log.
            let _ = thread.join();
        }
    }
}

/// The state that all connections share.
struct Shown {
    snapshots: Arc<Snapshots>,
    samples: Mutex<Samples>,
    events: Events,
}

/// Takes samples for ever.
async fn take_samples(shown: &Shown) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        ticks.tick().await;
        if let Some(view) = shown.snapshots.get().await {
            let elapsed = std::mem::replace(&mut last, Instant::now()).elapsed();
            shown.samples.lock().unwrap_or_else(PoisonError::into_inner).take(&view.status, elapsed);
        }
    }
}

async fn accept(listener: TcpListener, shown: &Arc<Shown>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = connections.pop_front()
                {
                    oldest.abort();
                }
                let serving = tokio::spawn(serve(stream, Arc::clone(shown)));
                connections.push_back(serving.abort_handle());
            }
            Err(error) => {
                tracing::debug!(%error, "no client of the status page can be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shown: Arc<Shown>) {
    let has_stream = AtomicBool::new(false);
    let respond = service_fn(|request| respond(request, &shown, &has_stream));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), respond);
    let mut connection = std::pin::pin!(connection);
    // An error ends this connection only: each client could cause it at will, so it is not logged.
    if timeout(CONNECTION_TIME, connection.as_mut()).await.is_err() && has_stream.load(Ordering::Relaxed) {
        let _ = timeout(STREAM_TIME, connection).await;
    }
}

type Body = Either<Full<Bytes>, Channel<Bytes>>;

async fn respond(
    request: Request<Incoming>,
    shown: &Shown,
    has_stream: &AtomicBool,
) -> Result<Response<Body>, Infallible> {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let question = Question { method: request.method(), path: request.uri().path(), accept };
    let reply = match refusal(question) {
        Some(reply) => reply,
        None if question.path == EVENTS && question.method == Method::GET => match shown.events.open() {
            Some(body) => {
                has_stream.store(true, Ordering::Relaxed);
                return Ok(with_headers(Response::new(Either::Right(body)), "text/event-stream"));
            }
            None => too_many_streams(),
        },
        None => {
            let view = shown.snapshots.get().await;
            let samples = shown.samples.lock().unwrap_or_else(PoisonError::into_inner);
            answer(question, view.as_deref(), &samples, ProcessUsage::read)
        }
    };
    Ok(response(reply, request.method()))
}

fn response(reply: Reply, method: &Method) -> Response<Body> {
    let Reply { status, content_type, body } = reply;
    let length = HeaderValue::from(body.len());
    let body = if method == Method::HEAD { Bytes::new() } else { body.into() };
    let mut response = with_headers(Response::new(Either::Left(Full::new(body))), content_type);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if method == Method::HEAD {
        headers.insert(hyper::header::CONTENT_LENGTH, length);
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn with_headers(mut response: Response<Body>, content_type: &'static str) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

#[cfg(test)]
mod tests;
