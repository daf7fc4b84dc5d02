//! The alerts of `docs/monitoring`, in a Prometheus that reads the daemons.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Lan, Process, Readiness, Signal, Tool, wait_until};

use crate::reload::fixture::reload_one;
use crate::support::{Cluster, Plan};

use super::PORT;

const RULES: &str = include_str!("../../../../docs/monitoring/alerts.yml");

const TESTS: &str = include_str!("../../../../docs/monitoring/alerts_test.yml");

/// Longer than the 70 s within which a foreign owner is forgotten, and the 61 s of a certificate.
const NOTICED: Duration = Duration::from_secs(90);

/// Alerts for what the machine of the test may lack, and for what happened in the last quarter of an hour: how often the VIP
/// moves when all backends fail at about the same time is chance.
const IGNORED: [&str; 2] = ["CplbNoRealTime", "CplbVirtualIPFlaps"];

/// A Prometheus at the client, whose alerts wait for a second instead of minutes.
struct Monitor<'a> {
    cluster: &'a Cluster,
    _process: Process,
}

impl<'a> Monitor<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let directory = cluster.lan.directory().join("prometheus");
        fs::create_dir(&directory).expect("a directory");
        let hurried = |line: &str| {
            let is_wait = line.trim_start().starts_with("for: ");
            if is_wait {
                line.split("for: ").next().unwrap_or_default().to_owned() + "for: 1s"
            } else {
                line.to_owned()
            }
        };
        let rules: Vec<String> = RULES.lines().map(hurried).collect();
        fs::write(directory.join("alerts.yml"), rules.join("\n")).expect("the rules are written");
        let targets: Vec<String> =
            cluster.lan.controllers().iter().map(|node| format!("'{}:{PORT}'", node.v4())).collect();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}\n\
             rule_files: [alerts.yml]\nscrape_configs:\n- job_name: cplb\n  static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        );
        fs::write(directory.join("prometheus.yml"), config).expect("the configuration is written");
        let mut command = Command::new(Tool::Prometheus.path().expect("it is installed"));
        command.current_dir(&directory).args([
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--web.listen-address=127.0.0.1:9090",
        ]);
        let process = cluster.client().spawn("prometheus", command).expect("prometheus starts");
        let monitor = Self { cluster, _process: process };
        monitor.wait("all daemons are read", || monitor.query("sum(up)") == Some("3".to_owned()));
        monitor
    }

    fn get(&self, path: &str, query: &str) -> Option<Value> {
        let mut command = Command::new("curl");
        command.args(["-s", "-m", "5", "-G", "--data-urlencode", &format!("query={query}")]);
        command.arg(format!("http://127.0.0.1:9090/api/v1/{path}"));
        let output = self.cluster.client().output(command).expect("curl runs");
        serde_json::from_slice(&output.stdout).ok()
    }

    fn query(&self, expression: &str) -> Option<String> {
        let found = self.get("query", expression)?;
        Some(found["data"]["result"][0]["value"][1].as_str()?.to_owned())
    }

    /// The firing alerts that are no mere information.
    fn firing(&self) -> BTreeSet<String> {
        self.alerts(|severity| severity != "info")
    }

    fn alerts(&self, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let found = self.get("alerts", "").unwrap_or_default();
        let alerts = found["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let counts = |alert: &&Value| {
            alert["state"] == "firing" && wanted(alert["labels"]["severity"].as_str().unwrap_or_default())
        };
        let names = alerts.iter().filter(counts).filter_map(|alert| alert["labels"]["alertname"].as_str());
        names.filter(|name| !IGNORED.contains(name)).map(str::to_owned).collect()
    }

    fn wait(&self, what: &str, condition: impl FnMut() -> bool) {
        if let Err(error) = wait_until(what, NOTICED, condition) {
            self.cluster.fail(&format!("{error}; firing: {:?}", self.alerts(|_| true)));
        }
    }

    /// Waits until these alerts fire after an event.
    fn expect(&self, event: &str, alerts: &[&str]) {
        let since = Instant::now();
        self.wait(&format!("{alerts:?} after {event}"), || {
            let firing = self.alerts(|_| true);
            alerts.iter().all(|alert| firing.contains(*alert))
        });
        println!("MEASURED {alerts:?} {:?} after {event}", since.elapsed());
    }

    fn expect_silence(&self, after: &str) {
        self.wait(&format!("no alert after {after}"), || self.firing().is_empty());
    }
}

