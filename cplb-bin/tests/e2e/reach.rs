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
        test("a_firewall_that_accepts_the_port_of_the_service_accepts_clients", firewall::transparent),
        test("without_tproxy_a_firewall_accepts_clients_by_the_documented_line", firewall::dnat),
        test("a_vip_and_pods_on_bridges_are_served", bridge::vip_and_pods),
        test("a_killed_daemon_leaves_no_client_to_the_nodes_own_server", server::killed),
        test("an_api_server_restarts_beside_500_sessions", server::restarted),
        test("the_bind_port_is_open_where_the_configuration_says", bind_port::access),
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
