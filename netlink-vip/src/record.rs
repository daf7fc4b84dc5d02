//! What may be ours on this host, written down before the first of it is made.
//!
//! Addresses and routes carry a mark, labels cannot. The mark alone is not enough either: a second daemon on the host
//! uses the same one. So each keeper has a state directory of its own, locked while it runs, with a list of what it
//! may have made. A restart removes what is both listed and (where possible) marked, and nothing else.
//! The list may be longer than what exists; it is written when groups are registered, never in the path of a claim.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::event::Warning;
use crate::files::{self, Loaded};
use crate::group::Registered;
use crate::kernel::{Kernel, KernelError};
use crate::plan::{Desired, Managed, Observed, Step, plan};
use crate::types::{GroupError, GroupId, Prefix, VipAddress, VipGroupConfig, check_group, full_prefix};

/// No interface has this index: everything listed is obsolete wherever it is.
const NOWHERE: u32 = 0;

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RawRecord {
    vips: Vec<RawVip>,
    labels: Vec<RawLabel>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct RawVip {
    ip: IpAddr,
    prefix_len: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct RawLabel {
    ip: IpAddr,
    label: u32,
}

/// What an operator should know about groups.
type Concerns = Vec<(GroupId, Warning)>;

/// What makes the groups those that are wanted.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) removed: Vec<GroupId>,
    pub(crate) updated: Vec<Registered>,
    pub(crate) added: Vec<Registered>,
}

/// Why groups could not be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The group itself is wrong.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The state directory cannot be used.
    #[error("state directory {path}: {source}", path = .path.display())]
    StateDir {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// Another process uses the state directory.
    #[error("state directory {path} is in use by another process: give each its own", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel's tables could not be read or changed.
    #[error("looking for leftovers: {0}")]
    Kernel(#[from] KernelError),
}

/// The list, and what it takes to keep it.
pub(crate) struct Registrar<K> {
    kernel: K,
    path: PathBuf,
    groups: BTreeMap<GroupId, Registered>,
    /// Held as long as the keeper lives.
    _lock: Flock<File>,
}

impl<K: Kernel> Registrar<K> {
    /// Takes the state directory, removes what an earlier run left behind, and forgets it.
    pub(crate) fn open(state_dir: &Path, mut kernel: K) -> Result<(Self, Vec<Warning>), RegisterError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |source| RegisterError::StateDir { path, source }
        };
        files::create_directory(state_dir).map_err(fault(state_dir))?;
        let lock = lock(state_dir)?;
        let path = state_dir.join("vips.json");
        let mut warnings = Vec::new();
        match files::load::<RawRecord>(&path).map_err(fault(&path))? {
            Loaded::Nothing => {}
            Loaded::Content(record) => warnings.extend(reclaim(&mut kernel, &record)?),
            Loaded::Unreadable(why) => {
                warnings.push(Warning::RecordUnreadable { path: path.display().to_string(), why });
            }
        }
        files::remove(&path).map_err(fault(&path))?;
        Ok((Self { kernel, path, groups: BTreeMap::new(), _lock: lock }, warnings))
    }

    /// Adds groups to the list. A label that exists already for one of their addresses is somebody else's.
    pub(crate) fn add(
        &mut self,
        configs: Vec<VipGroupConfig>,
    ) -> Result<(Vec<Registered>, Concerns), RegisterError> {
        let mut added: Vec<Registered> = Vec::new();
        let mut warnings = Vec::new();
        for config in configs {
            let known = self.groups.values().chain(&added).map(|known| &known.config);
            check_group(known, &config)?;
            let registered = self.register(config, &BTreeSet::new(), &mut warnings)?;
            added.push(registered);
        }
        let mut groups = self.groups.clone();
        groups.extend(added.iter().map(|registered| (registered.config.id, registered.clone())));
        self.store(groups.values())?;
        self.groups = groups;
        Ok((added, warnings))
    }

    /// Changes a group in the list, which names its old and its new parts until the next change.
    pub(crate) fn update(&mut self, config: VipGroupConfig) -> Result<(Registered, Concerns), RegisterError> {
        let Some(old) = self.groups.get(&config.id).cloned() else {
            return Err(GroupError::Unknown(config.id).into());
        };
        let others = self.groups.values().map(|known| &known.config).filter(|other| other.id != config.id);
        check_group(others, &config)?;
        let mut warnings = Vec::new();
        let registered = self.register(config, &old.labels, &mut warnings)?;
        self.store(self.groups.values().chain([&registered]))?;
        self.groups.insert(registered.config.id, registered.clone());
        Ok((registered, warnings))
    }

    /// Makes these the groups on the list, and no others. Only the outcome is checked: an address may go from one
    /// group to another, or two may trade theirs.
    pub(crate) fn set(&mut self, configs: Vec<VipGroupConfig>) -> Result<(Change, Concerns), RegisterError> {
        // A label comes along with its address.
        let owned: BTreeSet<(IpAddr, u32)> =
            self.groups.values().flat_map(|known| known.labels.iter().copied()).collect();
        let mut warnings = Vec::new();
        let mut groups: BTreeMap<GroupId, Registered> = BTreeMap::new();
        for config in configs {
            check_group(groups.values().map(|known| &known.config), &config)?;
            let registered = match self.groups.get(&config.id) {
                Some(known) if known.config == config => known.clone(),
                _ => self.register(config, &owned, &mut warnings)?,
            };
            groups.insert(registered.config.id, registered);
        }
        let change = Change {
            removed: self.groups.keys().filter(|id| !groups.contains_key(id)).copied().collect(),
            updated: groups
                .values()
                .filter(|new| self.groups.get(&new.config.id).is_some_and(|old| old != *new))
                .cloned()
                .collect(),
            added: groups.values().filter(|new| !self.groups.contains_key(&new.config.id)).cloned().collect(),
        };
        if !change.is_empty() {
            self.store(self.groups.values().chain(groups.values()))?;
        }
        self.groups = groups;
        Ok((change, warnings))
    }

    /// Takes a group off the list. The file keeps it until the next change, because it may still have to be removed.
    pub(crate) fn remove(&mut self, id: GroupId) -> Result<(), GroupError> {
        self.groups.remove(&id).map(|_| ()).ok_or(GroupError::Unknown(id))
    }

    /// Nothing of ours is left: forgets everything.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        self.groups.clear();
        files::remove(&self.path)
    }

    fn register(
        &mut self,
        config: VipGroupConfig,
        owned: &BTreeSet<(IpAddr, u32)>,
        warnings: &mut Concerns,
    ) -> Result<Registered, RegisterError> {
        let mut labels = BTreeSet::new();
        if let Some(label) = config.address_label {
            let existing = self.kernel.labels()?;
            for ip in config.ips().into_iter().filter(IpAddr::is_ipv6) {
                let whole = Prefix::new(ip, full_prefix(ip));
                let found = existing.iter().find(|seen| seen.prefix == whole && seen.index == 0);
                match found.filter(|found| !owned.contains(&(ip, found.label))) {
                    None => {
                        labels.insert((ip, label.value()));
                    }
                    Some(found) if found.label == label.value() => {}
                    Some(found) => {
                        warnings.push((config.id, Warning::ForeignLabel { ip, found: found.label }));
                    }
                }
            }
        }
        Ok(Registered { config, labels })
    }

    fn store<'a>(&self, groups: impl Iterator<Item = &'a Registered>) -> Result<(), RegisterError> {
        let (mut vips, mut labels) = (BTreeSet::new(), BTreeSet::new());
        for Registered { config, labels: own } in groups {
            vips.extend(
                config.addresses.iter().map(|vip| RawVip { ip: vip.ip(), prefix_len: vip.prefix_len() }),
            );
            labels.extend(own.iter().map(|&(ip, label)| RawLabel { ip, label }));
        }
        let record = RawRecord { vips: vips.into_iter().collect(), labels: labels.into_iter().collect() };
        files::store(&self.path, &record)
            .map_err(|source| RegisterError::StateDir { path: self.path.clone(), source })
    }
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.updated.is_empty() && self.added.is_empty()
    }
}

