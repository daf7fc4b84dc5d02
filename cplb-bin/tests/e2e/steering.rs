//! What operators change while clients connect: `cplb drain`, `undrain`, `reload`, `standby` and `log-level`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Failure, Probe, Sessions, Test, Tool};

use crate::support::{Cluster, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        // 2,000 connections a second take most of a small machine.
        Test::new("steering_fails_no_new_connection", under_load).needs([Tool::Nft]).alone(),
        Test::new("drained_backend_gets_no_connection_until_it_is_undrained", drain).needs([Tool::Nft]),
        Test::new("drain_outlasts_a_reload_and_ends_when_its_time_is_over", drain_for_a_time)
            .needs([Tool::Nft]),
        Test::new("reload_shows_what_has_changed_or_why_nothing_has", reload).needs([Tool::Nft]),
        Test::new("log_level_changes_while_the_daemon_runs", log_level).needs([Tool::Nft]),
    ]
}

/// A backend in the status of a node.
fn backend(cluster: &Cluster, index: usize, address: &str) -> Value {
    let status = cluster.status(index);
    let backends = status["services"][0]["backends"].as_array().cloned().unwrap_or_default();
    backends.into_iter().find(|backend| backend["address"] == address).expect("the backend is shown")
}

/// The address of the backend on a node.
fn address(cluster: &Cluster, index: usize) -> String {
    format!("{}:6443", cluster.node(index).v4())
}

/// 1,000 connections a second.
fn probe(cluster: &Cluster) -> Probe {
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(1));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    let stable = probe.wait_until_stable(Duration::from_millis(100), TIMEOUT);
    cluster.check(stable.is_ok(), || "the VIP does not answer all the time".to_owned());
    probe
}

fn under_load() {
    let mut cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let drained = address(&cluster, (owner + 1) % 3);
    let probes = [probe(&cluster), probe(&cluster)];
    let since = Instant::now();
    for round in 0..20 {
        cluster.succeed(owner, &["drain", &drained, "--wait", "--timeout", "20s"]);
        // A client may have begun before.
        let quiet = Instant::now() + Duration::from_millis(20);
        cluster.plan.spec.retain(|line| !line.starts_with("balance"));
        let balance = if round % 2 == 0 { "leastConnections" } else { "roundRobin" };
        cluster.plan.spec.push(format!("balance: {balance}"));
        let config = cluster.plan.render(&cluster.lan);
        std::fs::write(cluster.config_file(owner), config).expect("the file is written");
        let shown = cluster.succeed(owner, &["reload"]);
        cluster.check(
            shown.lines().any(|line| line.starts_with('+') && line.contains(&format!("balance: {balance}"))),
            || shown.clone(),
        );
        for probe in &probes {
            let served = probe.report().served_by_since(quiet);
            let name = format!("api-{}", cluster.node((owner + 1) % 3).name());
            cluster.check(!served.contains_key(&name), || format!("{name} is drained: {served:?}"));
        }
        cluster.succeed(owner, &["undrain", &drained]);
    }
    let reports: Vec<_> = probes.iter().map(Probe::report).collect();
    let failures: Vec<_> = reports.iter().map(|report| report.failures_since(since)).collect();
    cluster.check(failures.iter().all(BTreeMap::is_empty), || format!("failed: {failures:?}"));
    // Connections that are open when the VIP moves are reset by design; no other one fails.
    let since = Instant::now();
    cluster.succeed(owner, &["standby"]);
    for probe in &probes {
        let stable = probe.wait_until_stable(Duration::from_millis(100), TIMEOUT);
        cluster.check(stable.is_ok(), || "the VIP does not answer".to_owned());
    }
    let counts: Vec<_> = probes
        .map(|probe| {
            let report = probe.stop();
            let mut failures = report.failures_since(since);
            failures.remove(&Failure::Reset);
            cluster.check(failures.is_empty(), || format!("failed: {failures:?}"));
            report.samples().len()
        })
        .into();
    println!("MEASURED {counts:?} connections, none of the new ones failed");
}

