//! SIGHUP: the configuration changes, the connections stay; a wrong file changes nothing.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Backend, Failure, Lan, Line, Node, Probe, Sessions, Signal, Test, Tool};

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
        Test::new("a_port_that_is_taken_changes_nothing", taken_port),
        Test::new("a_silent_name_server_stops_nothing", silent_name_server),
        Test::new("a_reload_adds_and_removes_an_instance_without_touching_the_other", instances),
        Test::new("a_removed_instance_hands_its_address_over", removed_instance),
        Test::new("a_reload_gives_addresses_of_one_instance_to_another", traded_addresses),
        Test::new("an_address_goes_to_another_instance_and_back_at_once", address_there_and_back),
        Test::new("the_table_leads_an_address_as_long_as_it_is_held", table_outlives_addresses)
            .needs([Tool::Nft]),
        Test::new("the_table_leads_a_new_address_before_it_is_held", table_precedes_addresses),
        Test::new("a_table_that_cannot_be_changed_is_tried_again", stubborn_table).needs([Tool::Nft]),
        Test::new("a_slow_name_server_is_waited_for_by_nobody_and_heard", slow_name_server),
        Test::new("a_wrong_file_is_shown_although_the_one_before_was_good", wrong_file_after_a_good_one),
        Test::new("a_setting_that_is_taken_out_is_no_longer_missed", source_taken_out),
        Test::new("a_reload_after_a_stop_is_too_late", reload_at_the_end),
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
            fs::write(self.cluster.config_file(index), text).expect("the configuration is written");
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

