//! Reloads that do not affect existing connections.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::{Backend, Lan, Probe, Sessions, Signal};

use crate::support::{BIND_PORT, Cluster, Plan, TIMEOUT, VIP_HOST};

use super::fixture::{
    OTHER_BIND_PORT, OTHER_PORT, names, owners_of, probe, second_vip, services_of, two_instances,
};

/// Sessions that are open during a reload.
const SESSIONS: usize = 20;

/// Time without an echo after which a session counts as hanging: it sends every 10 ms, and the machine may be busy.
const HANG_AFTER: Duration = Duration::from_secs(2);

/// A settled cluster with sessions and a probe through the VIP.
struct Fixture {
    cluster: Cluster,
    sessions: Sessions,
    probe: Probe,
    active: usize,
    /// The number of takeovers until then: at the start, two nodes may be Active for a millisecond.
    takeovers: usize,
    since: Instant,
}

impl Fixture {
    fn start() -> Self {
        let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
        cluster.start_all();
        let active = cluster.wait_until_settled();
        let sessions = Sessions::open(cluster.client(), cluster.address(), SESSIONS).expect("sessions open");
        let probe = Probe::to(cluster.address())
            .every(Duration::from_millis(10))
            .start(cluster.client())
            .expect("the probe starts");
        let since = Instant::now();
        if let Err(error) = probe.wait_for_success(since, TIMEOUT) {
            cluster.fail(&error.to_string());
        }
        let takeovers = cluster.takeovers();
        Self { cluster, sessions, probe, active, takeovers, since }
    }

    /// Writes the file that `plan` renders on every controller, and reloads it.
    fn reload(&mut self, plan: Plan) {
        self.cluster.plan = plan;
        let text = self.cluster.plan.render(&self.cluster.lan);
        self.reload_text(&text, "the configuration is reloaded");
    }

    fn reload_text(&self, text: &str, answer: &str) {
        for index in 0..self.cluster.len() {
            fs::write(self.cluster.config_file(index), text).expect("the configuration is written");
            let mark = self.cluster.daemon(index).log().len();
            self.cluster.signal(index, Signal::SIGHUP);
            if let Err(error) = self.cluster.daemon(index).log().wait_for_line_after(mark, answer, TIMEOUT) {
                self.cluster.fail(&error.to_string());
            }
        }
    }

    /// Checks that no connection and no election was affected.
    fn check_undisturbed(self) -> Cluster {
        let Self { cluster, sessions, probe, active, takeovers, since } = self;
        let checked = Instant::now();
        if let Err(error) = probe.wait_for_success(checked, TIMEOUT) {
            cluster.fail(&error.to_string());
        }
        let failures = probe.stop().failures_since(since);
        cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
        cluster.check(sessions.ended() == 0 && sessions.hanging(HANG_AFTER) == 0, || {
            format!("sessions: {:?}", sessions.states())
        });
        cluster.check(cluster.owners() == [active], || format!("{:?} own the VIP", cluster.owners()));
        cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
        cluster
    }
}

pub(crate) fn adds_a_service() {
    let mut fixture = Fixture::start();
    let others: Vec<_> = fixture
        .cluster
        .lan
        .controllers()
        .iter()
        .map(|node| Backend::echo(node, &format!("agent-{}", node.name()), OTHER_PORT).expect("it listens"))
        .collect();
    let services = format!(
        "services: [{{name: kube-apiserver, port: 6443}}, {{name: konnectivity, port: {OTHER_PORT}, \
         bindPort: {OTHER_BIND_PORT}, healthCheck: {{type: tcp}}}}]"
    );
    fixture.reload(Plan::v3("100ms").spec(services));
    let other = SocketAddr::new(fixture.cluster.vip(), OTHER_PORT);
    let probe =
        Probe::to(other).every(Duration::from_millis(10)).start(fixture.cluster.client()).expect("a probe");
    if let Err(error) = probe.wait_for_success(Instant::now(), TIMEOUT) {
        fixture.cluster.fail(&format!("the new service does not answer: {error}"));
    }
    // The new service's connections are separate: removing it again does not affect the others.
    fixture.reload(Plan::v3("100ms"));
    fixture.cluster.wait("one service remains", || services_of(&fixture.cluster, 0).len() == 1);
    drop((probe, others));
    fixture.check_undisturbed();
}

