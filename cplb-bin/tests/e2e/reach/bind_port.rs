//! Access to the load balancer's own port.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use testbed::{Lan, Signal};

use super::is_served;
use crate::support::{BIND_PORT, Cluster, Plan};

/// Returns whether the bind port serves a client and the node itself.
fn reached(cluster: &Cluster) -> [bool; 2] {
    let from_outside = SocketAddr::new(cluster.node(0).v4().into(), BIND_PORT);
    let own = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), BIND_PORT);
    [is_served(cluster.client(), from_outside), is_served(cluster.node(0), own)]
}

/// Makes a running daemon read this configuration.
fn reload(cluster: &Cluster, text: &str) {
    fs::write(cluster.config_file(0), text).expect("the configuration is written");
    let mark = cluster.daemon(0).log().len();
    cluster.signal(0, Signal::SIGHUP);
    let read = cluster.daemon(0).log().wait_for_line_after(
        mark,
        "configuration is reloaded",
        crate::support::TIMEOUT,
    );
    cluster.check(read.is_ok(), || format!("{read:?}"));
}

pub(crate) fn access() {
    let mut cluster = Cluster::build(Lan::builder().controllers(1), Plan::v3("100ms"));
    cluster.start_all();
    cluster.wait_until_settled();
    cluster
        .check(reached(&cluster) == [false, true], || "the bind port is open in spite of a VIP".to_owned());
    let plan = Plan::v3("100ms").spec(format!("bindAddress: {}", cluster.node(0).v4()));
    reload(&cluster, &plan.render(&cluster.lan));
    cluster.wait("bindAddress opens the bind port", || reached(&cluster) == [true, true]);
    reload(&cluster, &Plan::v3("100ms").render(&cluster.lan));
    cluster.wait("the bind port is closed again", || reached(&cluster) == [false, true]);
    let backend = format!("backends: {{static: [\"{}\"]}}", cluster.node(0).v4());
    let without = |more: &str| {
        format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  {backend}\n{more}")
    };
    reload(&cluster, &without(""));
    cluster.wait("the bind port is open without a VIP", || reached(&cluster) == [true, true]);
    reload(&cluster, &without("  bindAddress: 127.0.0.1\n"));
    cluster.wait("bindAddress closes the bind port", || reached(&cluster) == [false, true]);
}