/// Two instances at this interval, each with one address, and all controllers as backends.
fn two_instances(lan: &Lan, interval: &str, addresses: [Ipv4Addr; 2]) -> String {
    let backends: Vec<_> = lan.controllers().iter().map(|node| format!("\"{}\"", node.v4())).collect();
    let [first, second] = addresses;
    format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
         - {{virtualIPs: [\"{first}/24\"], virtualRouterID: 51, version: 3, advertInterval: {interval}}}\n  \
         - {{virtualIPs: [\"{second}/24\"], virtualRouterID: 52, version: 3, advertInterval: {interval}}}\n  \
         backends: {{static: [{}]}}\n",
        backends.join(", ")
    )
}

fn second_vip(cluster: &Cluster) -> Ipv4Addr {
    cluster.lan.v4(support::VIP_HOST + 99)
}

fn holders(cluster: &Cluster, vip: Ipv4Addr) -> Vec<usize> {
    (0..cluster.len()).filter(|&index| cluster.node(index).has_address(vip)).collect()
}

fn probe(cluster: &Cluster, vip: Ipv4Addr) -> Probe {
    let probe = Probe::to(SocketAddr::new(vip.into(), support::PORT))
        .every(Duration::from_millis(10))
        .start(cluster.client())
        .expect("a probe");
    if let Err(error) = probe.wait_for_success(Instant::now(), PATIENCE) {
        cluster.fail(&format!("{vip} does not answer: {error}"));
    }
    probe
}

fn degraded(cluster: &Cluster, index: usize) -> String {
    cluster.status(index)["degraded"].to_string()
}

fn taken_port() {
    let mut scene = Scene::start();
    let active = scene.active;
    let squatter =
        Backend::echo(scene.cluster.node(active), "squatter", OTHER_BIND_PORT).expect("the port is taken");
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
    scene.cluster.check(service["bindPort"] == support::BIND_PORT, || service.to_string());
    let after = Instant::now();
    scene.cluster.wait("clients still reach all", || scene.probe.report().served_by_since(after).len() == 3);
    drop(squatter);
    scene.reload(Plan::v3("100ms"));
    scene.cluster.check(degraded(&scene.cluster, active) == "[]", || degraded(&scene.cluster, active));
    scene.check_undisturbed();
}

/// Another file in the place of a program or of one in `/etc`, in this program's own mounts, until it is dropped.
struct Replaced(PathBuf);

impl Replaced {
    fn new(file: impl Into<PathBuf>, with: &Path) -> Self {
        let file = file.into();
        // `/run` is empty here, where such a file may be a link to.
        if let (Err(_), Ok(link)) = (fs::metadata(&file), fs::read_link(&file)) {
            let target = file.parent().expect("a file").join(link);
            fs::create_dir_all(target.parent().expect("a file")).expect("a directory");
            fs::write(target, "").expect("a file");
        }
        let status = Command::new("mount").arg("--bind").arg(with).arg(&file).status().expect("mount runs");
        assert!(status.success(), "{} cannot be replaced", file.display());
        Self(file)
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        assert!(thread::panicking() || status.is_ok_and(|status| status.success()), "it stays replaced");
    }
}

/// A status must come at once while a name server says nothing; the machine may be busy.
const AT_ONCE: Duration = Duration::from_millis(1500);

fn silent_name_server() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let nodes = cluster.lan.controllers();
    let directory = cluster.state_dir(0).with_file_name("etc");
    fs::create_dir_all(&directory).expect("a directory");
    let hosts = directory.join("hosts");
    fs::write(&hosts, format!("{} api.cluster.test\n", nodes[2].v4())).expect("a file");
    let _hosts = Replaced::new("/etc/hosts", &hosts);
    let _resolver = name_server(&cluster, None);
    let plan = |names: &str| {
        Plan::v3("100ms")
            .spec(format!("backends: {{static: [\"{}\", api.cluster.test{names}]}}", nodes[1].v4()))
    };
    let (few, many) = (plan(""), plan(", a.cluster.test, b.cluster.test, c.cluster.test, d.cluster.test"));
    cluster.plan = few;
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let before = names(&cluster, 0);
    cluster.check(before.len() == 3, || format!("{before:?}"));

    fs::write(&hosts, "").expect("a file");
    fs::write(cluster.config_file(0), many.render(&cluster.lan)).expect("a file");
    let mark = cluster.daemon(0).log().len();
    cluster.signal(0, Signal::SIGHUP);
    let asked = Instant::now();
    // Five names, each of which takes longer than a round; one after the other they would take 10 s.
    let reloaded = |line: &Line| line.text.contains("the configuration is reloaded");
    while cluster.daemon(0).log().wait_for(mark, Duration::ZERO, reloaded).is_none() {
        let started = Instant::now();
        let status = cluster.status(0);
        cluster.check(started.elapsed() < AT_ONCE, || format!("the status took {:?}", started.elapsed()));
        cluster.check(status["serving"]["serving"] == true, || format!("{status}"));
        cluster.check(asked.elapsed() < Duration::from_secs(6), || "the reload takes too long".to_owned());
    }
    cluster.check(names(&cluster, 0) == before, || format!("{:?} is not {before:?}", names(&cluster, 0)));
    let shown = degraded(&cluster, 0);
    cluster.check(shown.contains("a.cluster.test cannot be resolved"), || shown.clone());
    cluster.check(cluster.owners() == [0], || "the VIP is gone".to_owned());
    let stopped = cluster.signal(0, Signal::SIGTERM);
    let status = cluster.wait_until_ended(0);
    cluster.check(status.success(), || format!("the daemon ended with {status}"));
    cluster.check(stopped.elapsed() < Duration::from_secs(4), || format!("it took {:?}", stopped.elapsed()));
}

fn removed_instance() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let (first, second) = (cluster.lan.v4(support::VIP_HOST), second_vip(&cluster));
    let text = two_instances(&cluster.lan, "1s", [first, second]);
    cluster.start_all();
    cluster.wait_until_settled();
    for index in 0..cluster.len() {
        fs::write(cluster.config_file(index), &text).expect("a file");
        cluster.signal(index, Signal::SIGHUP);
    }
    cluster.wait("one node holds the second VIP", || holders(&cluster, second).len() == 1);
    let owner = holders(&cluster, second)[0];
    let probe = probe(&cluster, second);
    cluster.wait("all can serve", || {
        (0..cluster.len()).all(|index| cluster.status(index)["serving"]["serving"] == true)
    });
    let since = Instant::now();
    cluster.plan = Plan::v3("1s");
    let (mark, text) = (cluster.daemon(owner).log().len(), cluster.plan.render(&cluster.lan));
    fs::write(cluster.config_file(owner), text).expect("a file");
    cluster.signal(owner, Signal::SIGHUP);
    let gone = cluster.daemon(owner).log().wait_for_line_after(mark, "the instance is removed", PATIENCE);
    cluster.check(gone.is_ok(), || format!("{gone:?}"));
    cluster.wait("another node holds the second VIP", || {
        let now = holders(&cluster, second);
        now.len() == 1 && now != [owner]
    });
    if let Err(error) = probe.wait_for_success(Instant::now(), PATIENCE) {
        cluster.fail(&error.to_string());
    }
    let blackout = probe.stop().blackout_since(since).duration();
    // After a crash it would be more than 3 s, after a handover it is some milliseconds; the machine may be busy.
    cluster.check(blackout < Duration::from_secs(1), || format!("the blackout was {blackout:?}"));
    eprintln!("blackout of the removed instance's address: {blackout:?}");
    cluster.check(cluster.status(owner)["instances"].as_array().map(Vec::len) == Some(1), || {
        cluster.status(owner).to_string()
    });
}

