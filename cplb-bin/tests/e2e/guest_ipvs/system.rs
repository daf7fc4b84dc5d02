//! The state of the system that IPVS starts with, and the state that it leaves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipvs::{Client, Protocol, ServiceError, ServiceKey};
use nix::mount::{MsFlags, mount};
use testbed::guest::{load_module, unload_module};
use testbed::{Lan, Node, Probe, Signal};

use super::fixture::{bind_to_one_address, ipvsadm, plan, served, wait_for_servers, with_slow_election};
use crate::support::{Cluster, TIMEOUT};

/// The state that could be left on a node.
fn traces(node: &Node) -> Vec<String> {
    let run = |program: &str, arguments: &[&str]| {
        let text = node.exec(program, arguments.iter().copied()).expect("the command succeeds");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let mut all = run("ip", &["-o", "addr", "show"]);
    all.extend(run("ip", &["-o", "link", "show"]));
    all.extend(run("ip", &["route", "show", "table", "local"]));
    all.extend(run("nft", &["list", "ruleset"]));
    all.extend(run("ipvsadm", &["-Ln"]));
    for name in [
        "ipv4.conf.eth0.arp_ignore",
        "ipv4.conf.eth0.arp_announce",
        "ipv4.vs.conntrack",
        "ipv4.vs.expire_nodest_conn",
        "ipv4.vs.expire_quiescent_template",
        "ipv4.vs.conn_reuse_mode",
    ] {
        all.push(format!("{name} {}", node.sysctl(&format!("net.{name}")).expect("it exists")));
    }
    all
}

pub(crate) fn leftovers() {
    let mut cluster = Cluster::build(Lan::builder(), plan("TUN", false, 0));
    for node in cluster.lan.controllers() {
        node.exec("ipvsadm", ["-A", "-t", "192.0.2.1:80", "-s", "wlc"]).expect("a service that is foreign");
        node.exec("ip", ["link", "add", "dummy9", "type", "dummy"]).expect("a dummy that is foreign");
    }
    let before: Vec<_> = cluster.lan.controllers().iter().map(traces).collect();
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    wait_for_servers(&cluster, owner, 3);
    // One daemon is killed, started again and stopped like the others.
    cluster.signal(owner, Signal::SIGKILL);
    cluster.wait_until_ended(owner);
    cluster.start_daemon(owner);
    cluster.wait_for_owner(None);
    for node in 0..cluster.len() {
        cluster.signal(node, Signal::SIGTERM);
    }
    for (node, before) in before.iter().enumerate() {
        cluster.wait_until_ended(node);
        let after = traces(cluster.node(node));
        let odd: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
        cluster
            .check(odd.is_empty() && lost.is_empty(), || format!("node {node}: left {odd:?}, lost {lost:?}"));
    }
}

/// All modules that depend on IPVS's, and that one.
const MODULES: [&str; 16] = [
    "ip_vs_pe_sip",
    "ip_vs_ovf",
    "ip_vs_fo",
    "ip_vs_nq",
    "ip_vs_sed",
    "ip_vs_mh",
    "ip_vs_sh",
    "ip_vs_dh",
    "ip_vs_lblcr",
    "ip_vs_lblc",
    "ip_vs_wlc",
    "ip_vs_lc",
    "ip_vs_wrr",
    "ip_vs_rr",
    "ip_vs_ftp",
    "ip_vs",
];

pub(crate) fn no_module() {
    for module in MODULES {
        unload_module(module).expect("the module is unused");
    }
    let mut cluster = Cluster::build(Lan::builder(), plan("DR", false, 0));
    cluster.start_all();
    // Without IPVS every node is so no node waits for one that can serve.
    let owner = cluster.wait_for_owner(None);
    cluster.wait("the missing module is named", || cluster.degraded(owner).contains("ip_vs"));
    cluster.check(cluster.daemon(owner).log().text().contains("ip_vs"), || "it is not in the log".to_owned());
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    let answered = probe.wait_until_stable(Duration::from_millis(300), TIMEOUT);
    answered.unwrap_or_else(|error| cluster.fail(&format!("the proxy takes the place of IPVS: {error}")));
    for module in MODULES.iter().rev().filter(|module| **module != "ip_vs_ftp") {
        load_module(module).expect("it exists");
    }
    wait_for_servers(&cluster, owner, 3);
    cluster.wait("the node is not degraded", || cluster.degraded(owner) == "[]");
    drop(probe);
    let served = served(&cluster, 60);
    cluster.check(served.len() == 3, || format!("{served:?}"));
}

pub(crate) fn forwarding() {
    let mut cluster = Cluster::build(Lan::builder(), plan("NAT", false, 0));
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.ip_forward", "0").expect("it exists");
    }
    cluster.start_all();
    for node in 0..cluster.len() {
        cluster.wait("the condition is reported", || {
            cluster.degraded(node).contains("net.ipv4.ip_forward is 0")
        });
        cluster.node(node).set_sysctl("net.ipv4.ip_forward", "1").expect("it exists");
        cluster
            .wait("the condition is no longer reported", || !cluster.degraded(node).contains("ip_forward"));
    }
}

