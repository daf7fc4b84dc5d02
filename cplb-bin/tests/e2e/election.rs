//! Elections among nodes of equal priority with the real binary: one owner, one move per crash, and one owner after a
//! split.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use testbed::{AddressWatch, Lan, Mac, Node, Probe, Test, Tool};

use crate::support::crash::{Crashes, StallMonitor, announcers, senders};
use crate::support::{Cluster, PORT, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("vip_moves_once_in_each_of_20_crashes_with_the_settings_of_k0s", crashes_of_k0s)
            .needs([Tool::Nft]),
        Test::new("three_equal_nodes_started_together_elect_one_active_within_5_s", start).needs([Tool::Nft]),
        Test::new("vip_moves_once_in_each_of_20_crashes", crashes_at_100_ms).needs([Tool::Nft]),
        Test::new("vip_moves_once_in_each_crash_ipv6_only", crashes_v6).needs([Tool::Nft]),
        Test::new("both_families_of_an_instance_move_together", dual_stack).needs([Tool::Nft]),
        Test::new("healed_split_has_one_owner_in_neighbour_caches", heals).needs([Tool::Nft]),
        Test::new("healed_split_has_one_owner_ipv6_only", heals_v6).needs([Tool::Nft]),
    ]
}

/// Active_Down_Interval at k0s's priority of 200, the largest offset among equals, and 150 ms of tolerance.
fn crash_bound(interval: Duration, version: u8) -> Duration {
    let skew = if version == 2 { Duration::from_secs(1) } else { interval } * 56 / 256;
    let offset = (interval / 4).min(Duration::from_millis(100));
    3 * interval + skew + offset + Duration::from_millis(150)
}

fn start() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default());
    let capture = cluster.lan.capture().expect("the capture starts");
    let monitor = StallMonitor::start();
    let started = Instant::now();
    cluster.start_all();
    let owner = cluster.wait_for_owner(None);
    let took = started.elapsed();
    eprintln!("one Active after {took:?}");
    cluster.check(took <= Duration::from_secs(5) + monitor.worst_since(started), || {
        format!("the election took {took:?}")
    });
    cluster.wait_until_settled();

    let mac = cluster.node(owner).mac();
    let since = Instant::now();
    // The client resolves the VIP again and again: only one node may answer.
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(20)).fresh_neighbour();
    let probe = probe.start(cluster.client()).expect("the probe starts");
    cluster.wait("the Active advertises three times", || senders(&capture, since, Some(mac)).len() >= 3);
    drop(probe);
    let answers: BTreeSet<Mac> = capture.announcements(cluster.vip()).iter().map(|(_, it)| it.mac).collect();
    cluster.check(answers == BTreeSet::from([mac]), || format!("answers for the VIP by {answers:?}"));
    let adverts: BTreeSet<Mac> = senders(&capture, started, None).into_iter().collect();
    cluster.check(adverts == BTreeSet::from([mac]), || format!("adverts of {adverts:?}"));
    cluster.check(cluster.takeovers() == 1, || format!("{} takeovers", cluster.takeovers()));
}

/// At a short interval the offsets of equals are the smallest.
fn crashes_at_100_ms() {
    let interval = Duration::from_millis(100);
    let mut cluster = Cluster::start(Plan::v3("100ms"));
    Crashes::of(&mut cluster, crash_bound(interval, 3)).run(20);
}

fn crashes_of_k0s() {
    let mut cluster = Cluster::start(Plan::default());
    Crashes::of(&mut cluster, crash_bound(Duration::from_secs(1), 2)).run(20);
}

fn crashes_v6() {
    let mut cluster = Cluster::start(Plan::v3("100ms").v6_only());
    Crashes::of(&mut cluster, crash_bound(Duration::from_millis(100), 3)).run(4);
}