fn traded_addresses() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let (first, second) = (cluster.lan.v4(support::VIP_HOST), second_vip(&cluster));
    let reload = |text: &str| {
        for index in 0..cluster.len() {
            fs::write(cluster.config_file(index), text).expect("a file");
            let mark = cluster.daemon(index).log().len();
            cluster.signal(index, Signal::SIGHUP);
            let read = cluster.daemon(index).log().wait_for_line_after(mark, "is reloaded", PATIENCE);
            cluster.check(read.is_ok(), || format!("{read:?}"));
        }
    };
    let holder = |vrid: u64, vip: Ipv4Addr| {
        cluster.wait(&format!("the router {vrid} holds {vip} and nobody else"), || {
            let active: Vec<_> = (0..cluster.len())
                .filter(|&index| {
                    let status = cluster.status(index);
                    status["instances"].as_array().into_iter().flatten().any(|instance| {
                        instance["virtualRouterID"] == vrid
                            && instance["state"] == "active"
                            && instance["virtualIPs"].to_string().contains(&vip.to_string())
                    })
                })
                .collect();
            active.len() == 1 && holders(&cluster, vip) == active
        });
        drop(probe(&cluster, vip));
    };
    reload(&two_instances(&cluster.lan, "100ms", [first, second]));
    holder(51, first);
    holder(52, second);
    reload(&two_instances(&cluster.lan, "100ms", [second, first]));
    holder(51, second);
    holder(52, first);
    // The router 52 goes, and its address to the router 51.
    let text = two_instances(&cluster.lan, "100ms", [second, first]);
    let merged: String = text
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| {
            line.replace(&format!("[\"{second}/24\"]"), &format!("[\"{second}/24\", \"{first}/24\"]")) + "\n"
        })
        .collect();
    assert!(merged.contains(&format!("{first}/24")));
    reload(&merged);
    holder(51, second);
    holder(51, first);
    for index in 0..cluster.len() {
        cluster.check(degraded(&cluster, index) == "[]", || degraded(&cluster, index));
    }
}

/// Writes a file, has it read and waits for the answer in the log.
fn reload_one(cluster: &Cluster, index: usize, text: &str, answer: &str) {
    fs::write(cluster.config_file(index), text).expect("a file");
    let mark = cluster.daemon(index).log().len();
    cluster.signal(index, Signal::SIGHUP);
    let read = cluster.daemon(index).log().wait_for_line_after(mark, answer, PATIENCE);
    cluster.check(read.is_ok(), || format!("{read:?}"));
}

