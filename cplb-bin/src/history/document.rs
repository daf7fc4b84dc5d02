//! The answer of the daemon to `cplb history`, and its JSON.

use serde::{Deserialize, Serialize};

use super::format::Entry;
use super::terms::Term;
use super::time::WallTime;

/// Version of the document; increased only by incompatible changes.
pub(crate) const SCHEMA: u32 = 1;

/// The history as one node knows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    pub(crate) schema: u32,
    /// The name of the node; empty if the daemon does not run.
    pub(crate) node: String,
    /// The instances of the present configuration.
    pub(crate) instances: Vec<Instance>,
    /// The terms of the Actives, the earliest first: derived from `entries`.
    #[serde(default)]
    pub(crate) terms: Vec<Term>,
    /// The oldest first, 512 at most.
    pub(crate) entries: Vec<Entry>,
}

impl Document {
    /// Returns whether the term with this index was not over before `since`.
    pub(crate) fn lasts_until(&self, index: usize, since: WallTime) -> bool {
        let term = &self.terms[index];
        let next = || Some(self.terms[index + 1..].iter().find(|later| later.vrid == term.vrid)?.begin);
        term.end.or_else(next).is_none_or(|end| end >= since)
    }

    /// The document without what was over before `since`.
    pub(crate) fn since(mut self, since: WallTime) -> Self {
        let shown = (0..self.terms.len()).map(|index| self.lasts_until(index, since)).collect::<Vec<_>>();
        let mut shown = shown.into_iter();
        self.terms.retain(|_| shown.next().unwrap_or(true));
        self.entries.retain(|entry| entry.time >= since);
        self
    }
}

/// The virtual IPs of an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    #[serde(rename = "virtualRouterID")]
    pub(crate) vrid: u8,
    /// With their prefix lengths.
    #[serde(rename = "virtualIPs")]
    pub(crate) virtual_ips: Vec<String>,
}
