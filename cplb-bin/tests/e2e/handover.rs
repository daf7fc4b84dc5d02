//! The planned handover: SIGTERM to the Active while a client connects every 2 ms.
//!
//! The bounds are those of the product's promise: a median of at most 20 ms and a worst case of at most 100 ms. The
//! load balancer runs at normal priority, so on a loaded machine a round measures the load as well. A round in which
//! the probe, a thread of the tests, or one of a daemon waited for a processor for [`NOISE`] is repeated, at most
//! [`REPEATS`] times per required one; after that rounds count as they are, and the worst case may be longer by the wait
//! that was measured in the same round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use testbed::{
    AddressWatch, Failure, Keepalived, KeepalivedState, Lan, Probe, ProbeReport, SessionState, Sessions,
    Signal, Test, Tool, VrrpInstance,
};

use crate::support::{Cluster, Plan, TIMEOUT, median};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("twenty_handovers_at_100_ms_stay_within_the_blackout_bound", || {
            bounded(Plan::v3("100ms"), 20);
        })
        .needs([Tool::Nft]),
        Test::new("handovers_stay_within_the_blackout_bound_ipv6", || {
            bounded(Plan::v3("100ms").v6_only(), 10);
        })
        .needs([Tool::Nft]),
        Test::new("twenty_handovers_at_1_s_stay_within_the_blackout_bound", || bounded(Plan::default(), 20))
            .needs([Tool::Nft]),
        Test::new("handover_resets_all_sessions_before_the_vip_is_removed", sessions).needs([Tool::Nft]),
        Test::new("keepalived_takes_over_from_a_stopped_cplb", to_keepalived)
            .needs([Tool::Nft, Tool::Keepalived]),
    ]
}

/// The promised bounds.
const MEDIAN: Duration = Duration::from_millis(20);
const WORST: Duration = Duration::from_millis(100);
/// A longer stall makes a round useless.
const NOISE: Duration = Duration::from_millis(15);
/// Largest number of noisy rounds per required one.
const REPEATS: usize = 1;
/// Period before and after a handover in which all probes must succeed.
const STABLE: Duration = Duration::from_millis(100);

/// One measured handover.
#[derive(Debug)]
struct Round {
    blackout: Duration,
    stall: Duration,
}

/// Measures the longest time for which a runnable thread of normal priority did not run.
struct StallMeter {
    stop: Arc<AtomicBool>,
    worst: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl StallMeter {
    fn start() -> Self {
        const INTERVAL: Duration = Duration::from_millis(1);
        let (stop, worst) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, longest) = (Arc::clone(&stop), Arc::clone(&worst));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let before = Instant::now();
                thread::sleep(INTERVAL);
                let late = before.elapsed().saturating_sub(INTERVAL);
                longest.fetch_max(u64::try_from(late.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self { stop, worst, thread: Some(thread) }
    }

    fn worst(&self) -> Duration {
        Duration::from_micros(self.worst.load(Ordering::Relaxed))
    }
}

impl Drop for StallMeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The time for which each thread of the running daemons has waited for a processor since its start.
fn waits(cluster: &Cluster) -> BTreeMap<u32, Duration> {
    let running = (0..cluster.len()).filter_map(|index| cluster.running(index));
    let threads = running.flat_map(|daemon| {
        let pid = daemon.pid();
        daemon.threads().into_iter().map(move |(id, _)| (pid, id))
    });
    threads
        .filter_map(|(pid, id)| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/task/{id}/schedstat")).ok()?;
            Some((id, Duration::from_nanos(text.split_whitespace().nth(1)?.parse().ok()?)))
        })
        .collect()
}

/// The longest of these waits since `before`.
fn longest_wait(cluster: &Cluster, before: &BTreeMap<u32, Duration>) -> Duration {
    let now = waits(cluster);
    let waited = |(id, wait): (&u32, &Duration)| Some(wait.saturating_sub(*before.get(id)?));
    now.iter().filter_map(waited).max().unwrap_or_default()
}

impl Round {
    /// The longest blackout that is allowed.
    fn bound(&self) -> Duration {
        if self.stall < NOISE { WORST } else { WORST + self.stall }
    }

