//! What operators ask of a running group: `cplb handover`, `standby` and `active`.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{
    Failure, Keepalived, KeepalivedState, Lan, Probe, Readiness, Signal, Test, Tool, VrrpInstance,
};

use crate::support::{Cluster, Plan, TIMEOUT, binary};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        // 2,000 connections a second take most of a small machine.
        Test::new("twenty_moves_at_1_s_reach_the_named_node", || moves(Plan::default()))
            .needs([Tool::Nft])
            .alone(),
        Test::new("twenty_moves_at_100_ms_reach_the_named_node", || moves(Plan::v3("100ms")))
            .needs([Tool::Nft])
            .alone(),
        Test::new("moves_by_unicast_with_keys_reach_the_named_node", moves_by_unicast).needs([Tool::Nft]),
        Test::new("moves_reach_the_named_node_ipv6", || {
            few_moves(&Cluster::start(Plan::v3("100ms").v6_only()));
        })
        .needs([Tool::Nft]),
        Test::new("what_cannot_be_done_is_refused_and_moves_nothing", refusals).needs([Tool::Nft]),
        Test::new("a_node_in_standby_takes_no_vip_until_it_is_active_again", standby).needs([Tool::Nft]),
        Test::new("keepalived_may_succeed_and_cannot_be_asked", with_keepalived)
            .needs([Tool::Nft, Tool::Keepalived]),
    ]
}

/// The first move in the result of a command that succeeds.
fn moved(cluster: &Cluster, output: &Output) -> Value {
    cluster.check(output.status.success(), || format!("{output:?}"));
    let result: Value = serde_json::from_slice(&output.stdout).expect("the result is JSON");
    result["moves"][0].clone()
}

fn name(cluster: &Cluster, index: usize) -> String {
    cluster.node(index).name().to_owned()
}

/// Asks a node to move the VIP to another one, and returns what it printed, checked.
fn move_to(cluster: &Cluster, asked: usize, target: usize) -> Value {
    let owner = cluster.wait_for_owner(None);
    let shown = moved(cluster, &cluster.cplb(asked, &["handover", "--json", "--to", &name(cluster, target)]));
    let owners = cluster.owners();
    cluster.check(owners == [target], || format!("{owners:?} have the VIP, not {target}: {shown}"));
    let (from, to) = (name(cluster, owner), name(cluster, target));
    cluster.check(shown["from"] == from && shown["to"] == to, || format!("not {from} to {to}: {shown}"));
    shown
}

/// The number of times that a router became Active since then. The log may leave lines out.
fn takeovers_since(cluster: &Cluster, since: Instant) -> usize {
    let count = |index| {
        let (status, elapsed) = (cluster.status(index), since.elapsed());
        let transitions = status["instances"][0]["transitions"].as_array().cloned().unwrap_or_default();
        let recent = |change: &&Value| {
            let age = change["secondsAgo"].as_f64().unwrap_or_default();
            change["to"] == "active" && age < elapsed.as_secs_f64()
        };
        transitions.iter().filter(recent).count()
    };
    (0..cluster.len()).map(count).sum()
}

/// The printed blackout is to be within this of a client's, or within a tenth of it.
const TOLERANCE: Duration = Duration::from_millis(10);

/// The moves of which that must hold: the client, the proxies and the backends share a machine, on which each of them may
/// wait for a processor.
const EXACT_MOVES: usize = 15;

