//! The state that a daemon leaves after a clean stop and after a crash: none of its own, and foreign state is
//! unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use testbed::{AddressWatch, Lan, Node, Signal, Test, Tool};

use crate::support::{Cluster, OTHER_HOST, Plan, TIMEOUT, VIP_HOST};

pub(crate) fn tests() -> Vec<Test> {
    let tools = [Tool::Nft, Tool::Ip];
    vec![
        Test::new("sigterm_removes_own_state_and_keeps_foreign_state", stop).needs(tools).alone(),
        Test::new("sigterm_during_startup_leaves_no_state", early_stop).needs(tools).alone(),
        Test::new("stop_completes_with_a_frozen_keeper", stop_with_a_stuck_keeper).needs(tools),
        Test::new("restart_after_sigkill_removes_only_own_leftovers", restart).needs(tools),
        Test::new("restart_with_other_vips_removes_the_previous_vips", restart_with_another_vip).needs(tools),
    ]
}

/// A foreign table, with one rule like the daemon's.
const FOREIGN_TABLE: &str = "table inet foreign { chain pre { type nat hook prerouting priority -100; \
                             ip daddr 10.9.0.200 tcp dport 6443 redirect to :1; }; }";

/// The kernel state of a node that a daemon can change, as text.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    addresses: Vec<String>,
    routes: Vec<String>,
    labels: Vec<String>,
    ruleset: String,
    sysctls: BTreeMap<String, String>,
}

impl Traces {
    fn of(node: &Node) -> Self {
        let ip = |arguments: &[&str]| sorted(&run(node, "ip", arguments));
        let mut routes = ip(&["-4", "route", "show", "table", "all"]);
        routes.extend(ip(&["-6", "route", "show", "table", "all"]));
        Self {
            addresses: ip(&["-o", "addr", "show"]),
            routes,
            labels: ip(&["addrlabel", "list"]),
            ruleset: run(node, "nft", &["list", "ruleset"]),
            sysctls: node.run(|| {
                let mut found = sysctls(Path::new("/proc/sys/net/ipv4/conf/eth0"));
                found.extend(sysctls(Path::new("/proc/sys/net/ipv6/conf/eth0")));
                found
            }),
        }
    }
}

fn sysctls(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).expect("the interface has settings");
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            // Some sysctls are write-only.
            Some((path.display().to_string(), fs::read_to_string(path).ok()?))
        })
        .collect()
}

fn run(node: &Node, program: &str, arguments: &[&str]) -> String {
    node.exec(program, arguments.iter().copied()).unwrap_or_else(|error| panic!("{error}"))
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.sort_unstable();
    lines
}

/// Adds foreign state that resembles the daemon's: a table, and addresses beside the VIPs.
fn add_foreign_state(lan: &Lan, node: &Node) {
    run(node, "nft", &[FOREIGN_TABLE]);
    for ip in [IpAddr::V4(lan.v4(OTHER_HOST)), IpAddr::V6(lan.v6(OTHER_HOST))] {
        // A host address on the same interface resembles a VIP most.
        let address = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        run(node, "ip", &["addr", "add", &address, "dev", "eth0"]);
    }
    run(node, "ip", &["addrlabel", "add", "prefix", "fd44::/64", "label", "77"]);
}

/// A dual-stack cluster with foreign state on every controller, and the traces before any daemon has started.
fn cluster_with_foreign_state(controllers: u8, plan: Plan) -> (Cluster, Vec<Traces>) {
    let cluster = Cluster::build(Lan::builder().controllers(controllers), plan);
    for node in cluster.lan.controllers() {
        add_foreign_state(&cluster.lan, node);
    }
    let traces = cluster.lan.controllers().iter().map(Traces::of).collect();
    (cluster, traces)
}

