//! Reloads that do not affect existing connections.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use testbed::{Backend, Lan, Probe, Sessions, Signal};

use crate::support::{BIND_PORT, Cluster, PATIENCE, Plan, VIP_HOST};

use super::ground::{
    OTHER_BIND_PORT, OTHER_PORT, degraded, holders, names, probe, second_vip, services_of, two_instances,
};

/// Sessions that are open during a reload.
const SESSIONS: usize = 20;

/// Time without an echo after which a session counts as hanging: it sends every 10 ms, and the machine may be busy.
const SILENCE: Duration = Duration::from_secs(2);

/// A settled cluster with sessions and a probe through the VIP.
struct Scene {
    cluster: Cluster,
    sessions: Sessions,
    probe: Probe,
    active: usize,
    /// The number of takeovers until then: at the start, two nodes may be Active for a millisecond.
    takeovers: usize,
    since: Instant,
}

impl Scene {
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
        if let Err(error) = probe.wait_for_success(since, PATIENCE) {
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
            if let Err(error) = self.cluster.daemon(index).log().wait_for_line_after(mark, answer, PATIENCE) {
                self.cluster.fail(&error.to_string());
            }
        }
    }

    /// Checks that no connection and no election was affected.
    fn check_undisturbed(self) -> Cluster {
        let Self { cluster, sessions, probe, active, takeovers, since } = self;
        let checked = Instant::now();
        if let Err(error) = probe.wait_for_success(checked, PATIENCE) {
            cluster.fail(&error.to_string());
        }
        let failures = probe.stop().failures_since(since);
        cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
        cluster.check(sessions.ended() == 0 && sessions.hanging(SILENCE) == 0, || {
            format!("sessions: {:?}", sessions.states())
        });
        cluster.check(cluster.owners() == [active], || format!("{:?} own the VIP", cluster.owners()));
        cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
        cluster
    }
}

pub(crate) fn adds_a_service() {
    let mut scene = Scene::start();
    let others: Vec<_> = scene
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
    scene.reload(Plan::v3("100ms").spec(services));
    let other = SocketAddr::new(scene.cluster.vip(), OTHER_PORT);
    let probe =
        Probe::to(other).every(Duration::from_millis(10)).start(scene.cluster.client()).expect("a probe");
    if let Err(error) = probe.wait_for_success(Instant::now(), PATIENCE) {
        scene.cluster.fail(&format!("the new service does not answer: {error}"));
    }
    // The new service's connections are separate: removing it again does not affect the others.
    scene.reload(Plan::v3("100ms"));
    scene.cluster.wait("one service remains", || services_of(&scene.cluster, 0).len() == 1);
    drop((probe, others));
    scene.check_undisturbed();
}

pub(crate) fn changes_backends() {
    let mut scene = Scene::start();
    let nodes = scene.cluster.lan.controllers();
    let two = format!("backends: {{static: [\"{}\", \"{}\"]}}", nodes[0].v4(), nodes[1].v4());
    scene.reload(Plan::v3("100ms").spec(two));
    let active = scene.active;
    scene.cluster.wait("two backends take new connections", || {
        let services = services_of(&scene.cluster, active);
        let backends = services[0]["backends"].as_array().cloned().unwrap_or_default();
        backends.iter().filter(|backend| backend["state"] == "up").count() == 2
    });
    let mark = Instant::now();
    scene
        .cluster
        .wait("both backends have answered", || scene.probe.report().served_by_since(mark).len() == 2);
    let after = Instant::now();
    scene.reload(Plan::v3("100ms"));
    scene
        .cluster
        .wait("all three backends have answered", || scene.probe.report().served_by_since(after).len() == 3);
    scene.check_undisturbed();
}

pub(crate) fn wrong_file() {
    let mut scene = Scene::start();
    let before: Vec<_> = (0..scene.cluster.len()).map(|index| names(&scene.cluster, index)).collect();
    scene.reload_text(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec: [\n",
        "is not reloaded",
    );
    for (index, names_before) in before.iter().enumerate() {
        let status = scene.cluster.status(index);
        let shown = status["degraded"].to_string();
        scene.cluster.check(shown.contains("the former one is in use"), || shown.clone());
        scene.cluster.check(&names(&scene.cluster, index) == names_before, || format!("{status}"));
    }
    scene.reload(Plan::v3("100ms"));
    for index in 0..scene.cluster.len() {
        let shown = scene.cluster.status(index)["degraded"].to_string();
        scene.cluster.check(!shown.contains("in use"), || shown.clone());
    }
    scene.check_undisturbed();
}

pub(crate) fn taken_port() {
    let mut scene = Scene::start();
    let active = scene.active;
    let squatter =
        Backend::echo(scene.cluster.node(active), "other", OTHER_BIND_PORT).expect("the port is taken");
    let moved = format!("services: [{{name: kube-apiserver, port: 6443, bindPort: {OTHER_BIND_PORT}}}]");
    let text = Plan::v3("100ms").spec(moved).render(&scene.cluster.lan);
    fs::write(scene.cluster.config_file(active), text).expect("the configuration is written");
    let mark = scene.cluster.daemon(active).log().len();
    scene.cluster.signal(active, Signal::SIGHUP);
    let refused = scene.cluster.daemon(active).log().wait_for_line_after(mark, "is not reloaded", PATIENCE);
    scene.cluster.check(refused.is_ok(), || format!("{refused:?}"));
    let shown = degraded(&scene.cluster, active);
    scene
        .cluster
        .check(shown.contains("8133") && shown.contains("the former one is in use"), || shown.clone());
    let service = &services_of(&scene.cluster, active)[0];
    scene.cluster.check(service["bindPort"] == BIND_PORT, || service.to_string());
    let after = Instant::now();
    scene
        .cluster
        .wait("all three backends still answer", || scene.probe.report().served_by_since(after).len() == 3);
    drop(squatter);
    scene.reload(Plan::v3("100ms"));
    scene.cluster.check(degraded(&scene.cluster, active) == "[]", || degraded(&scene.cluster, active));
    scene.check_undisturbed();
}

pub(crate) fn instances() {
    let mut scene = Scene::start();
    let second = second_vip(&scene.cluster);
    let text = two_instances(&scene.cluster.lan, "100ms", [scene.cluster.lan.v4(VIP_HOST), second]);
    scene.reload_text(&text, "the configuration is reloaded");
    scene.cluster.wait("one node has the second VIP", || holders(&scene.cluster, second).len() == 1);
    drop(probe(&scene.cluster, second));
    scene.reload(Plan::v3("100ms"));
    scene.cluster.wait("no node has the second VIP", || holders(&scene.cluster, second).is_empty());
    // The second instance's own takeovers are counted separately, by its VRID.
    let second_moves: usize =
        (0..scene.cluster.len()).map(|index| moves_of(&scene.cluster.daemon(index).log().text(), 52)).sum();
    scene.cluster.check(second_moves >= 1, || "no node became Active for the second VIP".to_owned());
    scene.takeovers += second_moves;
    scene.check_undisturbed();
}

/// The number of times that the instance became Active, according to the daemon's log.
fn moves_of(log: &str, vrid: u8) -> usize {
    let field = format!("vrid={vrid} ");
    log.lines().filter(|line| line.contains(&field) && line.contains("to=active")).count()
}