/// What clients meet at an address of a single daemon, through a service whose servers are all elsewhere.
struct Elsewhere {
    cluster: Cluster,
    _agents: Vec<Backend>,
    services: String,
}

impl Elsewhere {
    fn start() -> Self {
        let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
        let others = &cluster.lan.controllers()[1..];
        let agent = |node: &Node| Backend::echo(node, &format!("agent-{}", node.name()), OTHER_PORT);
        let agents = others.iter().map(|node| agent(node).expect("it listens")).collect();
        let services = format!(
            "  services: [{{name: kube-apiserver, port: 6443}}, {{name: konnectivity, port: {OTHER_PORT}, \
             bindPort: {OTHER_BIND_PORT}, backends: {{static: [\"{}\", \"{}\"]}}, healthCheck: {{type: tcp}}}}]\n",
            others[0].v4(),
            others[1].v4()
        );
        cluster.start_daemon(0);
        cluster.wait_until_settled();
        Self { cluster, _agents: agents, services }
    }

    fn probe(&self, vip: Ipv4Addr) -> Probe {
        let target = SocketAddr::new(vip.into(), OTHER_PORT);
        Probe::to(target).every(Duration::from_millis(5)).start(self.cluster.client()).expect("a probe")
    }
}

/// A node must not hold a virtual IP whose traffic its table does not lead anywhere: clients would be refused.
fn table_outlives_addresses() {
    let scene = Elsewhere::start();
    let cluster = &scene.cluster;
    let (first, second) = (cluster.lan.v4(support::VIP_HOST), second_vip(cluster));
    let two = two_instances(&cluster.lan, "1s", [first, second]) + &scene.services;
    reload_one(cluster, 0, &two, "is reloaded");
    cluster.wait("the second VIP is held", || holders(cluster, second) == [0]);
    let probe = scene.probe(second);
    if let Err(error) = probe.wait_for_success(Instant::now(), PATIENCE) {
        cluster.fail(&error.to_string());
    }
    let since = Instant::now();
    let one: String = two
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mark = cluster.daemon(0).log().len();
    reload_one(cluster, 0, &one, "is reloaded");
    let removed = cluster.daemon(0).log().wait_for_line_after(mark, "the instance is removed", PATIENCE);
    cluster.check(removed.is_ok(), || format!("{removed:?}"));
    cluster.wait("the VIP is gone", || holders(cluster, second).is_empty());
    // Nobody answers for the address afterwards; that is silence, and no refusal.
    let failures = probe.stop().failures_since(since);
    let refused = failures.get(&Failure::Refused).copied().unwrap_or(0);
    cluster.check(refused == 0, || format!("{failures:?}"));
    cluster.wait("the table forgets it", || !ruleset(cluster.node(0)).contains(&second.to_string()));
}

fn table_precedes_addresses() {
    let scene = Elsewhere::start();
    let cluster = &scene.cluster;
    let (first, second) = (cluster.lan.v4(support::VIP_HOST), second_vip(cluster));
    let one: String = (two_instances(&cluster.lan, "1s", [first, second]) + &scene.services)
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| format!("{line}\n"))
        .collect();
    let both = one.replace(&format!("[\"{first}/24\"]"), &format!("[\"{first}/24\", \"{second}/24\"]"));
    reload_one(cluster, 0, &one, "is reloaded");
    let probe = scene.probe(second);
    let since = Instant::now();
    reload_one(cluster, 0, &both, "is reloaded");
    if let Err(error) = probe.wait_for_success(Instant::now(), PATIENCE) {
        cluster.fail(&error.to_string());
    }
    let failures = probe.stop().failures_since(since);
    let refused = failures.get(&Failure::Refused).copied().unwrap_or(0);
    cluster.check(refused == 0, || format!("{failures:?}"));
}

fn ruleset(node: &Node) -> String {
    node.exec("nft", ["list", "ruleset"]).unwrap_or_else(|error| panic!("{error}"))
}

