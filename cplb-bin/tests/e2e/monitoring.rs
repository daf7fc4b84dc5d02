//! The HTTP server for monitoring: metrics, health and readiness.

mod alerts;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testbed::{Readiness, Signal, Test, Tool};

use crate::reload::fixture::reload_one;
use crate::support::footprint::resident;
use crate::support::{Cluster, Plan, TIMEOUT};

const PORT: u16 = 9000;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("metrics_are_valid_and_follow_the_group", metrics).needs([
            Tool::Nft,
            Tool::Curl,
            Tool::Promtool,
        ]),
        Test::new("readiness_is_that_of_the_node", readiness).needs([Tool::Nft, Tool::Curl]),
        Test::new("address_follows_the_configuration", address).needs([Tool::Nft, Tool::Curl]),
        Test::new("alert_rules_are_valid_and_pass_their_tests", alerts::rules).needs([Tool::Promtool]),
        Test::new("alerts_fire_for_their_events", alerts::fire).needs([
            Tool::Nft,
            Tool::Curl,
            Tool::Prometheus,
        ]),
        Test::new("thousands_of_slow_clients_move_nothing", || {
            many_clients(2000, b"GET /metrics HTTP/1.1\r\nHost: ");
        })
        .needs([Tool::Nft, Tool::Curl]),
        Test::new("thousands_of_event_streams_move_nothing", || {
            many_clients(10_000, b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n");
        })
        .needs([Tool::Nft, Tool::Curl])
        .alone(),
    ]
}

fn plan() -> Plan {
    Plan::v3("100ms").spec(listen(PORT))
}

fn listen(port: u16) -> String {
    format!("status: {{listen: '127.0.0.1:{port}'}}")
}

/// The code and the body of an answer; code 0 without one.
fn get(cluster: &Cluster, index: usize, path: &str) -> (u16, String) {
    get_from(cluster, index, PORT, path, "text/plain")
}

fn get_from(cluster: &Cluster, index: usize, port: u16, path: &str, accept: &str) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["-s", "-m", "5", "-w", "\n%{http_code}", "-H", &format!("Accept: {accept}")]);
    command.arg(format!("http://127.0.0.1:{port}{path}"));
    let output = cluster.node(index).output(command).expect("curl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, code) = text.rsplit_once('\n').expect("the code");
    (code.parse().expect("a number"), body.to_owned())
}

/// The values of the samples whose line begins with this text.
fn samples(cluster: &Cluster, index: usize, start: &str) -> Vec<f64> {
    let (code, text) = get(cluster, index, "/metrics");
    cluster.check(code == 200, || format!("{code}: {text}"));
    let values = text
        .lines()
        .filter(|line| line.starts_with(start))
        .map(|line| line.rsplit_once(' ').expect("a value").1);
    values.map(|value| value.parse().expect("a number")).collect()
}

fn expect_valid(text: &str) {
    let mut command = Command::new(Tool::Promtool.path().expect("it is installed"));
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(
        output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}\n{text}"
    );
}

fn metrics() {
    let cluster = Cluster::start(plan());
    let owner = cluster.wait_until_settled();
    for index in 0..cluster.len() {
        expect_valid(&get(&cluster, index, "/metrics").1);
        let openmetrics =
            get_from(&cluster, index, PORT, "/metrics", "application/openmetrics-text; version=1.0.0").1;
        assert!(openmetrics.ends_with("# EOF\n"), "{openmetrics}");
        let holds = samples(&cluster, index, "cplb_instance_holds_virtual_ips");
        cluster.check(holds == [f64::from(u8::from(index == owner))], || format!("node {index}: {holds:?}"));
        cluster.wait("all backends are up and both peers serve", || {
            samples(&cluster, index, "cplb_backend_up") == [1.0; 3]
                && samples(&cluster, index, "cplb_peer_serving") == [1.0; 2]
        });
    }
    // A dead backend and a dead Active.
    let other = (owner + 1) % 3;
    cluster.backends[owner].set_readiness(Readiness::Status(500));
    cluster.wait("the backend is down", || samples(&cluster, other, "cplb_backend_up").contains(&0.0));
    cluster.signal(owner, Signal::SIGKILL);
    let next = cluster.wait_for_owner(Some(owner));
    let silent = format!(
        "cplb_instance_transitions_total{{vrid=\"51\",interface=\"eth0\",virtual_ips=\"{}\",to=\"active\",reason=\"active_silent\"}}",
        cluster.address().ip()
    );
    cluster.wait("the takeover is counted", || {
        samples(&cluster, next, &silent).iter().any(|count| *count >= 1.0)
    });
    cluster.wait("the other one follows", || {
        let third = 3 - owner - next;
        samples(&cluster, third, "cplb_instance_active_known") == [1.0]
    });
    expect_valid(&get(&cluster, next, "/metrics").1);
    // The log of every node tells of it.
    let line = format!("reason={} fell silent", cluster.node(owner).v4());
    for index in [next, 3 - owner - next] {
        let logged = cluster.daemon(index).log().wait_for_line_after(0, &line, TIMEOUT);
        cluster.check(logged.is_ok(), || format!("node {index}: {logged:?}"));
    }
}

