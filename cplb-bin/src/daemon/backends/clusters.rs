//! Discovery of the servers of each cluster, and the addresses that are used until the servers are known.
//!
//! Until a cluster's API has listed its servers, those of the last run are used, and this node's own addresses: the first
//! controller of a cluster has no other server to query, and its API server may listen on one of its addresses only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use cplb_config::{Config, Origin, Unfit};
use lb_proxy::MARK;

use crate::discovery::{ClusterIdentity, Follower, Report, State, Store};

use crate::daemon::sender::EventSender;

use super::admission;
use super::cluster_log::log_changes;
use super::cluster_state::{ClusterState, Source};
use super::node::candidate_addresses;

/// The known servers of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClusterServers {
    /// Discovered, now or in an earlier run.
    pub(crate) discovered: BTreeSet<SocketAddr>,
    /// Addresses of this node where a server may listen; none once the API has listed all servers.
    pub(crate) local_candidates: Vec<IpAddr>,
    /// The cluster's identity, once a server was verified.
    pub(crate) identity: Option<ClusterIdentity>,
}

/// A report about the servers of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Discovered {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) report: Report,
}

/// The clusters that are followed.
#[derive(Debug)]
pub(crate) struct Clusters {
    store: Store,
    events: EventSender<Discovered>,
    followed: BTreeMap<PathBuf, Cluster>,
}

#[derive(Debug)]
struct Cluster {
    follower: Follower,
    state: ClusterState,
}

impl Clusters {
    /// Reads the servers that an earlier run discovered. A fault of the record is logged, and returned for status.
    pub(super) fn open(state_dir: &Path, events: EventSender<Discovered>) -> (Self, Option<String>) {
        let (store, fault) = Store::open(state_dir);
        if let Some(why) = &fault {
            tracing::warn!(why, "the backends of the last run cannot be read, and are discovered again");
        }
        (Self { store, events, followed: BTreeMap::new() }, fault)
    }

    /// Follows the clusters of a configuration, and no others.
    pub(crate) fn follow(&mut self, config: &Config) {
        self.follow_also(config);
        let wanted = kubeconfigs(config);
        self.followed.retain(|path, _| wanted.contains(path));
        self.forget();
    }

    /// Follows the clusters of a configuration besides those that are followed already. A cluster without known servers
    /// starts with those of clusters that are no longer wanted: a kubeconfig that was moved has the same servers, and an
    /// invalid one must not leave clients without any.
    pub(crate) fn follow_also(&mut self, config: &Config) {
        let wanted = kubeconfigs(config);
        for path in &wanted {
            self.followed.entry(path.clone()).or_insert_with(|| {
                let (events, kubeconfig) = (self.events.clone(), path.clone());
                let report = move |report| {
                    let _ = events.send(Discovered { kubeconfig: kubeconfig.clone(), report });
                };
                let known = self.store.servers(path).cloned();
                let known = known.or_else(|| self.store.servers_besides(|path| wanted.contains(path)));
                Cluster {
                    follower: Follower::start(path.clone(), MARK, report),
                    state: ClusterState::from_disk(known),
                }
            });
        }
    }

    /// Forgets clusters that are not followed, once the API of every followed one has listed its servers.
    fn forget(&mut self) {
        let followed = &self.followed;
        let sure = followed.values().all(|cluster| cluster.state.source == Source::Api);
        if sure && let Err(error) = self.store.retain(|path| followed.contains_key(path)) {
            tracing::warn!(%error, "record of discovered backends cannot be updated");
        }
    }

    /// Stores the servers that could not be stored before.
    pub(crate) fn save(&mut self) {
        if self.store.save().is_ok_and(|late| late) {
            tracing::info!("discovered backends stored again");
        }
    }

    /// Takes a report about a cluster.
    pub(crate) fn update(&mut self, discovered: Discovered, config: &Config) {
        let Some(cluster) = self.followed.get_mut(&discovered.kubeconfig) else { return };
        let path = discovered.kubeconfig;
        let before = cluster.state.clone();
        cluster.state.update(discovered.report, |server| admissible(config, server));
        let now = &cluster.state;
        if before == *now {
            return;
        }
        log_changes(now, &before, &path);
        let is_changed = (before.source, &before.servers) != (now.source, &now.servers);
        if now.source == Source::Api
            && is_changed
            && let Err(error) = self.store.keep(&path, &now.servers)
        {
            tracing::warn!(%error, "discovered backends cannot be stored for the next start");
        }
        if before.source != now.source {
            self.forget();
        }
    }

