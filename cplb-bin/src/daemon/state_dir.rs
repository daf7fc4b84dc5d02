//! Watches whether the state directory can be written.
//!
//! A full or read-only one costs what a restart would know, never the virtual IPs.

use std::path::Path;
use std::time::{Duration, Instant};

use netlink_vip::{KeeperHandle, files};
use tokio::sync::mpsc::UnboundedSender;

use super::link::Event;
use super::problems::{Cause, Problems};

/// Between two looks at a directory that can be written.
const INTERVAL: Duration = Duration::from_secs(10);

/// The consequences, for people.
const CONSEQUENCES: &str = "what is running goes on; IPVS is not changed; discovered servers are not known after a restart; \
                            routes and address labels would be left over after a crash";

/// The state of the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    is_looking: bool,
    next: Instant,
}

impl Watch {
    /// For a daemon that has just looked, at its start.
    pub(crate) fn new(now: Instant) -> Self {
        Self { is_looking: false, next: now }
    }

    /// Starts a look in a thread of the pool, if it is due. A file system that does not answer keeps one thread.
    pub(crate) fn look(
        &mut self,
        dir: &Path,
        keeper: Option<&KeeperHandle>,
        events: &UnboundedSender<Event>,
    ) {
        if self.is_looking || Instant::now() < self.next {
            return;
        }
        self.is_looking = true;
        let (dir, keeper, events) = (dir.to_owned(), keeper.cloned(), events.clone());
        tokio::task::spawn_blocking(move || {
            let result = files::probe_directory(&dir);
            let saved = keeper.map_or(Ok(()), |keeper| keeper.save_record());
            let fault = result.and(saved).err().map(|error| describe(&dir, &error));
            let _ = events.send(Event::StateDir(fault));
        });
    }

    /// Takes the result of a look: the fault, if there is one. It is looked at sooner while there is.
    pub(crate) fn conclude(&mut self, fault: Option<String>, problems: &mut Problems, now: Instant) {
        self.is_looking = false;
        let Some(text) = fault else {
            self.next = now + INTERVAL;
            if problems.clear(&Cause::StateDir) {
                tracing::info!("state directory writable again");
            }
            return;
        };
        self.next = now;
        if problems.raise(Cause::StateDir, &text) {
            tracing::warn!("{text}");
        }
    }
}

/// A fault with its consequences.
pub(crate) fn describe(dir: &Path, error: &std::io::Error) -> String {
    format!("state directory {} cannot be written: {error} ({CONSEQUENCES})", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_degraded_until_the_directory_can_be_written() {
        let (now, mut problems) = (Instant::now(), Problems::default());
        let mut watch = Watch::new(now);
        let error = std::io::ErrorKind::StorageFull.into();
        watch.conclude(Some(describe(Path::new("/state"), &error)), &mut problems, now);
        let texts = problems.texts();
        assert!(texts[0].contains("/state") && texts[0].contains("IPVS is not changed"), "{texts:?}");
        assert_eq!(watch.next, now, "soon again");
        watch.conclude(None, &mut problems, now);
        assert!(problems.texts().is_empty());
        assert_eq!(watch.next, now + INTERVAL);
    }
}
