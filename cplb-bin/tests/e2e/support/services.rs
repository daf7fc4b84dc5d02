//! Several services at once, each with a different set of healthy servers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::{Backend, Lan, Probe};

use super::{Cluster, PORT, Plan, TIMEOUT};

const KONNECTIVITY: u16 = 8132;
const JOIN: u16 = 9443;

/// The API server and konnectivity on all controllers, the join API on the second and the third one.
fn with_services(plan: Plan) -> Plan {
    plan.spec(format!(
        "services: [{{name: kube-apiserver, port: {PORT}}}, {{name: konnectivity, port: {KONNECTIVITY}}}, \
         {{name: join-api, port: {JOIN}, backends: {{static: [10.9.0.2, 10.9.0.3]}}}}]"
    ))
}

/// The expected state of a service.
struct Expected {
    name: &'static str,
    port: u16,
    /// The nodes whose servers accept connections.
    up: Vec<usize>,
    down: Vec<usize>,
    /// A client stays with its server (persistence).
    pinned: bool,
}

impl Expected {
    fn new(name: &'static str, port: u16, up: &[usize], down: &[usize]) -> Self {
        Self { name, port, up: up.to_vec(), down: down.to_vec(), pinned: false }
    }

    fn pinned(self, pinned: bool) -> Self {
        Self { pinned, ..self }
    }

    /// Waits until requests are answered by exactly these servers, and the status of every node shows it.
    fn wait_until_met(&self, cluster: &Cluster, probe: &Probe) {
        let servers: BTreeSet<String> = self.up.iter().map(|node| name(cluster, *node, self.port)).collect();
        cluster.wait(&format!("{} is served by {servers:?}", self.name), || {
            let since = Instant::now().checked_sub(Duration::from_millis(500)).expect("the clock is later");
            let served: BTreeSet<_> = probe.report().served_by_since(since).into_keys().collect();
            if self.pinned { served.len() == 1 && served.is_subset(&servers) } else { served == servers }
        });
        for node in 0..cluster.len() {
            cluster.wait(&format!("status shows {}", self.name), || {
                self.backends(cluster, node, "up") == self.addresses(cluster, &self.up)
                    && self.backends(cluster, node, "down") == self.addresses(cluster, &self.down)
            });
        }
    }

    fn addresses(&self, cluster: &Cluster, nodes: &[usize]) -> BTreeSet<String> {
        let address = |node: &usize| SocketAddr::new(cluster.node(*node).v4().into(), self.port).to_string();
        nodes.iter().map(address).collect()
    }

    fn backends(&self, cluster: &Cluster, node: usize, state: &str) -> BTreeSet<String> {
        let status = cluster.status(node);
        let mut services = status["services"].as_array().into_iter().flatten();
        let service = services.find(|service| service["name"] == self.name);
        let backends = service.and_then(|service| service["backends"].as_array()).into_iter().flatten();
        let there = backends.filter(|backend| backend["state"] == state);
        there.filter_map(|backend| backend["address"].as_str().map(str::to_owned)).collect()
    }
}

fn name(cluster: &Cluster, node: usize, port: u16) -> String {
    match port {
        PORT => format!("api-{}", cluster.node(node).name()),
        port => format!("{port}-{}", cluster.node(node).name()),
    }
}

/// Starts all servers and daemons, stops a different server of each service, and starts them again. `check` is called
/// while they are stopped, with the owner of the virtual IP. `pinned`: clients stay with their servers, except
/// konnectivity's.
pub(crate) fn different_sets(plan: Plan, pinned: bool, check: impl FnOnce(&Cluster, usize)) {
    let mut cluster = Cluster::build(Lan::builder(), with_services(plan));
    for port in [KONNECTIVITY, JOIN] {
        for node in 0..cluster.len() {
            let name = name(&cluster, node, port);
            let backend = Backend::tls(cluster.node(node), &name, port).expect("the server starts");
            cluster.backends.push(backend);
        }
    }
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let probe = |port: u16| {
        let probe = Probe::to(SocketAddr::new(cluster.vip(), port)).every(Duration::from_millis(20));
        let probe = probe.start(cluster.client()).expect("the probe starts");
        probe.wait_until_stable(Duration::from_millis(200), TIMEOUT).expect("the VIP answers");
        probe
    };
    let server = |node: usize, port: u16| {
        let name = name(&cluster, node, port);
        cluster.backends.iter().find(|backend| backend.name() == name).expect("the server exists")
    };
    let probes = [PORT, KONNECTIVITY, JOIN].map(probe);
    let stopped = [server(0, PORT), server(1, KONNECTIVITY), server(2, JOIN)];
    stopped.iter().for_each(|backend| backend.refuse().expect("the port is closed"));
    let partly = [
        Expected::new("kube-apiserver", PORT, &[1, 2], &[0]).pinned(pinned),
        Expected::new("konnectivity", KONNECTIVITY, &[0, 2], &[1]),
        Expected::new("join-api", JOIN, &[1], &[2]).pinned(pinned),
    ];
    partly.iter().zip(&probes).for_each(|(expected, probe)| expected.wait_until_met(&cluster, probe));
    check(&cluster, owner);
    stopped.iter().for_each(|backend| backend.accept().expect("the port is open"));
    let whole = [
        Expected::new("kube-apiserver", PORT, &[0, 1, 2], &[]).pinned(pinned),
        Expected::new("konnectivity", KONNECTIVITY, &[0, 1, 2], &[]),
        Expected::new("join-api", JOIN, &[1, 2], &[]).pinned(pinned),
    ];
    whole.iter().zip(&probes).for_each(|(expected, probe)| expected.wait_until_met(&cluster, probe));
}
