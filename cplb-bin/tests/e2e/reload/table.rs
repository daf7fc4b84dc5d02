//! The nftables table during a reload.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use testbed::{Backend, Failure, Lan, Node, Probe, Tool};

use crate::support::{Cluster, Plan, TIMEOUT, VIP_HOST};

use super::fixture::{
    OTHER_BIND_PORT, OTHER_PORT, Replaced, owners_of, probe, reload_one, ruleset, second_vip, two_instances,
};

/// A single daemon, with a service whose servers are all on other nodes.
struct RemoteService {
    cluster: Cluster,
    _agents: Vec<Backend>,
    services: String,
}

impl RemoteService {
    fn start() -> Self {
        let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
        let others = &cluster.lan.controllers()[1..];
        let agent = |node: &Node| Backend::echo(node, &format!("agent-{}", node.name()), OTHER_PORT);
        let agents = others.iter().map(|node| agent(node).expect("the server listens")).collect();
        let services = format!(
            "  services: [{{name: kube-apiserver, port: 6443}}, {{name: konnectivity, port: {OTHER_PORT}, \
             bindPort: {OTHER_BIND_PORT}, backends: {{static: [\"{}\", \"{}\"]}}, healthCheck: {{type: tcp}}}}]\n",
            others[0].v4(),
            others[1].v4()
        );
        cluster.start_daemon(0);
        cluster.wait_until_settled();
        Self { cluster, _agents: agents, services }
    }

    fn probe(&self, vip: Ipv4Addr) -> Probe {
        let target = SocketAddr::new(vip.into(), OTHER_PORT);
        Probe::to(target).every(Duration::from_millis(5)).start(self.cluster.client()).expect("a probe")
    }
}

/// A node must not hold a virtual IP without the table's rules for it: clients would be refused.
pub(crate) fn table_outlives_addresses() {
    let remote = RemoteService::start();
    let cluster = &remote.cluster;
    let (first, second) = (cluster.lan.v4(VIP_HOST), second_vip(cluster));
    let two = two_instances(&cluster.lan, "1s", [first, second]) + &remote.services;
    reload_one(cluster, 0, &two, "is reloaded");
    cluster.wait("the node has the second VIP", || owners_of(cluster, second) == [0]);
    let probe = remote.probe(second);
    if let Err(error) = probe.wait_for_success(Instant::now(), TIMEOUT) {
        cluster.fail(&error.to_string());
    }
    let since = Instant::now();
    let one: String = two
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mark = cluster.daemon(0).log().len();
    reload_one(cluster, 0, &one, "is reloaded");
    let removed = cluster.daemon(0).log().wait_for_line_after(mark, "the instance is removed", TIMEOUT);
    cluster.check(removed.is_ok(), || format!("{removed:?}"));
    cluster.wait("the VIP is removed", || owners_of(cluster, second).is_empty());
    // No node answers for the address afterwards; connections then time out and are not refused.
    let failures = probe.stop().failures_since(since);
    let refused = failures.get(&Failure::Refused).copied().unwrap_or(0);
    cluster.check(refused == 0, || format!("{failures:?}"));
    cluster.wait("the table has no rule for the VIP", || {
        !ruleset(cluster.node(0)).contains(&second.to_string())
    });
}

pub(crate) fn table_precedes_addresses() {
    let remote = RemoteService::start();
    let cluster = &remote.cluster;
    let (first, second) = (cluster.lan.v4(VIP_HOST), second_vip(cluster));
    let one: String = (two_instances(&cluster.lan, "1s", [first, second]) + &remote.services)
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| format!("{line}\n"))
        .collect();
    let both = one.replace(&format!("[\"{first}/24\"]"), &format!("[\"{first}/24\", \"{second}/24\"]"));
    reload_one(cluster, 0, &one, "is reloaded");
    let probe = remote.probe(second);
    let since = Instant::now();
    reload_one(cluster, 0, &both, "is reloaded");
    if let Err(error) = probe.wait_for_success(Instant::now(), TIMEOUT) {
        cluster.fail(&error.to_string());
    }
    let failures = probe.stop().failures_since(since);
    let refused = failures.get(&Failure::Refused).copied().unwrap_or(0);
    cluster.check(refused == 0, || format!("{failures:?}"));
}

