//! Servers and daemons start and stop while clients connect continuously.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::{AddressWatch, Failure, Frame, Lan, Probe, ProbeReport, Readiness, Sample, Sessions, Signal};

use super::fixture::Fixture;
use crate::support::footprint::resident;
use crate::support::{BIND_PORT, TIMEOUT};

pub(crate) fn list_changes() {
    let mut fixture = Fixture::complete();
    let probe = fixture.probe();
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    let since = Instant::now();
    fixture.list(&[0, 1]);
    fixture.served_by(&probe, &[0, 1]);
    fixture.list(&[0, 1, 2]);
    fixture.served_by(&probe, &[0, 1, 2]);
    fixture.list(&[1, 2]);
    fixture.served_by(&probe, &[1, 2]);
    let failures = probe.report().failures_since(since);
    fixture.cluster.check(failures.is_empty(), || format!("{failures:?}"));
    fixture.end(2);
    fixture.served_by(&probe, &[1]);
}

pub(crate) fn join_and_leave() {
    let mut fixture = Fixture::on(Lan::builder().controllers(4));
    fixture.start_nodes(&[0, 1, 2]);
    let (client, address) = (fixture.cluster.client(), fixture.cluster.address());
    let sessions = Sessions::open(client, address, 9).expect("the sessions are opened");
    let moves = Moves::watch(&fixture);
    let probe = patient_probe(&fixture);
    let since = Instant::now();
    // The new controller's daemon starts before its API server, which the API lists before it is ready.
    fixture.cluster.start_daemon(3);
    fixture.wait_for(3, "api", &[0, 1, 2]);
    fixture.list(&[0, 1, 2, 3]);
    (0..4).for_each(|node| fixture.wait_for(node, "api", &[0, 1, 2, 3]));
    fixture.serve(3);
    fixture.served_by(&probe, &[0, 1, 2, 3]);
    fixture.cluster.check(sessions.ended() == 0, || format!("{:?}", sessions.states()));
    // Another one shuts down as kube-apiserver does: it reports it, leaves the list, closes its port, and ends.
    fixture.api_server(1).set_readiness(Readiness::Terminating);
    fixture.served_by(&probe, &[0, 2, 3]);
    fixture.list(&[0, 2, 3]);
    for node in 0..4 {
        fixture.wait_for(node, "api", &[0, 2, 3]);
    }
    fixture.api_server(1).refuse_new().expect("the port is closed");
    fixture.cluster.check(sessions.ended() == 0, || format!("{:?}", sessions.states()));
    fixture.end(1);
    fixture.cluster.wait("the sessions of the ended server end", || sessions.ended() == 3);
    fixture.cluster.signal(1, Signal::SIGTERM);
    fixture.cluster.wait_until_ended(1);
    fixture.served_by(&probe, &[0, 2, 3]);
    // The daemon that ended may have held the VIP, which then moved.
    moves.check_requests(&fixture, &probe.stop(), since);
}

/// A wrong path removes no server, and correcting it causes no failure.
pub(crate) fn other_kubeconfig() {
    let fixture = Fixture::complete();
    let probe = fixture.probe();
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    let since = Instant::now();
    let right = std::fs::read_to_string(fixture.cluster.config_file(0)).expect("the file exists");
    let (wrong, moved) =
        (right.replace("admin.conf", "amdin.conf"), right.replace("admin.conf", "moved.conf"));
    std::fs::copy(fixture.file(), fixture.file().with_file_name("moved.conf")).expect("the file is copied");
    let steps = [(wrong, "amdin.conf", "disk"), (right, "admin.conf", "api"), (moved, "moved.conf", "api")];
    for (text, name, source) in steps {
        for node in 0..fixture.cluster.len() {
            std::fs::write(fixture.cluster.config_file(node), &text).expect("the file is written");
            fixture.cluster.signal(node, Signal::SIGHUP);
        }
        for node in 0..fixture.cluster.len() {
            fixture.cluster.wait("the new kubeconfig is in use", || {
                let status = fixture.cluster.status(node);
                status["discovery"][0]["kubeconfig"].as_str().is_some_and(|path| path.ends_with(name))
            });
            fixture.wait_for(node, source, &[0, 1, 2]);
        }
        fixture.served_by(&probe, &[0, 1, 2]);
    }
    let saved = std::fs::read_to_string(fixture.cluster.state_dir(0).join("backends.json"));
    let saved = saved.expect("the file exists");
    let right = saved.contains("moved.conf") && !saved.contains("admin.conf");
    fixture.cluster.check(right && saved.contains(&fixture.server(2).to_string()), || saved.clone());
    let failures = probe.stop().failures_since(since);
    fixture.cluster.check(failures.is_empty(), || format!("{failures:?}"));
}

