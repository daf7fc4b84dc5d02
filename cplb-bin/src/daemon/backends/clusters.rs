//! Discovery of the servers of each cluster, and the addresses that stand in until they are known.
//!
//! Until a cluster's API has listed its servers, those of the last run count, and this node's own addresses: the first
//! controller of a cluster has nobody else to ask, and its API server may listen on one of its addresses only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use cplb_config::{Config, Origin, Unfit};
use lb_proxy::MARK;
use lb_proxy::health::Trust;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::discovery::{Follower, Report, State, Store};

use crate::daemon::sender::EventSender;

use super::admission;

/// More servers than any control plane has; checking them all would load the network.
const MOST_SERVERS: usize = 256;
/// So many of this node's addresses are tried.
const MOST_OWN: usize = 16;

/// The servers of a cluster, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClusterServers {
    /// Discovered, now or in an earlier run.
    pub(crate) discovered: BTreeSet<SocketAddr>,
    /// Addresses of this node where a server may listen; none once the API has listed all servers.
    pub(crate) local_candidates: Vec<IpAddr>,
    /// The means by which servers prove themselves, once one has done so.
    pub(crate) trust: Option<Trust>,
}

/// Where the servers are known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Source {
    /// Nowhere yet.
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
    known: Known,
}

/// What is known of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Known {
    pub(crate) servers: BTreeSet<SocketAddr>,
    pub(crate) source: Source,
    /// Why the API is not followed now.
    pub(crate) trouble: Option<State>,
    /// Why the servers known before are retained although the API lists others.
    pub(crate) retained_reason: Option<String>,
    /// Those of its last list that may not be backends.
    pub(crate) refused: Vec<(SocketAddr, Unfit)>,
    /// By which a server has proved itself.
    pub(crate) trust: Option<Trust>,
}

impl Clusters {
    /// Reads what an earlier run has found. What is wrong with it is logged, and comes with it for status.
    pub(crate) fn open(state_dir: &Path, events: EventSender<Discovered>) -> (Self, Option<String>) {
        let (store, wrong) = Store::open(state_dir);
        if let Some(why) = &wrong {
            tracing::warn!(why, "the backends of the last run cannot be read, and are found anew");
        }
        (Self { store, events, followed: BTreeMap::new() }, wrong)
    }

    /// Follows the clusters of a configuration, and no others.
    pub(crate) fn follow(&mut self, config: &Config) {
        self.follow_also(config);
        let wanted = kubeconfigs(config);
        self.followed.retain(|path, _| wanted.contains(path));
        self.forget();
    }

