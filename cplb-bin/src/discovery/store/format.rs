//! The content of `backends.json`. The fuzz target `state_files` compiles this file, too.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// More clusters than any configuration has.
const MAX_CLUSTERS: usize = 256;

/// More servers than discovery keeps of a cluster.
const MAX_SERVERS: usize = 256;

/// The last known servers of each cluster, by the path of the kubeconfig.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawContent")]
pub(crate) struct Content {
    pub(crate) clusters: Vec<Cluster>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) servers: BTreeSet<SocketAddr>,
}

/// A content before validation.
#[derive(Deserialize)]
struct RawContent {
    clusters: Vec<Cluster>,
}

impl TryFrom<RawContent> for Content {
    type Error = String;

    fn try_from(raw: RawContent) -> Result<Self, Self::Error> {
        if raw.clusters.len() > MAX_CLUSTERS {
            return Err(format!("more than {MAX_CLUSTERS} clusters"));
        }
        let mut paths = BTreeSet::new();
        for Cluster { kubeconfig, servers } in &raw.clusters {
            if !kubeconfig.is_absolute() || !paths.insert(kubeconfig) {
                return Err(format!("{} is not an absolute path, or occurs twice", kubeconfig.display()));
            }
            if servers.len() > MAX_SERVERS {
                return Err(format!("more than {MAX_SERVERS} servers"));
            }
            if let Some(server) = servers.iter().find(|server| !is_server(server)) {
                return Err(format!("{server} is not the address of a server"));
            }
        }
        Ok(Self { clusters: raw.clusters })
    }
}

/// Returns whether a server can have this address. The configuration decides whether it may be a backend.
fn is_server(server: &SocketAddr) -> bool {
    let is_wildcard_or_group = match server.ip() {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    };
    server.port() != 0 && !is_wildcard_or_group
}
