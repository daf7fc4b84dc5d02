//! The daemon's end of a control connection.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::{Uid, geteuid};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Line, Outcome, Request};
use crate::exit::Kind;

/// The time within which a client sends its request, and takes each line.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two lines while the request is worked on.
const WORKING_INTERVAL: Duration = Duration::from_secs(1);
/// The longest request in bytes.
const MAX_REQUEST: u64 = 4096;

/// A request, and where its result goes.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Outcome>,
    pub(crate) progress: Progress,
}

/// The progress of a request, for the client.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Mutex<Option<String>>>);

impl Progress {
    pub(crate) fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    fn line(&self) -> Line {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        text.map_or(Line::Working, Line::Progress)
    }
}

/// Returns whether this user may ask for it. The mode of the socket's file keeps out users that may not even read.
fn is_allowed(request: &Request, user: Option<Uid>) -> bool {
    request.only_reads() || user.is_some_and(|user| user.is_root() || user == geteuid())
}

/// Reads a request, hands it to `ask`, and writes the result. A client that leaves does not end what it asked for.
pub(crate) async fn serve(mut stream: UnixStream, ask: impl FnOnce(Asked)) {
    let peer = stream.peer_cred().ok().map(|peer| Uid::from_raw(peer.uid()));
    let (reader, mut writer) = stream.split();
    let mut text = String::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    if !matches!(timeout(CLIENT_TIMEOUT, reader.read_line(&mut text)).await, Ok(Ok(1..))) {
        return;
    }
    // A client that gave up while this process did not run must not be served later.
    if matches!(writer.as_ref().try_read(&mut [0]), Ok(0)) {
        return;
    }
    let (reply, mut result) = oneshot::channel();
    let progress = Progress::default();
    match serde_json::from_str::<Request>(&text) {
        Ok(request) if !is_allowed(&request, peer) => {
            let _ = reply.send(Outcome::refused_as(
                Kind::Permission,
                "only root and the user of the daemon may ask for this",
            ));
        }
        Ok(request) => ask(Asked { request, reply, progress: progress.clone() }),
        Err(error) => {
            let _ = reply.send(Outcome::refused(format!("the request is not understood: {error}")));
        }
    }
    let mut working = interval(WORKING_INTERVAL);
    working.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let line = tokio::select! {
            outcome = &mut result => {
                Line::Done(outcome.unwrap_or_else(|_| Outcome::refused("the daemon stops")))
            }
            _ = working.tick() => progress.line(),
        };
        let Ok(mut text) = serde_json::to_vec(&line) else { return };
        text.push(b'\n');
        let written = timeout(CLIENT_TIMEOUT, writer.write_all(&text)).await;
        if matches!(line, Line::Done(_)) || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn exchange(request: &str, answer: Option<Outcome>) -> Vec<Line> {
        let (client, server) = UnixStream::pair().unwrap();
        let serve = serve(server, |asked| {
            if let Some(answer) = answer {
                asked.reply.send(answer).unwrap();
            }
        });
        let talk = async {
            let (reader, mut writer) = client.into_split();
            writer.write_all(request.as_bytes()).await.unwrap();
            let mut lines = BufReader::new(reader).lines();
            let mut found = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                found.push(serde_json::from_str(&line).unwrap());
            }
            found
        };
        tokio::join!(serve, talk).1
    }

    #[test]
    fn only_root_and_the_user_of_the_daemon_may_change_anything() {
        let other = Some(Uid::from_raw(geteuid().as_raw() + 4711));
        for user in [Some(Uid::from_raw(0)), Some(geteuid())] {
            assert!(is_allowed(&Request::Standby, user) && is_allowed(&Request::History, user));
        }
        for user in [other, None] {
            assert!(!is_allowed(&Request::Standby, user) && !is_allowed(&Request::Reload, user));
            assert!(is_allowed(&Request::History, user));
        }
    }

    #[tokio::test]
    async fn the_last_line_is_the_result() {
        let answer = Outcome { message: Some("done".to_owned()), ..Outcome::default() };
        let lines = exchange("\"standby\"\n", Some(answer.clone())).await;
        assert_eq!(lines.last(), Some(&Line::Done(answer)));
        let text = "{\"handover\":{\"instance\":\"10.0.0.100\",\"to\":null}}\n";
        assert!(
            matches!(exchange(text, None).await.last(), Some(Line::Done(ended)) if ended.refused.is_some())
        );
        for wrong in ["{}\n", "\n", "\"stop\"\n", "{\"handover\":{\"to\":7}}\n"] {
            let lines = exchange(wrong, None).await;
            let Some(Line::Done(Outcome { refused: Some(why), .. })) = lines.last() else {
                panic!("{lines:?}")
            };
            assert!(why.contains("not understood"), "{why}");
        }
    }
}
