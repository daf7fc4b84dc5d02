//! Record of the addresses, labels and routes that may be ours on this host, written before the first of them is made.
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
use crate::kernel::Kernel;
use crate::plan::{Desired, Managed, Observed, Step, plan};
use crate::socket::KernelError;
use crate::types::{AddressLabel, GroupError, GroupId, Prefix, VipAddress, VipGroupConfig, full_prefix};

/// No interface has this index: everything listed is obsolete wherever it is.
const NOWHERE: u32 = 0;

/// The content of the file: what may be ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRecord", into = "RawRecord")]
pub(crate) struct Record {
    vips: BTreeSet<VipAddress>,
    labels: BTreeSet<(IpAddr, u32)>,
}

#[derive(Serialize, Deserialize)]
struct RawRecord {
    vips: Vec<RawVip>,
    labels: Vec<RawLabel>,
}

#[derive(Serialize, Deserialize)]
struct RawVip {
    ip: IpAddr,
    prefix_len: u8,
}

#[derive(Serialize, Deserialize)]
struct RawLabel {
    ip: IpAddr,
    label: u32,
}

impl TryFrom<RawRecord> for Record {
    type Error = String;

    fn try_from(raw: RawRecord) -> Result<Self, Self::Error> {
        let vip = |raw: RawVip| VipAddress::new(raw.ip, raw.prefix_len).map_err(|error| error.to_string());
        let label = |raw: RawLabel| {
            let ip = VipAddress::new(raw.ip, full_prefix(raw.ip)).ok().filter(|vip| vip.ip().is_ipv6());
            let label = AddressLabel::new(raw.label);
            let found = ip.zip(label).map(|(vip, label)| (vip.ip(), label.value()));
            found.ok_or_else(|| format!("{} cannot have the label {}", raw.ip, raw.label))
        };
        Ok(Self {
            vips: raw.vips.into_iter().map(vip).collect::<Result<_, _>>()?,
            labels: raw.labels.into_iter().map(label).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Record> for RawRecord {
    fn from(record: Record) -> Self {
        let vip = |vip: VipAddress| RawVip { ip: vip.ip(), prefix_len: vip.prefix_len() };
        let label = |(ip, label): (IpAddr, u32)| RawLabel { ip, label };
        Self {
            vips: record.vips.into_iter().map(vip).collect(),
            labels: record.labels.into_iter().map(label).collect(),
        }
    }
}

/// Warnings about groups, and those about the record without a group.
type Concerns = Vec<(Option<GroupId>, Warning)>;

/// The changes that lead to the wanted groups.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) removed: Vec<GroupId>,
    pub(crate) updated: Vec<Registered>,
    pub(crate) added: Vec<Registered>,
}

/// Failure to register groups.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The group itself is wrong.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The state directory cannot be used: others can write to it, or it is none.
    #[error("state directory {path}: {source}", path = .path.display())]
    StateDir {
        /// The directory or file.
        path: PathBuf,
        /// The cause.
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
    /// The record that could not be written.
    unsaved: Option<Record>,
    /// Held as long as the keeper lives; absent where the directory cannot be created.
    _lock: Option<Flock<File>>,
}

impl<K: Kernel> Registrar<K> {
    /// Takes the state directory, removes what an earlier run left behind, and forgets it. A full or read-only file
    /// system costs the record, not the keeper.
    pub(crate) fn open(state_dir: &Path, mut kernel: K) -> Result<(Self, Vec<Warning>), RegisterError> {
        let fault = |path: &Path| {
            let path = path.to_owned();
            move |source| RegisterError::StateDir { path, source }
        };
        let mut warnings = Vec::new();
        let lock = match files::create_directory(state_dir) {
            Err(error) if files::is_storage_fault(&error) => {
                warnings.push(unrecorded(state_dir, &error));
                None
            }
            Err(error) => return Err(fault(state_dir)(error)),
            Ok(()) => Some(lock(state_dir)?),
        };
        let path = state_dir.join("vips.json");
        match files::load::<Record>(&path).map_err(fault(&path))? {
            Loaded::Nothing => {}
            Loaded::Content(record) => warnings.extend(reclaim(&mut kernel, &record)?),
            Loaded::Unreadable(why) => {
                warnings.push(Warning::RecordUnreadable { path: path.display().to_string(), why });
            }
        }
        if let Err(error) = files::remove(&path) {
            warnings.push(unrecorded(&path, &error));
        }
        Ok((Self { kernel, path, groups: BTreeMap::new(), unsaved: None, _lock: lock }, warnings))
    }

    /// Adds groups to the list. A label that exists already for one of their addresses is foreign.
    pub(crate) fn add(
        &mut self,
        configs: Vec<VipGroupConfig>,
    ) -> Result<(Vec<Registered>, Concerns), RegisterError> {
        let mut added: Vec<Registered> = Vec::new();
        let mut warnings = Concerns::new();
        for config in configs {
            let known = self.groups.values().chain(&added).map(|known| &known.config);
            check_group(known, &config)?;
            let registered = self.register(config, &BTreeSet::new(), &mut warnings)?;
            added.push(registered);
        }
        let mut groups = self.groups.clone();
        groups.extend(added.iter().map(|registered| (registered.config.id, registered.clone())));
        warnings.extend(self.store(record_of(groups.values())));
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
        let record = record_of(self.groups.values().chain([&registered]));
        warnings.extend(self.store(record));
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
            let record = record_of(self.groups.values().chain(groups.values()));
            warnings.extend(self.store(record));
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
        self.unsaved = None;
        files::remove(&self.path)
    }

    /// Writes the record if that failed before.
    pub(crate) fn save(&mut self) -> io::Result<()> {
        if let Some(record) = &self.unsaved {
            files::store(&self.path, record)?;
        }
        self.unsaved = None;
        Ok(())
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
                        warnings.push((Some(config.id), Warning::ForeignLabel { ip, found: found.label }));
                    }
                }
            }
        }
        Ok(Registered { config, labels })
    }

    /// Without its record a group is still announced and served: its addresses are leases, which end by themselves.
    fn store(&mut self, record: Record) -> Option<(Option<GroupId>, Warning)> {
        self.unsaved = Some(record);
        let error = self.save().err()?;
        Some((None, unrecorded(&self.path, &error)))
    }
}

