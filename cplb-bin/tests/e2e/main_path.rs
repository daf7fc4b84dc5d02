//! The main use with the real binary: one address, with every API server behind it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::{Lan, Node, Test, Tool};

use crate::support::{BIND_PORT, Cluster, PORT, Plan, TIMEOUT, Tproxy, binary, degraded};

pub(crate) fn tests() -> Vec<Test> {
    let tests = [
        ("three_nodes_elect_one_active_that_serves", elects as fn(Tproxy)),
        ("every_node_reaches_every_backend_through_the_vip", certificates),
        ("static_backend_equal_to_the_vip_is_dropped", static_loop),
        ("k0sctl_controller_equal_to_the_vip_is_dropped", k0sctl_loop),
        ("backend_option_equal_to_the_vip_is_dropped", option_loop),
    ];
    let in_both_modes = |name, body: fn(Tproxy)| {
        Tproxy::BOTH.map(|tproxy| {
            Test::new(format!("{name} {}", tproxy.mode()), move || body(tproxy)).needs([Tool::Openssl])
        })
    };
    let mut tests: Vec<Test> = tests.into_iter().flat_map(|(name, body)| in_both_modes(name, body)).collect();
    // The test counts daemons that survive the demonstration, wherever they run.
    tests.extend(in_both_modes("demo_shows_a_failover_and_cleans_up", demo).map(Test::alone));
    tests
}

fn elects(tproxy: Tproxy) {
    let cluster = Cluster::start(Plan::default().tproxy(tproxy));
    for index in 0..cluster.len() {
        let status = cluster.status(index);
        let shown = &status["services"][0]["delivery"][0];
        let as_expected = shown["virtualIP"] == cluster.vip().to_string() && shown["mode"] == tproxy.mode();
        cluster.check(as_expected && shown["reason"].is_string() == (tproxy == Tproxy::Missing), || {
            shown.to_string()
        });
        let degraded = degraded(&status);
        let as_expected = match tproxy {
            Tproxy::Present => degraded.is_empty(),
            Tproxy::Missing => degraded.len() == 1 && degraded[0].contains("nft_tproxy"),
        };
        cluster.check(as_expected, || status["degraded"].to_string());
    }
    let owners = cluster.owners();
    cluster.check(owners.len() == 1, || format!("owners: {owners:?}"));
    // Equals that start together may both be Active for a moment; the first advertisement resolves it.
    cluster.check(cluster.takeovers() <= 2, || format!("{} takeovers", cluster.takeovers()));
}

