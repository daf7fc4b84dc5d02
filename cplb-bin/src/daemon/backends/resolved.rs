//! The addresses of backends after name resolution and discovery, as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::clusters::ClusterServers;
use super::resolver::{Answer, Answers};

/// The addresses of backends that the configuration does not give by address: a value, replaced by each change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResolvedBackends {
    /// The addresses of each name from its last successful resolution.
    resolved: BTreeMap<String, Vec<IpAddr>>,
    /// The servers of each cluster, by the path of its kubeconfig.
    clusters: BTreeMap<PathBuf, ClusterServers>,
    /// This node's addresses besides virtual IPs.
    node: BTreeSet<IpAddr>,
}

impl ResolvedBackends {
    /// The value after a round of name resolution: names that are not part of the round are forgotten, but the addresses of
    /// names that can no longer be resolved are retained, because backends do not depend on the name server.
    pub(crate) fn after(&self, answers: &Answers) -> Self {
        let known = |name: &String, answer: &Answer| match answer {
            Ok(addresses) => addresses.clone(),
            Err(_) => self.resolved.get(name).cloned().unwrap_or_default(),
        };
        let resolved = answers.iter().map(|(name, answer)| (name.clone(), known(name, answer))).collect();
        Self { resolved, clusters: self.clusters.clone(), node: self.node.clone() }
    }

    /// The same with these servers of each cluster.
    pub(crate) fn with_clusters(&self, clusters: BTreeMap<PathBuf, ClusterServers>) -> Self {
        Self { resolved: self.resolved.clone(), clusters, node: self.node.clone() }
    }

    /// The same on a node that has these addresses.
    pub(super) fn on_node(mut self, addresses: BTreeSet<IpAddr>) -> Self {
        self.node = addresses;
        self
    }

    /// The node's addresses besides virtual IPs.
    pub(crate) fn node(&self) -> &BTreeSet<IpAddr> {
        &self.node
    }

    /// A value with these addresses of names.
    #[cfg(test)]
    pub(crate) fn of(resolved: BTreeMap<String, Vec<IpAddr>>) -> Self {
        Self { resolved, ..Self::default() }
    }

    /// The addresses of each name.
    pub(crate) fn resolved(&self) -> &BTreeMap<String, Vec<IpAddr>> {
        &self.resolved
    }

    /// The servers of the cluster of a kubeconfig.
    pub(crate) fn discovered(&self, kubeconfig: &Path) -> Option<&ClusterServers> {
        self.clusters.get(kubeconfig)
    }

    /// The addresses of `name`.
    pub(crate) fn addresses(&self, name: &str) -> &[IpAddr] {
        self.resolved.get(name).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::backends::resolver::tests::answers;

    #[test]
    fn addresses_are_retained_without_an_answer_until_the_name_is_removed() {
        let names = ResolvedBackends::default().after(&answers(&[("a", Some([10, 0, 0, 1])), ("b", None)]));
        assert_eq!(names.addresses("a"), [IpAddr::from([10, 0, 0, 1])]);
        assert!(names.addresses("b").is_empty() && names.addresses("c").is_empty());
        assert_eq!(names.after(&answers(&[("a", None), ("b", None)])), names);
        assert!(names.after(&answers(&[("b", None)])).addresses("a").is_empty());
    }
}
