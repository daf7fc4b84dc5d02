//! The record, on disk, of the objects in the kernel's IPVS that this daemon owns: after a crash it must find them again,
//! and change nothing else.

mod format;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use ipvs::{AddressFamily, ServiceKey, SyncDaemon};
use netlink_vip::files::{self, Loaded};

use format::{Content, Daemon};

pub(super) use format::Changed;

/// The name of the file in the state directory.
pub(super) const RECORD: &str = "ipvs.json";

/// The services, sync daemons and sysctls that this daemon, or a former one with the same state directory, has created or
/// changed.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    services: BTreeSet<ServiceKey>,
    daemons: BTreeSet<Daemon>,
    sysctls: BTreeMap<String, Changed>,
    /// The content of the file, so that it is written only when it changes.
    written: Content,
}

impl Daemon {
    fn of(daemon: &SyncDaemon) -> Self {
        Self { state: daemon.state.to_string(), interface: daemon.interface.to_string(), id: daemon.sync_id }
    }
}

impl Record {
    /// Reads the file in the state directory; also returns the fault of an unreadable one. Without a writable directory
    /// nothing is claimed, and so nothing is changed in IPVS.
    pub(super) fn open(state_dir: &Path) -> (Self, Option<String>) {
        let path = state_dir.join(RECORD);
        let loaded = files::create_directory(state_dir).and_then(|()| files::load::<Content>(&path));
        let (content, fault) = match loaded {
            Ok(Loaded::Content(content)) => (content, None),
            Ok(Loaded::Nothing) => (Content::default(), None),
            Ok(Loaded::Unreadable(why)) => (Content::default(), Some(why)),
            Err(error) => (Content::default(), Some(error.to_string())),
        };
        let services = content.services.iter().map(|(v6, mark)| key(*v6, *mark)).collect();
        let (daemons, sysctls) = (content.daemons.clone(), content.sysctls.clone());
        // A file of an earlier boot is ignored, and replaced before the first object is created.
        (Self { path, services, daemons, sysctls, written: content }, fault)
    }

    pub(super) fn services(&self) -> &BTreeSet<ServiceKey> {
        &self.services
    }

    /// Returns whether this daemon has started a sync daemon. One with other properties was started by another program.
    pub(super) fn has_daemon(&self, daemon: &SyncDaemon) -> bool {
        self.daemons.contains(&Daemon::of(daemon))
    }

    /// Records services, before they are created.
    pub(super) fn claim(&mut self, services: &BTreeSet<ServiceKey>) -> io::Result<()> {
        self.services.extend(services);
        self.save()
    }

    /// Changes the recorded services, after some may have been removed.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut BTreeSet<ServiceKey>)) -> io::Result<()> {
        change(&mut self.services);
        self.save()
    }

    /// Records a sync daemon, before it is started.
    pub(super) fn claim_daemon(&mut self, daemon: &SyncDaemon) -> io::Result<()> {
        self.daemons.insert(Daemon::of(daemon));
        self.save()
    }

    /// Removes the sync daemons that are not among the running ones.
    pub(super) fn retain_daemons(&mut self, running: &[SyncDaemon]) -> io::Result<()> {
        let running: BTreeSet<Daemon> = running.iter().map(Daemon::of).collect();
        self.daemons.retain(|daemon| running.contains(daemon));
        self.save()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.daemons.is_empty() && self.sysctls.is_empty()
    }

    pub(super) fn sysctls(&self) -> &BTreeMap<String, Changed> {
        &self.sysctls
    }

    /// Records a sysctl, before it is written; `None` after it was restored.
    pub(super) fn set_sysctl(&mut self, name: &str, changed: Option<Changed>) -> io::Result<()> {
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
    fn owned_objects_are_known_after_a_crash_and_forgotten_after_their_removal() {
        let directory = tempfile::tempdir().unwrap();
        let mark = lb_proxy::director_marks().next().and_then(NonZeroU32::new).unwrap();
        let owned = BTreeSet::from([key(false, mark), key(true, mark)]);
        let (mut record, fault) = Record::open(directory.path());
        assert!(fault.is_none() && record.services().is_empty());
        record.claim(&owned).unwrap();
        let daemon = |name: &str| SyncDaemon::new(SyncState::MASTER, InterfaceName::new(name).unwrap(), 51);
        record.claim_daemon(&daemon("eth0")).unwrap();

        let (mut successor, _) = Record::open(directory.path());
        assert_eq!(successor.services(), &owned);
        assert!(successor.has_daemon(&daemon("eth0")) && !successor.has_daemon(&daemon("eth1")));
        successor.change(BTreeSet::clear).unwrap();
        assert!(!successor.is_empty());
        successor.retain_daemons(&[daemon("eth1")]).unwrap();
        assert!(successor.is_empty());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_unreadable_record_is_reported_and_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ipvs.json"), "{").unwrap();
        let (record, fault) = Record::open(directory.path());
        assert!(fault.is_some() && record.services().is_empty());
    }

    #[test]
    fn records_of_foreign_objects_are_rejected() {
        use serde_json::json;
        let (empty, mark) = (json!([]), lb_proxy::director_marks().next().unwrap());
        let decode =
            |services: &serde_json::Value, daemons: &serde_json::Value, name: &str, original: &str| {
                let sysctls = json!({name: {"original": original, "written": "1"}});
                serde_json::from_value::<Content>(
                    json!({"services": services, "daemons": daemons, "sysctls": sysctls}),
                )
            };
        let daemon = |state: &str, interface: &str, id: u32| json!([{"state": state, "interface": interface, "id": id}]);
        let good = daemon("master", "eth0", 51);
        assert!(decode(&json!([[false, mark]]), &good, "conntrack", "0").is_ok());
        for (services, daemons, name, original) in [
            (json!([[false, 1]]), empty.clone(), "conntrack", "0"),
            (empty.clone(), daemon("other", "eth0", 51), "conntrack", "0"),
            (empty.clone(), daemon("master", "../eth0", 51), "conntrack", "0"),
            (empty.clone(), daemon("master", "eth0", 256), "conntrack", "0"),
            (empty.clone(), empty.clone(), "../../../kernel/core_pattern", "|/tmp/x"),
            (empty.clone(), empty.clone(), "drop_entry", "1"),
            (empty.clone(), empty.clone(), "conntrack", "2"),
        ] {
            assert!(decode(&services, &daemons, name, original).is_err(), "{services} {daemons} {name}");
        }
    }

    #[test]
    fn claims_fail_without_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let (mut record, fault) = Record::open(&file);
        assert!(fault.is_some());
        let mark = lb_proxy::director_marks().next().and_then(NonZeroU32::new).unwrap();
        assert!(record.claim(&BTreeSet::from([key(false, mark)])).is_err());
    }
}
