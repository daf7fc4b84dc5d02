//! External changes of the addresses or the link of the Active.

use std::time::{Duration, Instant};

use testbed::{AddressWatch, Capture, Lan, Node, Signal};

use crate::support::crash::VRID;
use crate::support::{Cluster, Plan, TIMEOUT, VIP_HOST};

/// The promised time until the VIP is restored, with a margin for a loaded machine: for ordinary users the daemon has
/// no real-time priority.
const RESTORE_LIMIT: Duration = Duration::from_millis(100);

fn check_vip_answers(cluster: &Cluster) {
    let probe = testbed::Probe::to(cluster.address()).start(cluster.client()).expect("the probe starts");
    if let Err(error) = probe.wait_until_stable(Duration::from_millis(100), TIMEOUT) {
        cluster.fail(&format!("the VIP does not answer: {error}"));
    }
}

/// The duration of the last absence of the address; `None` if it was never absent.
fn absence(cluster: &Cluster, watch: &AddressWatch) -> Option<Duration> {
    let periods = watch.periods(cluster.vip());
    let [.., before, after] = periods.as_slice() else { return None };
    Some(after.from.duration_since(before.until?))
}

pub(crate) fn deleted(plan: Plan) {
    let slow = if plan.v4 { Plan::default() } else { Plan::default().v6_only() };
    for plan in [slow, plan] {
        let cluster = Cluster::start(plan);
        let owner = cluster.wait_until_settled();
        let watch = AddressWatch::on(cluster.node(owner)).expect("the watch begins");
        let mut absences = Vec::new();
        for round in 0..10 {
            cluster.node(owner).delete_address(cluster.vip()).expect("the address is deleted");
            cluster.wait("the VIP is restored", || watch.periods(cluster.vip()).len() == round + 2);
            absences.extend(absence(&cluster, &watch));
        }
        println!("MEASURED a deleted VIP was absent for {absences:?}");
        absences.sort_unstable();
        // One of ten may coincide with a stall of the machine.
        cluster.check(absences[8] <= RESTORE_LIMIT, || format!("{absences:?}"));
        cluster.check(cluster.takeovers() == 1, || "the VIP moved".to_owned());
        check_vip_answers(&cluster);
    }
}

/// Waits for one owner, the former one or its successor, and checks that the VIP answers.
fn check_recovery(cluster: &Cluster, owner: usize, watch: &AddressWatch, since: Instant) {
    let next = cluster.wait_for_owner(None);
    println!("MEASURED one owner {:?} after the fault; moved: {}", since.elapsed(), next != owner);
    if next == owner {
        println!("MEASURED the VIP was absent for {:?}", absence(cluster, watch));
    }
    check_vip_answers(cluster);
}

pub(crate) fn flushed(plan: Plan) {
    let cluster = Cluster::start(plan);
    let owner = cluster.wait_until_settled();
    let watch = AddressWatch::on(cluster.node(owner)).expect("the watch begins");
    let since = Instant::now();
    flush(cluster.node(owner));
    cluster.node(owner).configure().expect("the node's addresses are configured");
    check_recovery(&cluster, owner, &watch, since);
    // The same if the node's own addresses are not restored.
    let owner = cluster.wait_for_owner(None);
    let since = Instant::now();
    flush(cluster.node(owner));
    let next = cluster.wait_for_owner(Some(owner));
    println!("MEASURED a node without addresses was followed by another after {:?}", since.elapsed());
    cluster.check(!cluster.node(owner).has_address(cluster.vip()), || "the VIP remains".to_owned());
    cluster.check(next != owner, || "the owner has no address to advertise from".to_owned());
    check_vip_answers(&cluster);
}

fn flush(node: &Node) {
    node.exec("ip", ["addr", "flush", "dev", node.interface()]).unwrap_or_else(|error| panic!("{error}"));
}

