//! The addresses of backends: from the configuration, name resolution, discovery and the record of earlier runs.

mod clusters;
mod resolver;

#[cfg(test)]
pub(crate) use clusters::Servers;
pub(crate) use clusters::{Clusters, Discovered, Known, node_addresses, refused};
pub(crate) use resolver::{Answers, Names, Resolved, Resolver};
