//! Sysctls that are changed for a while and restored, also after a crash.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, Loaded};
use crate::link_name::is_link_name;
use crate::sessions::SessionsError;

/// Where the kernel shows sysctls.
const ROOT: &str = "/proc/sys";

/// The last part of the name of the reverse-path filter.
pub(crate) const RP_FILTER: &str = "rp_filter";

/// The names that are ever written, each with its largest value (ip-sysctl.rst of the kernel); the least is 0.
const KNOWN: [(&str, u8); 3] = [("arp_announce", 2), ("arp_ignore", 8), (RP_FILTER, 2)];

/// A per-interface IPv4 sysctl, `net.ipv4.conf.<interface>.<name>`, of the few that this crate changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysctlKey {
    interface: String,
    name: &'static str,
    max: u8,
}

impl SysctlKey {
    /// For the names `arp_announce`, `arp_ignore` and `rp_filter`. `None` for others, and if the kernel would not take
    /// `interface` for the name of one.
    pub fn ipv4_conf(interface: &str, name: &str) -> Option<Self> {
        let (name, max) = KNOWN.into_iter().find(|(known, _)| *known == name)?;
        is_link_name(interface).then(|| Self { interface: interface.to_owned(), name, max })
    }

    /// Returns whether the kernel documents this value.
    fn takes(&self, value: &str) -> bool {
        let is_canonical = |number: u8| value == number.to_string();
        value.parse().is_ok_and(|number: u8| number <= self.max && is_canonical(number))
    }

    /// Its value in the calling thread's network namespace, without the end of the line.
    pub(crate) fn read(&self) -> Result<String, SysctlError> {
        self.read_below(Path::new(ROOT))
    }

    /// Changes it in the calling thread's network namespace, for good.
    pub(crate) fn write(&self, value: &str) -> Result<(), SysctlError> {
        self.write_below(Path::new(ROOT), value)
    }

    /// The interface, or "all" or "default".
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The last part, such as `rp_filter`.
    pub fn name(&self) -> &str {
        self.name
    }

    fn read_below(&self, root: &Path) -> Result<String, SysctlError> {
        std::fs::read_to_string(self.path(root))
            .map(|text| text.trim().to_owned())
            .map_err(|source| SysctlError::Access { key: self.clone(), source })
    }

    fn write_below(&self, root: &Path, value: &str) -> Result<(), SysctlError> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).open(self.path(root));
        file.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .map_err(|source| SysctlError::Access { key: self.clone(), source })
    }

    fn path(&self, root: &Path) -> PathBuf {
        root.join("net/ipv4/conf").join(&self.interface).join(self.name)
    }
}

impl std::fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "net.ipv4.conf.{}.{}", self.interface, self.name)
    }
}

/// Failure to change or restore a sysctl.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysctlError {
    /// It could not be read or written; an interface that vanished shows as "not found".
    #[error("{key}: {source}")]
    Access {
        /// The one concerned.
        key: SysctlKey,
        /// The cause.
        source: io::Error,
    },
    /// Its original could not be saved, so it was not changed.
    #[error("state directory {path}: {source}", path = .path.display())]
    StateDir {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The interface's name cannot be part of a path.
    #[error("{0:?} is not the name of an interface")]
    Name(String),
    /// It has, or is to have, a value that the kernel does not document, so it was not changed.
    #[error("{key} would go from {from:?} to {to:?}: set it to a number from 0 to {}", key.max)]
    Value {
        /// The sysctl.
        key: SysctlKey,
        /// The value that it has.
        from: String,
        /// The value that it was to have.
        to: String,
    },
}

/// Outcome for the sysctls that a crashed predecessor had changed.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Restored to their originals.
    pub restored: Vec<SysctlKey>,
    /// Left alone, because they no longer have the value that was written: another program changed them.
    pub changed_since: Vec<SysctlKey>,
    /// Could not be restored.
    pub failed: Vec<SysctlError>,
    /// The predecessor's list could not be read and was put aside, for this reason.
    pub unreadable: Option<String>,
    /// Only of [`crate::RealServer::remove`]: why TCP sessions on the VIPs were not reset, so that their clients wait
    /// until they give up.
    pub unreset: Option<SessionsError>,
}