pub(crate) fn kube_proxy() {
    let mut cluster = Cluster::build(Lan::builder(), plan("NAT", false, 0));
    let add = |node: &Node| {
        node.exec("ip", ["link", "add", "kube-ipvs0", "type", "dummy"]).expect("a dummy of kube-proxy");
    };
    // kube-proxy may start before cplb, or later.
    add(cluster.node(0));
    cluster.start_all();
    cluster.wait_for_owner(None);
    add(cluster.node(1));
    let log = |node: usize| cluster.daemon(node).log().text();
    let warnings = |node: usize| log(node).matches("excludeCIDRs").count();
    cluster.wait("both nodes have logged the warning", || warnings(0) == 1 && warnings(1) == 1);
    cluster.wait("the service survives the deletion request", || {
        (0..cluster.len()).any(|node| outlives_deletion(&cluster, node))
    });
    for node in 0..cluster.len() {
        cluster.signal(node, Signal::SIGTERM);
    }
    for (node, conntrack) in [(0, "1"), (1, "1"), (2, "0")] {
        cluster.wait_until_ended(node);
        cluster.check(warnings(node) == usize::from(node < 2), || log(node));
        let left = cluster.node(node).sysctl("net.ipv4.vs.conntrack").expect("it exists");
        cluster.check(left == conntrack, || format!("node {node}: {left}"));
    }
}

/// Returns whether a director keeps its service when it receives kube-proxy's request to delete a service that matches
/// a mark, which kube-proxy takes for one of no protocol at 0.0.0.0.
fn outlives_deletion(cluster: &Cluster, node: usize) -> bool {
    let complete = || ipvsadm(cluster, node, &["-Ln"]).matches("->").count() == 4;
    if !complete() {
        return false;
    }
    let key = ServiceKey::Address { protocol: Protocol(0), address: [0; 4].into(), port: 0 };
    let delete = || async { Client::spawn().expect("a socket").delete_service(&key).await };
    let answer = cluster.node(node).block_on(delete).expect("a runtime");
    cluster.check(matches!(answer, Err(ServiceError::NotFound(_))), || format!("{answer:?}"));
    complete()
}

pub(crate) fn foreign_dummy() {
    let mut cluster = Cluster::build(Lan::builder(), plan("DR", false, 0));
    let node = cluster.node(0);
    node.exec("ip", ["link", "add", "dummyvip0", "type", "bridge"]).expect("a link that is foreign");
    let node = cluster.node(1);
    node.exec("ip", ["link", "add", "dummyvip0", "type", "dummy"]).expect("a dummy that is foreign");
    node.exec("ip", ["addr", "add", "192.0.2.7/32", "dev", "dummyvip0"]).expect("an address that is foreign");
    let before: Vec<String> = [0, 1].map(|index| links(cluster.node(index))).into();
    cluster.start_all();
    for (index, word) in [(0, "kind"), (1, "192.0.2.7")] {
        cluster.wait("the link is refused", || {
            let degraded = cluster.degraded(index);
            degraded.contains("dummyvip0") && degraded.contains(word)
        });
        cluster.check(links(cluster.node(index)) == before[index], || links(cluster.node(index)));
    }
}

fn links(node: &Node) -> String {
    node.exec("ip", ["-o", "addr", "show", "dev", "dummyvip0"]).expect("it exists")
}

/// Another program uses the sync daemon, of which a namespace can have one of each kind.
pub(crate) fn foreign_sync() {
    let mut cluster =
        Cluster::build(Lan::builder(), with_slow_election(plan("DR", false, 0).spec("ipvsSync: true")));
    let foreign = cluster.node(0);
    let start = ["--start-daemon", "master", "--mcast-interface", "eth0", "--syncid", "77"];
    foreign.exec("ipvsadm", start).expect("a sync daemon that is foreign");
    let daemons = |node: usize| ipvsadm(&cluster, node, &["-L", "--daemon"]);
    let before = daemons(0);
    cluster.start_all();
    let daemons = |node: usize| ipvsadm(&cluster, node, &["-L", "--daemon"]);
    cluster.wait("the condition is reported", || {
        cluster.degraded(0).contains("a master sync daemon runs already and is not cplb's")
    });
    let both = |text: &str| text.contains("master sync daemon") && text.contains("backup sync daemon");
    cluster.wait("all nodes have both sync daemons", || (0..cluster.len()).all(|node| both(&daemons(node))));
    cluster.check(daemons(0).contains("syncid=77"), || daemons(0));
    cluster.check(cluster.degraded(1) == "[]", || cluster.degraded(1));
    for node in 0..cluster.len() {
        cluster.signal(node, Signal::SIGTERM);
    }
    for node in 0..cluster.len() {
        cluster.wait_until_ended(node);
        let after = daemons(node);
        cluster.check(if node == 0 { after == before } else { after.trim().is_empty() }, || after.clone());
    }
}

