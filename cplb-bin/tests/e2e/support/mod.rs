//! A cluster on a LAN for the tests of the real binary: controllers with daemons and API servers, and clients.
//!
//! Every failure prints the logs of all processes. The helpers wait for conditions, not for a fixed time, wherever
//! there is a condition.

pub(crate) mod crash;
pub(crate) mod footprint;
mod link;
pub(crate) mod packet;
pub(crate) mod services;
pub(crate) mod tproxy;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) use link::Link;
use serde_json::Value;
pub(crate) use tproxy::Tproxy;

use testbed::{Backend, Lan, LanBuilder, Node, Process, Signal, wait_until};

/// The port of the API servers and of the VIP.
pub(crate) const PORT: u16 = 6443;
/// The port that the daemons' load balancer listens on.
pub(crate) const BIND_PORT: u16 = 6444;
/// The host number of the VIP in the LAN's networks.
pub(crate) const VIP_HOST: u8 = 100;
/// An address that no VIP, controller or client of a LAN has.
pub(crate) const OTHER_HOST: u8 = 200;
/// Longer than any start, election or failover at 1 s intervals.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15);

/// The binary under test: `CPLB_BIN` where the tests run on another machine or as another user.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("CPLB_BIN").map_or_else(|| env!("CARGO_BIN_EXE_cplb").into(), PathBuf::from)
}

/// The configuration of the daemons of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Lines of one `vrrpInstances` entry besides virtualIPs, such as `advertInterval: 100ms`.
    pub(crate) instance: Vec<String>,
    /// Lines of `spec` besides vrrpInstances and backends.
    pub(crate) spec: Vec<String>,
    /// Use the IPv4 VIP.
    pub(crate) v4: bool,
    /// Use the IPv6 VIP.
    pub(crate) v6: bool,
    /// The features of the nodes' kernels.
    pub(crate) tproxy: Tproxy,
}

impl Default for Plan {
    /// k0s's settings: version 2, one second, equal priorities, a password; IPv4.
    fn default() -> Self {
        Self {
            instance: vec!["authPass: Example".to_owned()],
            spec: Vec::new(),
            v4: true,
            v6: false,
            tproxy: Tproxy::Present,
        }
    }
}

impl Plan {
    /// A plan with version 3 at this interval, for example `100ms`.
    pub(crate) fn v3(interval: &str) -> Self {
        Self {
            instance: vec!["version: 3".to_owned(), format!("advertInterval: {interval}")],
            ..Self::default()
        }
    }

    /// Adds a line to the instance, or replaces the one with the same key.
    pub(crate) fn instance(mut self, line: impl Into<String>) -> Self {
        let line = line.into();
        self.instance.retain(|former| former.split(':').next() != line.split(':').next());
        self.instance.push(line);
        self
    }

    pub(crate) fn spec(mut self, line: impl Into<String>) -> Self {
        self.spec.push(line.into());
        self
    }

    pub(crate) fn tproxy(mut self, tproxy: Tproxy) -> Self {
        self.tproxy = tproxy;
        self
    }

    pub(crate) fn dual_stack(mut self) -> Self {
        (self.v4, self.v6) = (true, true);
        self
    }

    pub(crate) fn v6_only(mut self) -> Self {
        (self.v4, self.v6) = (false, true);
        self
    }

    /// The configuration file for a controller of `lan`.
    pub(crate) fn render(&self, lan: &Lan) -> String {
        let (len4, len6) = lan.prefix_lengths();
        let mut vips = Vec::new();
        if self.v4 {
            vips.push(format!("\"{}/{len4}\"", lan.v4(VIP_HOST)));
        }
        if self.v6 {
            vips.push(format!("\"{}/{len6}\"", lan.v6(VIP_HOST)));
        }
        let backends: Vec<_> = lan
            .controllers()
            .iter()
            .map(|node| if self.v4 { IpAddr::V4(node.v4()) } else { IpAddr::V6(node.v6()) })
            .map(|ip| format!("\"{ip}\""))
            .collect();
        let mut text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n".to_owned();
        text.push_str(&format!("  vrrpInstances:\n  - virtualIPs: [{}]\n", vips.join(", ")));
        for line in &self.instance {
            text.push_str(&format!("    {line}\n"));
        }
        if !self.spec.iter().any(|line| line.starts_with("backends:")) {
            text.push_str(&format!("  backends:\n    static: [{}]\n", backends.join(", ")));
        }
        for line in &self.spec {
            text.push_str(&format!("  {line}\n"));
        }
        text
    }
}

/// Controllers with API servers and, once started, daemons.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) lan: Lan,
    pub(crate) plan: Plan,
    pub(crate) backends: Vec<Backend>,
    daemons: BTreeMap<usize, Process>,
}

impl Cluster {
    /// Builds a LAN and starts an API server on every controller; no daemon yet.
    pub(crate) fn build(lan: LanBuilder, plan: Plan) -> Self {
        let lan = lan.build().expect("the LAN is built");
        let backends = lan
            .controllers()
            .iter()
            .map(|node| {
                Backend::tls(node, &format!("api-{}", node.name()), PORT).expect("the API server starts")
            })
            .collect();
        Self { lan, plan, backends, daemons: BTreeMap::new() }
    }