fn dual_stack() {
    let mut cluster = Cluster::start(Plan::v3("100ms").dual_stack());
    let watches = watch(&cluster);
    Crashes::of(&mut cluster, crash_bound(Duration::from_millis(100), 3)).run(4);
    let [v4, v6] = [cluster.vips()[0], cluster.vips()[1]];
    // The addresses of a killed owner end with their leases, which the kernel counts for each address separately; the
    // requirement is that both were added together.
    for watch in &watches {
        let (first, second) = (watch.periods(v4), watch.periods(v6));
        cluster.check(first.len() == second.len(), || format!("{v4}: {first:?}, {v6}: {second:?}"));
        for (a, b) in first.iter().zip(&second) {
            let lag = a.from.max(b.from) - a.from.min(b.from);
            cluster.check(lag <= INTERVAL_OF_BOTH, || format!("one family came {lag:?} after the other"));
        }
    }
    let owner = cluster.wait_for_owner(None);
    for vip in [v4, v6] {
        let owners: Vec<_> =
            (0..cluster.len()).filter(|&index| cluster.node(index).has_address(vip)).collect();
        cluster.check(owners == [owner], || format!("{vip} is on {owners:?}, the Active is {owner}"));
    }
}

/// An instance with both families may hold only one of them for at most one advertisement interval.
const INTERVAL_OF_BOTH: Duration = Duration::from_millis(100);

fn heals() {
    heal_every_way(Plan::default().dual_stack(), Duration::from_secs(1));
}

fn heals_v6() {
    heal_every_way(Plan::v3("100ms").v6_only(), Duration::from_millis(100));
}

/// The winner after the split, and the client's side during it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    /// The owner of the other side wins; the client was on the side of the former owner.
    OtherWins,
    /// The former owner wins; the client was on the other side, whose address it must replace.
    OwnerWins,
    /// The client reached both sides all the time.
    ClientBetween,
}

/// Among equals the highest address wins, and a node that was isolated and detected it loses. So the lowest node,
/// isolated, loses at any interval.
fn heal_every_way(plan: Plan, interval: Duration) {
    let mut cluster = Cluster::build(Lan::builder(), plan);
    cluster.start_daemon(LOWEST);
    cluster.wait_for_owner(None);
    (1..cluster.len()).for_each(|index| cluster.start_daemon(index));
    cluster.wait_until_settled();
    split_and_heal(&cluster, interval, Split::OtherWins, LOWEST);
    split_and_heal(&cluster, interval, Split::OwnerWins, LOWEST);
    let owner = cluster.wait_for_owner(None);
    split_and_heal(&cluster, interval, Split::ClientBetween, owner);
}

/// The controller with the lowest address.
const LOWEST: usize = 0;

