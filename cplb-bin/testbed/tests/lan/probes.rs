//! Tests of backends and probes.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use testbed::{
    Backend, Behaviour, Direction, Failure, Lan, Probe, Readiness, SessionState, Sessions, Test, Tool,
    eventually,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("probe_measures_an_induced_gap", probe_measures_an_induced_gap).needs([Tool::Nft]),
        Test::new("probe_distinguishes_failures", probe_distinguishes_failures),
        Test::new(
            "probe_without_neighbour_cache_follows_the_owner_at_once",
            probe_without_neighbour_cache_follows_the_owner_at_once,
        ),
        Test::new("sessions_report_hangs_and_resets", sessions_report_hangs_and_resets).needs([Tool::Nft]),
        Test::new("tls_backend_presents_its_certificate", tls_backend_presents_its_certificate)
            .needs([Tool::Openssl, Tool::Curl]),
        Test::new(
            "tls_backend_answers_the_configured_readiness",
            tls_backend_answers_the_configured_readiness,
        )
        .needs([Tool::Curl]),
    ]
}

const MS: Duration = Duration::from_millis(1);
/// Largest delay on a busy machine.
const NOISE: Duration = Duration::from_millis(150);
const LONG: Duration = Duration::from_secs(5);

fn probe_measures_an_induced_gap() {
    let lan = Lan::builder().build().expect("a LAN");
    let node = lan.controller(0);
    let backend = Backend::echo(node, "one", 7000).expect("a backend");
    for ip in node.own_ips() {
        let probe = Probe::to((ip, 7000).into()).start(lan.client(0)).expect("a probe");
        probe.wait_until_stable(100 * MS, LONG).expect("probes succeed");
        let quiet = probe.report().blackout_since(Instant::now() - 50 * MS).duration();
        assert!(quiet < NOISE, "{quiet:?} without a reason");
        for gap in [300 * MS, 700 * MS] {
            let before = Instant::now();
            lan.cut(node, Direction::From).expect("a cut");
            let cut = Instant::now();
            thread::sleep(gap);
            let healing = Instant::now();
            lan.heal(node).expect("healed");
            let back = probe.wait_for_success(healing, LONG).expect("a success");
            let seen = probe.report().blackout_since(before);
            assert!(seen.duration() >= healing - cut, "{seen:?} is shorter than {:?}", healing - cut);
            assert!(seen.duration() <= back - before + NOISE, "{seen:?} is longer than {:?}", back - before);
            assert!(seen.from + NOISE >= before && seen.until >= healing);
        }
        let report = probe.stop();
        assert!(report.served_by_since(report.samples()[0].ended).keys().eq(["one"]));
    }
    assert!(backend.stats().accepted > 0);
    eventually("no connection remains", LONG, || backend.stats().open == 0);
}

fn probe_distinguishes_failures() {
    let lan = Lan::builder().controllers(1).build().expect("a LAN");
    let backend = Backend::echo(lan.controller(0), "one", 7000).expect("a backend");
    let target: SocketAddr = (lan.controller(0).v4(), 7000).into();
    let probe = Probe::to(target).timeout(30 * MS).start(lan.client(0)).expect("a probe");
    let only = |expected: Failure| {
        let mark = Instant::now() + 60 * MS;
        eventually(format!("connections fail as {expected:?}"), LONG, || {
            let report = probe.report();
            report.failures_since(mark).get(&expected).is_some_and(|count| *count > 5)
        });
        let report = probe.report();
        assert_eq!(report.failures_since(mark).len(), 1, "{:?}", report.failures_since(mark));
        assert_eq!(report.served_by_since(mark).len(), 0);
    };
    backend.refuse().expect("refusing");
    only(Failure::Refused);
    backend.accept().expect("accepting");
    backend.blackhole().expect("silent");
    only(Failure::TimedOut);
    backend.accept().expect("accepting");
    backend.set_behaviour(Behaviour::Hang);
    only(Failure::TimedOut);
    backend.set_behaviour(Behaviour::Serve);
    probe.wait_until_stable(50 * MS, LONG).expect("probes succeed");
}

