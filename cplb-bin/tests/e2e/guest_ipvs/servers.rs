//! Changes of the set of real servers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::{Backend, Lan, Probe, Readiness, Sessions, Signal};

use super::fixture::{ipvsadm, plan, served, settled, virtual_server, wait_for_servers, with_slow_election};
use crate::support::{Cluster, PORT, TIMEOUT, services};

pub(crate) fn backends() {
    let plan = plan("DR", false, 0).spec("healthCheck: {interval: 200ms, timeout: 1s, fall: 1}");
    let (cluster, owner) = settled(with_slow_election(plan));
    let lost = (owner + 1) % cluster.len();
    let before = ipvsadm(&cluster, owner, &["-Ln"]);
    // The kernel's own listing takes a tenth of the time of `cplb status` here.
    let servers =
        || ipvsadm(&cluster, owner, &["-Ln"]).lines().filter(|line| line.contains(" Route ")).count();
    for round in 0..50 {
        cluster.backends[lost].refuse().expect("the server refuses");
        let took = cluster.wait("the dead server is removed", || servers() == 2);
        cluster.check(took < Duration::from_secs(5), || format!("round {round}: out after {took:?}"));
        cluster.backends[lost].accept().expect("the server accepts");
        cluster.wait("the server is restored", || servers() == 3);
    }
    let names = |listing: &str| {
        let words = |line: &str| line.split_whitespace().take(4).collect::<Vec<_>>().join(" ");
        let mut lines: Vec<String> = listing.lines().map(words).collect();
        lines.sort();
        lines
    };
    let after = ipvsadm(&cluster, owner, &["-Ln"]);
    cluster.check(names(&after) == names(&before), || format!("{before}\n{after}"));
}

/// Its connections end instead of hanging until TCP gives up. The checks run at the interval of `delayLoop`.
pub(crate) fn silent_backend() {
    let mut plan =
        with_slow_election(plan("DR", false, 0)).spec("healthCheck: {interval: 1m, timeout: 500ms, fall: 2}");
    for line in &mut plan.spec {
        *line = line.replace("lbKind: DR", "lbKind: DR, delayLoop: 200ms");
    }
    let (cluster, owner) = settled(plan);
    let sessions = Sessions::open(cluster.client(), cluster.address(), 6).expect("the sessions are opened");
    let lost = (owner + 1) % cluster.len();
    let since = Instant::now();
    cluster.backends[lost].blackhole().expect("the server is silent");
    wait_for_servers(&cluster, owner, 2);
    let out = since.elapsed();
    // Two checks that time out, one interval apart, and the same again for an emulated machine.
    cluster.check(out < Duration::from_secs(3), || format!("out after {out:?}"));
    let excluded = virtual_server(&cluster, owner)["excluded"].to_string();
    cluster.check(excluded.contains("health checks"), || excluded.clone());
    cluster.wait("the sessions of the silent server end", || sessions.ended() == 2);
    eprintln!("out after {out:?}, sessions ended after {:?}", since.elapsed());
    cluster.wait("no other session hangs", || sessions.hanging(Duration::from_millis(100)) == 0);
    cluster.check(sessions.ended() == 2, || format!("{:?}", sessions.states()));
}

/// The server's health check, which goes to its own address, succeeds.
pub(crate) fn one_address() {
    let mut cluster = Cluster::build(Lan::builder(), plan("DR", false, 0));
    let narrow = cluster.lan.controllers().len() - 1;
    let own = SocketAddr::new(cluster.node(narrow).v4().into(), PORT);
    cluster.replace_backend(narrow, |node| Backend::tls_on(node, "api-narrow", own));
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    wait_for_servers(&cluster, owner, 2);
    let before = served(&cluster, 60);
    cluster.check(before.len() == 2 && !before.contains_key("api-narrow"), || format!("{before:?}"));
    let excluded = virtual_server(&cluster, owner)["excluded"].to_string();
    cluster
        .check(excluded.contains(&own.to_string()) && excluded.contains("one address"), || excluded.clone());
    cluster.replace_backend(narrow, |node| Backend::tls(node, "api-wide", PORT));
    wait_for_servers(&cluster, owner, 3);
    let after = served(&cluster, 60);
    cluster.check(after.contains_key("api-wide"), || format!("{after:?}"));
}

