//! Faults of the Active node or of its cable.

use std::time::{Duration, Instant};

use testbed::{AddressWatch, Capture, Direction, Mac, Probe, Signal};

use crate::support::{Cluster, Plan, TIMEOUT};

/// The lease at these intervals, and the longest time until the kernel has removed the address (measured: 1.02 s later)
/// with a margin for a loaded machine.
const LEASE: Duration = Duration::from_secs(2);
const LEASE_OVER: Duration = Duration::from_millis(3200);

/// A cluster with captures, watches and a probe.
struct Fixture {
    cluster: Cluster,
    owner: usize,
    watches: Vec<AddressWatch>,
    /// Frames at the client, whose view of the VIP is checked.
    client_capture: Capture,
    probe: Probe,
    since: Instant,
}

impl Fixture {
    fn new(plan: Plan) -> Self {
        let cluster = Cluster::start(plan);
        let owner = cluster.wait_until_settled();
        // Backups take over from a degraded Active after 2 s of serving.
        cluster.wait("all nodes have served for 2 s", || {
            (0..cluster.len()).all(|index| {
                cluster.status(index)["serving"]["sinceSeconds"].as_f64().is_some_and(|since| since > 2.0)
            })
        });
        let watches = cluster.lan.controllers().iter().map(AddressWatch::on);
        let watches = watches.collect::<Result<_, _>>().expect("the watches begin");
        let client_capture = Capture::on(cluster.client()).expect("the capture begins");
        // Every connection resolves the VIP again, so that two answers would be recorded.
        let probe = Probe::to(cluster.address()).every(Duration::from_millis(10)).fresh_neighbour();
        let probe = probe.start(cluster.client()).expect("the probe starts");
        probe.wait_until_stable(Duration::from_millis(200), TIMEOUT).expect("the VIP answers");
        Self { cluster, owner, watches, client_capture, probe, since: Instant::now() }
    }

    /// Waits until another controller has the VIP and clients reach it, and checks the blackout.
    fn recovered(&self, what: &str, limit: Duration) -> usize {
        let next = self.cluster.wait_for_owner(Some(self.owner));
        if let Err(error) = self.probe.wait_until_stable(Duration::from_millis(300), TIMEOUT) {
            self.cluster.fail(&format!("the VIP does not answer: {error}"));
        }
        let blackout = self.probe.report().blackout_since(self.since).duration();
        println!("MEASURED {what}: {blackout:?} without the VIP, allowed {limit:?}");
        self.cluster.check(blackout <= limit, || format!("{what}: {blackout:?}, allowed are {limit:?}"));
        next
    }

    /// Checks that the former owner lost the address within `limit`.
    fn lost_within(&self, limit: Duration) {
        let lost = self.watches[self.owner].wait_for_loss(self.cluster.vip(), TIMEOUT);
        let lost = lost.ok().flatten().unwrap_or_else(|| self.cluster.fail("the former owner keeps the VIP"));
        let after = lost.saturating_duration_since(self.since);
        println!("MEASURED the former owner lost the VIP after {after:?}, allowed {limit:?}");
        self.cluster
            .check(after <= limit, || format!("the VIP was kept for {after:?}, allowed are {limit:?}"));
    }

    /// Checks that the client received announcements of `owner` only, once the lease is over.
    fn one_answers(&self, owner: usize, lease_over: Duration) {
        let from = self.since + lease_over;
        self.cluster.wait("the lease is over and the client has resolved the VIP again", || {
            Instant::now() > from + Duration::from_millis(300)
        });
        let mac = self.cluster.node(owner).mac();
        let answers: Vec<(Duration, Mac)> = self
            .client_capture
            .announcements(self.cluster.vip())
            .into_iter()
            .filter(|(at, _)| *at >= from)
            .map(|(at, announcement)| (at.duration_since(self.since), announcement.mac))
            .collect();
        self.cluster.check(!answers.is_empty(), || "no node answers for the VIP".to_owned());
        let wrong: Vec<_> = answers.iter().filter(|(_, answered)| *answered != mac).collect();
        self.cluster.check(wrong.is_empty(), || format!("{mac} has the VIP, but also answered: {wrong:?}"));
    }

    /// Checks the cluster after the fault has ended: one owner, and the client reaches it.
    fn healed(&self) {
        let owner = self.cluster.wait_for_owner(None);
        if let Err(error) = self.probe.wait_until_stable(Duration::from_millis(300), TIMEOUT) {
            self.cluster.fail(&format!("the VIP does not answer after the fault: {error}"));
        }
        self.check_owner(owner);
    }

    fn check_owner(&self, owner: usize) {
        self.cluster
            .check(self.watches[owner].has(self.cluster.vip()), || "the owner has lost the VIP".to_owned());
    }
}

