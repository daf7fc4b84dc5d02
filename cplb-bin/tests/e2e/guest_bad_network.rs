//! The election on a network that delays each frame by 0 to 40 ms and loses one of a hundred, with the real binary.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use testbed::{Impairment, Lan, Mac, Probe, Signal, Test, Tool};

use crate::support::crash::{Crashes, senders};
use crate::support::{Cluster, Plan, TIMEOUT, binary};

const LOSSY: Impairment =
    Impairment { delay: Duration::from_millis(20), jitter: Duration::from_millis(20), loss_percent: 1.0 };
/// The additional duration of a client's exchange on this network: three round trips, and one retransmitted segment.
const EXCHANGE_DELAY: Duration = Duration::from_millis(6 * 40 + 400);
/// The time for an announcement to arrive: one may be lost, or overtaken by that of an equal which yields, and is
/// repeated every 500 ms. Two losses in a row are rare enough.
const ANNOUNCEMENT_DELAY: Duration = Duration::from_secs(1);

pub(crate) fn tests() -> Vec<Test> {
    let test =
        |name, body: fn()| Test::new(name, body).needs([Tool::Nft, Tool::Tc]).files([binary()]).in_guest();
    // The time without a VIP is measured on an emulated machine: nothing else may load it.
    vec![
        test("vip_stays_on_a_lossy_network_at_100_ms", || no_moves(Plan::v3("100ms"))),
        test("vip_stays_on_a_lossy_network_at_1_s", || no_moves(Plan::default())),
        test("vip_moves_after_a_crash_on_a_lossy_network_at_100_ms", || {
            crashes(Plan::v3("100ms"), Duration::from_millis(100), Duration::from_millis(22), 8);
        })
        .alone(),
        test("vip_moves_after_a_crash_on_a_lossy_network_at_1_s", || {
            crashes(Plan::default(), Duration::from_secs(1), Duration::from_millis(219), 3);
        })
        .alone(),
        test("vip_is_handed_over_on_a_lossy_network", handover),
    ]
}

fn cluster(plan: Plan) -> Cluster {
    let mut cluster = Cluster::build(Lan::builder(), plan);
    cluster.lan.impair(LOSSY).expect("the kernel has netem");
    cluster.start_all();
    cluster.wait_until_settled();
    cluster
}

/// Equals that started together may have been rivals; from then on lost and late advertisements move no VIP.
fn no_moves(plan: Plan) {
    let cluster = cluster(plan);
    let owner = cluster.wait_for_owner(None);
    let (before, since) = (cluster.takeovers(), Instant::now());
    let capture = cluster.lan.capture().expect("the capture starts");
    // A fixed time of observation: there is no event to wait for.
    std::thread::sleep(Duration::from_secs(20));
    cluster.check(cluster.takeovers() == before, || "the VIP moved".to_owned());
    let adverts: BTreeSet<Mac> = senders(&capture, since, None).into_iter().collect();
    cluster
        .check(adverts == BTreeSet::from([cluster.node(owner).mac()]), || format!("adverts of {adverts:?}"));
}

fn crashes(plan: Plan, interval: Duration, skew: Duration, count: usize) {
    let mut cluster = cluster(plan);
    let offset = (interval / 4).min(Duration::from_millis(100));
    // The last advertisement may have been lost on its way to the successor, and the one before may have been delayed.
    let down = 3 * interval + skew + offset + 2 * LOSSY.jitter;
    let bound = down + EXCHANGE_DELAY + ANNOUNCEMENT_DELAY + Duration::from_millis(150);
    // Jitter is larger than the offsets that separate equals: both may take over, and one yields.
    Crashes::of(&mut cluster, bound).every(Duration::from_millis(20)).that_may_bounce().run(count);
}

/// The bound of a lost resignation is Active_Down_Interval; one that arrives costs Skew_Time and the delay.
fn handover() {
    let mut cluster = cluster(Plan::v3("100ms"));
    let mut blackouts = Vec::new();
    for _ in 0..6 {
        let owner = cluster.wait_until_settled();
        let probe = Probe::to(cluster.address()).every(Duration::from_millis(20));
        let probe = probe.start(cluster.client()).expect("the probe starts");
        let at = cluster.signal(owner, Signal::SIGTERM);
        let successor = cluster.wait_for_owner(Some(owner));
        cluster.wait_until_ended(owner);
        probe
            .wait_for_success(Instant::now(), TIMEOUT)
            .unwrap_or_else(|error| cluster.fail(&error.to_string()));
        let blackout = probe.stop().blackout_since(at).duration();
        cluster.check(blackout < Duration::from_millis(345) + EXCHANGE_DELAY + ANNOUNCEMENT_DELAY, || {
            format!("blackout {blackout:?}")
        });
        cluster.check(cluster.owners() == [successor], || "the VIP is on two nodes".to_owned());
        blackouts.push(blackout);
        cluster.start_daemon(owner);
    }
    eprintln!(
        "6 handovers: blackout median {:?}, worst {:?}",
        crate::support::median(&blackouts),
        blackouts.iter().max()
    );
}
