//! The file of the history in the state directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink_vip::files::{self, Loaded, Outlives};
use serde::Serialize;

use super::format::{Content, Entry};
use super::store::History;

/// The name of the file in the state directory.
const FILE: &str = "history.json";
/// The writes for this node's own transitions that may follow each other at once. Later ones of a burst are written together.
const BURST: u32 = 8;
/// The time after which one more of them may, and between two writes of what others have reported.
const INTERVAL: Duration = Duration::from_millis(500);
/// The time until the next attempt after a write that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Reads the file.
///
/// # Errors
/// The reason why it cannot be used.
pub(crate) fn read(state_dir: &Path) -> Result<Content, String> {
    match files::load_as::<Content>(&state_dir.join(FILE), Outlives::Boot) {
        Ok(Loaded::Content(content)) => Ok(content),
        Ok(Loaded::Nothing) => Ok(Content::default()),
        Ok(Loaded::Unreadable(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads the file that a daemon has left, and changes nothing.
///
/// # Errors
/// As [`read`].
pub(crate) fn peek(state_dir: &Path) -> Result<Content, String> {
    match files::peek_as::<Content>(&state_dir.join(FILE), Outlives::Boot) {
        Ok(Loaded::Content(content)) => Ok(content),
        Ok(Loaded::Nothing) => Err("there is none".to_owned()),
        Ok(Loaded::Unreadable(why)) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}

/// Decides when the entries are written, one write at a time: this node's own transitions at once, others and those of a long
/// burst within half a second.
#[derive(Debug)]
pub(crate) struct Saver {
    path: PathBuf,
    /// The revision of the history that was written last.
    saved: u64,
    is_writing: bool,
    /// The writes that may follow each other at once, and when their number was last counted.
    allowed: (u32, Instant),
    /// The start of the last write.
    last: Option<Instant>,
    /// The end of the wait after a write that failed.
    retry: Option<Instant>,
}

/// A write that is due, for a thread that may wait for the file system.
#[derive(Debug)]
pub(crate) struct Write {
    path: PathBuf,
    entries: Vec<Arc<Entry>>,
    revision: u64,
}

/// The end of a write.
#[derive(Debug)]
pub(crate) struct Written {
    revision: u64,
    fault: Option<String>,
}

impl Saver {
    pub(crate) fn new(state_dir: &Path, now: Instant) -> Self {
        Self {
            path: state_dir.join(FILE),
            saved: 0,
            is_writing: false,
            allowed: (BURST, now),
            last: None,
            retry: None,
        }
    }

    /// The write that is due, if there is one; [`Saver::handle_written`] takes its end.
    pub(crate) fn poll_write(&mut self, history: &History, now: Instant) -> Option<Write> {
        if self.next_write(history).is_none_or(|at| now < at) {
            return None;
        }
        let write = self.remainder(history)?;
        if history.own_revision() > self.saved {
            self.count(now);
        }
        (self.is_writing, self.retry, self.last) = (true, None, Some(now));
        Some(write)
    }

    /// Counts a write at once.
    fn count(&mut self, now: Instant) {
        let (allowed, counted) = self.allowed;
        let more = now.saturating_duration_since(counted).as_millis() / INTERVAL.as_millis();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let is_full = allowed.saturating_add(more) >= BURST;
        let counted = if is_full { now } else { counted + INTERVAL * more };
        self.allowed = (allowed.saturating_add(more).min(BURST).saturating_sub(1), counted);
    }

    /// The time of the next write; `None` if there is nothing to write, or one is under way.
    pub(crate) fn next_write(&self, history: &History) -> Option<Instant> {
        if self.is_writing || history.revision() == self.saved {
            return None;
        }
        let (allowed, counted) = self.allowed;
        let from = match self.last {
            None => counted,
            Some(_) if history.own_revision() > self.saved && allowed > 0 => counted,
            Some(last) => last + INTERVAL,
        };
        Some(self.retry.map_or(from, |retry| retry.max(from)))
    }

    /// Takes the end of a write. Returns the reason why it failed.
    pub(crate) fn handle_written(&mut self, written: Written, now: Instant) -> Option<String> {
        self.is_writing = false;
        if written.fault.is_some() {
            self.retry = Some(now + RETRY);
        } else {
            self.saved = self.saved.max(written.revision);
        }
        written.fault
    }

    /// The write of what is not written yet, whenever the last one was: for the end of the daemon.
    pub(crate) fn remainder(&self, history: &History) -> Option<Write> {
        let entries = || history.entries().cloned().collect();
        let revision = history.revision();
        (revision != self.saved).then(|| Write { path: self.path.clone(), entries: entries(), revision })
    }
}

impl Write {
    /// Writes the file. It may take as long as the file system does.
    pub(crate) fn run(&self) -> Written {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            entries: Vec<&'a Entry>,
        }
        let content = Borrowed { entries: self.entries.iter().map(|entry| &**entry).collect() };
        let directory = self.path.parent().map_or(Ok(()), files::create_directory);
        let result = directory.and_then(|()| files::store(&self.path, &content));
        Written { revision: self.revision, fault: result.err().map(|error| error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::OwnTransition;
    use super::super::time::WallTime;
    use super::*;

    #[test]
    fn entries_are_written_at_once_and_those_of_a_burst_together() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let start = Instant::now();
        let mut history = History::new("c1", read(&state).unwrap());
        let mut saver = Saver::new(&state, start);
        assert!(saver.poll_write(&history, start).is_none(), "nothing is to be written");
        history.start(WallTime::from_millis(1));
        let write = saver.poll_write(&history, start).unwrap();
        history.own(own(2));
        assert!(saver.poll_write(&history, start + INTERVAL).is_none(), "one at a time");
        assert_eq!(saver.handle_written(write.run(), start), None);
        assert_eq!(read(&state).unwrap().entries.len(), 1);
        let write = saver.poll_write(&history, start).unwrap();
        assert_eq!(saver.handle_written(write.run(), start), None);
        assert!(saver.remainder(&history).is_none() && saver.next_write(&history).is_none());
        assert_eq!(read(&state).unwrap().entries.len(), 2);
    }

    fn own(millis: u64) -> OwnTransition {
        OwnTransition {
            time: WallTime::from_millis(millis),
            address: None,
            vrid: 51,
            from: "backup",
            to: "active",
            reason: String::new(),
            silence_milliseconds: None,
        }
    }

    #[test]
    fn entries_that_others_can_tell_again_are_written_a_little_later() {
        let directory = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let (mut history, mut saver) =
            (History::new("c1", Content::default()), Saver::new(directory.path(), start));
        history.start(WallTime::from_millis(1));
        let write = saver.poll_write(&history, start).unwrap();
        assert_eq!(saver.handle_written(write.run(), start), None);
        history.stop(WallTime::from_millis(2));
        assert!(saver.poll_write(&history, start).is_none());
        assert_eq!(saver.next_write(&history), Some(start + INTERVAL));
        history.own(own(3));
        assert!(saver.poll_write(&history, start).is_some());
    }

    #[test]
    fn writes_are_limited_in_a_flood_of_entries() {
        let directory = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let (mut history, mut saver) =
            (History::new("c1", Content::default()), Saver::new(directory.path(), start));
        let mut writes = 0;
        for millis in 0..10_000 {
            history.own(own(millis));
            let now = start + Duration::from_millis(millis);
            if let Some(write) = saver.poll_write(&history, now) {
                writes += 1;
                let written = Written { revision: write.revision, fault: None };
                assert_eq!(saver.handle_written(written, now), None);
            }
        }
        assert!((26..=29).contains(&writes), "{writes} writes in ten seconds");
        // The last entries are written when it is time.
        let at = saver.next_write(&history).unwrap();
        assert!(at <= start + Duration::from_secs(10) + INTERVAL);
        assert!(saver.poll_write(&history, at).is_some());
    }

    #[test]
    fn a_write_that_fails_is_tried_again_later() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (start, mut history) = (Instant::now(), History::new("c1", Content::default()));
        let mut saver = Saver::new(file.path(), start);
        history.start(WallTime::from_millis(1));
        let write = saver.poll_write(&history, start).unwrap();
        assert!(saver.handle_written(write.run(), start).is_some());
        assert!(saver.poll_write(&history, start + RETRY / 2).is_none());
        assert!(saver.poll_write(&history, start + RETRY).is_some());
    }

    #[test]
    fn a_file_that_is_no_history_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(read(directory.path()).is_err());
        assert_eq!(read(directory.path()).unwrap(), Content::default());
        assert!(directory.path().join("history.bad").exists());
    }
}