/// The demonstration creates its own namespaces inside those of the tests; the plain form is for scripts.
fn demo(tproxy: Tproxy) {
    let lan = Lan::builder().controllers(0).clients(1).build().expect("a LAN");
    let mut command = Command::new(binary());
    command.args(["demo", "--plain"]);
    tproxy.prepare(&mut command, lan.client(0).directory());
    let started = Instant::now();
    let output = lan.client(0).output(command).expect("the demonstration ends within a minute");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    for shown in [
        "is Active and holds 10.9.0.100",
        "api-c1: ",
        "api-c2: ",
        "api-c3: ",
        "3 different certificates answered at one address",
        "kill -9 cplb on c",
        "took over; the client's blackout was ",
        "the kernel itself took 10.9.0.100 off c",
        "stays Active: no failback",
        "a planned stop (SIGTERM)",
        "the client's longest wait for a connection was ",
        "Cleaned up",
    ] {
        assert!(text.contains(shown), "{shown:?} is not in:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "--plain has no colours:\n{text}");
    assert_eq!(errors, "");
    assert_eq!(running_daemons(), 0, "a daemon of the demonstration survived it");
}

/// The number of processes that run the binary in this PID namespace, which includes those of the namespaces below.
fn running_daemons() -> usize {
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let names = processes.filter_map(|process| std::fs::read_to_string(process.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "cplb").count()
}

/// More runs than round robin over three needs, also if both workers count separately.
const RUNS: usize = 12;

fn certificates(tproxy: Tproxy) {
    let lan = Lan::builder().routed_client(0).routed_client(1).routed_client(2);
    let mut cluster = Cluster::build(lan, Plan::default().dual_stack().tproxy(tproxy));
    cluster.start_all();
    cluster.wait_until_settled();
    let takeovers = cluster.takeovers();
    let vip4 = cluster.address();
    let vip6 = SocketAddr::new(cluster.lan.v6(crate::support::VIP_HOST).into(), PORT);
    let own = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), BIND_PORT);
    for node in cluster.lan.controllers() {
        expect_all_certificates(&cluster, node, own);
    }
    // Whichever controller is Active, one pod is behind it and two are behind Backups.
    for node in cluster.lan.nodes() {
        expect_all_certificates(&cluster, node, vip4);
        expect_all_certificates_quickly(&cluster, node, vip6);
    }
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved meanwhile".to_owned());
}

/// Runs `openssl s_client -connect` until every backend has presented its certificate.
fn expect_all_certificates(cluster: &Cluster, node: &Node, target: SocketAddr) {
    let openssl = Tool::Openssl.path().expect("the test declares it");
    let mut seen = BTreeSet::new();
    for _ in 0..RUNS {
        let mut command = Command::new(&openssl);
        command.args(["s_client", "-connect", &target.to_string(), "-showcerts"]);
        let output = node.output(command).expect("openssl ends");
        let text = String::from_utf8_lossy(&output.stdout);
        let pem: String = text
            .lines()
            .skip_while(|line| !line.starts_with("-----BEGIN CERTIFICATE"))
            .take_while(|line| !line.starts_with("-----END CERTIFICATE"))
            .skip(1)
            .collect();
        let backend = cluster.backends.iter().find(|backend| {
            let own: String = backend
                .certificate_pem()
                .unwrap_or_default()
                .lines()
                .filter(|l| !l.starts_with('-'))
                .collect();
            !pem.is_empty() && own == pem
        });
        match backend {
            Some(backend) => seen.insert(backend.name()),
            None => cluster.fail(&format!(
                "{} got from {target}: {text}\n{}",
                node.name(),
                String::from_utf8_lossy(&output.stderr)
            )),
        };
        if seen.len() == cluster.backends.len() {
            return;
        }
    }
    cluster.fail(&format!("{} received only {seen:?} at {target} in {RUNS} connections", node.name()));
}

/// Checks the same without a process for each connection.
fn expect_all_certificates_quickly(cluster: &Cluster, node: &Node, target: SocketAddr) {
    let seen = certificates_of(cluster, node, target, RUNS);
    cluster.check(seen.iter().collect::<BTreeSet<_>>().len() == cluster.backends.len(), || {
        format!("{} received only {seen:?} at {target}", node.name())
    });
}

/// The names of the backends whose certificates `count` connections from `node` receive.
fn certificates_of(cluster: &Cluster, node: &Node, target: SocketAddr, count: usize) -> Vec<String> {
    let certificates = node.block_on(move || async move {
        let mut certificates = Vec::new();
        for _ in 0..count {
            certificates.push(testbed::peer_certificate(target).await?);
        }
        Ok::<_, std::io::Error>(certificates)
    });
    let certificates = certificates
        .expect("a runtime")
        .unwrap_or_else(|error| cluster.fail(&format!("{} at {target}: {error}", node.name())));
    let owner = |certificate: &Vec<u8>| {
        let found = cluster.backends.iter().find(|backend| backend.has_certificate(certificate));
        found.map_or_else(|| "unknown".to_owned(), |backend| backend.name().to_owned())
    };
    certificates.iter().map(owner).collect()
}

/// The backends of the three controllers and the VIP in between, as a list in YAML.
fn backends_with_vip(cluster: &Cluster) -> String {
    let nodes = cluster.lan.controllers();
    format!("[\"{}\", \"{}\", \"{}\", \"{}\"]", nodes[0].v4(), cluster.vip(), nodes[1].v4(), nodes[2].v4())
}

fn static_loop(tproxy: Tproxy) {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms").tproxy(tproxy));
    let list = backends_with_vip(&cluster);
    cluster.plan = cluster.plan.clone().spec(format!("backends: {{static: {list}}}"));
    cluster.start_all();
    expect_no_loop(&cluster, "is a virtual IP");
}

fn k0sctl_loop(tproxy: Tproxy) {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default().tproxy(tproxy));
    let mut hosts = String::new();
    let own = cluster.lan.controllers().iter().map(|node| IpAddr::V4(node.v4()));
    for address in own.chain([cluster.vip()]) {
        hosts.push_str(&format!(
            "  - {{role: controller, privateAddress: \"{address}\", ssh: {{address: 192.0.2.1}}}}\n"
        ));
    }
    let text = format!(
        "apiVersion: k0sctl.k0sproject.io/v1beta1\nkind: Cluster\nspec:\n  hosts:\n{hosts}  k0s:\n    config:\n      \
         spec:\n        network:\n          controlPlaneLoadBalancing:\n            enabled: false\n            \
         type: Keepalived\n            keepalived:\n              vrrpInstances:\n              \
         - {{virtualIPs: [\"{}/24\"], authPass: Example}}\n",
        cluster.vip()
    );
    for index in 0..cluster.len() {
        let command = cluster.command(index);
        std::fs::write(cluster.config_file(index), &text).expect("the configuration is written");
        cluster.launch(index, command);
    }
    expect_no_loop(&cluster, "is a virtual IP");
}

