//! `cplb history`: all nodes know the same Actives, also after restarts.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use testbed::{Keepalived, KeepalivedState, Lan, Probe, Signal, Test, Tool, VrrpInstance};

use crate::support::{Cluster, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("all_nodes_know_the_same_actives_after_20_mixed_failovers", mixed_failovers)
            .needs([Tool::Nft]),
        Test::new("all_nodes_know_the_same_actives_ipv6", || {
            let mut cluster = started(Plan::v3("100ms").v6_only());
            let mut order = vec![cluster.wait_until_settled()];
            for way in [Way::Handover, Way::Kill, Way::Stop] {
                fail_over(&mut cluster, way, &mut order);
            }
            expect_order(&cluster, &order);
        })
        .needs([Tool::Nft]),
        Test::new("history_of_a_daemon_that_does_not_run_is_read_from_its_file", from_the_file)
            .needs([Tool::Nft]),
        Test::new("keepalived_that_is_active_is_known_as_heard", with_keepalived)
            .needs([Tool::Nft, Tool::Keepalived]),
    ]
}

/// A way in which the Active loses the VIP.
#[derive(Debug, Clone, Copy)]
enum Way {
    Handover,
    Stop,
    Kill,
    Freeze,
    Link,
    Standby,
}

fn started(plan: Plan) -> Cluster {
    let mut cluster = Cluster::build(Lan::builder(), plan);
    cluster.start_all();
    cluster
}

/// The output of `cplb history`, which may have to read the file.
fn shown(cluster: &Cluster, index: usize, arguments: &[&str]) -> Output {
    let directory = cluster.state_dir(index);
    let directory = directory.to_str().expect("UTF-8");
    cluster.cplb(index, &[&["history", "--state-dir", directory], arguments].concat())
}

fn history(cluster: &Cluster, index: usize) -> Value {
    let output = shown(cluster, index, &["--json"]);
    cluster.check(output.status.success(), || format!("{output:?}"));
    serde_json::from_slice(&output.stdout).expect("the history is JSON")
}

/// The nodes that were Active with the reasons, in their order, as a node knows them.
fn terms(cluster: &Cluster, index: usize) -> Vec<(String, String)> {
    let document = history(cluster, index);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let terms = document["terms"].as_array().expect("a list");
    terms.iter().map(|term| (text(&term["node"]), text(&term["reason"]))).collect()
}

fn name(cluster: &Cluster, index: usize) -> String {
    cluster.node(index).name().to_owned()
}

/// Makes the Active lose the VIP in this way, adds the next one to `order`, and repairs the former one.
fn fail_over(cluster: &mut Cluster, way: Way, order: &mut Vec<usize>) {
    cluster.wait_until_all_know_each_other();
    let active = *order.last().expect("one was Active");
    match way {
        Way::Handover => _ = cluster.succeed(active, &["handover"]),
        Way::Standby => _ = cluster.succeed(active, &["standby"]),
        Way::Stop => _ = cluster.signal(active, Signal::SIGTERM),
        Way::Kill => _ = cluster.signal(active, Signal::SIGKILL),
        Way::Freeze => _ = cluster.signal(active, Signal::SIGSTOP),
        Way::Link => cluster.node(active).link_down().expect("the link goes down"),
    }
    let mut next = None;
    // The status of a frozen daemon is not asked for.
    cluster.wait("another node is Active", || {
        next = (0..cluster.len())
            .find(|index| *index != active && cluster.node(*index).has_address(cluster.vip()));
        next.is_some()
    });
    let next = next.expect("it was found");
    cluster.wait("it is Active", || cluster.state(next).as_deref() == Some("active"));
    match way {
        Way::Handover => {}
        Way::Standby => _ = cluster.succeed(active, &["active"]),
        Way::Stop | Way::Kill => {
            cluster.wait_until_ended(active);
            cluster.start_daemon(active);
        }
        Way::Freeze => _ = cluster.signal(active, Signal::SIGCONT),
        Way::Link => cluster.node(active).link_up().expect("the link comes up"),
    }
    order.push(next);
    cluster.check(cluster.wait_for_owner(None) == next, || format!("{way:?}: it did not stay with {next}"));
}

