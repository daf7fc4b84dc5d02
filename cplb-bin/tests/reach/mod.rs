//! What the tests of reachability share.

pub(crate) mod bind_port;
pub(crate) mod bridge;
pub(crate) mod firewall;
pub(crate) mod server;

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Node, peer_certificate};

use crate::support::Cluster;

/// Longer than a SYN and its first two repetitions.
pub(crate) const SYNS: Duration = Duration::from_secs(4);

/// Whether a TLS handshake through `target` succeeds within [`SYNS`].
pub(crate) fn is_served(node: &Node, target: SocketAddr) -> bool {
    let handshake = node.block_on(move || async move {
        tokio::time::timeout(SYNS, peer_certificate(target)).await.is_ok_and(|result| result.is_ok())
    });
    handshake.expect("a runtime")
}

/// How connections to a VIP of a node arrive, with the reason, as status says.
pub(crate) fn delivery(cluster: &Cluster, index: usize) -> (String, String) {
    let status = cluster.status(index);
    let shown = &status["services"][0]["delivery"][0];
    let text = |field: &str| shown[field].as_str().unwrap_or_default().to_owned();
    (text("mode"), text("reason"))
}
