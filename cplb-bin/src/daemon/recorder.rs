//! Keeps the history in memory and in its file.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::history::{Content, History, Saver, WallTime, Written, read};

use super::sender::EventSender;

/// The longest time that the end of the daemon waits for the file system.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// The history of this node, and the writer of its file.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) history: History,
    saver: Saver,
    events: EventSender<Written>,
    writing: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Goes on with the history that the last run has left. Returns the reason, too, if that cannot be used.
    pub(crate) fn open(dir: &Path, node: &str, events: EventSender<Written>) -> (Self, Option<String>) {
        let (content, fault) = match read(dir) {
            Ok(content) => (content, None),
            Err(why) => (Content::default(), Some(why)),
        };
        let mut history = History::new(node, content);
        history.start(WallTime::now());
        (Self { history, saver: Saver::new(dir, Instant::now()), events, writing: None }, fault)
    }

    /// Starts to write what is not written yet, if it is time. A file system that does not answer blocks one thread of the pool
    /// only.
    pub(crate) fn save(&mut self) {
        if let Some(write) = self.saver.poll_write(&self.history, Instant::now()) {
            let events = self.events.clone();
            self.writing = Some(tokio::task::spawn_blocking(move || _ = events.send(write.run())));
        }
    }

    /// The time at which [`Recorder::save`] has something to do.
    pub(crate) fn next_save(&self) -> Option<Instant> {
        self.saver.next_write(&self.history)
    }

    /// Takes the end of a write, and starts the next one. Returns the reason for which it failed.
    pub(crate) fn written(&mut self, written: Written) -> Option<String> {
        let fault = self.saver.handle_written(written, Instant::now());
        self.save();
        fault
    }

    /// Writes what is not written yet, because the daemon ends.
    pub(crate) async fn end(&mut self) {
        self.history.stop(WallTime::now());
        let Some(write) = self.saver.remainder(&self.history) else { return };
        // An earlier write must not replace this one.
        let earlier = self.writing.take();
        let last = async {
            if let Some(earlier) = earlier {
                let _ = earlier.await;
            }
            tokio::task::spawn_blocking(move || write.run()).await
        };
        // If the file system does not answer, the last entries are lost.
        let _ = tokio::time::timeout(LAST_WRITE_TIMEOUT, last).await;
    }
}
