//! The addresses of backends: from the configuration, name resolution, discovery and the record of earlier runs.

mod admission;
mod clusters;
mod refusals;
mod resolved;
mod resolver;

pub(crate) use admission::{Admitted, Refusal, admit, is_api, written_servers};
#[cfg(test)]
pub(crate) use clusters::ClusterServers;
pub(crate) use clusters::{Clusters, Discovered, Known, node_addresses};
pub(crate) use refusals::Refusals;
pub(crate) use resolved::ResolvedBackends;
pub(crate) use resolver::{Answers, Resolved, Resolver};