impl SysctlError {
    /// Returns whether the interface, or the kernel's support for the sysctl, is not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Access { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// One change, of a value that the kernel documents to another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawChange", into = "RawChange")]
pub(crate) struct Change {
    key: SysctlKey,
    original: String,
    written: String,
}

/// A change as the file has it.
#[derive(Serialize, Deserialize)]
struct RawChange {
    key: RawKey,
    original: String,
    written: String,
}

#[derive(Serialize, Deserialize)]
struct RawKey {
    interface: String,
    name: String,
}

impl Change {
    fn new(key: SysctlKey, original: String, written: String) -> Result<Self, SysctlError> {
        if key.takes(&original) && key.takes(&written) {
            return Ok(Self { key, original, written });
        }
        Err(SysctlError::Value { key, from: original, to: written })
    }
}

impl TryFrom<RawChange> for Change {
    type Error = String;

    fn try_from(raw: RawChange) -> Result<Self, Self::Error> {
        let RawKey { interface, name } = raw.key;
        // Those of all interfaces are never written.
        let key = Some(interface.as_str()).filter(|interface| !matches!(*interface, "all" | "default"));
        let key = key.and_then(|interface| SysctlKey::ipv4_conf(interface, &name));
        let key =
            key.ok_or_else(|| format!("{name:?} of {interface:?} is no sysctl that is ever changed"))?;
        Self::new(key, raw.original, raw.written).map_err(|error| error.to_string())
    }
}

impl From<Change> for RawChange {
    fn from(change: Change) -> Self {
        let key = RawKey { interface: change.key.interface, name: change.key.name.to_owned() };
        Self { key, original: change.original, written: change.written }
    }
}

/// Changes sysctls in the calling thread's network namespace. Each original is synced to the state directory before
/// its first change; dropping the guard restores them, last first, unless it was opened by [`SysctlGuard::take_over`].
#[derive(Debug)]
pub struct SysctlGuard {
    root: PathBuf,
    path: PathBuf,
    changes: Vec<Change>,
    on_drop: OnDrop,
}

/// Fate of the changes when the guard is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDrop {
    Restore,
    Keep,
}

impl SysctlGuard {
    /// Restores what a crashed predecessor with the same state directory had changed, and starts with nothing
    /// changed. One guard per directory; the directory is created with mode 0700 if absent.
    ///
    /// # Errors
    /// [`SysctlError::StateDir`] if the directory cannot be used.
    pub fn open(state_dir: &Path) -> Result<(Self, Recovery), SysctlError> {
        Self::open_below(Path::new(ROOT), state_dir)
    }

    /// Takes the changes of a predecessor with the same state directory over: they stay as they are, with their
    /// originals, until they are restored. Dropping the guard leaves them too, so that what they protect from cannot
    /// happen while one process follows another. Also returns why the predecessor's list could not be read and was
    /// put aside, if so.
    ///
    /// # Errors
    /// [`SysctlError::StateDir`] if the directory cannot be used.
    pub fn take_over(state_dir: &Path) -> Result<(Self, Option<String>), SysctlError> {
        let (mut guard, unreadable) = Self::load_below(Path::new(ROOT), state_dir)?;
        guard.on_drop = OnDrop::Keep;
        Ok((guard, unreadable))
    }

    fn open_below(root: &Path, state_dir: &Path) -> Result<(Self, Recovery), SysctlError> {
        let (mut guard, unreadable) = Self::load_below(root, state_dir)?;
        let recovery = if guard.changes.is_empty() { Recovery::default() } else { guard.restore() };
        Ok((guard, Recovery { unreadable, ..recovery }))
    }