/// Locks the directory itself, so that no lock file is left behind.
fn lock(state_dir: &Path) -> Result<Flock<File>, RegisterError> {
    let fault = |source| RegisterError::StateDir { path: state_dir.to_owned(), source };
    let directory = File::open(state_dir).map_err(fault)?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => RegisterError::InUse { path: state_dir.to_owned() },
        errno => fault(errno.into()),
    })
}

/// Removes what the record lists, on whatever interface it is.
fn reclaim<K: Kernel>(kernel: &mut K, record: &RawRecord) -> Result<Option<Warning>, KernelError> {
    let vips: Vec<VipAddress> =
        record.vips.iter().filter_map(|raw| VipAddress::new(raw.ip, raw.prefix_len).ok()).collect();
    let managed = Managed {
        addresses: vips.iter().map(VipAddress::ip).collect(),
        labels: record.labels.iter().map(|raw| (raw.ip, raw.label)).collect(),
        subnets: vips.iter().map(VipAddress::subnet).collect(),
    };
    let observed = Observed {
        addresses: kernel.addresses(0)?,
        labels: if managed.labels.is_empty() { Vec::new() } else { kernel.labels()? },
        routes: kernel.marked_routes()?,
        kernel_marks: kernel.marks_addresses(),
    };
    let steps = plan(NOWHERE, &Desired::default(), &managed, &observed).steps;
    let (mut addresses, mut routes) = (BTreeSet::new(), BTreeSet::new());
    for step in &steps {
        kernel.apply(step)?;
        match step {
            Step::DeleteAddress { ip, .. } | Step::DeleteLabel { ip, .. } => addresses.insert(*ip),
            Step::DeleteRoute { prefix, .. } => routes.insert(*prefix),
            _ => false,
        };
    }
    let (addresses, routes): (Vec<_>, Vec<_>) =
        (addresses.into_iter().collect(), routes.into_iter().collect());
    let nothing = addresses.is_empty() && routes.is_empty();
    Ok((!nothing).then_some(Warning::Reclaimed { addresses, routes }))
}