fn record_of<'a>(groups: impl Iterator<Item = &'a Registered>) -> Record {
    let mut record = Record::default();
    for Registered { config, labels } in groups {
        record.vips.extend(&config.addresses);
        record.labels.extend(labels);
    }
    record
}

fn unrecorded(path: &Path, error: &io::Error) -> Warning {
    Warning::Unrecorded { path: path.display().to_string(), why: error.to_string() }
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
fn reclaim<K: Kernel>(kernel: &mut K, record: &Record) -> Result<Option<Warning>, KernelError> {
    let managed = Managed {
        addresses: record.vips.iter().map(VipAddress::ip).collect(),
        labels: record.labels.iter().copied().collect(),
        subnets: record.vips.iter().map(VipAddress::subnet).collect(),
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

/// Checks one more group against those that exist.
fn check_group<'a>(
    existing: impl Iterator<Item = &'a VipGroupConfig>,
    group: &VipGroupConfig,
) -> Result<(), GroupError> {
    if group.addresses.is_empty() {
        return Err(GroupError::Empty(group.id));
    }
    let mut seen = BTreeSet::new();
    for vip in &group.addresses {
        if !seen.insert(vip.ip()) {
            return Err(GroupError::DuplicateAddress { ip: vip.ip(), first: group.id, second: group.id });
        }
    }
    for other in existing {
        if other.id == group.id {
            return Err(GroupError::DuplicateId(group.id));
        }
        if let Some(vip) = other.addresses.iter().find(|vip| seen.contains(&vip.ip())) {
            return Err(GroupError::DuplicateAddress { ip: vip.ip(), first: other.id, second: group.id });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{InterfaceSelector, LeaseTime};

    fn decode(content: &serde_json::Value) -> Result<Record, serde_json::Error> {
        serde_json::from_value(content.clone())
    }

    #[test]
    fn only_addresses_and_labels_that_a_group_can_have_are_loaded() {
        let record = |vips: &[(&str, u8)], labels: &[(&str, u32)]| {
            let vips = vips.iter().map(|(ip, len)| serde_json::json!({"ip": ip, "prefix_len": len}));
            let labels = labels.iter().map(|(ip, label)| serde_json::json!({"ip": ip, "label": label}));
            serde_json::json!({"vips": vips.collect::<Vec<_>>(), "labels": labels.collect::<Vec<_>>()})
        };
        let good = record(&[("10.0.0.100", 24), ("fd00::100", 64)], &[("fd00::100", 10_000)]);
        let decoded = decode(&good).unwrap();
        assert_eq!((decoded.vips.len(), decoded.labels.len()), (2, 1));
        assert_eq!(decode(&serde_json::to_value(&decoded).unwrap()).unwrap(), decoded);
        for forged in [
            record(&[("127.0.0.1", 8)], &[]),
            record(&[("0.0.0.0", 0)], &[]),
            record(&[("10.0.0.100", 33)], &[]),
            record(&[("ff02::1", 128)], &[]),
            record(&[], &[("10.0.0.100", 10_000)]),
            record(&[], &[("::1", 0)]),
            record(&[], &[("fd00::100", u32::MAX)]),
        ] {
            assert!(decode(&forged).is_err(), "{forged}");
        }
    }

    #[test]
    fn groups_share_no_address() {
        let group = |id, addresses: &[&str]| VipGroupConfig {
            id: GroupId(id),
            interface: InterfaceSelector::DefaultRoute,
            addresses: addresses
                .iter()
                .map(|text| VipAddress::new(text.parse().unwrap(), 24).unwrap())
                .collect(),
            address_label: None,
            lease: LeaseTime::MIN,
            lasting: BTreeSet::new(),
        };
        let first = group(1, &["10.0.0.1", "10.0.0.2"]);
        let check = |new: VipGroupConfig| check_group([&first].into_iter(), &new);
        assert_eq!(check(group(2, &["10.0.0.3"])), Ok(()));
        assert_eq!(check(group(2, &[])), Err(GroupError::Empty(GroupId(2))));
        assert_eq!(check(group(1, &["10.0.0.3"])), Err(GroupError::DuplicateId(GroupId(1))));
        assert!(matches!(check(group(2, &["10.0.0.2"])), Err(GroupError::DuplicateAddress { .. })));
        assert!(matches!(
            check(group(2, &["10.0.0.3", "10.0.0.3"])),
            Err(GroupError::DuplicateAddress { .. })
        ));
    }
}
