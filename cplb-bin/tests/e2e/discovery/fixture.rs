//! A cluster with daemons that discover API servers, and the servers to discover.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use testbed::api::{ApiCluster, ApiServer, Authority, Credential, Identity, Validity, kubeconfig};
use testbed::{Backend, Lan, LanBuilder, Probe};

use crate::support::{Cluster, PORT, Plan};

/// The port of the API for discovery. The servers that clients are balanced over have another port, and answer with
/// their names.
pub(super) const API: u16 = 16443;

/// The names in the certificates of API servers: Kubernetes' own, and the virtual IPs.
pub(super) const NAMES: [&str; 3] = ["kubernetes", "10.9.0.100", "fd09::100"];

/// Daemons that discover, an API for discovery, and API servers to balance over.
pub(crate) struct Fixture {
    pub(crate) cluster: Cluster,
    pub(super) authority: Authority,
    client: Identity,
    pub(super) api: Option<ApiServer>,
    pub(super) listed: ApiCluster,
}

impl Fixture {
    /// A cluster in which no process runs yet.
    pub(super) fn new() -> Self {
        Self::on(Lan::builder())
    }

    pub(super) fn on(lan: LanBuilder) -> Self {
        // The configuration names the file before it exists; its directory is known once the LAN is built.
        let mut cluster = Cluster::build(lan, Plan::v3("300ms"));
        cluster.backends.clear();
        let file = cluster.lan.directory().join("admin.conf");
        let kubernetes = format!("backends: {{kubernetes: {{kubeconfig: {}}}}}", file.display());
        cluster.plan = cluster.plan.clone().spec(kubernetes);
        let authority = Authority::new("cluster").expect("an authority");
        let client = authority.client("cplb", Validity::Now).expect("a certificate");
        Self { cluster, authority, client, api: None, listed: ApiCluster::new(&[]) }
    }

    /// A cluster in which all processes run, and every daemon has discovered all servers.
    pub(crate) fn complete() -> Self {
        let mut fixture = Self::new();
        fixture.start_nodes(&[0, 1, 2]);
        fixture
    }

    /// Starts the servers, the API and the daemons of some nodes.
    pub(super) fn start_nodes(&mut self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.serve(*node));
        self.list(nodes);
        self.start_api();
        for node in nodes {
            let command = self.cluster.command(*node);
            self.cluster.launch(*node, command);
        }
        self.cluster.wait_until_settled();
        nodes.iter().for_each(|node| self.wait_for(*node, "api", nodes));
    }

    pub(super) fn file(&self) -> PathBuf {
        self.cluster.lan.directory().join("admin.conf")
    }

    pub(super) fn server(&self, node: usize) -> SocketAddr {
        SocketAddr::new(self.cluster.node(node).v4().into(), PORT)
    }

    /// Starts the API server of a node.
    pub(super) fn serve(&mut self, node: usize) {
        let name = format!("api-{}", self.cluster.node(node).name());
        let identity = self.authority.server(&NAMES, Validity::Now).expect("a certificate");
        let backend = Backend::certified(self.cluster.node(node), &name, PORT, &self.authority, &identity);
        self.cluster.backends.push(backend.expect("the API server starts"));
    }

    /// Starts an API server with this name and a certificate of any authority.
    pub(super) fn serve_as(&mut self, node: usize, name: &str, authority: &Authority, identity: &Identity) {
        let backend = Backend::certified(self.cluster.node(node), name, PORT, authority, identity);
        let backend = backend.expect("the API server starts");
        self.cluster.backends.push(backend);
    }

    /// Stops the API server of a node.
    pub(super) fn end(&mut self, node: usize) {
        let name = format!("api-{}", self.cluster.node(node).name());
        self.cluster.backends.retain(|backend| backend.name() != name);
    }

    pub(super) fn list(&self, nodes: &[usize]) {
        self.listed.set_servers(&nodes.iter().map(|node| self.server(*node)).collect::<Vec<_>>());
    }

    /// Starts the API, and writes the kubeconfig for it.
    pub(super) fn start_api(&mut self) {
        let node = self.cluster.node(0);
        let address = SocketAddr::new(node.v4().into(), API);
        let identity = self.authority.server(&NAMES, Validity::Now).expect("a certificate");
        let api = ApiServer::start_in(node, &self.listed, address, &self.authority, &identity);
        self.api = Some(api.expect("the API starts"));
        self.write_kubeconfig(&Credential::Certificate(&self.client));
    }

    /// Writes a kubeconfig with this credential.
    pub(super) fn write_kubeconfig(&self, credential: &Credential<'_>) {
        let address = SocketAddr::new(self.cluster.node(0).v4().into(), API);
        let text = kubeconfig(address, &self.authority, credential);
        std::fs::write(self.file(), text).expect("the kubeconfig is written");
    }

    /// The state and the reason that a daemon's status has for the API server of a node.
    pub(super) fn backend(&self, daemon: usize, node: usize) -> (String, String) {
        let (status, address) = (self.cluster.status(daemon), self.server(node).to_string());
        let mut backends = status["services"][0]["backends"].as_array().into_iter().flatten();
        let found = backends.find(|it| it["address"] == address.as_str());
        let text = |field: &str| found.and_then(|it| it[field].as_str()).unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    /// The API server of a node.
    pub(super) fn api_server(&self, node: usize) -> &Backend {
        let name = format!("api-{}", self.cluster.node(node).name());
        self.cluster.backends.iter().find(|backend| backend.name() == name).expect("the API server runs")
    }

    /// Waits until a daemon has discovered exactly the servers of these nodes.
    pub(super) fn wait_for(&self, node: usize, source: &str, nodes: &[usize]) {
        let wanted: BTreeSet<String> = nodes.iter().map(|node| self.server(*node).to_string()).collect();
        self.cluster.wait(&format!("node {node} has discovered {wanted:?} from {source}"), || {
            let status = self.cluster.status(node);
            let found = &status["discovery"][0];
            let known: BTreeSet<String> = found["servers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|it| it.as_str().map(str::to_owned))
                .collect();
            found["source"] == source && known == wanted
        });
    }

    pub(super) fn probe(&self) -> Probe {
        let probe = Probe::to(self.cluster.address()).every(Duration::from_millis(10));
        probe.start(self.cluster.client()).expect("the probe starts")
    }

    /// Waits until requests are answered by the API servers of exactly these nodes.
    pub(super) fn served_by(&self, probe: &Probe, nodes: &[usize]) {
        let wanted: BTreeSet<String> =
            nodes.iter().map(|node| format!("api-{}", self.cluster.node(*node).name())).collect();
        self.cluster.wait(&format!("requests are answered by {wanted:?}"), || {
            let since = Instant::now().checked_sub(Duration::from_millis(500)).expect("the clock is later");
            probe.report().served_by_since(since).into_keys().collect::<BTreeSet<_>>() == wanted
        });
    }
}