/// Starts a probe that, like most clients, survives a lost packet.
fn patient_probe(fixture: &Fixture) -> Probe {
    let probe = Probe::to(fixture.cluster.address()).every(Duration::from_millis(5));
    let probe = probe.timeout(Duration::from_secs(5)).start(fixture.cluster.client());
    let probe = probe.expect("the probe starts");
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    probe
}

/// Ends a daemon and starts it again; returns the time at which it had ended.
fn restart(fixture: &mut Fixture, node: usize, signal: Signal) -> Instant {
    fixture.cluster.signal(node, signal);
    fixture.cluster.wait_until_ended(node);
    let ended = Instant::now();
    fixture.cluster.start_daemon(node);
    fixture.cluster.wait("the daemon serves again", || {
        fixture.cluster.try_status(node).is_some_and(|status| status["serving"]["serving"] == true)
    });
    fixture.cluster.wait_for_owner(None);
    ended
}

pub(crate) fn upgrade() {
    let mut fixture = Fixture::complete();
    let moves = Moves::watch(&fixture);
    let probe = patient_probe(&fixture);
    let since = Instant::now();
    for node in [0, 1, 2, 0, 1, 2] {
        restart(&mut fixture, node, Signal::SIGTERM);
    }
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    let moved = moves.check_requests(&fixture, &probe.stop(), since);
    fixture.cluster.check(moved > 0, || "the VIP never moved".to_owned());
}

/// Planned moves of the VIP, and the requests that they may end.
struct Moves(Vec<AddressWatch>);

impl Moves {
    /// A client may notice a move later than the test does, by at most this time.
    const SLACK: Duration = Duration::from_millis(100);
    /// Requests that one move may end: the probe starts one every 5 ms, and on a busy machine each takes up to 50 ms.
    const IN_FLIGHT: usize = 10;

    fn watch(fixture: &Fixture) -> Self {
        let watch = |node| AddressWatch::on(node).expect("the watch starts");
        Self(fixture.cluster.lan.controllers().iter().map(watch).collect())
    }

    /// Fails unless every request since `since` succeeded, except those in flight at a move: they cannot continue on
    /// another node, so the node that hands the VIP over resets them. Returns the number of moves.
    fn check_requests(&self, fixture: &Fixture, report: &ProbeReport, since: Instant) -> usize {
        let periods = self.0.iter().flat_map(|watch| watch.periods(fixture.cluster.vip()));
        let moves: Vec<Instant> = periods.map(|period| period.from).filter(|from| *from > since).collect();
        let failed = report.samples().iter().filter(|it| it.ended >= since && it.outcome.is_err());
        let failed: Vec<&Sample> = failed.collect();
        println!("MEASURED {} requests, {} moves, failed: {failed:?}", report.samples().len(), moves.len());
        let in_flight = |sample: &&&Sample| {
            let ended = matches!(sample.outcome, Err(Failure::Reset | Failure::Closed));
            let meets = |at: &Instant| sample.started < *at + Self::SLACK && sample.ended + Self::SLACK > *at;
            ended && moves.iter().any(meets)
        };
        let excused = failed.iter().filter(in_flight).count();
        let right = excused == failed.len() && failed.len() <= Self::IN_FLIGHT * moves.len();
        fixture.cluster.check(right, || format!("{failed:?}"));
        moves.len()
    }
}