    /// Follows the clusters of a configuration besides those that are followed. Where nothing is known of one, its servers
    /// are those of the clusters that are not wanted any more: a file that has moved leads to the same ones, and a wrong
    /// one must not leave clients without any.
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
                    known: Known::from_disk(known),
                }
            });
        }
    }

    /// Forgets clusters that are not followed, as soon as all that are have told their own servers.
    fn forget(&mut self) {
        let followed = &self.followed;
        let sure = followed.values().all(|cluster| cluster.known.source == Source::Api);
        if sure && let Err(error) = self.store.retain(|path| followed.contains_key(path)) {
            tracing::warn!(%error, "the record of backends that were discovered cannot be changed");
        }
    }

    /// Writes down what could not be written before.
    pub(crate) fn save(&mut self) {
        if self.store.save().is_ok_and(|late| late) {
            tracing::info!("the backends that were discovered are on disk again");
        }
    }

    /// Takes what a cluster's API has said.
    pub(crate) fn update(&mut self, news: Discovered, config: &Config) {
        let Some(cluster) = self.followed.get_mut(&news.kubeconfig) else { return };
        let path = news.kubeconfig;
        let before = cluster.known.clone();
        cluster.known.update(news.report, |server| admissible(config, server));
        let known = &cluster.known;
        if before == *known {
            return;
        }
        known.log_changes(&before, &path);
        let is_news = (before.source, &before.servers) != (known.source, &known.servers);
        if known.source == Source::Api
            && is_news
            && let Err(error) = self.store.keep(&path, &known.servers)
        {
            tracing::warn!(%error, "the backends that were discovered are not on disk for the next boot");
        }
        if before.source != known.source {
            self.forget();
        }
    }

    /// Addresses of this node where an API server may listen, while a cluster has not listed its servers. Reads the
    /// interfaces of this node.
    pub(crate) fn local_candidates(&self, config: &Config) -> Vec<IpAddr> {
        let is_listed = |cluster: &Cluster| cluster.known.source == Source::Api;
        if self.followed.values().all(is_listed) { Vec::new() } else { own_addresses(config) }
    }

    /// Tells the follower of each cluster which servers it may ask: those that were discovered, those that are `written`
    /// in the configuration, and `local` candidates.
    pub(crate) fn set_sources(&self, config: &Config, written: &[SocketAddr], local: &[IpAddr]) {
        let port = api_port(config);
        for cluster in self.followed.values() {
            let own = cluster.local_candidates(local).iter().map(|ip| SocketAddr::new(*ip, port));
            let others = written.iter().copied().chain(own).collect();
            let known = cluster.known.servers.iter().copied();
            let known = known.filter(|server| admissible(config, *server).is_ok()).collect();
            cluster.follower.ask(known, others);
        }
    }

    /// The servers of each cluster. Clients are better off with servers that are listed somewhere, so that `local`
    /// candidates count only where none are `written` in the configuration.
    pub(crate) fn servers(
        &self,
        written: &[SocketAddr],
        local: &[IpAddr],
    ) -> BTreeMap<PathBuf, ClusterServers> {
        let servers = |(path, cluster): (&PathBuf, &Cluster)| {
            let own = if written.is_empty() { cluster.local_candidates(local) } else { &[] };
            let servers = ClusterServers {
                discovered: cluster.known.servers.clone(),
                local_candidates: own.to_vec(),
                trust: cluster.known.trust.clone(),
            };
            (path.clone(), servers)
        };
        self.followed.iter().map(servers).collect()
    }

    /// What keeps a cluster's servers from being known, for people.
    pub(crate) fn wrong(&self, kubeconfig: &Path) -> Vec<String> {
        let Some(cluster) = self.followed.get(kubeconfig) else { return Vec::new() };
        let trouble = match &cluster.known.trouble {
            Some(State::Failing(why)) => Some(format!("backends cannot be discovered: {why}")),
            Some(State::Waiting(_)) | None => None,
        };
        trouble.into_iter().chain(cluster.known.retained_reason.clone()).collect()
    }

    /// Whether the cluster of a kubeconfig is followed.
    pub(crate) fn follows(&self, kubeconfig: &Path) -> bool {
        self.followed.contains_key(kubeconfig)
    }

    /// For `cplb status`: each cluster with what is known of it, and who answered last.
    pub(crate) fn known(&self) -> impl Iterator<Item = (&Path, &Known, Option<(SocketAddr, Instant)>)> {
        self.followed.iter().map(|(path, it)| (path.as_path(), &it.known, it.follower.answered()))
    }
}

impl Cluster {
    /// The local candidates that count for this cluster.
    fn local_candidates<'a>(&self, local: &'a [IpAddr]) -> &'a [IpAddr] {
        if self.known.source == Source::Api { &[] } else { local }
    }
}

impl Known {
    fn from_disk(servers: Option<BTreeSet<SocketAddr>>) -> Self {
        match servers {
            Some(servers) => Self { servers, source: Source::Disk, ..Self::default() },
            None => Self::default(),
        }
    }

    fn update(&mut self, report: Report, admissible: impl Fn(SocketAddr) -> Result<SocketAddr, Unfit>) {
        let listed = match report {
            Report::State(state) => {
                self.trouble = Some(state);
                return;
            }
            Report::Servers(listed, trust) => {
                self.trust = Some(trust);
                listed
            }
        };
        self.trouble = None;
        let mut real = BTreeSet::new();
        self.refused.clear();
        for server in listed.iter().copied() {
            match admissible(server) {
                Ok(server) => drop(real.insert(server)),
                Err(unfit) => self.refused.push((server, unfit)),
            }
        }
        let only_vips = self.refused.iter().all(|(_, unfit)| *unfit == Unfit::VirtualIp);
        self.retained_reason = match (listed.len(), real.len()) {
            (0, _) => Some("the API lists no server".to_owned()),
            (_, 0) if !only_vips => {
                Some(format!("the API lists nothing that can be a backend: {}", refused(&self.refused)))
            }
            (_, 0) => Some(
                "the API lists only virtual IPs, as k0s does with spec.api.externalAddress: let k0s's controllers run \
                 with --disable-components=endpoint-reconciler, or remove externalAddress"
                    .to_owned(),
            ),
            (_, many) if many > MOST_SERVERS => {
                Some(format!("the API lists {many} servers, of which {MOST_SERVERS} are used"))
            }
            _ => None,
        };
        if !real.is_empty() {
            self.servers = real.into_iter().take(MOST_SERVERS).collect();
            self.source = Source::Api;
        }
    }