    fn load_below(root: &Path, state_dir: &Path) -> Result<(Self, Option<String>), SysctlError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |source| SysctlError::StateDir { path, source }
        };
        files::create_directory(state_dir).map_err(fault(state_dir))?;
        let path = state_dir.join("sysctls.json");
        let (changes, unreadable) = match files::load(&path).map_err(fault(&path))? {
            Loaded::Nothing => (Vec::new(), None),
            Loaded::Content(changes) => (changes, None),
            Loaded::Unreadable(why) => (Vec::new(), Some(why)),
        };
        Ok((Self { root: root.to_owned(), path, changes, on_drop: OnDrop::Restore }, unreadable))
    }

    /// Sets a sysctl. Setting it again keeps the first original.
    ///
    /// # Errors
    /// [`SysctlError`]; nothing is changed unless the original is safe.
    pub fn set(&mut self, key: &SysctlKey, value: &str) -> Result<(), SysctlError> {
        let known = self.changes.iter().position(|change| change.key == *key);
        let before = self.changes.clone();
        match known.and_then(|at| self.changes.get_mut(at)) {
            // Another program has written it since: the list says so already.
            Some(change) if change.written == value => return key.write_below(&self.root, value),
            Some(change) => {
                *change = Change::new(key.clone(), change.original.clone(), value.to_owned())?;
            }
            None => {
                let original = key.read_below(&self.root)?;
                self.changes.push(Change::new(key.clone(), original, value.to_owned())?);
            }
        }
        if let Err(source) = files::store(&self.path, &self.changes) {
            self.changes = before;
            return Err(SysctlError::StateDir { path: self.path.clone(), source });
        }
        key.write_below(&self.root, value)
    }

    /// Makes an interface answer ARP only for its own addresses and ask only with them, as a real server behind
    /// direct routing must (arp_ignore 1, arp_announce 2). Call it before the addresses appear on another link.
    ///
    /// # Errors
    /// As [`SysctlGuard::set`].
    pub fn hide_other_addresses(&mut self, interface: &str) -> Result<(), SysctlError> {
        for (name, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            let key = SysctlKey::ipv4_conf(interface, name)
                .ok_or_else(|| SysctlError::Name(interface.to_owned()))?;
            self.set(&key, value)?;
        }
        Ok(())
    }

    /// Restores everything, last change first. A value that another program has changed since stays, and one
    /// whose interface is gone has nothing to restore.
    pub fn restore(&mut self) -> Recovery {
        self.restore_all_but(|_| false)
    }

    /// As [`SysctlGuard::restore`], but for those that `keep` says are still needed.
    pub fn restore_all_but(&mut self, keep: impl Fn(&SysctlKey) -> bool) -> Recovery {
        let mut recovery = Recovery::default();
        let before = self.changes.len();
        let mut left = Vec::new();
        while let Some(change) = self.changes.pop() {
            if keep(&change.key) {
                left.push(change);
                continue;
            }
            match self.restore_one(&change) {
                Ok(true) => recovery.restored.push(change.key),
                Ok(false) => recovery.changed_since.push(change.key),
                Err(error) if error.is_absent() => {}
                Err(error) => {
                    recovery.failed.push(error);
                    left.push(change);
                }
            }
        }
        left.reverse();
        self.changes = left;
        if self.changes.len() == before && before > 0 {
            return recovery;
        }
        let saved = if self.changes.is_empty() {
            files::remove(&self.path)
        } else {
            files::store(&self.path, &self.changes)
        };
        if let Err(source) = saved {
            recovery.failed.push(SysctlError::StateDir { path: self.path.clone(), source });
        }
        recovery
    }

    fn restore_one(&self, change: &Change) -> Result<bool, SysctlError> {
        let now = change.key.read_below(&self.root)?;
        if now == change.original {
            return Ok(true);
        }
        if now != change.written {
            return Ok(false);
        }
        change.key.write_below(&self.root, &change.original).map(|()| true)
    }
}

impl Drop for SysctlGuard {
    fn drop(&mut self) {
        if self.on_drop == OnDrop::Restore {
            self.restore();
        }
    }
}

#[cfg(test)]
mod tests;
