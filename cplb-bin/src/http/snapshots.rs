//! The content that the HTTP server shows, asked for at most once in a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};

use super::page::View;

/// Asks the event loop for the view.
#[derive(Debug)]
pub(crate) struct ViewRequest {
    pub(crate) reply: oneshot::Sender<View>,
}

/// The time for which a view is good enough for further clients.
const FRESH: Duration = Duration::from_millis(200);
/// The time after which the event loop counts as hung.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The last answer of the event loop.
pub(super) struct Snapshots {
    ask: Box<dyn Fn(ViewRequest) + Send + Sync>,
    last: Mutex<Option<Snapshot>>,
}

#[derive(Debug, Clone)]
struct Snapshot {
    taken: Instant,
    /// `None` if there was no answer in time.
    view: Option<Arc<View>>,
}

impl Snapshots {
    /// `ask` passes a request to the event loop.
    pub(super) fn new(ask: impl Fn(ViewRequest) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { ask: Box::new(ask), last: Mutex::new(None) })
    }

    /// The view, at most 200 ms old; `None` if the event loop does not answer within 2 s.
    pub(super) async fn get(self: &Arc<Self>) -> Option<Arc<View>> {
        let this = Arc::clone(self);
        // In a task of its own: a client that leaves must not make the next one ask again.
        tokio::spawn(async move { this.refresh().await }).await.ok().flatten()
    }

    async fn refresh(&self) -> Option<Arc<View>> {
        // Others that come meanwhile wait for the same answer.
        let mut last = self.last.lock().await;
        if let Some(snapshot) = last.as_ref().filter(|snapshot| snapshot.taken.elapsed() < FRESH) {
            return snapshot.view.clone();
        }
        let (reply, answer) = oneshot::channel();
        (self.ask)(ViewRequest { reply });
        let view = timeout(ANSWER_TIME, answer).await.ok().and_then(Result::ok).map(Arc::new);
        *last = Some(Snapshot { taken: Instant::now(), view: view.clone() });
        view
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn many_clients_cause_one_request_in_a_while() {
        let asked = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&asked);
        let snapshots = Snapshots::new(move |request| {
            let pid = count.fetch_add(1, Relaxed) + 1;
            request.reply.send(View { node: pid.to_string(), ..View::default() }).unwrap();
        });
        let began = Instant::now();
        while asked.load(Relaxed) < 3 {
            assert!(snapshots.get().await.is_some());
        }
        assert!(began.elapsed() >= 2 * FRESH, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn clients_that_leave_cause_no_further_requests() {
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let snapshots = Snapshots::new(move |request| kept.lock().unwrap().push(request));
        for _ in 0..20 {
            let left = timeout(Duration::from_millis(1), snapshots.get()).await;
            assert!(left.is_err(), "it waits");
        }
        let request = asked.lock().unwrap().pop().unwrap();
        assert!(asked.lock().unwrap().is_empty(), "one request");
        request.reply.send(View { node: "7".to_owned(), ..View::default() }).unwrap();
        assert_eq!(snapshots.get().await.unwrap().node, "7");
    }

    #[tokio::test]
    async fn an_event_loop_that_hangs_is_noticed_once_for_all_clients() {
        let kept = std::sync::Mutex::new(Vec::new());
        let snapshots = Snapshots::new(move |request| kept.lock().unwrap().push(request));
        let began = Instant::now();
        let (one, other) = tokio::join!(snapshots.get(), snapshots.get());
        assert!(one.is_none() && other.is_none());
        assert!(began.elapsed() < 2 * ANSWER_TIME, "both waited for the same answer: {:?}", began.elapsed());
        // The loop has ended.
        assert!(Snapshots::new(drop).get().await.is_none());
    }
}
