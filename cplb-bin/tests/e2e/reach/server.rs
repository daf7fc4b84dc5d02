//! A server on a controller that listens on all addresses at the VIP's own port, as API servers do.

use std::time::{Duration, Instant};

use testbed::{Lan, Probe, Sessions, Signal};

use crate::support::{Cluster, Plan, TIMEOUT};

const SESSIONS: usize = 500;

/// The first controller is preferred, and its own server is no backend: a connection that it accepts came by the VIP.
fn cluster_beside_its_own_server() -> Cluster {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let others: Vec<_> =
        cluster.lan.controllers()[1..].iter().map(|node| format!("\"{}\"", node.v4())).collect();
    let backends = format!("backends: {{static: [{}]}}", others.join(", "));
    for index in 0..cluster.len() {
        let priority = if index == 0 { 220 } else { 200 };
        cluster.plan = Plan::v3("1s").instance(format!("priority: {priority}")).spec(&backends);
        cluster.start_daemon(index);
        if index == 0 {
            cluster
                .wait("the preferred controller is Active", || cluster.state(0).as_deref() == Some("active"));
        }
    }
    let owner = cluster.wait_until_settled();
    cluster.check(owner == 0, || format!("{owner} is Active"));
    cluster
}

pub(crate) fn killed() {
    let cluster = cluster_beside_its_own_server();
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10)).start(cluster.client());
    let probe = probe.expect("the probe starts");
    probe.wait_for_success(Instant::now(), TIMEOUT).expect("the VIP answers");
    let killed = cluster.signal(0, Signal::SIGKILL);
    let successor = cluster.wait_for_owner(Some(0));
    let served = probe.wait_for_success(killed + Duration::from_millis(50), TIMEOUT);
    cluster.check(served.is_ok(), || format!("{successor} does not serve: {served:?}"));
    let report = probe.stop();
    let by_own = cluster.backends[0].stats().accepted;
    cluster.check(by_own == 0, || {
        format!(
            "{by_own} connections reached the server of the killed daemon's node: {:?}",
            report.served_by_since(killed)
        )
    });
}

pub(crate) fn restarted() {
    let cluster = cluster_beside_its_own_server();
    let sessions = Sessions::open(cluster.client(), cluster.address(), SESSIONS);
    let sessions = sessions.unwrap_or_else(|error| cluster.fail(&error.to_string()));
    for _ in 0..2 {
        cluster.backends[0].refuse().expect("the server ends");
        let bound = cluster.backends[0].accept();
        cluster.check(bound.is_ok(), || format!("the server cannot bind its port: {bound:?}"));
    }
    let own = std::net::SocketAddr::new(cluster.node(0).v4().into(), cluster.address().port());
    cluster.check(super::is_served(cluster.client(), own), || "the server does not serve".to_owned());
    let moment = Duration::from_secs(1);
    cluster.wait("all sessions have an echo", || sessions.hanging(moment) == 0);
    cluster.check(sessions.ended() == 0, || format!("{} sessions ended", sessions.ended()));
}
