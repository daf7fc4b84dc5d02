//! Shared fixture of the reload tests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Lan, Node, Probe, Signal};

use crate::support::{Cluster, OTHER_HOST, PORT, TIMEOUT};

/// Konnectivity's port, and the proxy's bind port for it.
pub(crate) const OTHER_PORT: u16 = 8132;

pub(crate) const OTHER_BIND_PORT: u16 = 8133;

/// A configuration with two instances at this interval, each with one address, and all controllers as backends.
pub(crate) fn two_instances(lan: &Lan, interval: &str, addresses: [Ipv4Addr; 2]) -> String {
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

pub(crate) fn second_vip(cluster: &Cluster) -> Ipv4Addr {
    cluster.lan.v4(OTHER_HOST)
}

pub(crate) fn owners_of(cluster: &Cluster, vip: Ipv4Addr) -> Vec<usize> {
    (0..cluster.len()).filter(|&index| cluster.node(index).has_address(vip)).collect()
}

pub(crate) fn probe(cluster: &Cluster, vip: Ipv4Addr) -> Probe {
    let probe = Probe::to(SocketAddr::new(vip.into(), PORT))
        .every(Duration::from_millis(10))
        .start(cluster.client())
        .expect("a probe");
    if let Err(error) = probe.wait_for_success(Instant::now(), TIMEOUT) {
        cluster.fail(&format!("{vip} does not answer: {error}"));
    }
    probe
}

/// Writes a file, makes the daemon read it and waits for the result in the log.
pub(crate) fn reload_one(cluster: &Cluster, index: usize, text: &str, answer: &str) {
    fs::write(cluster.config_file(index), text).expect("a file");
    let mark = cluster.daemon(index).log().len();
    cluster.signal(index, Signal::SIGHUP);
    let read = cluster.daemon(index).log().wait_for_line_after(mark, answer, TIMEOUT);
    cluster.check(read.is_ok(), || format!("{read:?}"));
}

/// A bind mount over a program or a file in `/etc`, in this program's own mount namespace, until it is dropped.
pub(crate) struct Replaced(PathBuf);

impl Replaced {
    pub(crate) fn new(file: impl Into<PathBuf>, with: &Path) -> Self {
        let file = file.into();
        // `/run` is empty here, and such a file may be a link into it.
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
        assert!(
            thread::panicking() || status.is_ok_and(|status| status.success()),
            "the file is still replaced"
        );
    }
}

pub(crate) fn ruleset(node: &Node) -> String {
    node.exec("nft", ["list", "ruleset"]).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn services_of(cluster: &Cluster, index: usize) -> Vec<Value> {
    cluster.status(index)["services"].as_array().cloned().unwrap_or_default()
}

/// The services and backends of a daemon, without fields that change over time.
pub(crate) fn names(cluster: &Cluster, index: usize) -> Vec<String> {
    let mut names = Vec::new();
    for service in services_of(cluster, index) {
        names.push(service["name"].to_string());
        names.extend(service["backends"].as_array().into_iter().flatten().map(|b| b["address"].to_string()));
    }
    names
}