pub(crate) fn changes_backends() {
    let mut fixture = Fixture::start();
    let nodes = fixture.cluster.lan.controllers();
    let two = format!("backends: {{static: [\"{}\", \"{}\"]}}", nodes[0].v4(), nodes[1].v4());
    fixture.reload(Plan::v3("100ms").spec(two));
    let active = fixture.active;
    fixture.cluster.wait("two backends take new connections", || {
        let services = services_of(&fixture.cluster, active);
        let backends = services[0]["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().filter(|backend| backend["state"] == "up").count() == 2
    });
    let mark = Instant::now();
    fixture
        .cluster
        .wait("both backends have answered", || fixture.probe.report().served_by_since(mark).len() == 2);
    let after = Instant::now();
    fixture.reload(Plan::v3("100ms"));
    fixture.cluster.wait("all three backends have answered", || {
        fixture.probe.report().served_by_since(after).len() == 3
    });
    fixture.check_undisturbed();
}

pub(crate) fn wrong_file() {
    let mut fixture = Fixture::start();
    let before: Vec<_> = (0..fixture.cluster.len()).map(|index| names(&fixture.cluster, index)).collect();
    fixture.reload_text(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec: [\n",
        "is not reloaded",
    );
    for (index, names_before) in before.iter().enumerate() {
        let status = fixture.cluster.status(index);
        let shown = status["degraded"].to_string();
        fixture.cluster.check(shown.contains("the former one is in use"), || shown.clone());
        fixture.cluster.check(&names(&fixture.cluster, index) == names_before, || format!("{status}"));
    }
    fixture.reload(Plan::v3("100ms"));
    for index in 0..fixture.cluster.len() {
        let shown = fixture.cluster.degraded(index);
        fixture.cluster.check(!shown.contains("in use"), || shown.clone());
    }
    fixture.check_undisturbed();
}

pub(crate) fn taken_port() {
    let mut fixture = Fixture::start();
    let active = fixture.active;
    let listener =
        Backend::echo(fixture.cluster.node(active), "other", OTHER_BIND_PORT).expect("the port is taken");
    let moved = format!("services: [{{name: kube-apiserver, port: 6443, bindPort: {OTHER_BIND_PORT}}}]");
    let text = Plan::v3("100ms").spec(moved).render(&fixture.cluster.lan);
    fs::write(fixture.cluster.config_file(active), text).expect("the configuration is written");
    let mark = fixture.cluster.daemon(active).log().len();
    fixture.cluster.signal(active, Signal::SIGHUP);
    let refused = fixture.cluster.daemon(active).log().wait_for_line_after(mark, "is not reloaded", TIMEOUT);
    fixture.cluster.check(refused.is_ok(), || format!("{refused:?}"));
    let shown = fixture.cluster.degraded(active);
    fixture
        .cluster
        .check(shown.contains("8133") && shown.contains("the former one is in use"), || shown.clone());
    let service = &services_of(&fixture.cluster, active)[0];
    fixture.cluster.check(service["bindPort"] == BIND_PORT, || service.to_string());
    let after = Instant::now();
    fixture
        .cluster
        .wait("all three backends still answer", || fixture.probe.report().served_by_since(after).len() == 3);
    drop(listener);
    fixture.reload(Plan::v3("100ms"));
    fixture.cluster.check(fixture.cluster.degraded(active) == "[]", || fixture.cluster.degraded(active));
    fixture.check_undisturbed();
}

pub(crate) fn instances() {
    let mut fixture = Fixture::start();
    let second = second_vip(&fixture.cluster);
    let text = two_instances(&fixture.cluster.lan, "100ms", [fixture.cluster.lan.v4(VIP_HOST), second]);
    fixture.reload_text(&text, "the configuration is reloaded");
    fixture.cluster.wait("one node has the second VIP", || owners_of(&fixture.cluster, second).len() == 1);
    drop(probe(&fixture.cluster, second));
    fixture.reload(Plan::v3("100ms"));
    fixture.cluster.wait("no node has the second VIP", || owners_of(&fixture.cluster, second).is_empty());
    // The second instance's own takeovers are counted separately, by its VRID.
    let second_moves: usize = (0..fixture.cluster.len())
        .map(|index| moves_of(&fixture.cluster.daemon(index).log().text(), 52))
        .sum();
    fixture.cluster.check(second_moves >= 1, || "no node became Active for the second VIP".to_owned());
    fixture.takeovers += second_moves;
    fixture.check_undisturbed();
}

/// The number of times that the instance became Active, according to the daemon's log.
fn moves_of(log: &str, vrid: u8) -> usize {
    let field = format!("vrid={vrid} ");
    log.lines().filter(|line| line.contains(&field) && line.contains("to=active")).count()
}