    fn of(report: &ProbeReport, meter: &StallMeter, waited: Duration, since: Instant) -> Self {
        let stall = report.own_stall_since(since).max(meter.worst()).max(waited);
        Self { blackout: report.blackout_since(since).duration(), stall }
    }
}

/// Collects `count` rounds; noisy ones are repeated up to the limit.
fn measured_rounds(count: usize, mut round: impl FnMut() -> Round) -> Vec<Round> {
    let (mut measured, mut noisy) = (Vec::new(), Vec::new());
    while measured.len() < count {
        let round = round();
        // The noise alone decides, so that good figures are not selected.
        if round.stall < NOISE || noisy.len() >= REPEATS * count {
            measured.push(round);
        } else {
            noisy.push(round);
        }
    }
    println!("{measured:?}; repeated: {noisy:?}");
    measured
}

fn probe(cluster: &Cluster) -> Probe {
    let probe = Probe::to(cluster.address()).start(cluster.client()).expect("the probe starts");
    wait_until_stable(cluster, &probe);
    probe
}

fn wait_until_stable(cluster: &Cluster, probe: &Probe) {
    if let Err(error) = probe.wait_until_stable(STABLE, TIMEOUT) {
        cluster.fail(&format!("the VIP does not answer all the time: {error}"));
    }
}

/// Stops the Active, waits for its successor, and restarts the stopped daemon as a Backup that can serve.
fn hand_over(cluster: &mut Cluster) -> Round {
    let owner = cluster.wait_for_owner(None);
    let probe = probe(cluster);
    let (meter, before) = (StallMeter::start(), waits(cluster));
    let stopped = cluster.signal(owner, Signal::SIGTERM);
    let status = cluster.wait_until_ended(owner);
    cluster.check(status.success(), || format!("the daemon ended with {status}"));
    let next = cluster.wait_for_owner(None);
    cluster.check(next != owner, || "the stopped node has the VIP".to_owned());
    let waited = longest_wait(cluster, &before);
    wait_until_stable(cluster, &probe);
    let round = Round::of(&probe.stop(), &meter, waited, stopped);
    cluster.start_daemon(owner);
    cluster.wait("the restarted daemon can serve", || {
        cluster.try_status(owner).is_some_and(|status| status["serving"]["serving"] == true)
    });
    round
}

fn bounded(plan: Plan, rounds: usize) {
    let mut cluster = Cluster::start(plan);
    let rounds = measured_rounds(rounds, || hand_over(&mut cluster));
    let blackouts: Vec<Duration> = rounds.iter().map(|round| round.blackout).collect();
    let (middle, worst) = (median(&blackouts), blackouts.iter().max().copied().unwrap_or_default());
    println!("median {middle:?}, worst {worst:?}");
    cluster.check(middle <= MEDIAN, || format!("the median of {blackouts:?} is {middle:?}"));
    let late: Vec<&Round> = rounds.iter().filter(|round| round.blackout > round.bound()).collect();
    cluster.check(late.is_empty(), || format!("longer than allowed: {late:?}"));
}

fn sessions() {
    const COUNT: usize = 60;
    for plan in [Plan::v3("100ms"), Plan::default()] {
        let cluster = Cluster::start(plan);
        let owner = cluster.wait_for_owner(None);
        let watch = AddressWatch::on(cluster.node(owner)).expect("the watch begins");
        let sessions =
            Sessions::open(cluster.client(), cluster.address(), COUNT).expect("the sessions are opened");
        let stopped = cluster.signal(owner, Signal::SIGTERM);
        cluster.wait("all sessions have ended", || sessions.ended() == COUNT);
        let lost = watch
            .wait_for_loss(cluster.vip(), TIMEOUT)
            .expect("the VIP is released")
            .expect("the owner had the VIP");
        let mut last = Duration::ZERO;
        for state in sessions.states() {
            let SessionState::Ended(at, failure) = state else { continue };
            cluster.check(failure == Failure::Reset, || format!("a session ended by {failure:?}"));
            // The resets precede the removal; the client may be scheduled a little later.
            cluster.check(at <= lost + WORST, || {
                format!("a session ended {:?} after the VIP was removed", at.duration_since(lost))
            });
            last = last.max(at.duration_since(stopped));
        }
        println!("the last of {COUNT} sessions was reset {last:?} after SIGTERM");
        cluster.wait_until_ended(owner);
    }
}

fn to_keepalived() {
    let mut cluster = Cluster::build(Lan::builder().controllers(2), Plan::default());
    let (len4, _) = cluster.lan.prefix_lengths();
    let instance = VrrpInstance::v2(51, [(cluster.vip(), len4)]).password("Example").nopreempt();
    cluster.start_daemon(0);
    cluster.wait_for_owner(None);
    // The daemon is Active and of equal priority, so keepalived stays a backup.
    let keepalived =
        Keepalived::start(cluster.node(1), std::slice::from_ref(&instance)).expect("keepalived starts");
    keepalived
        .wait_for_state(&instance, KeepalivedState::Backup, TIMEOUT)
        .unwrap_or_else(|error| cluster.fail(&error.to_string()));
    let probe = probe(&cluster);
    let (meter, before) = (StallMeter::start(), waits(&cluster));
    let stopped = cluster.signal(0, Signal::SIGTERM);
    cluster.wait_until_ended(0);
    keepalived
        .wait_for_state(&instance, KeepalivedState::Master, TIMEOUT)
        .unwrap_or_else(|error| cluster.fail(&error.to_string()));
    let waited = longest_wait(&cluster, &before);
    wait_until_stable(&cluster, &probe);
    let Round { blackout, stall } = Round::of(&probe.stop(), &meter, waited, stopped);
    println!("keepalived as successor: {blackout:?} (stall {stall:?})");
    let owners = cluster.owners();
    cluster.check(owners == [1], || format!("owners: {owners:?}"));
    // Not part of the promise, but removal in the wrong order would cost a second.
    cluster.check(blackout <= Duration::from_millis(500), || format!("{blackout:?}"));
}