    /// Addresses of this node where an API server may listen, until every cluster has listed its servers. Reads the
    /// interfaces of this node.
    pub(super) fn local_candidates(&self, config: &Config) -> Vec<IpAddr> {
        let is_listed = |cluster: &Cluster| cluster.state.source == Source::Api;
        if self.followed.values().all(is_listed) { Vec::new() } else { candidate_addresses(config) }
    }

    /// Sets the servers that the follower of each cluster may query: those that were discovered, those that are `written`
    /// in the configuration, and `local` candidates.
    pub(super) fn set_sources(&self, config: &Config, written: &[SocketAddr], local: &[IpAddr]) {
        let port = api_port(config);
        for cluster in self.followed.values() {
            let own = cluster.local_candidates(local).iter().map(|ip| SocketAddr::new(*ip, port));
            let others = written.iter().copied().chain(own).collect();
            let known = cluster.state.servers.iter().copied();
            let known = known.filter(|server| admissible(config, *server).is_ok()).collect();
            cluster.follower.ask(known, others);
        }
    }

    /// The servers of each cluster. `local` candidates are guesses, and are used only where no servers are `written` in the
    /// configuration.
    pub(super) fn servers(
        &self,
        written: &[SocketAddr],
        local: &[IpAddr],
    ) -> BTreeMap<PathBuf, ClusterServers> {
        let servers = |(path, cluster): (&PathBuf, &Cluster)| {
            let own = if written.is_empty() { cluster.local_candidates(local) } else { &[] };
            let servers = ClusterServers {
                discovered: cluster.state.servers.clone(),
                local_candidates: own.to_vec(),
                identity: cluster.state.identity.clone(),
            };
            (path.clone(), servers)
        };
        self.followed.iter().map(servers).collect()
    }

    /// The faults of a cluster's discovery, for the operator.
    pub(crate) fn faults(&self, kubeconfig: &Path) -> Vec<String> {
        let Some(cluster) = self.followed.get(kubeconfig) else { return Vec::new() };
        let interruption = match &cluster.state.interruption {
            Some(State::Failing(why)) => Some(format!("backends cannot be discovered: {why}")),
            Some(State::Waiting(_)) | None => None,
        };
        interruption.into_iter().chain(cluster.state.list_fault.clone()).collect()
    }

    /// Returns whether the cluster of a kubeconfig is followed.
    pub(crate) fn follows(&self, kubeconfig: &Path) -> bool {
        self.followed.contains_key(kubeconfig)
    }

    /// Each cluster with its state, and the server that answered last, for `cplb status`.
    pub(crate) fn known(
        &self,
    ) -> impl Iterator<Item = (&Path, &ClusterState, Option<(SocketAddr, Instant)>)> {
        self.followed.iter().map(|(path, it)| (path.as_path(), &it.state, it.follower.answered()))
    }
}

impl Cluster {
    /// The local candidates for this cluster.
    fn local_candidates<'a>(&self, local: &'a [IpAddr]) -> &'a [IpAddr] {
        if self.state.source == Source::Api { &[] } else { local }
    }
}

/// The canonical address of a server that the API lists, if it may be a backend of the API's service.
fn admissible(config: &Config, server: SocketAddr) -> Result<SocketAddr, Unfit> {
    let server = SocketAddr::new(server.ip().to_canonical(), server.port());
    let Some(service) = config.api_service().or(config.services.first()) else { return Ok(server) };
    let used = admission::listed_at(config, service, server);
    config.backend_rule().admit(used, service, Origin::Discovered)?;
    Ok(server)
}

/// The kubeconfigs of a configuration.
fn kubeconfigs(config: &Config) -> BTreeSet<PathBuf> {
    // The peers of an election may be found through the API, too.
    if config.disable_load_balancer && !config.finds_peers() {
        return BTreeSet::new();
    }
    let all = config.services.iter().map(|service| config.backends_of(service));
    all.filter_map(|backends| backends.kubeconfig.clone()).collect()
}

/// The port of the API servers.
fn api_port(config: &Config) -> u16 {
    config.api_service().map_or(6443, |service| service.backend_port.number())
}