/// The node's API server stays up and healthy; but the node would no longer accept packets to the virtual address,
/// which then loop where nodes forward.
pub(crate) fn departing() {
    let (mut cluster, owner) = settled(with_slow_election(plan("DR", false, 0)));
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.ip_forward", "1").expect("the sysctl exists");
    }
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(5));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    probe.wait_until_stable(Duration::from_millis(500), TIMEOUT).expect("the VIP answers");
    let since = Instant::now();
    let node = (owner + 1) % cluster.len();
    cluster.signal(node, Signal::SIGTERM);
    cluster.wait_until_ended(node);
    let gone = Instant::now();
    cluster.wait("the other servers have answered 100 requests", || {
        probe.report().served_by_since(gone).values().sum::<usize>() >= 100
    });
    let served = probe.report().served_by_since(gone);
    cluster.check(served.len() == 2, || format!("{served:?}"));
    cluster.start_daemon(node);
    wait_for_servers(&cluster, owner, 3);
    let back = Instant::now();
    cluster.wait("all servers have answered 100 requests", || {
        probe.report().served_by_since(back).values().sum::<usize>() >= 100
    });
    let report = probe.stop();
    let (served, failures) = (report.served_by_since(back), report.failures_since(since));
    cluster.check(served.len() == 3, || format!("{served:?}"));
    cluster.check(failures.is_empty(), || format!("{failures:?}"));
}

/// The next daemon adopts the state of its predecessor, so connections are not affected.
pub(crate) fn restart(kind: &str) {
    let (mut cluster, owner) = settled(with_slow_election(plan(kind, false, 0)));
    let sessions = Sessions::open(cluster.client(), cluster.address(), 6).expect("the sessions are opened");
    let node = (owner + 1) % cluster.len();
    cluster.signal(node, Signal::SIGKILL);
    cluster.wait_until_ended(node);
    cluster.start_daemon(node);
    cluster.wait("the daemon can serve", || cluster.status(node)["serving"]["serving"] == true);
    // Longer than the director needs to detect that a server has gone.
    let again = served(&cluster, 300);
    cluster.check(again.len() == 3, || format!("{again:?}"));
    cluster.check(sessions.ended() == 0, || format!("{:?}", sessions.states()));
    cluster.wait("no session hangs", || sessions.hanging(Duration::from_millis(200)) == 0);
}

/// Konnectivity's agents reach all of its servers, whatever the persistence of the other services.
pub(crate) fn three_services() {
    services::different_sets(plan("DR", false, 360), true, |cluster, owner| {
        let listing = ipvsadm(cluster, owner, &["-Ln"]);
        let persistent = listing.lines().filter(|line| line.contains("persistent 360")).count();
        let all = listing.lines().filter(|line| line.starts_with("FWM")).count();
        cluster.check((persistent, all) == (2, 3), || listing.clone());
    });
}

/// The shutdown follows kube-apiserver: it reports it, closes its port, and finally ends its connections.
pub(crate) fn shutdown() {
    let (cluster, owner) = settled(with_slow_election(plan("DR", false, 0)));
    let server = (owner + 1) % cluster.len();
    let (backend, client) = (&cluster.backends[server], cluster.client());
    let sessions = Sessions::open(client, cluster.address(), 6).expect("the sessions are opened");
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10)).start(client);
    let probe = probe.expect("the probe starts");
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    let since = Instant::now();
    backend.set_readiness(Readiness::Terminating);
    cluster.wait("the director excludes the terminating server", || {
        virtual_server(&cluster, owner)["excluded"].to_string().contains("shuts down")
    });
    // Requests that are in flight may still arrive there, and the kernel gets the exclusion after the status.
    let await_requests = |count: usize| {
        let made = probe.report().samples().len();
        cluster.wait("more requests have ended", || probe.report().samples().len() >= made + count);
    };
    await_requests(20);
    let asked = backend.stats().requests;
    await_requests(100);
    let new = backend.stats().requests - asked;
    cluster.check(new == 0, || format!("{new} requests to a server that shuts down"));
    backend.refuse_new().expect("the port is closed");
    await_requests(100);
    let untouched = sessions.ended() == 0 && sessions.hanging(Duration::from_millis(500)) == 0;
    cluster.check(untouched, || format!("{:?}", sessions.states()));
    let failures = probe.report().failures_since(since);
    cluster.check(failures.is_empty(), || format!("{failures:?}"));
    backend.close_all().expect("the connections are reset");
    cluster.wait("the sessions of the terminating server end", || sessions.ended() == 2);
    drop(probe);
}