/// Isolates one controller from the two others until both sides have an owner, and checks the owner after the heal.
fn split_and_heal(cluster: &Cluster, interval: Duration, case: Split, alone: usize) {
    let capture = cluster.lan.capture().expect("the capture starts");
    let watches = watch(cluster);
    let monitor = StallMonitor::start();
    let client = cluster.client();
    let former = cluster.wait_for_owner(None);
    // The client has a neighbour entry for each VIP, like clients that use them.
    let probe = |vip| Probe::to(SocketAddr::new(vip, PORT)).every(Duration::from_millis(20)).start(client);
    let probes: Vec<Probe> =
        cluster.vips().into_iter().map(|vip| probe(vip).expect("the probe starts")).collect();
    cluster.wait("the client has neighbour entries for the VIPs", || {
        cluster.vips().into_iter().all(|vip| knows(client, vip, cluster.node(former).mac()))
    });
    let (mut one, two): (Vec<&Node>, Vec<&Node>) =
        cluster.lan.controllers().iter().partition(|node| node.name() == cluster.node(alone).name());
    match case {
        // In both cases the client is on the side that loses.
        Split::OtherWins | Split::OwnerWins => one.push(client),
        Split::ClientBetween => {}
    }
    cluster.lan.partition(&[&one, &two]).expect("the LAN is split");
    cluster.wait("each side has an owner", || cluster.owners().len() == 2);
    let rivals = cluster.owners();
    let pair: BTreeSet<Mac> = rivals.iter().map(|&index| cluster.node(index).mac()).collect();
    let split = Instant::now();
    cluster.wait("both sides advertise", || {
        senders(&capture, split, None).into_iter().collect::<BTreeSet<_>>() == pair
    });
    cluster.lan.heal_all().expect("the LAN is healed");
    let healed = Instant::now();
    let winner = cluster.wait_for_owner(None);
    let loser = rivals.into_iter().find(|&rival| rival != winner).expect("there were two");
    match case {
        Split::OtherWins => cluster.check(winner != former, || "the former owner won".to_owned()),
        Split::OwnerWins => cluster.check(winner == former, || format!("{winner} won, not {former}")),
        Split::ClientBetween => {}
    }
    let mac = cluster.node(winner).mac();
    let lost: Vec<Instant> = cluster
        .vips()
        .into_iter()
        .map(|vip| match watches[loser].wait_for_loss(vip, TIMEOUT) {
            Ok(at) => at.unwrap_or(healed),
            Err(error) => cluster.fail(&error.to_string()),
        })
        .collect();
    let contended = lost.into_iter().max().unwrap_or(healed).saturating_duration_since(healed);
    cluster.wait("the client's neighbour entries point to the winner", || {
        cluster.vips().into_iter().all(|vip| knows(client, vip, mac))
    });
    let known = healed.elapsed();
    let stall = monitor.worst_since(healed);
    eprintln!(
        "{case:?} at {interval:?}: one owner after {contended:?}, known after {known:?}, stall {stall:?}"
    );
    let bound = interval + MARGIN + stall;
    cluster.check(contended <= bound, || format!("two owners for {contended:?} after the heal"));
    let bound = bound + BETWEEN_ANNOUNCEMENTS;
    cluster
        .check(known <= bound, || format!("the client had the winner in its cache {known:?} after the heal"));
    // The winner keeps the VIP, and no other node announces it.
    let won = Instant::now();
    cluster.wait("the winner advertises three times more", || senders(&capture, won, Some(mac)).len() >= 3);
    let adverts: BTreeSet<Mac> = senders(&capture, won, None).into_iter().collect();
    cluster.check(adverts == BTreeSet::from([mac]), || format!("adverts of {adverts:?} after the heal"));
    let announced = announcers(&capture, cluster, won);
    cluster.check(announced.iter().all(|it| *it == mac), || {
        format!("announcements of {announced:?} after the heal")
    });
    cluster.check(cluster.wait_for_owner(None) == winner, || "the VIP moved after the heal".to_owned());
    for vip in cluster.vips() {
        cluster.check(knows(client, vip, mac), || format!("the client lost its neighbour entry for {vip}"));
    }
    for probe in probes {
        let answered = probe.wait_until_stable(Duration::from_millis(200), TIMEOUT);
        answered.unwrap_or_else(|error| cluster.fail(&error.to_string()));
    }
}

/// Returns whether the node's ARP or NDP entry for `ip` is `mac`.
fn knows(node: &Node, ip: IpAddr, mac: Mac) -> bool {
    node.neighbour(ip).expect("neighbours are listed").is_some_and(|entry| entry.mac == Some(mac))
}

/// The minimum interval of announcements that rivals provoke (which limits their rate); a client that reaches both
/// sides may have received the loser's announcement last.
const BETWEEN_ANNOUNCEMENTS: Duration = Duration::from_millis(500);

/// Tolerance for an ordinary user's scheduling and the removal of addresses, in addition to one advertisement interval.
const MARGIN: Duration = Duration::from_millis(250);

fn watch(cluster: &Cluster) -> Vec<AddressWatch> {
    let watches = cluster.lan.controllers().iter().map(AddressWatch::on);
    watches.collect::<Result<_, _>>().expect("addresses are watched")
}