fn drain() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let drained = address(&cluster, 0);
    cluster.refuse(owner, &["drain", "10.9.0.99"], 64, "no such backend: there are ");
    cluster.refuse(owner, &["drain", "node-1"], 64, "is no address");
    cluster.refuse(owner, &["drain", &drained, "--service", "other"], 64, "no such service: there are ");
    cluster.refuse(owner, &["undrain", &drained], 64, "is not drained");
    // Sessions stay, until the time to wait for them is over.
    let sessions = Sessions::open(cluster.client(), cluster.address(), 6).expect("sessions are open");
    let arguments = ["drain", drained.as_str(), "--wait", "--timeout", "1s"];
    cluster.refuse(owner, &arguments, 75, "connections are still open");
    // The drain ends while an operator waits.
    let waiting = ["drain", drained.as_str(), "--wait", "--for", "1s"];
    cluster.refuse(owner, &waiting, 75, "has ended meanwhile");
    cluster.succeed(owner, &["drain", &drained]);

    cluster.check(sessions.ended() == 0, || "sessions have ended".to_owned());
    let listed = |arguments: &[&str]| -> Value {
        let arguments = [&["connections", "--json"], arguments].concat();
        serde_json::from_str(&cluster.succeed(owner, &arguments)).expect("JSON")
    };
    // Other controllers check the service through the VIP.
    let client = cluster.client().v4().to_string();
    let all = listed(&["--client", &client]);
    cluster.check(all["total"] == 6, || all.to_string());
    let to_it = listed(&["--backend", &drained, "--client", &client]);
    let connections = to_it["connections"].as_array().expect("a list");
    let as_expected = connections.iter().all(|it| {
        it["backend"] == *drained
            && it["to"] == cluster.address().to_string()
            && it["service"] == "kube-apiserver"
            && it["client"].as_str().is_some_and(|text| text.starts_with(&client))
    });
    cluster.check(connections.len() == 2 && as_expected, || to_it.to_string());
    let none = listed(&["--client", "10.9.0.99"]);
    cluster.check(none["total"] == 0, || none.to_string());
    let text = cluster.succeed(owner, &["connections", "--service", "kube-apiserver", "--client", &client]);
    cluster.check(text.contains(&drained) && text.contains("6 open"), || text.clone());
    let shown = backend(&cluster, owner, &drained);
    cluster.check(shown["state"] == "draining" && shown["connectionsActive"] != 0, || shown.to_string());
    cluster.check(shown["reason"].as_str().is_some_and(|why| why.contains("operator")), || shown.to_string());
    let before = shown["connectionsTotal"].clone();
    // The rest may not be drained as well.
    cluster.succeed(owner, &["drain", &cluster.node(1).v4().to_string()]);
    let last = cluster.node(2).v4().to_string();
    cluster.refuse(owner, &["drain", &last], 75, "clients would be refused");
    let probe = probe(&cluster);
    let served = probe.stop().served_by_since(Instant::now() - Duration::from_secs(60));
    let only = format!("api-{}", cluster.node(2).name());
    cluster.check(served.keys().eq([&only]), || format!("{served:?}"));
    drop(sessions);
    cluster.succeed(owner, &["drain", &drained, "--wait"]);
    let shown = backend(&cluster, owner, &drained);
    cluster
        .check(shown["connectionsTotal"] == before && shown["connectionsActive"] == 0, || shown.to_string());
    // In other words than those of the drain.
    cluster.succeed(owner, &["undrain", &cluster.node(0).v4().to_string(), "--service", "kube-apiserver"]);
    cluster.succeed(owner, &["undrain", &address(&cluster, 1)]);
    cluster.wait("it takes connections again", || backend(&cluster, owner, &drained)["state"] == "up");
}

fn drain_for_a_time() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let drained = address(&cluster, 0);
    let since = Instant::now();
    cluster.succeed(owner, &["drain", &drained, "--for", "6s"]);
    cluster.succeed(owner, &["reload"]);
    let shown = backend(&cluster, owner, &drained);
    let as_expected = shown["state"] == "draining";
    cluster.check(as_expected || since.elapsed() > Duration::from_secs(6), || shown.to_string());
    cluster.wait("it takes connections again", || backend(&cluster, owner, &drained)["state"] == "up");
    let took = since.elapsed();
    cluster.check(took >= Duration::from_secs(6), || format!("after {took:?}"));
}

fn reload() {
    let mut cluster = Cluster::start(Plan::v3("100ms"));
    let owner = cluster.wait_until_settled();
    let shown = cluster.succeed(owner, &["reload"]);
    cluster.check(shown.contains("nothing has changed"), || shown.clone());
    cluster.plan = cluster.plan.clone().instance("priority: 190");
    let file = cluster.config_file(owner);
    std::fs::write(&file, cluster.plan.render(&cluster.lan)).expect("the file is written");
    let shown = cluster.succeed(owner, &["reload"]);
    cluster.check(shown.contains("+ ") && shown.contains("priority: 190"), || shown.clone());
    cluster.check(cluster.status(owner)["instances"][0]["priority"] == 190, || "it is not in use".to_owned());
    std::fs::write(&file, "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec: {odd: 1}\n")
        .expect("the file is written");
    cluster.refuse(owner, &["reload"], 65, "odd");
    cluster.check(cluster.degraded(owner).contains("not reloaded"), || cluster.degraded(owner));
    cluster.check(cluster.owners() == [owner], || "the VIP moved".to_owned());
}

fn log_level() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let text = || cluster.daemon(0).log().text();
    cluster.check(!text().contains("TRACE"), || "trace lines before".to_owned());
    cluster.succeed(0, &["log-level", "trace"]);
    cluster.wait("trace lines are written", || text().contains("TRACE"));
    let shown = cluster.succeed(0, &["log-level"]);
    cluster.check(shown.trim() == "the log level is trace", || shown.clone());
    cluster.succeed(0, &["log-level", "default"]);
    cluster.refuse(0, &["log-level", "loud"], 64, "loud");
}