pub(crate) fn link_bounced(plan: Plan) {
    let cluster = Cluster::start(plan);
    let owner = cluster.wait_until_settled();
    let watch = AddressWatch::on(cluster.node(owner)).expect("the watch begins");
    let since = Instant::now();
    cluster.node(owner).link_down().expect("the link is set down");
    cluster.node(owner).link_up().expect("the link is set up");
    cluster.node(owner).configure().expect("the node's addresses are configured");
    check_recovery(&cluster, owner, &watch, since);
}

/// The only node serves the VIP again after a fault: within [`RESTORE_LIMIT`] of the claim, which comes with the first
/// advertisement. A daemon that is delayed may see the link or the node's own addresses only once they are restored,
/// and then the VIP rightly stays, or is restored before the test checks.
pub(crate) fn alone(plan: Plan) {
    let mut cluster = Cluster::build(Lan::builder().controllers(1), plan);
    cluster.start_all();
    cluster.wait_until_settled();
    let watch = AddressWatch::on(cluster.node(0)).expect("the watch begins");
    let capture = cluster.lan.capture().expect("the capture begins");
    let faults: [fn(&Node); 2] = [flush, |node| {
        node.link_down().expect("the link is set down");
        node.link_up().expect("the link is set up");
    }];
    for fault in faults {
        let since = Instant::now();
        fault(cluster.node(0));
        cluster.node(0).configure().expect("the node's addresses are configured");
        if cluster.vip().is_ipv6() && !cluster.node(0).has_address(cluster.node(0).link_local()) {
            // The kernel adds the link-local address only when the link comes up.
            cluster
                .node(0)
                .add_address(cluster.node(0).link_local(), 64)
                .expect("the link-local address is added");
        }
        check_vip_answers(&cluster);
        let periods = watch.periods(cluster.vip());
        let Some(back) = periods.last().map(|it| it.from).filter(|from| *from >= since) else {
            println!("MEASURED the VIP stayed");
            continue;
        };
        let claimed = capture
            .adverts(VRID)
            .into_iter()
            .map(|(at, _)| at)
            .find(|at| *at >= since && *at + RESTORE_LIMIT >= back);
        let claimed =
            claimed.unwrap_or_else(|| cluster.fail("the VIP was restored without an advertisement"));
        println!(
            "MEASURED the VIP was restored {:?} after the claim",
            back.saturating_duration_since(claimed)
        );
    }
}

/// A unicast instance's Backup that loses its configured source can neither send nor receive. It must stay in Init, not
/// become Active.
pub(crate) fn unicast_source() {
    let plan = Plan::v3("100ms").instance("unicastSourceIP: OWN").instance("unicastPeers: [PEER]");
    let mut cluster = Cluster::build(Lan::builder().controllers(2), plan);
    for index in 0..2 {
        let command = cluster.command(index);
        let (own, peer) = (cluster.node(index).v4().to_string(), cluster.node(1 - index).v4().to_string());
        let file = cluster.config_file(index);
        let text = std::fs::read_to_string(&file).expect("the configuration was written");
        std::fs::write(&file, text.replace("OWN", &own).replace("PEER", &peer))
            .expect("the configuration is written");
        cluster.launch(index, command);
    }
    for index in 0..2 {
        cluster.wait("the daemon answers", || cluster.try_status(index).is_some());
    }
    let owner = cluster.wait_until_settled();
    let backup = 1 - owner;
    let capture = Capture::on(cluster.client()).expect("the capture begins");
    let node = cluster.node(backup);
    let (lan, other) = (cluster.lan.prefix_lengths().0, cluster.lan.v4(77));
    node.add_address(other, lan).expect("another address is added");
    node.delete_address(node.v4()).expect("the source is deleted");
    cluster.wait("the Backup waits for its source", || {
        let status = cluster.status(backup);
        let shown = status["degraded"].to_string().contains("unicastSourceIP");
        shown && status["instances"][0]["state"] == "init"
    });
    let waiting = Instant::now();
    cluster.wait("six Active_Down_Intervals have passed", || waiting.elapsed() > Duration::from_secs(2));
    cluster.check(cluster.owners() == [owner], || format!("owners: {:?}", cluster.owners()));
    let announced = capture.announcements(cluster.vip());
    let wrong = announced.iter().filter(|(_, it)| it.mac == node.mac()).count();
    cluster.check(wrong == 0, || format!("the Backup announced itself {wrong} times"));
    node.add_address(node.v4(), lan).expect("the source is added");
    cluster.wait("the instance is Backup again", || {
        let status = cluster.status(backup);
        let quiet = !status["degraded"].to_string().contains("unicastSourceIP");
        quiet && status["instances"][0]["state"] == "backup"
    });
    check_vip_answers(&cluster);
}

