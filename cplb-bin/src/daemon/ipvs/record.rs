//! What of the kernel's IPVS is ours, on disk: a daemon that crashed must find its own again, and touch nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use ipvs::{AddressFamily, ServiceKey, SyncDaemon};
use netlink_vip::files::{self, Loaded};
use serde::{Deserialize, Serialize};

/// Its name in the state directory.
pub(crate) const RECORD: &str = "ipvs.json";

/// Services and sync daemons that this daemon, or one before it with the same state directory, made.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    services: BTreeSet<ServiceKey>,
    daemons: BTreeSet<Daemon>,
    sysctls: BTreeMap<String, Changed>,
    /// What the file says, to write it only when it changes.
    written: Content,
}

/// A sysctl that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changed {
    pub(crate) original: String,
    pub(crate) written: String,
}

/// What tells a sync daemon from others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Daemon {
    state: String,
    interface: String,
    id: u32,
}

impl Daemon {
    fn of(daemon: &SyncDaemon) -> Self {
        Self { state: daemon.state.to_string(), interface: daemon.interface.to_string(), id: daemon.sync_id }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    /// IPv6 or not, and the mark.
    services: BTreeSet<(bool, NonZeroU32)>,
    daemons: BTreeSet<Daemon>,
    /// Those below `net.ipv4.vs`, by name.
    sysctls: BTreeMap<String, Changed>,
}

impl Record {
    /// Reads the file in the state directory; what is wrong with one that cannot be read, and was put aside, comes
    /// with it.
    pub(crate) fn open(state_dir: &Path) -> io::Result<(Self, Option<String>)> {
        files::create_directory(state_dir)?;
        let path = state_dir.join(RECORD);
        let (content, wrong) = match files::load::<Content>(&path)? {
            Loaded::Content(content) => (content, None),
            Loaded::Nothing => (Content::default(), None),
            Loaded::Unreadable(why) => (Content::default(), Some(why)),
        };
        let services = content.services.iter().map(|(v6, mark)| key(*v6, *mark)).collect();
        let (daemons, sysctls) = (content.daemons.clone(), content.sysctls.clone());
        // A file of an earlier boot says nothing, and is written anew before anything is made.
        Ok((Self { path, services, daemons, sysctls, written: content }, wrong))
    }

    pub(crate) fn services(&self) -> &BTreeSet<ServiceKey> {
        &self.services
    }

    /// Whether a sync daemon was started by us. One that somebody else has started in its place is not.
    pub(crate) fn has_daemon(&self, daemon: &SyncDaemon) -> bool {
        self.daemons.contains(&Daemon::of(daemon))
    }

    /// Before they are made.
    pub(crate) fn claim(&mut self, services: &BTreeSet<ServiceKey>) -> io::Result<()> {
        self.services.extend(services);
        self.save()
    }

    /// After they may have gone.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut BTreeSet<ServiceKey>)) -> io::Result<()> {
        change(&mut self.services);
        self.save()
    }

    /// Before it is started.
    pub(crate) fn claim_daemon(&mut self, daemon: &SyncDaemon) -> io::Result<()> {
        self.daemons.insert(Daemon::of(daemon));
        self.save()
    }

    /// After those that run were looked at: the others have gone.
    pub(crate) fn retain_daemons(&mut self, running: &[SyncDaemon]) -> io::Result<()> {
        let running: BTreeSet<Daemon> = running.iter().map(Daemon::of).collect();
        self.daemons.retain(|daemon| running.contains(daemon));
        self.save()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.daemons.is_empty() && self.sysctls.is_empty()
    }

    pub(crate) fn sysctls(&self) -> &BTreeMap<String, Changed> {
        &self.sysctls
    }

    /// Before it is written; `None` after it was restored.
    pub(crate) fn set_sysctl(&mut self, name: &str, changed: Option<Changed>) -> io::Result<()> {
        match changed {
            Some(changed) => drop(self.sysctls.insert(name.to_owned(), changed)),
            None => drop(self.sysctls.remove(name)),
        }
        self.save()
    }

    fn save(&mut self) -> io::Result<()> {
        let services = self.services.iter().filter_map(|key| match key {
            ServiceKey::Fwmark { family, mark } => Some((*family == AddressFamily::V6, *mark)),
            _ => None,
        });
        let content = Content {
            services: services.collect(),
            daemons: self.daemons.clone(),
            sysctls: self.sysctls.clone(),
        };
        if content == self.written {
            return Ok(());
        }
        if content == Content::default() {
            files::remove(&self.path)?;
        } else {
            files::store(&self.path, &content)?;
        }
        self.written = content;
        Ok(())
    }
}

fn key(v6: bool, mark: NonZeroU32) -> ServiceKey {
    ServiceKey::fwmark(if v6 { AddressFamily::V6 } else { AddressFamily::V4 }, mark)
}

#[cfg(test)]
mod tests {
    use ipvs::{InterfaceName, SyncState};

    use super::*;

    #[test]
    fn what_is_ours_is_known_after_a_crash_and_forgotten_when_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mark = NonZeroU32::new(0x1001).unwrap();
        let ours = BTreeSet::from([key(false, mark), key(true, mark)]);
        let (mut record, wrong) = Record::open(directory.path()).unwrap();
        assert!(wrong.is_none() && record.services().is_empty());
        record.claim(&ours).unwrap();
        let daemon = |name: &str| SyncDaemon::new(SyncState::MASTER, InterfaceName::new(name).unwrap(), 51);
        record.claim_daemon(&daemon("eth0")).unwrap();

        let (mut successor, _) = Record::open(directory.path()).unwrap();
        assert_eq!(successor.services(), &ours);
        assert!(successor.has_daemon(&daemon("eth0")) && !successor.has_daemon(&daemon("eth1")));
        successor.change(BTreeSet::clear).unwrap();
        assert!(!successor.is_empty());
        successor.retain_daemons(&[daemon("eth1")]).unwrap();
        assert!(successor.is_empty());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_put_aside_and_said() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ipvs.json"), "{").unwrap();
        let (record, wrong) = Record::open(directory.path()).unwrap();
        assert!(wrong.is_some() && record.services().is_empty());
    }
}