fn moves(plan: Plan) {
    let cluster = Cluster::start(plan);
    cluster.wait_until_all_know_each_other();
    let mut owner = cluster.wait_until_settled();
    let (mut reset, mut exact) = (0, 0);
    for number in 0..20 {
        let target = (owner + 1 + number % 2) % 3;
        let probes = [probe(&cluster), probe(&cluster)];
        let since = Instant::now();
        let shown = move_to(&cluster, number % 3, target);
        probes.iter().for_each(|probe| wait_until_stable(&cluster, probe));
        let takeovers = takeovers_since(&cluster, since);
        cluster.check(takeovers == 1, || format!("{takeovers} takeovers"));
        let reports = probes.map(Probe::stop);
        let mut failures = reports.each_ref().map(|report| report.failures_since(since));
        // Connections that are open when the VIP moves are reset by design; no other one fails.
        reset += failures.iter_mut().filter_map(|failures| failures.remove(&Failure::Reset)).sum::<usize>();
        cluster.check(failures.iter().all(BTreeMap::is_empty), || format!("failed: {failures:?}"));
        let client = reports.iter().map(|report| report.blackout_since(since).duration()).min();
        let stall = reports.iter().map(|report| report.own_stall_since(since)).max();
        let (client, stall) = (client.unwrap_or_default(), stall.unwrap_or_default());
        let printed = Duration::from_secs_f64(shown["blackoutSeconds"].as_f64().expect("a blackout"));
        exact += usize::from(client.abs_diff(printed) <= TOLERANCE.max(client / 10) + stall);
        println!("MEASURED {number}: client {client:?}, stall {stall:?}, printed {shown}");
        owner = target;
    }
    println!(
        "MEASURED {reset} of the connections that were open were reset; {exact} of 20 blackouts as printed"
    );
    cluster.check(exact >= EXACT_MOVES, || format!("{exact} of 20 printed blackouts are those of clients"));
}

/// 1,000 connections a second.
fn probe(cluster: &Cluster) -> Probe {
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(1));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    wait_until_stable(cluster, &probe);
    probe
}

fn wait_until_stable(cluster: &Cluster, probe: &Probe) {
    if let Err(error) = probe.wait_until_stable(Duration::from_millis(100), TIMEOUT) {
        cluster.fail(&format!("the VIP does not answer all the time: {error}"));
    }
}

/// A few moves, each asked of another node.
fn few_moves(cluster: &Cluster) {
    cluster.wait_until_all_know_each_other();
    for number in 0..6 {
        let owner = cluster.wait_for_owner(None);
        move_to(cluster, number % 3, (owner + 1 + number % 2) % 3);
    }
}

fn moves_by_unicast() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let peers: Vec<String> = (0..3).map(|index| cluster.node(index).v4().to_string()).collect();
    cluster.plan = cluster
        .plan
        .clone()
        .instance(format!("unicastPeers: [{}]", peers.join(", ")))
        .instance(format!("authHMAC: {{keys: [{{id: 1, key: {}}}]}}", "k".repeat(32)));
    cluster.start_all();
    few_moves(&cluster);
}

fn refusals() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    cluster.wait_until_all_know_each_other();
    let owner = cluster.wait_until_settled();
    let (other, third) = ((owner + 1) % 3, (owner + 2) % 3);
    let takeovers = cluster.takeovers();
    for asked in [owner, other] {
        cluster.refuse(asked, &["handover", "--to", "node-9"], 75, "no controller node-9 is known");
    }
    cluster.refuse(owner, &["handover", "10.9.0.99"], 75, "is no virtual IP of this node");
    // It is not lost yet for the others, and does not answer.
    cluster.signal(other, Signal::SIGSTOP);
    cluster.refuse(owner, &["handover", "--to", &name(&cluster, other)], 75, "does not take over");
    cluster.signal(other, Signal::SIGCONT);
    cluster.wait_until_all_know_each_other();
    let shown =
        moved(&cluster, &cluster.cplb(third, &["handover", "--json", "--to", &name(&cluster, owner)]));
    cluster.check(shown["to"] == name(&cluster, owner), || shown.to_string());
    // No node can serve.
    cluster.backends.iter().for_each(|backend| backend.set_readiness(Readiness::Status(500)));
    cluster.wait("no other node can serve", || {
        let status = cluster.status(owner);
        let all =
            status["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["serving"] == false));
        all && status["serving"]["serving"] == false
    });
    cluster.check(cluster.takeovers() <= takeovers + 3, || "the VIP moves around".to_owned());
    // One of them may have noticed it later than the Active, and may have taken over.
    let owner = cluster.wait_for_owner(None);
    let takeovers = cluster.takeovers();
    let (other, third) = ((owner + 1) % 3, (owner + 2) % 3);
    cluster.refuse(third, &["handover"], 75, "no other controller can take over");
    cluster.refuse(owner, &["handover", "--to", &name(&cluster, other)], 75, "does not take over");
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
    let nobody = Command::new(binary()).args(["handover", "--socket", "/nowhere/cplb.sock"]).output();
    let nobody = nobody.expect("cplb starts");
    let text = String::from_utf8_lossy(&nobody.stderr).into_owned();
    cluster
        .check(nobody.status.code() == Some(69) && text.contains("no cplb daemon answers"), || text.clone());
}

