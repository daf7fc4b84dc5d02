//! The main job with the real binary: one address, every API server behind it.

mod support;

use std::process::ExitCode;

use testbed::Test;

use support::{Cluster, Plan};

fn main() -> ExitCode {
    testbed::main(vec![Test::new("three_nodes_elect_one_active_that_serves", elects)])
}

fn elects() {
    let cluster = Cluster::start(Plan::default());
    let owners = cluster.owners();
    cluster.check(owners.len() == 1, || format!("owners: {owners:?}"));
    cluster.check(cluster.takeovers() == 1, || format!("{} takeovers", cluster.takeovers()));
}