/// Stops a daemon and compares its node with the traces from before its start.
fn stop_and_compare(cluster: &Cluster, index: usize, before: &Traces) {
    cluster.signal(index, Signal::SIGTERM);
    let status = cluster.wait_until_ended(index);
    cluster.check(status.success(), || format!("the daemon ended with {status}"));
    let after = Traces::of(cluster.node(index));
    cluster.check(&after == before, || format!("before: {before:#?}\nafter: {after:#?}"));
    cluster.check(!cluster.socket(index).exists(), || "the status socket remains".to_owned());
    let left = entries(&cluster.state_dir(index));
    // What has happened is for the operator, also after the daemon has ended.
    cluster.check(left.iter().all(|file| file == "history.json"), || {
        format!("files in the state directory: {left:?}")
    });
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

/// Returns whether a daemon has locked the network namespace of a node, independent of its directories.
fn is_locked(node: &Node) -> bool {
    let sockets =
        node.run(|| fs::read_to_string("/proc/thread-self/net/unix")).expect("the file is readable");
    sockets.lines().any(|line| line.ends_with(" @cplb"))
}

fn vips(cluster: &Cluster) -> [IpAddr; 2] {
    [IpAddr::V4(cluster.lan.v4(VIP_HOST)), IpAddr::V6(cluster.lan.v6(VIP_HOST))]
}

/// Checks that the traces of a running Active differ in each point, which the comparison relies on.
fn check_presence(cluster: &Cluster, owner: usize, before: &Traces) {
    let during = Traces::of(cluster.node(owner));
    cluster.check(during.addresses.len() == before.addresses.len() + 2, || format!("{during:#?}"));
    cluster.check(during.labels.len() == before.labels.len() + 1, || format!("{during:#?}"));
    cluster.check(during.ruleset.contains("table inet cplb"), || format!("{during:#?}"));
    cluster.check(during.ruleset.contains("table inet foreign"), || format!("{during:#?}"));
    cluster.check(is_locked(cluster.node(owner)), || "no lock".to_owned());
    cluster.check(cluster.socket(owner).exists(), || "no socket".to_owned());
}

fn stop() {
    let (mut cluster, before) = cluster_with_foreign_state(3, Plan::v3("100ms").dual_stack());
    cluster.start_all();
    let first = cluster.wait_until_settled();
    check_presence(&cluster, first, &before[first]);
    // The Active first, then a Backup, and last the remaining Active, which has no successor.
    stop_and_compare(&cluster, first, &before[first]);
    let second = cluster.wait_for_owner(None);
    let backup = (0..cluster.len()).find(|index| ![first, second].contains(index)).expect("there are three");
    stop_and_compare(&cluster, backup, &before[backup]);
    stop_and_compare(&cluster, second, &before[second]);
    let locked = (0..cluster.len()).any(|index| is_locked(cluster.node(index)));
    cluster.check(!locked, || "a lock remains".to_owned());
}

/// Delays from before the first change of the system to after the last one.
const EARLY: std::ops::Range<u64> = 0..30;

fn early_stop() {
    let (mut cluster, before) = cluster_with_foreign_state(1, Plan::v3("100ms").dual_stack());
    let mut caught = 0;
    for round in EARLY {
        let command = cluster.command(0);
        cluster.launch(0, command);
        thread::sleep(Duration::from_millis(round * 4));
        cluster.signal(0, Signal::SIGTERM);
        let status = cluster.wait_until_ended(0);
        // The earliest signals come before the handler is installed and end the process.
        let by_signal = status.signal() == Some(Signal::SIGTERM as i32);
        cluster.check(status.success() || by_signal, || format!("round {round}: {status}"));
        caught += u32::from(status.success());
        let after = Traces::of(cluster.node(0));
        cluster
            .check(after == before[0], || format!("round {round}: before: {before:#?}\nafter: {after:#?}"));
        cluster.check(!cluster.socket(0).exists(), || format!("round {round}: the status socket remains"));
        cluster.check(!is_locked(cluster.node(0)), || format!("round {round}: the lock remains"));
    }
    cluster.check(caught > 0, || "no daemon installed its signal handler in time".to_owned());
}

fn stop_with_a_stuck_keeper() {
    let (mut cluster, _) = cluster_with_foreign_state(1, Plan::v3("100ms"));
    cluster.start_all();
    cluster.wait_until_settled();
    let frozen = cluster
        .daemon(0)
        .freeze_threads(|name| name.starts_with("vip-keeper"))
        .expect("the thread is frozen");
    let asked = cluster.signal(0, Signal::SIGTERM);
    let ended = cluster.daemon(0).wait(TIMEOUT);
    cluster.check(ended.is_ok(), || format!("the daemon still runs: {ended:?}"));
    eprintln!("ended after {:?}", asked.elapsed());
    drop(frozen);
    cluster.wait("the lease ends", || cluster.owners().is_empty());
}

fn restart() {
    // One second, so that the leases of a killed daemon still exist when the next one starts.
    let (mut cluster, before) = cluster_with_foreign_state(3, Plan::default().dual_stack());
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let watch = AddressWatch::on(cluster.node(owner)).expect("the watch begins");
    cluster.signal(owner, Signal::SIGKILL);
    cluster.wait_until_ended(owner);
    let left = Traces::of(cluster.node(owner));
    for vip in vips(&cluster) {
        cluster.check(watch.has(vip), || format!("a killed daemon cannot have removed {vip}: {left:#?}"));
    }
    cluster.check(left.ruleset.contains("table inet cplb"), || format!("{left:#?}"));

    cluster.start_daemon(owner);
    // It removes the state of its predecessor before anything else, so before its status socket answers about an
    // election; a stall of this machine only delays this, up to the lease itself.
    for vip in vips(&cluster) {
        let gone = watch.wait_for_loss(vip, Duration::from_secs(1));
        cluster.check(gone.is_ok(), || format!("{vip} of the crashed daemon remains"));
    }
    cluster.wait_until_settled();
    let during = Traces::of(cluster.node(owner));
    let tables = during.ruleset.matches("table inet cplb").count();
    cluster.check(tables == 1, || format!("{tables} tables: {during:#?}"));
    for (index, before) in before.iter().enumerate() {
        stop_and_compare(&cluster, index, before);
    }
}

fn restart_with_another_vip() {
    let (mut cluster, before) = cluster_with_foreign_state(1, Plan::v3("100ms").dual_stack());
    cluster.start_all();
    cluster.wait_until_settled();
    cluster.signal(0, Signal::SIGKILL);
    cluster.wait_until_ended(0);
    // IPv4 only: the configuration no longer has address, label and rules of the IPv6 VIP.
    cluster.plan = Plan::v3("100ms");
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let during = Traces::of(cluster.node(0));
    let vip6 = cluster.lan.v6(VIP_HOST).to_string();
    cluster.wait("the former VIP is removed", || !cluster.node(0).has_address(cluster.lan.v6(VIP_HOST)));
    cluster.check(during.labels == before[0].labels, || format!("the label remains: {during:#?}"));
    cluster.check(!during.ruleset.contains(&vip6), || format!("a rule remains: {during:#?}"));
    stop_and_compare(&cluster, 0, &before[0]);
}
