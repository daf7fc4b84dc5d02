//! Effects of other software on a controller on clients of the VIP, with the real binary: firewalls, bridges, a server
//! on the VIP's own port. The rules of the table are tested in `lb-proxy`.

mod bind_port;
mod bridge;
mod firewall;
mod server;

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Node, Test, Tool, peer_certificate};

use crate::support::Cluster;

pub(crate) fn tests() -> Vec<Test> {
    let test = |name, body: fn()| Test::new(name, body).needs([Tool::Nft, Tool::Ip]);
    vec![
        test("firewall_rule_for_the_service_port_suffices_with_tproxy", firewall::transparent),
        test("documented_firewall_rule_suffices_without_tproxy", firewall::dnat),
        test("vip_and_pods_on_bridges_are_served", bridge::vip_and_pods),
        test("killed_daemon_exposes_no_local_server_to_clients", server::killed),
        test("api_server_can_rebind_its_port_beside_500_sessions", server::restarted),
        test("bind_port_access_follows_the_configuration", bind_port::access),
    ]
}

/// Longer than a SYN and its first two retransmissions.
const SYNS: Duration = Duration::from_secs(4);

/// Returns whether a TLS handshake through `target` succeeds within [`SYNS`].
fn is_served(node: &Node, target: SocketAddr) -> bool {
    let handshake = node.block_on(move || async move {
        tokio::time::timeout(SYNS, peer_certificate(target)).await.is_ok_and(|result| result.is_ok())
    });
    handshake.expect("a runtime")
}

/// The delivery of connections to a VIP of a node, with the reason, as status shows it.
fn delivery(cluster: &Cluster, index: usize) -> (String, String) {
    let status = cluster.status(index);
    let shown = &status["services"][0]["delivery"][0];
    let text = |field: &str| shown[field].as_str().unwrap_or_default().to_owned();
    (text("mode"), text("reason"))
}