/// Waits until each node knows that these nodes were Active in this order, and all of the same reasons.
fn expect_order(cluster: &Cluster, order: &[usize]) {
    let expected: Vec<String> = order.iter().map(|index| name(cluster, *index)).collect();
    let known = || (0..cluster.len()).map(|index| terms(cluster, index)).collect::<Vec<_>>();
    let is_known = |all: &[Vec<(String, String)>]| {
        let nodes = all[0].iter().map(|(node, _)| node);
        all.iter().all(|terms| *terms == all[0]) && nodes.eq(&expected)
    };
    let mut last = known();
    let agreed = testbed::wait_until("all nodes know the same", TIMEOUT, || {
        last = known();
        is_known(&last)
    });
    cluster.check(agreed.is_ok(), || format!("{expected:?} were Active, known is {last:#?}"));
    cluster.check(last[0].iter().all(|(_, reason)| !reason.is_empty()), || format!("no reason: {last:?}"));
}

fn mixed_failovers() {
    const WAYS: [Way; 6] = [Way::Handover, Way::Kill, Way::Stop, Way::Link, Way::Freeze, Way::Standby];
    let mut cluster = started(Plan::v3("100ms"));
    let mut order = vec![cluster.wait_until_settled()];
    for number in 0..20 {
        fail_over(&mut cluster, WAYS[number % WAYS.len()], &mut order);
    }
    expect_order(&cluster, &order);
    // Also after a restart of one node and the sudden end of another one.
    cluster.wait_until_all_know_each_other();
    let active = order[order.len() - 1];
    let others: Vec<usize> = (0..cluster.len()).filter(|index| *index != active).collect();
    for (index, signal) in others.into_iter().zip([Signal::SIGTERM, Signal::SIGKILL]) {
        cluster.signal(index, signal);
        cluster.wait_until_ended(index);
        cluster.start_daemon(index);
    }
    expect_order(&cluster, &order);
    // What an operator reads.
    let text = cluster.succeed(active, &["history"]);
    let lines = text.lines().filter(|line| line.contains("  Active: ")).count();
    cluster.check(lines == order.len(), || format!("not {} lines: {text}", order.len()));
    let vip = cluster.vip().to_string();
    cluster.check(text.contains(&vip) && text.contains(" fell silent"), || text.clone());
    let all = cluster.succeed(active, &["history", "--all"]);
    cluster.check(all.lines().count() > 2 * lines, || all.clone());
    println!("{text}");
    let last = cluster.succeed(active, &["history", "--since", "0s"]);
    cluster.check(last.lines().filter(|line| line.contains("  Active: ")).count() == 1, || last.clone());
}

fn from_the_file() {
    let mut cluster = started(Plan::v3("100ms"));
    let active = cluster.wait_until_settled();
    cluster.wait("the history is written", || cluster.state_dir(active).join("history.json").exists());
    let known = terms(&cluster, active);
    cluster.signal(active, Signal::SIGKILL);
    cluster.wait_until_ended(active);
    let output = shown(&cluster, active, &[]);
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let as_expected = output.status.success() && error.contains("no cplb daemon answers");
    cluster.check(as_expected && text.contains("  Active: "), || format!("{output:?}"));
    cluster.check(terms(&cluster, active) == known, || format!("not {known:?}: {text}"));
    // A file that is no history, and the answer of one that begins anew.
    let file = cluster.state_dir(active).join("history.json");
    std::fs::write(&file, "{").expect("the file is written");
    let output = shown(&cluster, active, &[]);
    cluster.check(output.status.code() == Some(69) && file.exists(), || format!("{output:?}"));
    cluster.start_daemon(active);
    cluster.wait("the loss is reported", || cluster.degraded(active).contains("history"));
    cluster.wait_for_owner(None);
    expect_since_started(&cluster, active);
}

/// The history begins with the start of the daemon, and the others tell what they know of themselves.
fn expect_since_started(cluster: &Cluster, index: usize) {
    cluster.wait("the others have told", || {
        let document = history(cluster, index);
        let nodes = |entry: &Value| entry["node"].as_str().unwrap_or_default().to_owned();
        let entries: Vec<String> =
            document["entries"].as_array().expect("a list").iter().map(nodes).collect();
        (0..cluster.len()).all(|node| entries.contains(&name(cluster, node)))
    });
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    let stable = probe.wait_until_stable(Duration::from_millis(100), TIMEOUT);
    cluster.check(stable.is_ok(), || "the VIP does not answer".to_owned());
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
    let (own, other) = (name(&cluster, 0), cluster.node(1).v4().to_string());
    cluster.succeed(0, &["handover", "--to", &other]);
    let nodes = |terms: Vec<(String, String)>| terms.into_iter().map(|(node, _)| node).collect::<Vec<_>>();
    cluster.wait("keepalived was heard", || nodes(terms(&cluster, 0)) == [own.clone(), other.clone()]);
    let text = cluster.succeed(0, &["history"]);
    cluster.check(text.contains("does not report itself"), || text.clone());
}
