//! The event stream: the status for programs and browsers, as soon as something has changed.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::page::View;
use super::snapshots::Snapshots;

/// The event streams that may be open at once.
const MAX_STREAMS: usize = 32;
/// The time between two looks at the status, while a stream is open.
const LOOK: Duration = Duration::from_millis(500);
/// The longest time between two events, for the numbers that change all the time.
const REFRESH: Duration = Duration::from_secs(2);
/// The time within which a client takes an event.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The open streams. All of them get the same message, and a slow one the latest.
pub(super) struct Events {
    messages: watch::Sender<Bytes>,
}

impl Default for Events {
    fn default() -> Self {
        Self { messages: watch::Sender::new(Bytes::new()) }
    }
}

impl Events {
    /// The body of a new stream; `None` if there are too many.
    pub(super) fn open(&self) -> Option<Channel<Bytes>> {
        if self.messages.receiver_count() >= MAX_STREAMS {
            return None;
        }
        let (sender, body) = Channel::new(1);
        tokio::spawn(follow(self.messages.subscribe(), sender));
        Some(body)
    }

    /// Sends events for ever.
    pub(super) async fn publish(&self, snapshots: &Arc<Snapshots>) {
        let mut sent: Option<(Instant, u64)> = None;
        loop {
            if self.messages.receiver_count() == 0 {
                sent = None;
                self.messages.send_replace(Bytes::new());
            } else if let Some(view) = snapshots.get().await {
                let digest = digest(&view);
                if sent.is_none_or(|(at, last)| last != digest || at.elapsed() >= REFRESH) {
                    sent = Some((Instant::now(), digest));
                    self.messages.send_replace(message(&view));
                }
            }
            sleep(LOOK).await;
        }
    }
}

/// Passes messages on until the client leaves or is too slow.
async fn follow(mut messages: watch::Receiver<Bytes>, mut body: Sender<Bytes>) {
    loop {
        let message = messages.borrow_and_update().clone();
        let is_taken = message.is_empty()
            || matches!(timeout(CLIENT_TIMEOUT, body.send_data(message)).await, Ok(Ok(())));
        if !is_taken || messages.changed().await.is_err() {
            return;
        }
    }
}

/// An event with the document of `/api/v1/status`, which has no line ends.
fn message(view: &View) -> Bytes {
    let document = serde_json::to_string(&view.status).unwrap_or_default();
    format!("event: status\ndata: {document}\n\n").into()
}

/// A number for everything but what changes all the time: ages and counts.
fn digest(view: &View) -> u64 {
    let View { status, entries, .. } = view;
    let mut hasher = DefaultHasher::new();
    let put = &mut hasher;
    (status.serving.serving, &status.serving.reason, &status.degraded).hash(put);
    for it in &status.instances {
        let active = it.active_router.as_ref().map(|router| &router.address);
        (it.virtual_router_id, &it.state, it.holds_virtual_ips, it.advertised_priority, active).hash(put);
    }
    for peer in &status.peers {
        (&peer.node, peer.serving, &peer.reason, &peer.degraded).hash(put);
        for it in &peer.instances {
            (it.virtual_router_id, &it.state, it.advertised_priority).hash(put);
        }
    }
    for service in &status.services {
        service.name.hash(put);
        service.backends.iter().for_each(|it| (&it.address, &it.state, &it.reason).hash(put));
    }
    (entries.len(), entries.last().map(|entry| entry.time.millis())).hash(put);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::status::schema::{Backend, Service, Status};

    fn view(state: &str, uptime_seconds: f64) -> View {
        let backend = Backend { address: "a".to_owned(), state: state.to_owned(), ..Backend::default() };
        let service = Service { backends: vec![backend], ..Service::default() };
        View {
            status: Status { services: vec![service], uptime_seconds, ..Status::default() },
            ..View::default()
        }
    }

    #[test]
    fn ages_are_no_change() {
        assert_eq!(digest(&view("up", 1.0)), digest(&view("up", 2.0)));
        assert_ne!(digest(&view("up", 1.0)), digest(&view("down", 1.0)));
    }

    #[tokio::test]
    async fn a_change_is_sent_at_once_and_the_rest_in_a_while() {
        let shown = Arc::new(Mutex::new(view("up", 1.0)));
        let source = Arc::clone(&shown);
        let snapshots = Snapshots::new(move |request| _ = request.reply.send(source.lock().unwrap().clone()));
        let events = Events::default();
        let read = async {
            let mut body = events.open().unwrap();
            let mut next = async || {
                let frame = body.frame().await.unwrap().unwrap();
                String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
            };
            let first = next().await;
            assert!(first.starts_with("event: status\ndata: {") && first.ends_with("}\n\n"), "{first}");
            let began = Instant::now();
            *shown.lock().unwrap() = view("down", 2.0);
            assert!(next().await.contains("\"down\""));
            assert!(began.elapsed() < REFRESH, "{:?}", began.elapsed());
            next().await;
            assert!(began.elapsed() >= REFRESH, "{:?}", began.elapsed());
        };
        tokio::select! {
            () = read => {}
            () = events.publish(&snapshots) => {}
        }
    }

    #[tokio::test]
    async fn streams_are_limited_and_those_of_clients_that_left_make_room() {
        let snapshots = Snapshots::new(|request| _ = request.reply.send(view("up", 1.0)));
        let events = Events::default();
        let open: Vec<_> = (0..MAX_STREAMS).map(|_| events.open().unwrap()).collect();
        assert!(events.open().is_none());
        drop(open);
        let make_room = async {
            while events.messages.receiver_count() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = make_room => {}
            () = events.publish(&snapshots) => {}
        }
        assert!(events.open().is_some());
    }
}
