//! The addresses of backends: from the configuration, name resolution, discovery and the record of earlier runs.

mod admission;
mod cluster_log;
mod cluster_state;
mod clusters;
mod node;
mod refusals;
mod resolved;
mod resolver;

use std::path::Path;

use cplb_config::Config;

use super::sender::EventSender;

pub(crate) use admission::{Admitted, Refusal, admit, is_api};
pub(crate) use cluster_state::ClusterState;
#[cfg(test)]
pub(crate) use clusters::ClusterServers;
pub(crate) use clusters::{Clusters, Discovered};
pub(crate) use refusals::Refusals;
pub(crate) use resolved::ResolvedBackends;
pub(crate) use resolver::{Answers, Resolved, Resolver};

/// The sources of addresses, and the addresses that are in use.
#[derive(Debug)]
pub(crate) struct Backends {
    pub(crate) resolver: Resolver,
    pub(crate) clusters: Clusters,
    pub(crate) resolved: ResolvedBackends,
    pub(crate) refusals: Refusals,
}

impl Backends {
    /// The sources before the first query, with the record of the last run, and the fault of that record if it has one.
    pub(crate) fn open(
        state_dir: &Path,
        rounds: EventSender<Resolved>,
        discovered: EventSender<Discovered>,
    ) -> (Self, Option<String>) {
        let (clusters, unreadable) = Clusters::open(state_dir, discovered);
        let resolver = Resolver::new(rounds);
        let (resolved, refusals) = (ResolvedBackends::default(), Refusals::default());
        (Self { resolver, clusters, resolved, refusals }, unreadable)
    }

    /// The addresses after discovery, with the current addresses of this node. Also sets the servers that discovery may
    /// query.
    pub(crate) fn resolve(&self, config: &Config, resolved: ResolvedBackends) -> ResolvedBackends {
        let resolved = resolved.on_node(node::node_addresses(config));
        let written = admission::written_servers(config, &resolved);
        let local = self.clusters.local_candidates(config);
        self.clusters.set_sources(config, &written, &local);
        resolved.with_clusters(self.clusters.servers(&written, &local))
    }
}
