//! What clients meet and no other check sees: packets for a service that are dropped at the Active, and servers whose
//! certificates clients reject.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::api::{Authority, Validity};
use testbed::{Backend, Lan, Node, Test, Tool, wait_until};

use crate::support::{Cluster, PORT, Plan};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("a_firewall_at_the_active_is_named_on_every_node", firewall).needs([Tool::Nft]),
        Test::new("api_servers_without_the_clients_name_are_named", certificates).needs([Tool::Nft]),
    ]
}

/// The promised time until a service that does not answer is named, with a few seconds for the machine.
const NAMED: Duration = Duration::from_secs(100 + 3);
/// Until it is no longer named: a check within 10 s, and a report of it.
const FORGOTTEN: Duration = Duration::from_secs(20);
/// The time between two comparisons of certificates, and the comparison.
const COMPARED: Duration = Duration::from_secs(60 + 10);

fn wait_for(cluster: &Cluster, limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    match wait_until(what, limit, condition) {
        Ok(took) => println!("MEASURED {what} after {took:?}"),
        Err(error) => cluster.fail(&error.to_string()),
    }
}

/// The end-to-end checks of a node.
fn checks(cluster: &Cluster, index: usize) -> Vec<Value> {
    let status = cluster.status(index);
    status["instances"][0]["endToEnd"].as_array().cloned().unwrap_or_default()
}

fn nft(node: &Node, rules: &str) {
    let file = node.directory().join("rules.nft");
    std::fs::write(&file, rules).expect("the rules are written");
    let mut command = Command::new("nft");
    command.arg("-f").arg(&file);
    let output = node.output(command).expect("nft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn firewall() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms").dual_stack());
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let others: Vec<usize> = (0..cluster.len()).filter(|index| *index != owner).collect();
    for index in &others {
        cluster.wait("both addresses answer", || {
            let found = checks(&cluster, *index);
            found.len() == 2 && found.iter().all(|check| check["state"] == "answers")
        });
    }
    cluster.check(checks(&cluster, owner).is_empty(), || "the Active checks itself".to_owned());

    nft(
        cluster.node(owner),
        "table inet fw { chain input { type filter hook input priority 0;\n tcp dport 6443 drop\n }\n}",
    );
    let since = Instant::now();
    let endpoints: Vec<String> =
        cluster.vips().iter().map(|vip| std::net::SocketAddr::new(*vip, PORT).to_string()).collect();
    for index in 0..cluster.len() {
        let left = NAMED.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "the services are named", || {
            let shown = cluster.degraded(index);
            let from =
                if index == owner { "does not answer from 10.9.0." } else { "does not answer from here" };
            endpoints.iter().all(|it| shown.contains(it))
                && shown.contains(from)
                && shown.contains("firewall")
        });
    }
    for other in &others {
        let peer =
            format!("does not answer from {} ({}", cluster.node(*other).v4(), cluster.node(*other).name());
        let left = NAMED.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "the Active names both addresses for each Backup", || {
            cluster.degraded(owner).matches(&peer).count() == 2
        });
    }
    cluster.check(cluster.owners() == [owner], || "the VIP moved".to_owned());

    nft(cluster.node(owner), "delete table inet fw");
    let since = Instant::now();
    for index in 0..cluster.len() {
        let left = FORGOTTEN.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "they are forgotten", || {
            !cluster.degraded(index).contains("does not answer")
        });
    }
}

fn certificates() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let authority = Authority::new("cluster").expect("an authority");
    let identity = authority.server(&["kubernetes", "10.9.0.2"], Validity::Now).expect("a certificate");
    cluster.replace_backend(1, |node| Backend::certified(node, "api-narrow", PORT, &authority, &identity));
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    let server = format!("{}:{PORT}", cluster.node(1).v4());
    let text = format!(
        "clients of {} reject the certificate of the API server {server}: it is for other names: kubernetes, 10.9.0.2",
        cluster.vip()
    );
    for index in 0..cluster.len() {
        cluster.wait("the server is named", || cluster.degraded(index).contains(&text));
        let count = cluster.degraded(index).matches("reject the certificate").count();
        cluster.check(count == 1, || cluster.degraded(index));
    }
    cluster.replace_backend(1, |node| Backend::tls(node, "api-wide", PORT));
    let since = Instant::now();
    for index in 0..cluster.len() {
        let left = COMPARED.saturating_sub(since.elapsed());
        wait_for(&cluster, left, "it is forgotten", || !cluster.degraded(index).contains("reject"));
    }
    // With a name of their own for the API, clients reject all three.
    cluster.plan = cluster.plan.clone().spec("externalAddress: api.example.com");
    std::fs::write(cluster.config_file(owner), cluster.plan.render(&cluster.lan))
        .expect("the file is written");
    cluster.signal(owner, testbed::Signal::SIGHUP);
    cluster.wait("all servers are named", || {
        cluster.degraded(owner).matches("clients of api.example.com reject the certificate").count() == 3
    });
}