    /// Logs what is new.
    fn log_changes(&self, before: &Self, kubeconfig: &Path) {
        let kubeconfig = kubeconfig.display();
        if self.servers != before.servers {
            tracing::info!(%kubeconfig, servers = ?self.servers, "API servers were discovered");
        }
        match (&self.trouble, &before.trouble) {
            (now, former) if now == former => {}
            (Some(State::Waiting(why)), _) => tracing::info!("discovery waits: {why}"),
            (Some(State::Failing(why)), _) => tracing::warn!(%kubeconfig, "discovery fails: {why}"),
            (None, _) => tracing::info!(%kubeconfig, "discovery works"),
        }
        if let Some(why) =
            self.retained_reason.as_ref().filter(|_| self.retained_reason != before.retained_reason)
        {
            tracing::warn!(%kubeconfig, "discovered servers: {why}");
        } else if self.refused != before.refused && !self.refused.is_empty() && self.retained_reason.is_none()
        {
            let count = self.refused.len();
            tracing::warn!(%kubeconfig, count, "discovered servers are refused: {}", refused(&self.refused));
        }
    }
}

/// The first addresses of a list that were refused, each with the reason.
pub(crate) fn refused(list: &[(SocketAddr, Unfit)]) -> String {
    const MOST: usize = 3;
    let named: Vec<String> =
        list.iter().take(MOST).map(|(server, unfit)| format!("{server} {unfit}")).collect();
    match list.len().saturating_sub(MOST) {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

/// The server as it is remembered, if one that the API lists may be a backend of the API's service.
fn admissible(config: &Config, server: SocketAddr) -> Result<SocketAddr, Unfit> {
    let server = SocketAddr::new(server.ip().to_canonical(), server.port());
    let Some(service) = config.api_service().or(config.services.first()) else { return Ok(server) };
    let used = admission::listed_at(config, service, server);
    config.backend_rule().admit(used, service, Origin::Discovered)?;
    Ok(server)
}

/// The kubeconfigs by which a configuration has backends found.
fn kubeconfigs(config: &Config) -> BTreeSet<PathBuf> {
    if config.disable_load_balancer {
        return BTreeSet::new();
    }
    let all = config.services.iter().map(|service| config.backends_of(service));
    all.filter_map(|backends| backends.kubeconfig.clone()).collect()
}

/// The port of the API servers.
fn api_port(config: &Config) -> u16 {
    config.api_service().map_or(6443, |service| service.backend_port.number())
}

/// Every address of this node besides its virtual IPs; none where they cannot be read.
pub(crate) fn node_addresses(config: &Config) -> BTreeSet<IpAddr> {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address.and_then(ip));
    addresses.filter(|ip| !config.is_virtual_ip(*ip)).collect()
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
}

/// Addresses of this node at which its API server may listen, the most likely ones first.
fn own_addresses(config: &Config) -> Vec<IpAddr> {
    let mut all = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for interface in getifaddrs().into_iter().flatten() {
        let flags = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_BROADCAST | InterfaceFlags::IFF_NOARP;
        let on_a_network = interface.flags & flags == InterfaceFlags::IFF_UP | InterfaceFlags::IFF_BROADCAST;
        let Some(ip) = interface.address.and_then(ip).filter(|_| on_a_network) else { continue };
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !link_local && !config.is_virtual_ip(ip) && !all.contains(&ip) && all.len() < MOST_OWN {
            all.push(ip);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use lb_proxy::health::{Credentials, Names};

    use super::*;
    use crate::logging::testing::storm;

    fn servers(hosts: &[u8]) -> BTreeSet<SocketAddr> {
        hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 6443))).collect()
    }

    fn is_fit(server: SocketAddr) -> Result<SocketAddr, Unfit> {
        match (server.ip(), server.port()) {
            (ip, _) if ip == IpAddr::from([10, 0, 0, 100]) => Err(Unfit::VirtualIp),
            (_, 6444) => Err(Unfit::Proxy),
            _ => Ok(server),
        }
    }

    fn trust() -> Trust {
        let authority = testbed::api::Authority::new("cluster").unwrap();
        Trust::new([authority.der()], Names::AnyOf(Vec::new()), Credentials::default()).unwrap()
    }

    #[test]
    fn what_is_good_stays_until_there_is_something_better() {
        let mut known = Known::from_disk(Some(servers(&[11, 12])));
        known.update(Report::State(State::Failing("refused".into())), is_fit);
        assert_eq!((known.source, known.servers.len(), known.trouble.is_some()), (Source::Disk, 2, true));
        known.update(Report::Servers(servers(&[100]), trust()), is_fit);
        assert_eq!((known.source, known.servers.len(), known.trouble.is_some()), (Source::Disk, 2, false));
        assert!(known.retained_reason.as_ref().unwrap().contains("only virtual IPs"));
        known.update(Report::Servers(servers(&[11, 100, 13]), trust()), is_fit);
        assert_eq!(
            (known.source, &known.servers, &known.retained_reason),
            (Source::Api, &servers(&[11, 13]), &None)
        );
        known.update(Report::Servers(BTreeSet::new(), trust()), is_fit);
        assert_eq!((known.source, &known.servers), (Source::Api, &servers(&[11, 13])));
        assert!(known.retained_reason.is_some());
    }

    #[test]
    fn a_list_of_proxies_changes_nothing_and_is_told() {
        let mut known = Known::from_disk(Some(servers(&[11, 12])));
        let proxies: BTreeSet<_> = (11..15).map(|host| SocketAddr::from(([10, 0, 0, host], 6444))).collect();
        known.update(Report::Servers(proxies.clone(), trust()), is_fit);
        assert_eq!(
            (known.source, &known.servers, known.refused.len()),
            (Source::Disk, &servers(&[11, 12]), 4)
        );
        assert_eq!(
            known.retained_reason.as_deref(),
            Some(
                "the API lists nothing that can be a backend: \
                 10.0.0.11:6444 is where a proxy of this configuration listens, on every node; \
                 10.0.0.12:6444 is where a proxy of this configuration listens, on every node; \
                 10.0.0.13:6444 is where a proxy of this configuration listens, on every node; and 1 more"
            )
        );
        let mixed = proxies.into_iter().chain(servers(&[13])).collect();
        known.update(Report::Servers(mixed, trust()), is_fit);
        assert_eq!(
            (known.source, &known.servers, &known.retained_reason),
            (Source::Api, &servers(&[13]), &None)
        );
        known.update(Report::Servers(servers(&[13]), trust()), is_fit);
        assert!(known.refused.is_empty());
    }

    #[test]
    fn discovered_servers_are_capped_at_256() {
        let mut known = Known::default();
        let many = (0..10_000u32).map(|n| SocketAddr::from(((0x0a01_0000 + n).to_be_bytes(), 6443)));
        known.update(Report::Servers(many.collect(), trust()), is_fit);
        assert_eq!(known.servers.len(), MOST_SERVERS);
        assert!(known.retained_reason.unwrap().contains("10000 servers, of which 256"));
    }

    #[test]
    fn lines_about_a_flapping_list_are_limited() {
        let lists = [servers(&[11]), servers(&[11, 12])].map(|servers| Known { servers, ..Known::default() });
        let path = Path::new("/etc/kubeconfig");
        let written = storm(60, |number| {
            let (now, before) = (&lists[number as usize % 2], &lists[(number as usize + 1) % 2]);
            now.log_changes(before, path);
        });
        assert!(written.lines.len() <= 21, "{:#?}", written.lines);
        assert_eq!(written.lines.len() as u64 + written.suppressed, 60_000);
        assert!(written.lines.last().unwrap().contains("10.0.0.12"), "the last list is told");
        let failing = |why: &str| Known { trouble: Some(State::Failing(why.into())), ..Known::default() };
        let written = storm(60, |number| match number % 2 {
            0 => failing(&format!("port {number}")).log_changes(&Known::default(), path),
            _ => Known::default().log_changes(&failing("refused"), path),
        });
        assert!(written.lines.len() <= 2 * 21, "{:#?}", written.lines);
        assert!(written.lines.last().unwrap().contains("discovery works"));
    }

    #[test]
    fn this_node_has_addresses_to_try() {
        let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  backends: {static: [10.0.0.11]}\n";
        let config = cplb_config::load(text, "f.yaml").unwrap().config;
        let own = own_addresses(&config);
        assert_eq!(own[..2], [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
        assert!(own.len() <= MOST_OWN);
    }
}
