//! The answer of the daemon to `cplb history`, and its JSON.

use serde::{Deserialize, Serialize};

use super::format::Entry;
use super::terms::Term;

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
    /// Who was Active, the earliest first: derived from `entries`.
    #[serde(default)]
    pub(crate) terms: Vec<Term>,
    /// The oldest first, 512 at most.
    pub(crate) entries: Vec<Entry>,
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