fn probe_without_neighbour_cache_follows_the_owner_at_once() {
    let lan = Lan::builder().controllers(2).build().expect("a LAN");
    let backends = [("one", 0), ("two", 1)];
    let _backends =
        backends.map(|(name, index)| Backend::echo(lan.controller(index), name, 7000).expect("a backend"));
    // A former owner that forwards packets would pass the client's packets on.
    for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lan.controller(0).set_sysctl(setting, "0").expect("a setting");
    }
    for (ip, len) in [(lan.v4(100).into(), 32), (lan.v6(100).into(), 128)] {
        let ip: std::net::IpAddr = ip;
        let [old, new] = [lan.controller(0), lan.controller(1)];
        old.add_address(ip, len).expect("an address");
        let probe = |fresh: bool| {
            let probe = Probe::to((ip, 7000).into());
            let probe = if fresh { probe.fresh_neighbour() } else { probe };
            probe.start(lan.client(0)).expect("a probe")
        };
        let warm = probe(false);
        warm.wait_until_stable(50 * MS, LONG).expect("probes succeed");
        // The move is not announced, so a cached entry keeps pointing to the old owner.
        old.delete_address(ip).expect("deleted");
        new.add_address(ip, len).expect("an address");
        let mark = Instant::now();
        thread::sleep(100 * MS);
        assert_eq!(warm.stop().served_by_since(mark + 20 * MS).get("two"), None);
        let fresh = probe(true);
        fresh.wait_until_stable(100 * MS, LONG).expect("probes succeed");
        let report = fresh.stop();
        assert!(report.served_by_since(mark).keys().eq(["two"]), "{:?}", report.served_by_since(mark));
        new.delete_address(ip).expect("deleted");
    }
}

fn sessions_report_hangs_and_resets() {
    let lan = Lan::builder().controllers(1).build().expect("a LAN");
    for backend in [
        Backend::echo(lan.controller(0), "one", 7000).expect("a backend"),
        Backend::tls(lan.controller(0), "one", 7001).expect("a backend"),
    ] {
        let target = (lan.controller(0).v6(), backend.address().port()).into();
        let sessions = Sessions::open(lan.client(0), target, 5).expect("sessions");
        assert_eq!((sessions.ended(), backend.stats().open), (0, 5));
        lan.cut(lan.controller(0), Direction::Both).expect("a cut");
        eventually("all sessions hang", LONG, || sessions.hanging(100 * MS) == 5);
        lan.heal_all().expect("healed");
        eventually("all sessions continue", LONG, || sessions.hanging(100 * MS) == 0);
        backend.close_all().expect("closed");
        eventually("all sessions have ended", LONG, || sessions.ended() == 5);
        let reset = |state: &SessionState| matches!(state, SessionState::Ended(_, Failure::Reset));
        assert!(sessions.states().iter().all(reset), "{:?}", sessions.states());
    }
}

fn tls_backend_presents_its_certificate() {
    let lan = Lan::builder().controllers(2).build().expect("a LAN");
    let backends = [0, 1].map(|index| {
        let name = format!("api-{index}");
        Backend::tls(lan.controller(index), &name, 6443).expect("a backend")
    });
    for (index, node) in lan.controllers().iter().enumerate() {
        for target in [format!("{}:6443", node.v4()), format!("[{}]:6443", node.v6())] {
            let script = format!(
                "openssl s_client -connect {target} </dev/null | openssl x509 -noout -subject -ext subjectAltName"
            );
            let subject = lan.client(0).exec("sh", ["-c", &script]).expect("a certificate");
            assert!(subject.contains(&format!("CN = api-{index}")), "{subject}");
            assert!(subject.contains(&format!("DNS:api-{index}")), "{subject}");
            let body = lan.client(0).exec("curl", ["-sk", &format!("https://{target}/")]).expect("an answer");
            assert_eq!(body, format!("api-{index}\n"));
            let target = target.parse().expect("an address");
            let shown =
                lan.client(0).block_on(|| testbed::peer_certificate(target)).expect("a thread").expect("one");
            assert!(backends[index].has_certificate(&shown) && !backends[1 - index].has_certificate(&shown));
        }
    }
}

fn tls_backend_answers_the_configured_readiness() {
    let lan = Lan::builder().controllers(1).build().expect("a LAN");
    let backend = Backend::tls(lan.controller(0), "api", 6443).expect("a backend");
    let url = format!("https://{}:6443/readyz?verbose", lan.controller(0).v4());
    let status = || {
        let arguments = ["-sk", "-m", "0.3", "-o", "/dev/null", "-w", "%{http_code}", &url];
        lan.client(0).exec("curl", arguments).unwrap_or_else(|error| error.to_string())
    };
    assert_eq!(status(), "200");
    for code in [500, 401] {
        backend.set_readiness(Readiness::Status(code));
        assert_eq!(status(), code.to_string());
    }
    // curl's exit codes: 52 is an empty reply, 28 a timeout, 7 a refused connection.
    for (readiness, code) in [(Readiness::Close, 52), (Readiness::Hang, 28)] {
        backend.set_readiness(readiness);
        assert!(status().contains(&format!("exit status: {code}")), "{}", status());
    }
    let stats = backend.stats();
    assert_eq!((stats.checks, stats.requests), (stats.handshakes, 0));
    backend.refuse().expect("refusing");
    assert!(status().contains("exit status: 7"), "{}", status());
    backend.accept().expect("accepting");
    backend.set_readiness(Readiness::Status(200));
    assert_eq!(status(), "200");
}