pub(super) fn rules() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("alerts.yml"), RULES).expect("the rules are written");
    fs::write(directory.path().join("alerts_test.yml"), TESTS).expect("the tests are written");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let mut command = Command::new(Tool::Promtool.path().expect("it is installed"));
        let output = command.args(arguments).current_dir(directory.path()).output().expect("promtool runs");
        assert!(output.status.success(), "{output:?}");
    }
}

pub(super) fn fire() {
    let plan = Plan::v3("100ms").spec(format!("status: {{listen: '0.0.0.0:{PORT}'}}"));
    let mut cluster = Cluster::build(Lan::builder().clients(2), plan);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let backup = (owner + 1) % 3;
    let monitor = Monitor::start(&cluster);
    monitor.expect_silence("the start");

    reload_one(&cluster, backup, "spec: nonsense", "the configuration is not reloaded");
    monitor.expect("a refused reload", &["CplbReloadRefused"]);
    let text = cluster.plan.clone().spec("externalAddress: api.example.com").render(&cluster.lan);
    reload_one(&cluster, backup, &text, "the configuration is reloaded");
    monitor.expect("a name that no certificate has", &["CplbCertificate"]);
    reload_one(&cluster, backup, &cluster.plan.render(&cluster.lan), "the configuration is reloaded");
    monitor.expect_silence("a valid configuration");

    cluster.backends.iter().for_each(|backend| backend.set_readiness(Readiness::Status(500)));
    monitor.expect("the failure of all backends", &["CplbNoNodeServes", "CplbNotServing", "CplbBackendDown"]);
    cluster.backends.iter().for_each(|backend| backend.set_readiness(Readiness::Status(200)));
    monitor.expect_silence("the return of all backends");

    let address = |node: &testbed::Node, action: &str, interface: &str| {
        let vip = format!("{}/32", cluster.vip());
        node.exec("ip", ["address", action, &vip, "dev", interface]).expect("the address is changed");
    };
    address(cluster.node(backup), "add", "lo");
    monitor.expect("a virtual IP that was left behind", &["CplbVirtualIPLeftBehind"]);
    address(cluster.node(backup), "delete", "lo");
    let stranger = cluster.lan.client(1);
    address(stranger, "add", stranger.interface());
    monitor.expect("a host with the virtual IP", &["CplbForeignOwner"]);
    address(stranger, "delete", stranger.interface());
    // The claims of the neighbours are forgotten after a while.
    monitor.expect_silence("both");

    let nodes: Vec<&testbed::Node> = cluster.lan.controllers().iter().collect();
    let others: Vec<&testbed::Node> =
        nodes.iter().copied().filter(|node| node.name() != cluster.node(owner).name()).collect();
    cluster.lan.partition(&[&[cluster.node(owner)], &others]).expect("a partition");
    monitor.expect("a partition", &["CplbVirtualIPHeldTwice"]);
    cluster.lan.heal_all().expect("it heals");
    monitor.expect_silence("the partition");

    let owner = cluster.wait_until_settled();
    cluster.signal(owner, Signal::SIGKILL);
    monitor.expect("a crash", &["CplbDown", "CplbVirtualIPMoved"]);
    let moved = format!(
        "sum(increase(cplb_instance_transitions_total{{to=\"active\",reason=\"active_silent\",instance!=\"{}:{PORT}\"}}[5m])) > 0",
        cluster.node(owner).v4()
    );
    monitor.wait("the reason is counted", || monitor.query(&moved).is_some());
}