fn option_loop(tproxy: Tproxy) {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms").tproxy(tproxy));
    for index in 0..cluster.len() {
        let mut command = cluster.command(index);
        // The IPv4-mapped form and the bind port are the same address in another notation.
        for backend in [
            format!("{}", cluster.vip()),
            format!("[::ffff:{}]:{BIND_PORT}", cluster.vip()),
            format!("127.0.0.1:{BIND_PORT}"),
        ] {
            command.args(["--backend", &backend]);
        }
        cluster.launch(index, command);
    }
    expect_no_loop(&cluster, "is ignored");
}

/// Every connection, from any node and through any node, is accepted by exactly one proxy; with the VIP among the
/// backends of round robin, one in four would be accepted a second time.
fn expect_no_loop(cluster: &Cluster, warning: &str) {
    for index in 0..cluster.len() {
        cluster.wait("the daemon answers", || cluster.try_status(index).is_some());
    }
    let active = cluster.wait_until_settled();
    for index in 0..cluster.len() {
        let status = cluster.status(index);
        let shown: Vec<_> = status["services"][0]["backends"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|backend| backend["address"].as_str())
            .collect();
        cluster.check(shown.len() == 3, || format!("backends of {index}: {shown:?}"));
        let log = cluster.daemon(index).log();
        cluster.check(log.wait_for_line(warning, TIMEOUT).is_ok(), || format!("{index} does not warn"));
    }
    let backup = (0..cluster.len()).find(|&index| index != active).expect("there are three");
    let own = |index: usize| SocketAddr::new(cluster.node(index).v4().into(), BIND_PORT);
    let rounds = [
        (cluster.client(), cluster.address()),
        (cluster.node(active), cluster.address()),
        (cluster.node(backup), cluster.address()),
        (cluster.node(active), own(active)),
        (cluster.node(backup), own(backup)),
    ];
    // The last connections of the probe in `wait_until_settled` may still be in a queue.
    let mut last = 0;
    cluster.wait("the number of connections is stable", || {
        std::mem::replace(&mut last, accepted(cluster)) == last
    });
    for (node, target) in rounds {
        let before = accepted(cluster);
        let certificates = certificates_of(cluster, node, target, RUNS);
        let distinct: BTreeSet<_> = certificates.iter().collect();
        cluster
            .check(distinct.len() == 3, || format!("{} received {certificates:?} at {target}", node.name()));
        let now = accepted(cluster);
        cluster.check(now - before == RUNS as u64, || {
            format!("{RUNS} connections from {} to {target} became {}", node.name(), now - before)
        });
    }
}

/// Connections that the proxies of all nodes have accepted.
fn accepted(cluster: &Cluster) -> u64 {
    let of = |index| cluster.status(index)["services"][0]["connectionsAccepted"].as_u64().expect("a number");
    (0..cluster.len()).map(of).sum()
}