fn stubborn_table() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let nft = Tool::Nft.path().expect("the test declares it");
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let before = cluster.plan.render(&cluster.lan);
    let broken = Replaced::new(nft, Path::new("/bin/false"));
    let added =
        two_instances(&cluster.lan, "100ms", [cluster.lan.v4(support::VIP_HOST), second_vip(&cluster)]);
    reload_one(&cluster, 0, &added, "is not reloaded");
    let shown = degraded(&cluster, 0);
    cluster.check(shown.contains("is in use: the nftables table cannot be applied"), || shown.clone());
    cluster.check(cluster.status(0)["instances"].as_array().map(Vec::len) == Some(1), || shown.clone());

    let disabled = Plan::v3("100ms").spec("disableLoadBalancer: true").render(&cluster.lan);
    reload_one(&cluster, 0, &disabled, "is reloaded");
    cluster.wait("the table is missed that cannot be removed", || {
        degraded(&cluster, 0).contains("the nftables table cannot be removed")
    });
    drop(broken);
    cluster.wait("the table is removed at last", || degraded(&cluster, 0) == "[]");
    cluster.check(!ruleset(cluster.node(0)).contains("cplb"), || ruleset(cluster.node(0)));
    reload_one(&cluster, 0, &before, "is reloaded");
    cluster.wait("it serves again", || cluster.status(0)["serving"]["serving"] == true);
    cluster.check(ruleset(cluster.node(0)).contains("dnat"), || ruleset(cluster.node(0)));
}

/// The system's name server, which answers every question for an address with this one after so long, or never.
fn name_server(cluster: &Cluster, answer: Option<(Ipv4Addr, Duration)>) -> Replaced {
    let directory = cluster.state_dir(0).with_file_name("etc");
    fs::create_dir_all(&directory).expect("a directory");
    let resolv = directory.join("resolv.conf");
    let client = cluster.client().v4();
    fs::write(&resolv, format!("nameserver {client}\noptions timeout:10\n")).expect("a file");
    let replaced = Replaced::new("/etc/resolv.conf", &resolv);
    let server = cluster.client().run(|| UdpSocket::bind((client, 53))).expect("a name server");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            let Some((address, delay)) = answer else { continue };
            let (query, server) = (buffer[..len].to_vec(), server.try_clone().expect("a socket"));
            thread::spawn(move || {
                thread::sleep(delay);
                let _ = server.send_to(&dns_answer(&query, address), from);
            });
        }
    });
    replaced
}

/// RFC 1035 §4: the question again, and one A record if that is what was asked for.
fn dns_answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let name = query[12..].iter().position(|&byte| byte == 0).expect("a name ends");
    let question = &query[12..12 + name + 5];
    let is_a = question[name + 2] == 1;
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

/// Its first name server is dead, so this is how long the system's resolver takes for each name.
const SLOW: Duration = Duration::from_secs(3);

fn slow_name_server() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let target = cluster.node(1).v4();
    let _resolver = name_server(&cluster, Some((target, SLOW)));
    cluster.plan = Plan::v3("100ms").spec("backends: {static: [slow.cluster.test]}");
    cluster.start_daemon(0);
    cluster.wait("the late answer is used", || {
        names(&cluster, 0).iter().any(|name| name.contains(&target.to_string()))
    });
    cluster.wait_until_settled();
}

fn wrong_file_after_a_good_one() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let _resolver = name_server(&cluster, None);
    cluster.start_daemon(0);
    let known = cluster.node(1).v4();
    let good = Plan::v3("1s").spec(format!("backends: {{static: [\"{known}\", x.cluster.test]}}"));
    let mark = cluster.daemon(0).log().len();
    fs::write(cluster.config_file(0), good.render(&cluster.lan)).expect("a file");
    cluster.signal(0, Signal::SIGHUP);
    // The good one waits for its names for 2 s.
    let asked =
        cluster.daemon(0).log().wait_for_line_after(mark, "the configuration file is read again", PATIENCE);
    cluster.check(asked.is_ok(), || format!("{asked:?}"));
    reload_one(&cluster, 0, "spec: [\n", "is not reloaded");
    let read = cluster.daemon(0).log().wait_for_line_after(mark, "is reloaded", PATIENCE);
    cluster.check(read.is_ok(), || format!("{read:?}"));
    let shown = degraded(&cluster, 0);
    cluster.check(shown.contains("is not reloaded"), || shown.clone());
}

