//! Repeated crashes of the Active, measured at the client, on the LAN and at the survivors.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use testbed::{AnnouncementKind, Capture, Mac, Probe, ProbeBuilder, Signal};

use super::{Cluster, TIMEOUT};

/// The VRID of the clusters' first instance, k0s's default.
pub(crate) const VRID: u8 = 51;

/// One crash.
#[derive(Debug)]
pub(crate) struct Crash {
    #[expect(dead_code, reason = "for the report of a crash that fails its test")]
    pub(crate) victim: usize,
    #[expect(dead_code, reason = "for the report of a crash that fails its test")]
    pub(crate) successor: usize,
    /// The longest time without an answer, as the client saw it.
    pub(crate) blackout: Duration,
    /// The longest stall of the machine during the crash, of a real-time and of an ordinary thread.
    pub(crate) stall: Duration,
    /// Violations besides the blackout.
    pub(crate) faults: Vec<String>,
}

/// A series of crashes and its instruments.
pub(crate) struct Crashes<'a> {
    cluster: &'a mut Cluster,
    capture: Capture,
    monitor: StallMonitor,
    probe: ProbeBuilder,
    bound: Duration,
    may_bounce: bool,
}

impl<'a> Crashes<'a> {
    /// A series of crashes whose blackout must not exceed `bound`.
    pub(crate) fn of(cluster: &'a mut Cluster, bound: Duration) -> Self {
        let capture = cluster.lan.capture().expect("the capture starts");
        // A kernel ignores changes of an IPv4 neighbour within a second of the last change. These crashes follow each
        // other faster than that, and the test measures the takeovers.
        let locktime = format!("net.ipv4.neigh.{}.locktime", cluster.client().interface());
        cluster.client().set_sysctl(&locktime, "0").expect("the client's neighbour table is configured");
        // Half of the design's rate: three daemons, their clients and their servers share the machine.
        let probe = Probe::to(cluster.address()).every(Duration::from_millis(4));
        Self { cluster, capture, monitor: StallMonitor::start(), probe, bound, may_bounce: false }
    }

    /// Sets the interval between two connections of the client.
    pub(crate) fn every(mut self, interval: Duration) -> Self {
        self.probe = self.probe.every(interval);
        self
    }

    /// Only the blackout counts: where equal nodes are less than a millisecond apart, both may take over.
    pub(crate) fn that_may_bounce(mut self) -> Self {
        self.may_bounce = true;
        self
    }

    /// Runs this many crashes in a row, each of which must meet the requirements; the crashed daemon is started again
    /// each time.
    ///
    /// A crash during which the machine itself stalled is no evidence. It is repeated, at most half as often as
    /// requested, and the series fails if that is not enough.
    pub(crate) fn run(mut self, count: usize) -> Vec<Crash> {
        let mut done: Vec<Crash> = Vec::new();
        let mut stalled = 0;
        while done.len() < count {
            let crash = self.one();
            let excess = crash.blackout.saturating_sub(self.bound);
            if crash.faults.is_empty() && excess.is_zero() {
                done.push(crash);
                continue;
            }
            let excused = crash.stall >= NOTABLE_STALL.max(excess) && stalled < count.div_ceil(2);
            self.cluster
                .check(excused, || format!("crash {}: {crash:?}, bound {:?}", done.len(), self.bound));
            eprintln!("crash {} is done again, the machine stalled: {crash:?}", done.len());
            stalled += 1;
        }
        report(&done);
        done
    }

