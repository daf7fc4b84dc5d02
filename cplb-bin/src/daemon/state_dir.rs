//! Watches whether the state directory can be written.
//!
//! A full or read-only directory never costs virtual IPs, only the records that a restart would use.

use std::path::Path;
use std::time::{Duration, Instant};

use netlink_vip::{KeeperHandle, files};

use super::problems::{Cause, Problems};
use super::sender::EventSender;

/// The time between two probes of a directory that can be written.
const INTERVAL: Duration = Duration::from_secs(10);

/// The consequences, for the operator.
const CONSEQUENCES: &str = "what is running goes on; IPVS is not changed; discovered servers and the history are not known after a restart; \
                            routes and address labels would be left over after a crash";

/// The result of a probe: the fault, if there is one.
#[derive(Debug)]
pub(crate) struct Probed(pub(crate) Option<String>);

/// The state of the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    events: EventSender<Probed>,
    is_probing: bool,
    next: Instant,
}

impl Watch {
    /// A watch of a directory whose first probe is due.
    pub(crate) fn new(events: EventSender<Probed>, now: Instant) -> Self {
        Self { events, is_probing: false, next: now }
    }

    /// Starts a probe in a thread of the pool, if it is due. A file system that does not answer blocks one thread only.
    pub(crate) fn probe(&mut self, dir: &Path, keeper: Option<&KeeperHandle>) {
        if self.is_probing || Instant::now() < self.next {
            return;
        }
        self.is_probing = true;
        let (dir, keeper, events) = (dir.to_owned(), keeper.cloned(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let result = files::probe_directory(&dir);
            let saved = keeper.map_or(Ok(()), |keeper| keeper.save_record());
            let fault = result.and(saved).err().map(|error| describe(&dir, &error));
            let _ = events.send(Probed(fault));
        });
    }

    /// Takes the result of a probe. After a fault, the next probe is due at once.
    pub(crate) fn conclude(&mut self, Probed(fault): Probed, problems: &mut Problems, now: Instant) {
        self.is_probing = false;
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
    fn a_write_fault_is_a_problem_until_a_probe_succeeds() {
        let (now, mut problems) = (Instant::now(), Problems::default());
        let channel = tokio::sync::mpsc::unbounded_channel::<Probed>().0;
        let mut watch = Watch::new(EventSender::new(&channel), now);
        let error = std::io::ErrorKind::StorageFull.into();
        watch.conclude(Probed(Some(describe(Path::new("/state"), &error))), &mut problems, now);
        let texts = problems.texts();
        assert!(texts[0].contains("/state") && texts[0].contains("IPVS is not changed"), "{texts:?}");
        assert_eq!(watch.next, now, "the next probe is due at once");
        watch.conclude(Probed(None), &mut problems, now);
        assert!(problems.texts().is_empty());
        assert_eq!(watch.next, now + INTERVAL);
    }
}
