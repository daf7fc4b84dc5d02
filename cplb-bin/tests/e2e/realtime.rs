//! Failovers of the real binary at intervals that need real-time scheduling. They need root.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testbed::{AddressWatch, Mac, Probe, Signal, Test, Tool};

use crate::support::crash::{Crashes, StallMonitor, senders};
use crate::support::{Cluster, Plan, TIMEOUT, median};

pub(crate) fn tests() -> Vec<Test> {
    let test = |name, body: fn()| Test::new(name, body).needs([Tool::Nft]).needs_root_realtime();
    vec![
        test("crash_at_100_ms_recovers_within_450_ms", at_100_ms),
        test("crash_at_10_ms_recovers_within_60_ms", at_10_ms),
        test("crash_at_10_ms_recovers_within_60_ms_ipv6", at_10_ms_v6),
        test("busy_loops_cause_no_false_takeover_at_10_ms", beside_busy_loops),
        test("client_without_neighbour_entry_recovers_when_the_lease_ends", without_neighbour_entry),
    ]
}

fn at_100_ms() {
    let mut cluster = realtime(Plan::v3("100ms"));
    Crashes::of(&mut cluster, Duration::from_millis(450)).every(Duration::from_millis(2)).run(5);
}

fn at_10_ms() {
    crash_at_10_ms(Plan::v3("10ms"), 20);
}

fn at_10_ms_v6() {
    crash_at_10_ms(Plan::v3("10ms").v6_only(), 10);
}

fn crash_at_10_ms(plan: Plan, count: usize) {
    let mut cluster = realtime(plan);
    let worst = Duration::from_millis(150);
    let crashes =
        Crashes::of(&mut cluster, worst).every(Duration::from_millis(2)).that_may_bounce().run(count);
    let blackouts: Vec<Duration> = crashes.iter().map(|crash| crash.blackout).collect();
    // The proxies and the servers run at ordinary priority. Crashes that are explained by a stall of such threads alone
    // are not counted against the daemon; on an idle machine there is none.
    let own: Vec<Duration> =
        crashes.iter().filter(|crash| crash.stall < STALL).map(|crash| crash.blackout).collect();
    let typical = median(if own.len() >= blackouts.len() / 2 { &own } else { &blackouts });
    let bound = Duration::from_millis(60);
    cluster.check(typical <= bound, || format!("the median blackout is {typical:?}: {crashes:?}"));
}

/// The stall of an ordinary thread from which on a blackout of some tens of milliseconds is meaningless.
const STALL: Duration = Duration::from_millis(15);

/// Number of busy loops, whatever the number of processors.
const LOOPS: usize = 12;
const SPAN: Duration = Duration::from_secs(20);

/// Largest number of rounds. Active_Down_Interval is 33 ms. A hypervisor that suspends the processors for longer looks
/// like a false takeover; it does so rarely, and busy loops would cause one in each round.
const ROUNDS: usize = 3;

fn beside_busy_loops() {
    let cluster = realtime(Plan::v3("10ms"));
    let mut faults = Vec::new();
    while faults.len() < ROUNDS {
        match busy_round(&cluster) {
            Ok(()) => return,
            Err(fault) => faults.push(fault),
        }
    }
    cluster.fail(&format!("a false takeover in each of {ROUNDS} rounds: {faults:?}"));
}

fn busy_round(cluster: &Cluster) -> Result<(), String> {
    let owner = cluster.wait_for_owner(None);
    let mac = cluster.node(owner).mac();
    let (before, capture) = (cluster.takeovers(), cluster.lan.capture().expect("the capture starts"));
    let since = Instant::now();
    let load = Load::start(LOOPS);
    std::thread::sleep(SPAN);
    drop(load);
    let adverts = capture.adverts(crate::support::crash::VRID);
    let times: Vec<Instant> = adverts.iter().map(|(at, _)| *at).filter(|at| *at >= since).collect();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    eprintln!("{} advertisements beside {LOOPS} busy loops, the longest gap {gap:?}", times.len());
    let advertisers: BTreeSet<Mac> = senders(&capture, since, None).into_iter().collect();
    let moved = cluster.takeovers() - before;
    let is_unchanged =
        advertisers == BTreeSet::from([mac]) && moved == 0 && cluster.wait_for_owner(None) == owner;
    is_unchanged.then_some(()).ok_or_else(|| {
        format!("{moved} takeovers, advertisements of {advertisers:?}, the longest gap {gap:?}")
    })
}

/// The kernel of a killed owner answers for the VIP until its lease is over. A client that resolves the VIP meanwhile
/// may cache that answer until the successor's next announcement.
fn without_neighbour_entry() {
    let mut cluster = realtime(Plan::v3("100ms"));
    for _ in 0..3 {
        let victim = cluster.wait_for_owner(None);
        let watch = AddressWatch::on(cluster.node(victim)).expect("addresses are watched");
        let monitor = StallMonitor::start();
        let probe = Probe::to(cluster.address()).every(Duration::from_millis(10)).fresh_neighbour();
        let probe = probe.start(cluster.client()).expect("the probe starts");
        let answered = probe.wait_until_stable(Duration::from_millis(200), TIMEOUT);
        answered.unwrap_or_else(|error| cluster.fail(&error.to_string()));
        let at = cluster.signal(victim, Signal::SIGKILL);
        cluster.wait_for_owner(Some(victim));
        let lease = match watch.wait_for_loss(cluster.vip(), TIMEOUT) {
            Ok(lost) => lost.unwrap_or(at).saturating_duration_since(at),
            Err(error) => cluster.fail(&error.to_string()),
        };
        let answered = probe.wait_until_stable(Duration::from_secs(1), TIMEOUT);
        answered.unwrap_or_else(|error| cluster.fail(&error.to_string()));
        let report = probe.stop();
        let gap = report.blackout_since(at);
        let stall = report.own_stall_since(at).max(monitor.worst_since(at));
        eprintln!(
            "blackout {:?}, the dead node's lease ended after {lease:?}, stall {stall:?}",
            gap.duration()
        );
        let failing =
            report.samples().iter().filter(|sample| sample.started >= at && sample.outcome.is_err());
        let last = failing.map(|sample| sample.started).max().unwrap_or(at).saturating_duration_since(at);
        let bound = lease + Duration::from_millis(500) + stall;
        cluster.check(gap.duration() <= bound, || format!("blackout {:?}, bound {bound:?}", gap.duration()));
        cluster.check(last <= bound, || format!("a client started {last:?} after the crash failed"));
        cluster.wait_until_ended(victim);
        cluster.start_daemon(victim);
        cluster.wait_until_settled();
    }
}

/// A settled cluster whose daemons report real-time priority.
fn realtime(plan: Plan) -> Cluster {
    let cluster = Cluster::start(plan);
    for index in 0..cluster.len() {
        let status = cluster.status(index);
        cluster.check(status["realTime"] == true, || format!("no real-time priority: {status:#}"));
    }
    cluster
}

/// Threads that compute without a pause, until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..count).map(|_| std::thread::spawn(spin(Arc::clone(&stop)))).collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
