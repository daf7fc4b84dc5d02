//! Shared fixture of the IPVS tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Backend, Lan, Probe, wait_until};

use crate::support::{Cluster, PORT, Plan, TIMEOUT, VIP_HOST};

/// The VIP moves on a crash or handover of its owner, not when the guest is so slow that the owner looks degraded.
const NEVER: &str = "preempt: never";

pub(crate) fn plan(kind: &str, v6: bool, persistence: u32) -> Plan {
    let vip = if v6 { "fd09::100".to_owned() } else { format!("10.9.0.{VIP_HOST}") };
    let plan = Plan::v3("300ms").instance(NEVER).spec(format!(
        "virtualServers: [{{ipAddress: '{vip}', lbKind: {kind}, persistenceTimeoutSeconds: {persistence}}}]"
    ));
    if v6 { plan.v6_only() } else { plan }
}

/// A plan with long intervals, for tests in which an election on a busy machine would interfere.
pub(crate) fn with_slow_election(plan: Plan) -> Plan {
    Plan { instance: vec!["version: 3".to_owned(), NEVER.to_owned()], ..plan }
}

/// Makes servers listen on their own address only, so that they do not accept packets to the virtual IP.
pub(crate) fn bind_to_one_address(cluster: &mut Cluster) {
    for node in 0..cluster.len() {
        let own = SocketAddr::new(cluster.node(node).v4().into(), PORT);
        cluster.replace_backend(node, |it| Backend::tls_on(it, &format!("api-{}", it.name()), own));
    }
}

pub(crate) fn ipvsadm(cluster: &Cluster, node: usize, arguments: &[&str]) -> String {
    cluster.node(node).exec("ipvsadm", arguments.iter().copied()).expect("ipvsadm works")
}

/// The first virtual server in the status of a node.
pub(crate) fn virtual_server(cluster: &Cluster, node: usize) -> Value {
    cluster.status(node)["ipvs"]["virtualServers"][0].clone()
}

pub(crate) fn settled(plan: Plan) -> (Cluster, usize) {
    let mut cluster = Cluster::build(Lan::builder(), plan);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    wait_for_servers(&cluster, owner, 3);
    (cluster, owner)
}

pub(crate) fn wait_for_servers(cluster: &Cluster, node: usize, count: usize) {
    let mut servers = Value::Null;
    let there = wait_until("the director has its servers", TIMEOUT, || {
        servers = virtual_server(cluster, node)["servers"].clone();
        servers.as_array().is_some_and(|servers| servers.len() == count)
    });
    cluster.check(there.is_ok(), || format!("{count} servers of node {node}: {servers}"));
}

/// Makes that many requests, one after the other; returns their number by server. None may fail.
pub(crate) fn served(cluster: &Cluster, count: usize) -> BTreeMap<String, usize> {
    let since = Instant::now();
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.wait("the requests have ended", || probe.report().samples().len() >= count);
    let report = probe.stop();
    let failures = report.failures_since(since);
    cluster.check(failures.is_empty(), || format!("{failures:?}"));
    report.served_by_since(since)
}
