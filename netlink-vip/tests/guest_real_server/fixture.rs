//! A LAN, and real servers on its nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use netlink_vip::{RealServer, RealServerConfig, RealServerError, ReconcileReport, TunnelConfig};
use testbed::{Lan, Node, eventually};

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn lan(controllers: u8) -> Lan {
    Lan::builder().controllers(controllers).clients(1).build().expect("a LAN")
}

pub(crate) fn vips(lan: &Lan) -> Vec<IpAddr> {
    vec![lan.v4(100).into(), lan.v6(100).into()]
}

/// The LAN's VIPs, silence on eth0, and a tunnel of each family.
pub(crate) fn config(lan: &Lan, node: &Node) -> RealServerConfig {
    let mut config = RealServerConfig::new(vips(lan));
    config.interfaces.push("eth0".into());
    config.tunnels = vec![TunnelConfig::new(node.v4().into()), TunnelConfig::new(node.v6().into())];
    config
}

pub(crate) fn state(node: &Node) -> PathBuf {
    node.directory().join("real-server")
}

/// A real server; its calls are made in the node's namespace.
pub(crate) struct Server<'a> {
    node: &'a Node,
    server: RealServer,
}

impl<'a> Server<'a> {
    pub(crate) fn open(node: &'a Node) -> Self {
        let server = node.run(|| RealServer::open(&state(node))).expect("a state directory");
        Self { node, server }
    }

    pub(crate) fn with(node: &'a Node, config: RealServerConfig) -> Self {
        let mut server = Self::open(node);
        server.change(config).expect("a real server");
        server
    }

    pub(crate) fn change(&mut self, config: RealServerConfig) -> Result<ReconcileReport, RealServerError> {
        self.node.run(|| self.server.change(config))
    }

    /// The repairs of a reconciliation; a second one has none.
    pub(crate) fn repairs(&mut self) -> Vec<String> {
        let report = self.reconcile();
        let again = self.reconcile();
        assert!(again.repairs.is_empty(), "{:?} and then {:?}", report.repairs, again.repairs);
        report.repairs.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn reconcile(&mut self) -> ReconcileReport {
        self.node.run(|| self.server.reconcile()).expect("everything can be put right")
    }

    pub(crate) fn remove(&mut self) -> Result<netlink_vip::Recovery, RealServerError> {
        self.node.run(|| self.server.remove())
    }
}

/// Runs `ip`, which must succeed.
pub(crate) fn ip(node: &Node, arguments: &str) -> String {
    node.exec("ip", arguments.split_whitespace()).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs one `nft` command, which must succeed.
pub(crate) fn nft(node: &Node, command: &str) -> String {
    node.exec("nft", [command]).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn arp_sysctls(node: &Node) -> [String; 2] {
    ["arp_ignore", "arp_announce"]
        .map(|name| node.sysctl(&format!("net.ipv4.conf.eth0.{name}")).expect("a sysctl"))
}

/// Links with their flags and addresses, routes of all tables, sysctls of ARP and of filters.
pub(crate) fn tables(node: &Node) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for what in ["-o addr show", "-4 route show table all", "-6 route show table all", "-o link show"] {
        for line in ip(node, what).lines() {
            let line = line.split("valid_lft").next().unwrap_or(line);
            let line = line.split(" expires").next().unwrap_or(line);
            lines.insert(format!("{what}: {line}"));
        }
    }
    for interface in ["all", "default", "eth0", "lo"] {
        for name in ["arp_ignore", "arp_announce", "rp_filter"] {
            let key = format!("net.ipv4.conf.{interface}.{name}");
            lines.insert(format!("{key} = {}", node.sysctl(&key).expect("a sysctl")));
        }
    }
    lines
}

/// The kernel completes IPv6 addresses and routes a moment after it has acknowledged a change.
pub(crate) fn assert_same(node: &Node, before: &BTreeSet<String>) {
    let mut difference = Vec::new();
    for _ in 0..50 {
        let after = tables(node);
        difference = before.symmetric_difference(&after).cloned().collect();
        if difference.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("gone or new: {difference:#?}");
}

/// The route that a packet to the address takes.
pub(crate) fn route_to(node: &Node, vip: IpAddr) -> String {
    ip(node, &format!("route get fibmatch {vip}"))
}

pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    eventually(what, SOON, condition);
}