/// The node's own addresses and routes, without lifetimes.
fn own(cluster: &Cluster, node: &Node) -> (Vec<String>, Vec<String>) {
    let vips = [cluster.lan.v4(VIP_HOST).to_string(), cluster.lan.v6(VIP_HOST).to_string()];
    let ip = |arguments: &[&str]| {
        let text = node.exec("ip", arguments.iter().copied()).unwrap_or_else(|error| panic!("{error}"));
        let lines = text.lines().filter(|line| !vips.iter().any(|vip| line.contains(vip.as_str())));
        // The first words are the address or the destination with its route; lifetimes follow.
        let mut lines: Vec<String> = lines.map(without_lifetimes).collect();
        lines.sort_unstable();
        lines
    };
    let addresses: Vec<String> = ip(&["-o", "addr", "show", "dev", "eth0"]);
    let mut routes = ip(&["-4", "route", "show"]);
    routes.extend(ip(&["-6", "route", "show"]));
    (addresses, routes)
}

fn without_lifetimes(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            // The number that follows is a remaining lifetime.
            "valid_lft" | "preferred_lft" | "expires" => drop(words.next()),
            // The test itself restores the link-local address without duplicate address detection.
            "nodad" => {}
            "\\" => {}
            _ => kept.push(word),
        }
    }
    kept.join(" ")
}

/// After a flush and SIGKILL only the VIP expires, for either setting of promote_secondaries and for leased own
/// addresses, too.
pub(crate) fn survive() {
    let long = Duration::from_secs(600);
    let lans = [
        ("promote_secondaries=0", Lan::builder()),
        ("promote_secondaries=1", Lan::builder().promote_secondaries()),
        ("promote_secondaries=0, leased", Lan::builder().leased_addresses(long)),
        ("promote_secondaries=1, leased", Lan::builder().promote_secondaries().leased_addresses(long)),
    ];
    for (name, lan) in lans {
        // A single controller: without a peer that could take over, the flushed node restores the VIP.
        let mut cluster = Cluster::build(lan.controllers(1), Plan::v3("100ms").dual_stack());
        let before = own(&cluster, cluster.node(0));
        cluster.start_all();
        cluster.wait_until_settled();
        flush(cluster.node(0));
        cluster.node(0).configure().expect("the node's addresses are configured");
        // The kernel adds the link-local address only when the link comes up.
        let link_local = cluster.node(0).link_local();
        cluster.node(0).add_address(link_local, 64).expect("the link-local address is added");
        cluster.wait_for_owner(None);
        cluster.signal(0, Signal::SIGKILL);
        cluster.wait_until_ended(0);
        cluster.check(cluster.node(0).has_address(cluster.vip()), || {
            "the VIP was removed with the daemon".to_owned()
        });
        cluster.wait("the VIP has expired", || cluster.owners().is_empty());
        cluster.wait("the IPv6 VIP has expired", || !cluster.node(0).has_address(cluster.lan.v6(VIP_HOST)));
        let after = own(&cluster, cluster.node(0));
        cluster.check(before == after, || format!("{name}: before {before:#?}, after {after:#?}"));
    }
}