/// Active_Down_Interval at 1 s and priority 200 in version 2, with the largest offset, and a margin for a loaded
/// machine.
const SLOW: Duration = Duration::from_millis(3219 + 100 + 400);
/// The same at 100 ms in version 3.
const FAST: Duration = Duration::from_millis(322 + 25 + 400);
/// A client without a neighbour entry may reach the predecessor until its lease is over, and then waits up to 1 s for
/// its next attempt.
const FRESH: Duration = Duration::from_millis(3020 + 500);

pub(crate) fn killed_slow() {
    killed(Plan::default());
}

pub(crate) fn killed(plan: Plan) {
    let limit = SLOW.max(FRESH);
    let mut fixture = Fixture::new(plan);
    fixture.since = fixture.cluster.signal(fixture.owner, Signal::SIGKILL);
    let next = fixture.recovered("SIGKILL", limit);
    // No process was left to remove it: the kernel did.
    fixture.lost_within(LEASE_OVER);
    fixture.one_answers(next, LEASE_OVER);
}

pub(crate) fn stopped() {
    let mut fixture = Fixture::new(Plan::default());
    fixture.since = fixture.cluster.signal(fixture.owner, Signal::SIGSTOP);
    let next = fixture.recovered("SIGSTOP", SLOW.max(FRESH));
    fixture.lost_within(LEASE_OVER);
    fixture.cluster.wait("ten seconds have passed", || fixture.since.elapsed() > Duration::from_secs(10));
    fixture.cluster.signal(fixture.owner, Signal::SIGCONT);
    let owner = fixture.owner;
    fixture
        .cluster
        .wait("the stopped node is Backup", || fixture.cluster.state(owner).as_deref() == Some("backup"));
    fixture.one_answers(next, fixture.since.elapsed().max(LEASE_OVER));
    fixture.one_answers(next, LEASE_OVER);
    fixture.cluster.check(fixture.watches[owner].periods(fixture.cluster.vip()).len() == 1, || {
        "the stopped node had the VIP again".to_owned()
    });
}

pub(crate) fn link_down(plan: Plan) {
    let mut fixture = Fixture::new(plan);
    fixture.since = Instant::now();
    fixture.cluster.node(fixture.owner).link_down().expect("the link is set down");
    let next = fixture.recovered("link down", FAST);
    fixture.one_answers(next, LEASE_OVER);
    fixture.cluster.node(fixture.owner).link_up().expect("the link is set up");
    fixture.cluster.node(fixture.owner).configure().expect("the addresses are configured");
    fixture.healed();
}

pub(crate) fn unplugged(plan: Plan) {
    let mut fixture = Fixture::new(plan);
    fixture.since = Instant::now();
    fixture.cluster.lan.unplug(fixture.cluster.node(fixture.owner)).expect("the cable is unplugged");
    let next = fixture.recovered("cable unplugged", FAST);
    fixture.lost_within(LEASE_OVER);
    fixture.one_answers(next, LEASE_OVER);
    fixture.cluster.lan.plug(fixture.cluster.node(fixture.owner)).expect("the cable is plugged in");
    fixture.healed();
}

/// Cuts the Active off in one direction or both.
fn cut(plan: Plan, direction: Direction) -> Fixture {
    let mut fixture = Fixture::new(plan);
    fixture.since = Instant::now();
    fixture.cluster.lan.cut(fixture.cluster.node(fixture.owner), direction).expect("the cut is made");
    fixture
}

/// The isolated node may keep the address, as no host receives its frames. The client's view is checked.
pub(crate) fn cut_off(plan: Plan) {
    let fixture = cut(plan, Direction::Both);
    let next = fixture.recovered("cut off", FAST);
    fixture.one_answers(next, LEASE_OVER);
    fixture.cluster.lan.heal_all().expect("the cut is healed");
    fixture.healed();
}

/// An Active that cannot send hears its successor, asserts itself for one Active_Down_Interval without effect, and
/// yields.
pub(crate) fn cannot_send(plan: Plan) {
    let fixture = cut(plan, Direction::From);
    let next = fixture.recovered("cannot send", FAST);
    fixture.lost_within(LEASE + FAST + FAST);
    fixture.one_answers(next, LEASE_OVER);
    fixture.cluster.lan.heal_all().expect("the cut is healed");
    fixture.healed();
}

/// An Active that cannot receive is heard by all, so its Backups wait until it finds that it reaches no other backend:
/// two checks of 1 s, then two degraded advertisements and Skew_Time.
pub(crate) fn cannot_receive(plan: Plan) {
    let fixture = cut(plan, Direction::To);
    let evidence = Duration::from_millis(300 + 22 + 4000);
    let next = fixture.recovered("cannot receive", evidence + Duration::from_millis(500));
    fixture.one_answers(next, fixture.since.elapsed());
    fixture.cluster.lan.heal_all().expect("the cut is healed");
    fixture.healed();
}