fn standby() {
    let mut cluster = Cluster::start(Plan::v3("100ms"));
    cluster.wait_until_all_know_each_other();
    let first = cluster.wait_until_settled();
    let shown = moved(&cluster, &cluster.cplb(first, &["standby", "--json"]));
    cluster.check(shown["from"] == name(&cluster, first), || shown.to_string());
    let second = cluster.wait_for_owner(Some(first));
    let third = 3 - first - second;
    cluster.check(cluster.degraded(first).contains("standby"), || cluster.degraded(first));
    cluster.refuse(second, &["handover", "--to", &name(&cluster, first)], 75, "standby");
    // A restart does not end it, and neither does the crash of the Active.
    cluster.signal(first, Signal::SIGTERM);
    cluster.wait_until_ended(first);
    cluster.start_daemon(first);
    cluster.check(cluster.degraded(first).contains("standby"), || cluster.degraded(first));
    cluster.signal(second, Signal::SIGKILL);
    let owner = cluster.wait_for_owner(Some(second));
    cluster.check(owner == third, || format!("{owner} took over"));
    // The last one keeps the VIP, and takes it where no other can serve.
    let output = cluster.cplb(third, &["standby"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let kept = output.status.code() == Some(75) && text.contains("no other controller can take over");
    cluster.check(kept, || format!("{output:?}"));
    cluster.check(cluster.owners().contains(&third), || "the VIP is lost".to_owned());
    cluster.signal(third, Signal::SIGKILL);
    cluster.wait("the node in standby is the last one", || cluster.state(first).as_deref() == Some("active"));
    let output = cluster.cplb(first, &["active"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    cluster
        .check(output.status.success() && text.contains("takes part in the election again"), || text.clone());
    cluster.wait("it can serve", || !cluster.degraded(first).contains("standby"));
    cluster.signal(first, Signal::SIGTERM);
    cluster.wait_until_ended(first);
    cluster.start_daemon(first);
    cluster.check(!cluster.degraded(first).contains("standby"), || cluster.degraded(first));
}

fn with_keepalived() {
    let mut cluster = Cluster::build(Lan::builder().controllers(2), Plan::default());
    let (len4, _) = cluster.lan.prefix_lengths();
    let instance = VrrpInstance::v2(51, [(cluster.vip(), len4)]).password("Example").nopreempt();
    cluster.start_daemon(0);
    cluster.wait_for_owner(None);
    let keepalived =
        Keepalived::start(cluster.node(1), std::slice::from_ref(&instance)).expect("keepalived starts");
    keepalived
        .wait_for_state(&instance, KeepalivedState::Backup, TIMEOUT)
        .unwrap_or_else(|error| cluster.fail(&error.to_string()));
    let target = cluster.node(1).v4().to_string();
    let shown = moved(&cluster, &cluster.cplb(0, &["handover", "--json", "--to", &target]));
    cluster.check(shown["to"] == target && shown["blackoutSeconds"].is_null(), || shown.to_string());
    let remark = shown["remark"].as_str().unwrap_or_default();
    cluster.check(remark.contains("keepalived"), || shown.to_string());
    let owners = cluster.owners();
    cluster.check(owners == [1], || format!("owners: {owners:?}"));
    cluster.refuse(0, &["handover"], 75, "is Active and takes no requests");
    cluster.check(cluster.owners() == [1], || "the VIP moved".to_owned());
}