    /// Starts three controllers, one client and all daemons, and waits until one of them is Active and serves.
    pub(crate) fn start(plan: Plan) -> Self {
        let mut cluster = Self::build(Lan::builder(), plan);
        cluster.start_all();
        cluster.wait_until_settled();
        cluster
    }

    /// Ends the API server of a controller and starts another one in its place.
    pub(crate) fn replace_backend(
        &mut self,
        index: usize,
        start: impl FnOnce(&Node) -> Result<Backend, testbed::Error>,
    ) {
        // The port is only free once the old server has ended.
        drop(self.backends.remove(index));
        let backend = start(self.lan.controller(index)).expect("the API server starts");
        self.backends.insert(index, backend);
    }

    pub(crate) fn len(&self) -> usize {
        self.lan.controllers().len()
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        self.lan.controller(index)
    }

    pub(crate) fn client(&self) -> &Node {
        self.lan.client(0)
    }

    /// The VIP that decides the election: IPv4 unless the plan has IPv6 only.
    pub(crate) fn vip(&self) -> IpAddr {
        if self.plan.v4 { IpAddr::V4(self.lan.v4(VIP_HOST)) } else { IpAddr::V6(self.lan.v6(VIP_HOST)) }
    }

    /// All VIPs, IPv4 first.
    pub(crate) fn vips(&self) -> Vec<IpAddr> {
        let v4 = self.plan.v4.then(|| IpAddr::V4(self.lan.v4(VIP_HOST)));
        let v6 = self.plan.v6.then(|| IpAddr::V6(self.lan.v6(VIP_HOST)));
        v4.into_iter().chain(v6).collect()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.vip(), PORT)
    }

    pub(crate) fn socket(&self, index: usize) -> PathBuf {
        self.node(index).directory().join("cplb.sock")
    }

    pub(crate) fn state_dir(&self, index: usize) -> PathBuf {
        self.node(index).directory().join("state")
    }

    pub(crate) fn config_file(&self, index: usize) -> PathBuf {
        self.node(index).directory().join("cplb.yaml")
    }

    /// The command `cplb run` with the usual paths; also writes the configuration file.
    pub(crate) fn command(&self, index: usize) -> Command {
        let config = self.config_file(index);
        std::fs::write(&config, self.plan.render(&self.lan)).expect("the configuration is written");
        let mut command = Command::new(binary());
        command.arg("run").arg("--config").arg(config).arg("--socket").arg(self.socket(index));
        command.arg("--state-dir").arg(self.state_dir(index));
        // The nodes share the host name of the machine.
        command.arg("--node-name").arg(self.node(index).name());
        self.plan.tproxy.prepare(&mut command, self.node(index).directory());
        command
    }

    /// Starts the daemon of a controller and waits until it answers.
    pub(crate) fn start_daemon(&mut self, index: usize) {
        let command = self.command(index);
        self.launch(index, command);
        self.wait("the daemon answers", || self.try_status(index).is_some());
    }

    /// Starts a daemon with the given command, without waiting.
    pub(crate) fn launch(&mut self, index: usize, command: Command) {
        let name = format!("cplb-{}", self.node(index).name());
        let process = self.node(index).spawn(&name, command).expect("cplb starts");
        self.daemons.insert(index, process);
    }

    pub(crate) fn start_all(&mut self) {
        for index in 0..self.len() {
            let command = self.command(index);
            self.launch(index, command);
        }
        for index in 0..self.len() {
            self.wait("the daemon answers", || self.try_status(index).is_some());
        }
    }

    pub(crate) fn daemon(&self, index: usize) -> &Process {
        &self.daemons[&index]
    }

    /// The daemon, if it was started and has not ended.
    pub(crate) fn running(&self, index: usize) -> Option<&Process> {
        self.daemons.get(&index).filter(|daemon| daemon.is_running())
    }

    /// Sends a signal to the daemon; returns the time just before.
    pub(crate) fn signal(&self, index: usize, signal: Signal) -> Instant {
        self.daemon(index).signal(signal).expect("the daemon runs")
    }

    /// Waits until the daemon has ended.
    pub(crate) fn wait_until_ended(&self, index: usize) -> std::process::ExitStatus {
        match self.daemon(index).wait(TIMEOUT) {
            Ok(status) => status,
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// The output of a command of operators to a daemon.
    pub(crate) fn cplb(&self, index: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--socket").arg(self.socket(index));
        command.output().expect("cplb starts")
    }

    /// The text that a command prints that succeeds.
    pub(crate) fn succeed(&self, index: usize, arguments: &[&str]) -> String {
        let output = self.cplb(index, arguments);
        self.check(output.status.success(), || format!("{arguments:?}: {output:?}"));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Fails unless a command is refused with this exit code and reason.
    pub(crate) fn refuse(&self, index: usize, arguments: &[&str], code: i32, why: &str) {
        let output = self.cplb(index, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let as_expected =
            output.status.code() == Some(code) && output.stdout.is_empty() && text.contains(why);
        self.check(as_expected, || format!("{why:?} is not in {output:?}"));
    }

    /// Waits until each controller can serve and knows the others by the group channel.
    pub(crate) fn wait_until_all_know_each_other(&self) {
        for index in 0..self.len() {
            self.wait("every node knows the others", || {
                let status = self.status(index);
                let peers = status["peers"].as_array().cloned().unwrap_or_default();
                peers.len() == self.len() - 1
                    && peers.iter().all(|peer| peer["serving"] == true)
                    && status["serving"]["serving"] == true
            });
        }
    }

    /// The output of `cplb status --json`, run in the daemon's namespaces.
    pub(crate) fn status(&self, index: usize) -> Value {
        let mut answer = self.query_status(index);
        // The client gives up after a few seconds, which a loaded machine may need.
        let answered = wait_until("the daemon answers", TIMEOUT, || {
            if answer.is_err() {
                answer = self.query_status(index);
            }
            answer.is_ok()
        });
        match (answered, answer) {
            (Ok(_), Ok(status)) => status,
            (_, why) => self.fail(&format!("{} does not answer: {why:?}", self.node(index).name())),
        }
    }

    /// The result of [`degraded`] for a node, as JSON: `[]` if there is no entry.
    pub(crate) fn degraded(&self, index: usize) -> String {
        serde_json::json!(degraded(&self.status(index))).to_string()
    }

    pub(crate) fn try_status(&self, index: usize) -> Option<Value> {
        self.query_status(index).ok()
    }

    fn query_status(&self, index: usize) -> Result<Value, String> {
        let output = Command::new(binary())
            .args(["status", "--json", "--socket"])
            .arg(self.socket(index))
            .output()
            .expect("cplb status starts");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).expect("status is JSON"))
    }

    /// The first instance's state, such as `active`.
    pub(crate) fn state(&self, index: usize) -> Option<String> {
        Some(self.try_status(index)?["instances"][0]["state"].as_str()?.to_owned())
    }

    /// The controllers whose interface has the VIP.
    pub(crate) fn owners(&self) -> Vec<usize> {
        (0..self.len()).filter(|&index| self.node(index).has_address(self.vip())).collect()
    }

    /// Waits for exactly one owner, whose status is Active; `except` is not counted.
    pub(crate) fn wait_for_owner(&self, except: Option<usize>) -> usize {
        let mut found = None;
        self.wait("one controller holds the VIP and is Active", || {
            let owners: Vec<_> = self.owners().into_iter().filter(|&index| Some(index) != except).collect();
            found = match owners.as_slice() {
                [index] if self.state(*index).as_deref() == Some("active") => Some(*index),
                _ => None,
            };
            found.is_some()
        });
        found.expect("an owner was found")
    }

    /// Waits until there is one owner, every daemon can serve, and the VIP answers. Returns the owner.
    pub(crate) fn wait_until_settled(&self) -> usize {
        let owner = self.wait_for_owner(None);
        for index in self.daemons.keys() {
            self.wait("the daemon can serve", || {
                self.try_status(*index).is_some_and(|status| status["serving"]["serving"] == true)
            });
        }
        let probe = testbed::Probe::to(self.address())
            .every(Duration::from_millis(20))
            .start(self.client())
            .expect("the probe starts");
        if let Err(error) = probe.wait_for_success(Instant::now(), timeout()) {
            self.fail(&format!("the VIP does not answer: {error}"));
        }
        owner
    }

    /// The number of times that the instances of all controllers became Active, according to the daemons' logs.
    pub(crate) fn takeovers(&self) -> usize {
        (0..self.len())
            .filter_map(|index| self.daemons.get(&index))
            .map(|daemon| daemon.log().text().matches("to=active").count())
            .sum()
    }

    /// Waits for a condition up to [`timeout`]; fails with all logs.
    pub(crate) fn wait(&self, what: &str, condition: impl FnMut() -> bool) -> Duration {
        match wait_until(what, timeout(), condition) {
            Ok(took) => took,
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// Panics with the logs of all processes.
    pub(crate) fn fail(&self, why: &str) -> ! {
        panic!("{why}\n\n{}", self.lan.report());
    }

    /// Fails with the logs unless `condition` holds.
    pub(crate) fn check(&self, condition: bool, why: impl FnOnce() -> String) {
        if !condition {
            self.fail(&why());
        }
    }
}

/// Time limit of conditions that take a few seconds at most. An emulated guest is some twenty times slower, and shares
/// the machine with other tests.
fn timeout() -> Duration {
    if testbed::guest::is_guest() { 4 * TIMEOUT } else { TIMEOUT }
}

/// The entries of `degraded` in a status, without those about real-time priority, which an ordinary user does not have.
pub(crate) fn degraded(status: &Value) -> Vec<String> {
    let entries = status["degraded"].as_array().expect("a list").iter();
    let texts = entries.map(|entry| entry.as_str().expect("a text").to_owned());
    texts
        .filter(|text| {
            !text.contains("no real-time priority") && !text.contains("without real-time priority")
        })
        .collect()
}

/// The median of some durations.
pub(crate) fn median(durations: &[Duration]) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}
