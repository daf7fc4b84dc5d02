//! `cplb standby`: this node takes no virtual IPs while another controller can serve.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netlink_vip::files::{self, Loaded, Outlives};
use serde::{Deserialize, Serialize};

/// The time within which the state directory is to answer.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);

/// The standby that an operator asked for; it outlasts a restart.
#[derive(Debug)]
pub(crate) struct Standby {
    path: PathBuf,
    wanted: Arc<AtomicBool>,
    /// One write at a time, so that the last one records what is wanted last.
    writing: Arc<Mutex<()>>,
}

/// The file of a node in standby.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
}

impl Standby {
    /// The state that an earlier run has left. A record that cannot be read counts: the node is rather in standby for too long
    /// than too short.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join("standby.json");
        let wanted = match files::load_as::<Record>(&path, Outlives::Boot) {
            Ok(Loaded::Nothing) => false,
            Ok(Loaded::Content(_)) => true,
            Ok(Loaded::Unreadable(why)) => {
                tracing::warn!(why, "the record of standby cannot be used");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the record of standby cannot be read");
                error.kind() != io::ErrorKind::NotFound && path.exists()
            }
        };
        Self { path, wanted: Arc::new(AtomicBool::new(wanted)), writing: Arc::default() }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Changes what is wanted. The future records it, and returns why it could not. A file system that does not answer
    /// blocks one thread of the pool only.
    pub(crate) fn set(&self, wanted: bool) -> impl Future<Output = Result<(), String>> + use<> {
        self.wanted.store(wanted, Ordering::Relaxed);
        let (path, latest, writing) =
            (self.path.clone(), Arc::clone(&self.wanted), Arc::clone(&self.writing));
        let write = move || {
            let _one = writing.lock().unwrap_or_else(PoisonError::into_inner);
            if latest.load(Ordering::Relaxed) {
                path.parent().map_or(Ok(()), files::create_directory)?;
                files::store(&path, &Record { version: 1 })
            } else {
                files::remove(&path)
            }
        };
        async move {
            match tokio::time::timeout(RECORD_TIMEOUT, tokio::task::spawn_blocking(write)).await {
                Ok(Ok(written)) => written.map_err(|error| error.to_string()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the state directory does not answer".to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn standby_outlasts_a_restart_until_it_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let standby = Standby::open(&dir);
        assert!(!standby.is_wanted());
        standby.set(true).await.unwrap();
        assert!(standby.is_wanted() && Standby::open(&dir).is_wanted());
        // The later one counts, whichever is written last.
        let (earlier, later) = (standby.set(true), standby.set(false));
        later.await.unwrap();
        earlier.await.unwrap();
        assert!(!standby.is_wanted() && !Standby::open(&dir).is_wanted());
        std::fs::write(dir.join("standby.json"), "{").unwrap();
        assert!(Standby::open(&dir).is_wanted(), "rather too long than too short");
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_is_reported() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let standby = Standby::open(file.path());
        assert!(standby.set(true).await.is_err());
        assert!(standby.is_wanted());
    }
}
