//! The thread of an API server: TLS, HTTP, and the paths that it serves.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json as value};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::LocalSet,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;

use super::{ApiBehaviour, Shared, cluster::Kind, lock, status};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The duration of a watch that does not specify one, seconds.
const DEFAULT_WATCH_SECONDS: u64 = 300;

pub(super) fn run(
    listener: std::net::TcpListener,
    acceptor: &TlsAcceptor,
    shared: &Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let local = LocalSet::new();
    // Connections end with the runtime.
    local.block_on(&runtime, async {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    tokio::task::spawn_local(serve(stream, acceptor.clone(), Arc::clone(shared)));
                }
            }
        }
    });
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let has_certificate = stream.get_ref().1.peer_certificates().is_some();
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, &request, has_certificate).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

async fn answer(shared: &Arc<Shared>, request: &Request<Incoming>, has_certificate: bool) -> Answer {
    let behaviour = lock(&shared.behaviour).clone();
    if let ApiBehaviour::Slow(time) = behaviour {
        tokio::time::sleep(time).await;
    }
    let kind = match request.uri().path() {
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices" => Kind::Slices,
        "/api/v1/namespaces/default/endpoints" => Kind::Endpoints,
        "/readyz" | "/livez" | "/healthz" => {
            lock(&shared.requests).checks += 1;
            if !is_authenticated(shared, request, has_certificate) {
                return json(401, &status(401, "Unauthorized", "Unauthorized"));
            }
            return text(*lock(&shared.readiness), "ok");
        }
        _ => return json(404, &status(404, "NotFound", "the server could not find the requested resource")),
    };
    if !is_authenticated(shared, request, has_certificate) {
        lock(&shared.requests).anonymous += 1;
        return json(401, &status(401, "Unauthorized", "Unauthorized"));
    }
    match behaviour {
        ApiBehaviour::Garbage => return text(200, "{\"kind\": \u{1}garbage"),
        ApiBehaviour::Status(code) => return json(code, &status(code, "Failure", "as the test wants it")),
        ApiBehaviour::WithoutSlices if kind == Kind::Slices => {
            return json(404, &status(404, "NotFound", "the server could not find the requested resource"));
        }
        _ => {}
    }
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next_back()
    };
    if parameter("watch").as_deref() != Some("true") {
        lock(&shared.requests).lists += 1;
        return json(200, &lock(&shared.store.cluster).list(kind));
    }
    lock(&shared.requests).watches += 1;
    match behaviour {
        ApiBehaviour::EndsWatches => return text(200, ""),
        ApiBehaviour::AlwaysGone => {
            let gone = status(410, "Expired", "too old resource version");
            return text(200, &lines(&[value!({"type": "ERROR", "object": gone})]));
        }
        _ => {}
    }
    let number = |name| parameter(name).and_then(|value| value.parse().ok());
    let from = number("resourceVersion").unwrap_or_default();
    let time = Duration::from_secs(number("timeoutSeconds").unwrap_or(DEFAULT_WATCH_SECONDS));
    watch_from(shared, kind, from, Instant::now() + time, behaviour == ApiBehaviour::HalfOpen)
}

fn is_authenticated(shared: &Shared, request: &Request<Incoming>, has_certificate: bool) -> bool {
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = lock(&shared.store.token).clone();
    has_certificate
        || (token.is_some() && given.and_then(|given| given.strip_prefix("Bearer ")) == token.as_deref())
}

/// Streams events as they happen, one a line, until the deadline.
fn watch_from(shared: &Arc<Shared>, kind: Kind, from: u64, until: Instant, silent: bool) -> Answer {
    struct Position {
        shared: Arc<Shared>,
        changes: watch::Receiver<u64>,
        at: u64,
        ended: bool,
    }
    let changes = shared.store.version.subscribe();
    let begin = Position { shared: Arc::clone(shared), changes, at: from, ended: false };
    let events = stream::unfold(begin, move |mut position| async move {
        if silent {
            std::future::pending::<()>().await;
        }
        loop {
            if position.ended {
                return None;
            }
            let since = lock(&position.shared.store.cluster).since(kind, position.at);
            match since {
                Ok((events, at)) => {
                    position.at = at;
                    if !events.is_empty() {
                        return Some((lines(&events), position));
                    }
                }
                Err(gone) => {
                    position.ended = true;
                    return Some((lines(&[gone]), position));
                }
            }
            if tokio::time::timeout_at(until, position.changes.changed()).await.is_err() {
                position.ended = true;
                let bookmark = lock(&position.shared.store.cluster).bookmark(kind);
                return Some((lines(&[bookmark]), position));
            }
        }
    });
    let body = StreamBody::new(events.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text)))));
    respond(200, "application/json", body.boxed_unsync())
}

fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

fn json(code: u16, value: &Value) -> Answer {
    respond(code, "application/json", Full::new(Bytes::from(value.to_string())).boxed_unsync())
}

fn text(code: u16, text: &str) -> Answer {
    respond(code, "text/plain", Full::new(Bytes::from(text.to_owned())).boxed_unsync())
}

fn respond(code: u16, kind: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
