//! SIGHUP: the configuration changes, the connections stay; a wrong file changes nothing.

mod support;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Backend, Lan, Probe, Sessions, Signal, Test};

use support::{Cluster, PATIENCE, Plan};

/// Konnectivity's port, and where the proxy takes it.
const OTHER_PORT: u16 = 8132;
const OTHER_BIND_PORT: u16 = 8133;
/// Sessions that are open during a reload.
const SESSIONS: usize = 20;
/// A session without an echo for this long hangs: it sends every 10 ms, and the machine may be busy.
const SILENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    testbed::main(vec![
        Test::new("a_reload_adds_a_service_and_keeps_every_connection", adds_a_service),
        Test::new("a_reload_changes_backends_and_keeps_every_connection", changes_backends),
        Test::new("a_wrong_file_changes_nothing_and_is_shown_until_it_is_mended", wrong_file),
        Test::new("a_reload_adds_and_removes_an_instance_without_touching_the_other", instances),
    ])
}

/// A settled cluster with sessions and a probe through the VIP.
struct Scene {
    cluster: Cluster,
    sessions: Sessions,
    probe: Probe,
    active: usize,
    /// How often a node had become Active by then: at the start, two may for a millisecond.
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

    /// Gives every controller the file that `plan` renders, and has it read.
    fn reload(&mut self, plan: Plan) {
        self.cluster.plan = plan;
        let text = self.cluster.plan.render(&self.cluster.lan);
        self.reload_text(&text, "the configuration is reloaded");
    }

    fn reload_text(&self, text: &str, answer: &str) {
        for index in 0..self.cluster.len() {
            std::fs::write(self.cluster.config_file(index), text).expect("the configuration is written");
            let mark = self.cluster.daemon(index).log().len();
            self.cluster.signal(index, Signal::SIGHUP);
            if let Err(error) = self.cluster.daemon(index).log().wait_for_line_after(mark, answer, PATIENCE) {
                self.cluster.fail(&error.to_string());
            }
        }
    }

    /// Nothing that was there has noticed anything.
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

fn adds_a_service() {
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
    // The new service's connections are its own: removing it again leaves the others alone.
    scene.reload(Plan::v3("100ms"));
    scene.cluster.wait("one service is left", || services_of(&scene.cluster, 0).len() == 1);
    drop((probe, others));
    scene.check_undisturbed();
}

fn changes_backends() {
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
    scene.cluster.wait("both have answered", || scene.probe.report().served_by_since(mark).len() == 2);
    let after = Instant::now();
    scene.reload(Plan::v3("100ms"));
    scene.cluster.wait("all three have answered", || scene.probe.report().served_by_since(after).len() == 3);
    scene.check_undisturbed();
}

fn wrong_file() {
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

fn instances() {
    let mut scene = Scene::start();
    let lan = &scene.cluster.lan;
    let (first, second) = (scene.cluster.vip(), lan.v4(support::VIP_HOST + 99));
    let backends: Vec<_> = lan.controllers().iter().map(|node| format!("\"{}\"", node.v4())).collect();
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
         - {{virtualIPs: [\"{first}/24\"], version: 3, advertInterval: 100ms}}\n  \
         - {{virtualIPs: [\"{second}/24\"], version: 3, advertInterval: 100ms}}\n  \
         backends: {{static: [{}]}}\n",
        backends.join(", ")
    );
    scene.reload_text(&text, "the configuration is reloaded");
    let owner = |cluster: &Cluster| {
        let nodes = 0..cluster.len();
        nodes.filter(|&index| cluster.node(index).has_address(second)).collect::<Vec<_>>()
    };
    scene.cluster.wait("one node holds the second VIP", || owner(&scene.cluster).len() == 1);
    let probe = Probe::to(SocketAddr::new(second.into(), support::PORT))
        .every(Duration::from_millis(10))
        .start(scene.cluster.client())
        .expect("a probe");
    if let Err(error) = probe.wait_for_success(Instant::now(), PATIENCE) {
        scene.cluster.fail(&format!("the second VIP does not answer: {error}"));
    }
    drop(probe);
    scene.reload(Plan::v3("100ms"));
    scene.cluster.wait("nobody holds the second VIP", || owner(&scene.cluster).is_empty());
    // The second instance's own takeovers are counted apart, by its VRID.
    let second_moves: usize =
        (0..scene.cluster.len()).map(|index| moves_of(&scene.cluster.daemon(index).log().text(), 52)).sum();
    scene.cluster.check(second_moves >= 1, || "nobody became Active for the second VIP".to_owned());
    scene.takeovers += second_moves;
    scene.check_undisturbed();
}

/// How often the instance became Active, by the daemon's own account.
fn moves_of(log: &str, vrid: u8) -> usize {
    let field = format!("vrid={vrid} ");
    log.lines().filter(|line| line.contains(&field) && line.contains("to=active")).count()
}

fn services_of(cluster: &Cluster, index: usize) -> Vec<Value> {
    cluster.status(index)["services"].as_array().cloned().unwrap_or_default()
}

/// The services and backends of a daemon, without what changes by itself.
fn names(cluster: &Cluster, index: usize) -> Vec<String> {
    let mut names = Vec::new();
    for service in services_of(cluster, index) {
        names.push(service["name"].to_string());
        names.extend(service["backends"].as_array().into_iter().flatten().map(|b| b["address"].to_string()));
    }
    names
}
