//! The state of discovery of one cluster, without I/O.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use cplb_config::Unfit;

use crate::discovery::{ClusterIdentity, Report, State};

/// The limit of servers, more than any control plane has: checks of all of them would load the network.
const MAX_SERVERS: usize = 256;

/// The source of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Source {
    /// No source yet.
    #[default]
    Nothing,
    /// The state directory.
    Disk,
    /// The API, in this run.
    Api,
}

impl Source {
    /// The word in status.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Disk => "disk",
            Self::Api => "api",
        }
    }
}

/// The state of discovery of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ClusterState {
    pub(crate) servers: BTreeSet<SocketAddr>,
    pub(crate) source: Source,
    /// The state that interrupts following the API; `None` while it is followed.
    pub(crate) interruption: Option<State>,
    /// The reason why the API's last list is not used, or only up to [`MAX_SERVERS`].
    pub(crate) list_fault: Option<String>,
    /// The servers of the API's last list that may not be backends.
    pub(crate) refused: Vec<(SocketAddr, Unfit)>,
    /// The cluster's identity, once a server was verified.
    pub(crate) identity: Option<ClusterIdentity>,
}

impl ClusterState {
    pub(super) fn from_disk(servers: Option<BTreeSet<SocketAddr>>) -> Self {
        match servers {
            Some(servers) => Self { servers, source: Source::Disk, ..Self::default() },
            None => Self::default(),
        }
    }

    /// Takes a report. `admissible` returns the canonical address of a server, or why it may not be a backend.
    pub(super) fn update(
        &mut self,
        report: Report,
        admissible: impl Fn(SocketAddr) -> Result<SocketAddr, Unfit>,
    ) {
        let listed = match report {
            Report::State(state) => {
                self.interruption = Some(state);
                return;
            }
            Report::Servers(listed, identity) => {
                self.identity = Some(identity);
                listed
            }
        };
        self.interruption = None;
        let mut admitted = BTreeSet::new();
        self.refused.clear();
        for server in listed.iter().copied() {
            match admissible(server) {
                Ok(server) => drop(admitted.insert(server)),
                Err(unfit) => self.refused.push((server, unfit)),
            }
        }
        let only_vips = self.refused.iter().all(|(_, unfit)| *unfit == Unfit::VirtualIp);
        self.list_fault = match (listed.len(), admitted.len()) {
            (0, _) => Some("the API lists no server".to_owned()),
            (_, 0) if !only_vips => {
                Some(format!("the API lists nothing that can be a backend: {}", refused(&self.refused)))
            }
            (_, 0) => Some(
                "the API lists only virtual IPs, as k0s does with spec.api.externalAddress: let k0s's controllers run \
                 with --disable-components=endpoint-reconciler, or remove externalAddress"
                    .to_owned(),
            ),
            (_, many) if many > MAX_SERVERS => {
                Some(format!("the API lists {many} servers, of which {MAX_SERVERS} are used"))
            }
            _ => None,
        };
        if !admitted.is_empty() {
            self.servers = admitted.into_iter().take(MAX_SERVERS).collect();
            self.source = Source::Api;
        }
    }
}

/// The first addresses of a list that were refused, each with the reason.
pub(super) fn refused(list: &[(SocketAddr, Unfit)]) -> String {
    const NAMED: usize = 3;
    let named: Vec<String> =
        list.iter().take(NAMED).map(|(server, unfit)| format!("{server} {unfit}")).collect();
    match list.len().saturating_sub(NAMED) {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

#[cfg(test)]
#[path = "cluster_state_tests.rs"]
mod tests;
