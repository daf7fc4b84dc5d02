//! The content of `ipvs.json`. The fuzz target compiles this file, too.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use ipvs::{InterfaceName, SyncState};
use serde::{Deserialize, Serialize};

/// The sysctls below `net.ipv4.vs` that are ever changed (ipvs-sysctl.rst), each with its largest value; the least is 0.
/// conn_reuse_mode is a set of bits.
const SYSCTLS: [(&str, u8); 5] = [
    ("conn_reuse_mode", 3),
    ("conntrack", 1),
    ("expire_nodest_conn", 1),
    ("expire_quiescent_template", 1),
    ("sloppy_tcp", 1),
];

/// The largest id of a sync daemon.
const MAX_SYNC_ID: u32 = 255;

/// A sysctl that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changed {
    pub(crate) original: String,
    pub(crate) written: String,
}

impl Changed {
    /// A change from `original` to `written`; `None` if a sysctl of this name is never changed, or the kernel does not
    /// document one of the values.
    pub(crate) fn new(name: &str, original: &str, written: &str) -> Option<Self> {
        let (_, max) = SYSCTLS.into_iter().find(|(known, _)| *known == name)?;
        let is_documented = |value: &str| (0..=max).any(|number| value == number.to_string());
        (is_documented(original) && is_documented(written))
            .then(|| Self { original: original.to_owned(), written: written.to_owned() })
    }
}

/// The properties that identify a sync daemon.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Daemon {
    pub(crate) state: String,
    pub(crate) interface: String,
    pub(crate) id: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawContent")]
pub(crate) struct Content {
    /// Each service: whether it is IPv6, and its mark.
    pub(crate) services: BTreeSet<(bool, NonZeroU32)>,
    pub(crate) daemons: BTreeSet<Daemon>,
    /// The changed sysctls below `net.ipv4.vs`, by name.
    pub(crate) sysctls: BTreeMap<String, Changed>,
}

/// A content before validation.
#[derive(Deserialize)]
struct RawContent {
    services: BTreeSet<(bool, NonZeroU32)>,
    daemons: BTreeSet<Daemon>,
    sysctls: BTreeMap<String, Changed>,
}

impl TryFrom<RawContent> for Content {
    type Error = String;

    fn try_from(raw: RawContent) -> Result<Self, Self::Error> {
        let RawContent { services, daemons, sysctls } = raw;
        let marks: BTreeSet<u32> = lb_proxy::director_marks().collect();
        if let Some((_, mark)) = services.iter().find(|(_, mark)| !marks.contains(&mark.get())) {
            return Err(format!("no service is ever made for the mark {mark:#x}"));
        }
        if let Some(daemon) = daemons.iter().find(|daemon| !daemon.is_possible()) {
            return Err(format!("{daemon:?} is no sync daemon that is ever started"));
        }
        if let Some((name, _)) = sysctls
            .iter()
            .find(|(name, changed)| Changed::new(name, &changed.original, &changed.written).is_none())
        {
            return Err(format!("{name:?} is no sysctl that is ever changed, or has another value"));
        }
        Ok(Self { services, daemons, sysctls })
    }
}

impl Daemon {
    fn is_possible(&self) -> bool {
        let states = [SyncState::MASTER, SyncState::BACKUP].map(|state| state.to_string());
        let is_name = InterfaceName::new(&self.interface).is_ok() && !self.interface.contains('/');
        states.contains(&self.state) && is_name && self.id <= MAX_SYNC_ID
    }
}