fn readiness() {
    let cluster = Cluster::start(plan());
    cluster.wait_until_settled();
    assert_eq!(get(&cluster, 0, "/healthz"), (200, "ok\n".to_owned()));
    cluster.wait("the node is ready", || get(&cluster, 0, "/readyz") == (200, "ok\n".to_owned()));
    cluster.backends.iter().for_each(|backend| backend.set_readiness(Readiness::Status(500)));
    cluster.wait("the node is not ready", || {
        get(&cluster, 0, "/readyz") == (503, "this node cannot serve: no healthy backend\n".to_owned())
    });
    assert_eq!(get(&cluster, 0, "/healthz").0, 200);
    assert_eq!(get(&cluster, 0, "/readyz/").0, 404);
}

fn address() {
    let cluster = Cluster::start(plan());
    let owner = cluster.wait_until_settled();
    let with = |line: &str| {
        let mut plan = cluster.plan.clone();
        plan.spec.retain(|line| !line.starts_with("status:"));
        plan.spec(line).render(&cluster.lan)
    };
    let reload = |text: &str| reload_one(&cluster, owner, text, "the configuration is reloaded");
    let answers = |port| get_from(&cluster, owner, port, "/healthz", "").0 == 200;
    reload(&with(&listen(PORT + 1)));
    cluster.check(answers(PORT + 1) && !answers(PORT), || "the address is not the new one".to_owned());
    // Another program has the port.
    let busy =
        cluster.node(owner).run(|| TcpListener::bind(("127.0.0.1", PORT + 2)).expect("the port is free"));
    reload(&with(&listen(PORT + 2)));
    let named = || cluster.degraded(owner).contains("the status page cannot listen on 127.0.0.1:9002");
    cluster.wait("the failure is named", named);
    drop(busy);
    cluster.wait("the port is used as soon as it is free", || answers(PORT + 2) && !named());
    reload(&with("healthCheck: {interval: 1s}"));
    cluster.check(!answers(PORT + 2), || "it still listens".to_owned());
    cluster.check(cluster.owners() == [owner], || "the VIP moved".to_owned());
}

/// Keeps this many connections open on which this was sent, and never reads.
fn many_clients(count: usize, request: &[u8]) {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit is known");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the limit is raised");
    let cluster = Cluster::start(plan());
    let owner = cluster.wait_until_settled();
    get(&cluster, owner, "/metrics");
    get(&cluster, owner, "/");
    let (takeovers, before) = (cluster.takeovers(), resident(cluster.daemon(owner)));
    let slow: Vec<TcpStream> = cluster.node(owner).run(|| {
        let slow = || {
            let mut stream = TcpStream::connect(("127.0.0.1", PORT)).expect("the server accepts");
            // The server may have closed it already.
            let _ = stream.write_all(request);
            stream
        };
        (0..count).map(|_| slow()).collect()
    });
    for _ in 0..20 {
        assert_eq!(get(&cluster, owner, "/metrics").0, 200);
        assert_eq!(get(&cluster, owner, "/").0, 200);
    }
    let after = resident(cluster.daemon(owner));
    eprintln!("{} clients that do not read: {} kB more", slow.len(), after.saturating_sub(before) / 1024);
    cluster.check(after < before + 8_000_000, || format!("{before} bytes, then {after}"));
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
    let status = cluster.status(owner);
    cluster.check(status["serving"]["serving"] == true, || status.to_string());
}