fn source_taken_out() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let (wrong, peer) = (cluster.lan.v4(77), cluster.node(1).v4());
    let unicast = Plan::v3("100ms")
        .instance(format!("unicastSourceIP: {wrong}"))
        .instance(format!("unicastPeers: [\"{peer}\"]"));
    reload_one(&cluster, 0, &unicast.render(&cluster.lan), "is reloaded");
    cluster.wait("the source is missed", || degraded(&cluster, 0).contains("unicastSourceIP"));
    reload_one(&cluster, 0, &Plan::v3("100ms").render(&cluster.lan), "is reloaded");
    cluster.wait("nothing is missed any more", || degraded(&cluster, 0) == "[]");
    cluster.wait_until_settled();
}

fn reload_at_the_end() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let second = second_vip(&cluster);
    cluster.start_all();
    let active = cluster.wait_until_settled();
    let text = two_instances(&cluster.lan, "1s", [cluster.lan.v4(support::VIP_HOST), second]);
    fs::write(cluster.config_file(active), text).expect("a file");
    let asked = cluster.signal(active, Signal::SIGTERM);
    cluster.signal(active, Signal::SIGHUP);
    let status = cluster.wait_until_ended(active);
    cluster.check(status.success(), || format!("the daemon ended with {status}"));
    // A handover to a serving Backup takes 0.3 s; with another router to wait for it would be its bound, 4.2 s.
    cluster.check(asked.elapsed() < Duration::from_secs(3), || format!("it took {:?}", asked.elapsed()));
    cluster
        .check(!cluster.daemon(active).log().text().contains("is reloaded"), || "it was reloaded".to_owned());
}

fn address_there_and_back() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let (first, second) = (cluster.lan.v4(support::VIP_HOST), second_vip(&cluster));
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let two = two_instances(&cluster.lan, "1s", [first, second]);
    reload_one(&cluster, 0, &two, "is reloaded");
    cluster.wait("the second VIP is held", || holders(&cluster, second) == [0]);
    let merged: String = two
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| {
            line.replace(&format!("[\"{first}/24\"]"), &format!("[\"{first}/24\", \"{second}/24\"]")) + "\n"
        })
        .collect();
    // The router 52 is still resigning when it is wanted again.
    reload_one(&cluster, 0, &merged, "is reloaded");
    reload_one(&cluster, 0, &two, "is reloaded");
    cluster.wait("both routers are active", || {
        let status = cluster.status(0);
        let instances = status["instances"].as_array().cloned().unwrap_or_default();
        instances.len() == 2
            && instances.iter().all(|found| found["state"] == "active" && found["holdsVirtualIPs"] == true)
    });
    drop(probe(&cluster, second));
    cluster.check(degraded(&cluster, 0) == "[]", || degraded(&cluster, 0));
}

fn instances() {
    let mut scene = Scene::start();
    let second = second_vip(&scene.cluster);
    let text = two_instances(&scene.cluster.lan, "100ms", [scene.cluster.lan.v4(support::VIP_HOST), second]);
    scene.reload_text(&text, "the configuration is reloaded");
    scene.cluster.wait("one node holds the second VIP", || holders(&scene.cluster, second).len() == 1);
    drop(probe(&scene.cluster, second));
    scene.reload(Plan::v3("100ms"));
    scene.cluster.wait("nobody holds the second VIP", || holders(&scene.cluster, second).is_empty());
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