pub(crate) fn crashes() {
    let mut fixture = Fixture::complete();
    let probe = patient_probe(&fixture);
    let mut failed_by_node = BTreeMap::new();
    for node in 0..fixture.cluster.len() {
        let held = fixture.cluster.owners() == [node];
        let at = Instant::now();
        let ended = restart(&mut fixture, node, Signal::SIGKILL);
        probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
        let report = probe.report();
        let failed = report.samples().iter().filter(|it| it.ended >= at && it.outcome.is_err());
        let failed: Vec<_> = failed.cloned().collect();
        // Requests in flight end with the daemon; later ones wait for the next Active.
        let under_way = |it: &Sample| held && it.started <= ended && it.outcome != Err(Failure::Refused);
        fixture.cluster.check(failed.iter().all(under_way), || format!("node {node}: {failed:?}"));
        failed_by_node.insert(node, (held, failed.len()));
    }
    println!("MEASURED by node: was Active, failed requests: {failed_by_node:?}");
    drop(probe);
}

/// k0s publishes such a list with an external address.
pub(crate) fn list_of_vips() {
    let fixture = Fixture::complete();
    let probe = fixture.probe();
    fixture.listed.set_servers(&[fixture.cluster.address()]);
    for node in 0..fixture.cluster.len() {
        fixture.cluster.wait("the list of only virtual IPs is reported", || {
            fixture.cluster.degraded(node).contains("only virtual IPs")
        });
        fixture.wait_for(node, "api", &[0, 1, 2]);
    }
    fixture.served_by(&probe, &[0, 1, 2]);
}

/// An API that lists the bind port of every controller: proxies would connect to each other endlessly, without a
/// client. Only real sockets show that no proxy connects, so the network is captured for two seconds.
pub(crate) fn list_of_proxies() {
    const WATCHED: Duration = Duration::from_secs(2);
    let mut fixture = Fixture::new();
    let nodes: Vec<usize> = (0..fixture.cluster.len()).collect();
    nodes.iter().for_each(|node| fixture.serve(*node));
    let proxy = |node: &usize| SocketAddr::new(fixture.cluster.node(*node).v4().into(), BIND_PORT);
    fixture.listed.set_servers(&nodes.iter().map(proxy).collect::<Vec<_>>());
    fixture.start_api();
    let capture = fixture.cluster.lan.capture().expect("the capture begins");
    fixture.cluster.start_all();
    for node in &nodes {
        fixture.cluster.wait("the list of proxies is refused", || {
            let degraded = fixture.cluster.degraded(*node);
            degraded.contains(":6444 is where a proxy of this configuration listens")
        });
    }
    let probe = fixture.probe();
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the Active's own server answers");
    drop(probe);
    let opened = || {
        let to_a_proxy = |frame: &Frame| {
            frame.tcp().is_some_and(|tcp| tcp.syn && !tcp.ack && tcp.destination.port() == BIND_PORT)
        };
        (capture.count(to_a_proxy), capture.dropped())
    };
    std::thread::sleep(WATCHED);
    println!("MEASURED connections to proxies, dropped frames: {:?}", opened());
    fixture.cluster.check(opened() == (0, 0), || format!("{:?}", opened()));
    for node in &nodes {
        let backends = fixture.cluster.status(*node)["services"][0]["backends"].to_string();
        fixture.cluster.check(!backends.contains(":6444"), || backends);
    }
}

/// Changes the list, the kubeconfig, and the connections to the API.
pub(crate) fn many_changes() {
    let mut fixture = Fixture::complete();
    let mut change = |times: usize| {
        for time in 0..times {
            for nodes in [&[0, 1][..], &[0, 1, 2]] {
                fixture.list(nodes);
                fixture.wait_for(0, "api", nodes);
            }
            if time % 10 == 0 {
                fixture.api = None;
                fixture.start_api();
            }
        }
        let daemon = fixture.cluster.daemon(0);
        let files =
            std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("the process runs").count();
        (files, daemon.threads().len(), resident(daemon))
    };
    let before = change(30);
    let after = change(90);
    println!("MEASURED files, threads and bytes: {before:?}, then {after:?}");
    // One connection to the API and one to each server may be in the middle of a replacement, and files are checked in
    // threads that exist for 10 s after their work.
    fixture
        .cluster
        .check(after.0 <= before.0 + 8 && after.1 <= before.1 + 4, || format!("{before:?} {after:?}"));
    // An allocator retains some memory; 90 leaked lists or handshakes would take more.
    fixture.cluster.check(after.2 <= before.2 + 1_500_000, || format!("{before:?} {after:?}"));
}