/// A link or service that cannot be recorded is not created, as it could not be removed after a crash.
pub(crate) fn full_state() {
    let with = with_slow_election(plan("DR", false, 0));
    let mut without = with.clone();
    without.spec.retain(|line| !line.starts_with("virtualServers"));
    let mut cluster = Cluster::build(Lan::builder(), without);
    let disks: Vec<Disk> = (0..cluster.len()).map(|node| Disk::mount(&cluster.state_dir(node))).collect();
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    for (node, disk) in disks.iter().enumerate() {
        disk.fill();
        std::fs::write(cluster.config_file(node), with.render(&cluster.lan))
            .expect("the configuration is written");
        cluster.signal(node, Signal::SIGHUP);
    }
    cluster.wait("the condition is reported", || cluster.degraded(owner).contains("No space left"));
    let proxied = served(&cluster, 60);
    cluster.check(proxied.len() == 3, || format!("the proxy serves meanwhile: {proxied:?}"));
    let made = [
        ipvsadm(&cluster, owner, &["-Ln"]).contains("FWM"),
        cluster.node(owner).exec("ip", ["link"]).expect("the command succeeds").contains("dummyvip0"),
    ];
    cluster.check(made == [false; 2], || format!("{made:?}"));
    disks.iter().for_each(Disk::free_space);
    wait_for_servers(&cluster, owner, 3);
    cluster.wait("the node is not degraded", || cluster.degraded(owner) == "[]");
    let served = served(&cluster, 60);
    cluster.check(served.len() == 3, || format!("{served:?}"));
}

/// A small file system for a directory. It ends with the guest.
struct Disk {
    filler: PathBuf,
}

impl Disk {
    fn mount(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).expect("it is created");
        let options = Some("size=64k,mode=0700");
        mount(None::<&str>, directory, Some("tmpfs"), MsFlags::empty(), options).expect("it is mounted");
        Self { filler: directory.join("filler") }
    }

    fn fill(&self) {
        let written = std::fs::write(&self.filler, vec![0; 1 << 20]);
        assert!(written.is_err(), "a megabyte fits into 64 KiB");
    }

    fn free_space(&self) {
        std::fs::remove_file(&self.filler).expect("it exists");
    }
}

/// Reloads from IPVS to the proxy and back, with the virtual IP answering all the time.
pub(crate) fn reload(kind: &str) {
    let mut cluster = Cluster::build(Lan::builder(), plan(kind, false, 0));
    if kind == "NAT" {
        bind_to_one_address(&mut cluster);
    }
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    wait_for_servers(&cluster, owner, 3);
    let with = cluster.plan.clone();
    let mut without = with.clone();
    without.spec.retain(|line| !line.starts_with("virtualServers"));
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    let since = Instant::now();
    let nothing = |node: &Node| {
        let gone = |text: &str, words: &[&str]| words.iter().all(|word| !text.contains(word));
        gone(&node.exec("ipvsadm", ["-Ln"]).expect("the command succeeds"), &["FWM"])
            && gone(&node.exec("ip", ["link"]).expect("the command succeeds"), &["dummyvip0"])
            && gone(
                &node.exec("nft", ["list", "ruleset"]).expect("the command succeeds"),
                &["chain ipvs_mark"],
            )
            && node.sysctl("net.ipv4.conf.eth0.arp_ignore").expect("it exists") == "0"
    };
    for round in 0..2 {
        for (plan, reloaded) in [(&without, false), (&with, true)] {
            for node in 0..cluster.len() {
                std::fs::write(cluster.config_file(node), plan.render(&cluster.lan))
                    .expect("the configuration is written");
                cluster.signal(node, Signal::SIGHUP);
            }
            if reloaded {
                wait_for_servers(&cluster, owner, 3);
            } else {
                let all = || cluster.lan.controllers().iter().all(nothing);
                cluster.wait(&format!("nothing of IPVS is left in round {round}"), all);
            }
        }
    }
    let report = probe.stop();
    let failures = report.failures_since(since);
    cluster.check(failures.is_empty(), || format!("{failures:?} of {}", report.samples().len()));
    cluster.plan = with;
}