/// The listeners become those of `bindAddress` only when no virtual IP is held.
pub(crate) fn listeners_outlive_addresses() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let own = cluster.node(0).v4();
    let with = Plan::v3("1s").spec("bindAddress: 127.0.0.1").render(&cluster.lan);
    reload_one(&cluster, 0, &with, "is reloaded");
    let vip = cluster.lan.v4(VIP_HOST);
    let probe = probe(&cluster, vip);
    let without = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  bindAddress: 127.0.0.1\n  \
         backends: {{static: [\"{own}\"]}}\n"
    );
    reload_one(&cluster, 0, &without, "is reloaded");
    let served = probe.wait_for_success(Instant::now(), Duration::from_secs(1));
    cluster.check(owners_of(&cluster, vip) == [0], || "the VIP was removed already".to_owned());
    cluster.check(served.is_ok(), || format!("while the VIP is handed over: {served:?}"));
    drop(probe.stop());
    cluster.wait("the VIP is removed", || owners_of(&cluster, vip).is_empty());
    cluster.wait("bindAddress is the only listening address", || {
        let listeners = cluster.node(0).exec("ss", ["-Hltn", "sport = :6444"]).expect("ss runs");
        listeners.contains("127.0.0.1:6444") && !listeners.contains("*:6444")
    });
}

pub(crate) fn failing_table() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let nft = Tool::Nft.path().expect("the test declares it");
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let before = cluster.plan.render(&cluster.lan);
    let broken = Replaced::new(nft, Path::new("/bin/false"));
    let added = two_instances(&cluster.lan, "100ms", [cluster.lan.v4(VIP_HOST), second_vip(&cluster)]);
    reload_one(&cluster, 0, &added, "is not reloaded");
    let shown = cluster.degraded(0);
    cluster.check(shown.contains("is in use: the nftables table cannot be applied"), || shown.clone());
    cluster.check(cluster.status(0)["instances"].as_array().map(Vec::len) == Some(1), || shown.clone());

    let disabled = Plan::v3("100ms").spec("disableLoadBalancer: true").render(&cluster.lan);
    reload_one(&cluster, 0, &disabled, "is reloaded");
    cluster.wait("the table that cannot be removed is reported", || {
        cluster.degraded(0).contains("the nftables table cannot be removed")
    });
    drop(broken);
    cluster.wait("the table is removed", || cluster.degraded(0) == "[]");
    cluster.check(!ruleset(cluster.node(0)).contains("cplb"), || ruleset(cluster.node(0)));
    reload_one(&cluster, 0, &before, "is reloaded");
    cluster.wait("the daemon serves again", || cluster.status(0)["serving"]["serving"] == true);
    cluster.check(ruleset(cluster.node(0)).contains("dnat"), || ruleset(cluster.node(0)));
}

/// On a busy machine `nft` can take longer than its time limit, also while the daemon starts.
pub(crate) fn slow_table_at_start() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let nft = Tool::Nft.path().expect("the test declares it");
    let script = cluster.node(0).directory().join("slow-nft");
    fs::write(&script, "#!/bin/sh\nexec sleep 60\n").expect("the script is written");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("the script is executable");
    let slow = Replaced::new(nft, &script);
    cluster.start_daemon(0);
    cluster.wait("the table is reported", || cluster.degraded(0).contains("did not end within"));
    let serving = &cluster.status(0)["serving"]["serving"];
    cluster.check(*serving == false, || format!("serving without its table: {serving}"));
    drop(slow);
    cluster.wait("the daemon serves", || cluster.status(0)["serving"]["serving"] == true);
    cluster.check(ruleset(cluster.node(0)).contains("cplb"), || ruleset(cluster.node(0)));
}