    fn one(&mut self) -> Crash {
        let cluster = &mut *self.cluster;
        let victim = cluster.wait_for_owner(None);
        let probe = self.probe.clone().start(cluster.client()).expect("the probe starts");
        let mut faults = Vec::new();
        probe.wait_until_stable(STABLE, TIMEOUT).unwrap_or_else(|error| cluster.fail(&error.to_string()));
        let survivors: Vec<usize> = (0..cluster.len()).filter(|&index| index != victim).collect();
        let takeovers = |cluster: &Cluster| -> usize {
            survivors
                .iter()
                .map(|&index| cluster.daemon(index).log().text().matches("to=active").count())
                .sum()
        };
        let before = takeovers(cluster);
        let at = cluster.signal(victim, Signal::SIGKILL);
        let mut successor = cluster.wait_for_owner(Some(victim));
        let answered = probe.wait_for_success(at, TIMEOUT);
        answered.unwrap_or_else(|error| cluster.fail(&error.to_string()));
        // A rival would advertise within the range of the offsets; a loser yields within one advertisement. Where equal
        // nodes may bounce, the first owner can be the loser.
        let capture = &self.capture;
        let survivors_with_vip =
            || cluster.owners().into_iter().filter(|&owner| owner != victim).collect::<Vec<_>>();
        cluster.wait("the successor advertises four times", || {
            let [owner] = survivors_with_vip()[..] else { return false };
            successor = owner;
            senders(capture, at, Some(cluster.node(owner).mac())).len() >= 4
        });
        let mac = cluster.node(successor).mac();
        let settled = cluster.wait_for_owner(Some(victim));
        let probed = probe.stop();
        let moved = takeovers(cluster) - before;
        if moved != 1 {
            faults.push(format!("{moved} takeovers"));
        }
        let own = cluster.node(victim).mac();
        let advertisers: BTreeSet<Mac> =
            senders(capture, at, None).into_iter().filter(|sender| *sender != own).collect();
        if advertisers != BTreeSet::from([mac]) {
            faults.push(format!("adverts of {advertisers:?}"));
        }
        let announced = announcers(capture, cluster, at);
        if announced != BTreeSet::from([mac]) {
            faults.push(format!("announcements of {announced:?}"));
        }
        if self.may_bounce {
            faults.clear();
        }
        let stall = probed.own_stall_since(at);
        let blackout = probed.blackout_since(at).duration();
        // A killed process keeps its sockets until the last of its threads has run once more.
        cluster.wait_until_ended(victim);
        cluster.start_daemon(victim);
        cluster.wait("the restarted daemon can serve", || {
            cluster.try_status(victim).is_some_and(|status| status["serving"]["serving"] == true)
        });
        if cluster.wait_for_owner(None) != settled {
            faults.push("the VIP moved when the crashed node came back".to_owned());
        }
        let stall = stall.max(self.monitor.worst_since(at));
        Crash { victim, successor: settled, blackout, stall, faults }
    }
}

/// The stall from which on a crash is repeated: the offsets separate equal nodes by some milliseconds.
const NOTABLE_STALL: Duration = Duration::from_millis(6);
/// Period before a crash in which all probes must succeed.
const STABLE: Duration = Duration::from_millis(100);

/// The senders of all advertisements since `at` that do not resign, or of those of `only`.
pub(crate) fn senders(capture: &Capture, at: Instant, only: Option<Mac>) -> Vec<Mac> {
    let adverts = capture.adverts(VRID).into_iter();
    adverts
        .filter(|(seen, advert)| *seen >= at && advert.priority > 0)
        .map(|(_, advert)| advert.mac)
        .filter(|mac| only.is_none_or(|only| *mac == only))
        .collect()
}

/// The senders of unsolicited announcements since `at`, for any VIP of the cluster.
pub(crate) fn announcers(capture: &Capture, cluster: &Cluster, at: Instant) -> BTreeSet<Mac> {
    let all = cluster.vips().into_iter().flat_map(|vip| capture.announcements(vip));
    all.filter(|(seen, _)| *seen >= at)
        .filter(|(_, announcement)| {
            matches!(
                announcement.kind,
                AnnouncementKind::GratuitousArp | AnnouncementKind::UnsolicitedNa { .. }
            )
        })
        .map(|(_, announcement)| announcement.mac)
        .collect()
}

fn report(crashes: &[Crash]) {
    let blackouts: Vec<Duration> = crashes.iter().map(|crash| crash.blackout).collect();
    let worst = blackouts.iter().max().copied().unwrap_or_default();
    eprintln!("{} crashes: blackout median {:?}, worst {worst:?}", crashes.len(), super::median(&blackouts));
}

/// A thread of ordinary priority that runs every 2 ms and records its stalls: the proxies and the servers of the tests
/// are such threads.
pub(crate) struct StallMonitor {
    shared: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    over: bool,
    stalls: Vec<(Instant, Duration)>,
}

impl StallMonitor {
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Mutex::new(State::default()));
        let worker = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                std::thread::sleep(Duration::from_millis(2));
                let now = Instant::now();
                let mut state = worker.lock().unwrap_or_else(PoisonError::into_inner);
                if state.over {
                    return;
                }
                state.stalls.push((now, now - last));
                last = now;
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// The longest stall since `at`.
    pub(crate) fn worst_since(&self, at: Instant) -> Duration {
        let state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let since = state.stalls.iter().filter(|(seen, _)| *seen >= at);
        since.map(|(_, stall)| *stall).max().unwrap_or_default()
    }
}

impl Drop for StallMonitor {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
