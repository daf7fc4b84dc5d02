//! Well behaved servers that start and stop.

use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use lb_proxy::health::{CheckFailure, HealthState, Monitor, MonitorOptions};
use lb_proxy::{HealthCheck, HealthKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::servers::{Api, Server, tls, tls_with};
use crate::{PATIENCE, Watch, check, https, key, target};

fn refused() -> HealthState {
    HealthState::Down { reason: CheckFailure::Refused }
}

/// Counts the open sockets of this host connected to `addr`: ESTABLISHED or CLOSE_WAIT.
fn sockets_towards(addr: SocketAddr) -> usize {
    let remote = format!("0100007F:{:04X}", addr.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let held = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[2] == remote && ["01", "08"].contains(&fields[3])
    };
    table.lines().skip(1).filter(held).count()
}

#[tokio::test]
async fn each_kind_sees_a_server_come_and_go() {
    for kind in [HealthKind::Tcp, HealthKind::Tls, https()] {
        let api = Api::new();
        let addr = api.server.addr;
        let mut watch = Watch::new([target(addr, check(kind.clone()))]);
        assert_eq!(watch.state().await, HealthState::Up, "{kind}");
        let known = watch.after_checks(3).await;
        assert_eq!((known.state, known.failures), (HealthState::Up, 0));
        assert!(known.last_check.unwrap().latency < Duration::from_secs(1));
        api.server.kill().await;
        let down = watch.state().await;
        // A check may have been under way.
        let is_expected = matches!(
            &down,
            HealthState::Down { reason: CheckFailure::Refused | CheckFailure::Closed { .. } }
        );
        assert!(is_expected, "{kind}: {down:?}");
        let _back = Api::on(TcpListener::bind(addr).unwrap(), tls());
        let change = watch.change().await;
        assert!(
            matches!(change.from, HealthState::Down { .. }) && change.to == HealthState::Up,
            "{kind}: {change:?}"
        );
        assert!(change.after > Duration::ZERO && change.target == key(addr));
        watch.monitor.stop();
    }
}

#[tokio::test]
async fn http_statuses_map_to_health_states_over_one_connection() {
    let api = Api::new();
    let mut watch = Watch::new([target(api.server.addr, check(https()))]);
    assert_eq!(watch.state().await, HealthState::Up);
    for (status, expected) in [
        (401, HealthState::UpUnready),
        (200, HealthState::Up),
        (403, HealthState::UpUnready),
        (500, HealthState::Down { reason: CheckFailure::Status(500) }),
        (204, HealthState::Up),
        (302, HealthState::Down { reason: CheckFailure::Status(302) }),
        (401, HealthState::UpUnready),
        (404, HealthState::Down { reason: CheckFailure::Status(404) }),
        (429, HealthState::UpUnready),
    ] {
        api.set(|behaviour| behaviour.status = status);
        assert_eq!(watch.state().await, expected, "{status}");
    }
    assert_eq!(api.server.accepted(), 1, "the connection is kept after any response");
    let requests = api.requests();
    assert!(
        requests.iter().all(|request| *request == format!("{} /readyz", api.server.addr)),
        "{requests:?}"
    );
}

#[tokio::test]
async fn rise_and_fall_are_counted() {
    let api = Api::new();
    let check = HealthCheck { rise: 4, fall: 3, ..check(https()) };
    let mut watch = Watch::new([target(api.server.addr, check)]);
    assert_eq!(watch.state().await, HealthState::Up);
    let before = watch.known();
    api.set(|behaviour| behaviour.status = 503);
    assert!(watch.state().await.is_down());
    assert_eq!(watch.known().failures - before.failures, 3);
    let failed = watch.known();
    api.set(|behaviour| behaviour.status = 200);
    assert_eq!(watch.state().await, HealthState::Up);
    let risen = watch.known();
    let passes = (risen.checks - risen.failures) - (failed.checks - failed.failures);
    assert_eq!(passes, 4);
}

#[tokio::test]
async fn a_connection_closed_between_checks_is_opened_again_silently() {
    let api = Api::new();
    // A single failure would change the health state.
    let strict = HealthCheck { fall: 1, ..check(https()) };
    let mut watch = Watch::new([target(api.server.addr, strict)]);
    assert_eq!(watch.state().await, HealthState::Up);
    for _ in 0..10 {
        watch.after_checks(2).await;
        api.server.hang_up();
    }
    let known = watch.after_checks(3).await;
    assert_eq!((known.failures, known.state), (0, HealthState::Up));
    assert!((10..=12).contains(&api.server.accepted()), "{}", api.server.accepted());
    watch.assert_quiet();
    assert!(sockets_towards(api.server.addr) <= 1, "abandoned connections are closed");
}

#[tokio::test]
async fn a_kept_connection_closed_during_a_request_is_no_failure() {
    // Answers once on each connection, and closes it on the second request: the race of a keep-alive timeout.
    let racing = Server::tls(tls(), |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.flush().await;
        let _ = stream.read(&mut [0; 4096]).await;
    });
    let mut watch = Watch::new([target(racing.addr, HealthCheck { fall: 1, ..check(https()) })]);
    assert_eq!(watch.state().await, HealthState::Up);
    let known = watch.after_checks(10).await;
    assert_eq!(known.failures, 0);
    assert!(racing.accepted() > 10, "a new connection for each check");
    watch.assert_quiet();
}

#[tokio::test]
async fn a_server_that_closes_after_each_response_is_not_checked_more_often() {
    let announcing = Api::new();
    announcing.set(|behaviour| behaviour.close = true);
    let silent = Server::tls(tls(), |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let _ = stream.flush().await;
    });
    for addr in [announcing.server.addr, silent.addr] {
        let slow = HealthCheck { interval: Duration::from_millis(200), fall: 1, ..check(https()) };
        let mut watch = Watch::new([target(addr, slow)]);
        assert_eq!(watch.state().await, HealthState::Up);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let known = watch.known();
        assert_eq!(known.failures, 0);
        assert!((5..=13).contains(&known.checks), "{} checks", known.checks);
        watch.assert_quiet();
    }
}

#[tokio::test]
async fn a_killed_server_is_down_long_before_the_next_regular_check() {
    let api = Api::new();
    let slow = HealthCheck { interval: Duration::from_secs(3), ..check(https()) };
    let mut watch = Watch::new([target(api.server.addr, slow.clone())]);
    assert_eq!(watch.state().await, HealthState::Up);
    // Only a second response shows that the server keeps connections.
    watch.after_checks(1).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let killed = Instant::now();
    api.server.kill().await;
    assert_eq!(watch.state().await, refused());
    assert!(killed.elapsed() < Duration::from_secs(1), "{:?}", killed.elapsed());
}

#[tokio::test]
async fn a_reported_refusal_takes_a_dead_backend_down_at_once() {
    let server = Server::tcp(|stream| async move { drop(stream) });
    let slow = HealthCheck { interval: Duration::from_secs(5), ..check(HealthKind::Tcp) };
    let mut watch = Watch::new([target(server.addr, slow)]);
    assert_eq!(watch.state().await, HealthState::Up);
    // A report followed by a successful check changes nothing.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let before = watch.known().checks;
    watch.monitor.report_failure(&key(server.addr));
    tokio::time::timeout(PATIENCE, async {
        while watch.known().checks == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    watch.assert_quiet();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let addr = server.kill().await;
    let reported = Instant::now();
    watch.monitor.report_failure(&key(addr));
    assert_eq!(watch.state().await, refused());
    assert!(reported.elapsed() < Duration::from_secs(1), "{:?}", reported.elapsed());
}

#[tokio::test]
async fn any_certificate_and_tls_version_is_accepted_without_trust() {
    for versions in [rustls::ALL_VERSIONS, &[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        for algorithm in
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
        {
            for kind in [HealthKind::Tls, https()] {
                let api = Api::with(tls_with(versions, algorithm, false));
                let mut watch = Watch::new([target(api.server.addr, check(kind))]);
                assert_eq!(watch.state().await, HealthState::Up);
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_demands_a_client_certificate_is_alive() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let api = Api::with(tls_with(&[version], &rcgen::PKCS_ECDSA_P256_SHA256, true));
        let mut tls = Watch::new([target(api.server.addr, check(HealthKind::Tls))]);
        assert_eq!(tls.state().await, HealthState::Up, "{version:?}");
        let mut https = Watch::new([target(api.server.addr, check(https()))]);
        assert_eq!(https.state().await, HealthState::UpUnready, "{version:?}");
        tls.after_checks(5).await;
        https.after_checks(5).await;
        tls.assert_quiet();
        https.assert_quiet();
    }
}

#[tokio::test]
async fn ipv6_backends_are_checked() {
    let api = Api::on(TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(), tls());
    let mut watch = Watch::new([target(api.server.addr, check(https()))]);
    assert_eq!(watch.state().await, HealthState::Up);
    assert_eq!(api.requests()[0], format!("[::1]:{} /readyz", api.server.addr.port()));
}

#[tokio::test]
async fn targets_come_and_go_without_disturbing_others() {
    let (first, second) = (Api::new(), Api::new());
    let targets = [target(first.server.addr, check(https())), target(second.server.addr, check(https()))];
    let mut watch = Watch::new(targets.clone());
    assert_eq!((watch.state().await, watch.state().await), (HealthState::Up, HealthState::Up));
    watch.monitor.update(targets[..1].to_vec());
    let closed = async {
        while watch.monitor.snapshot().len() != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    let asked = second.requests().len();
    watch.after_checks(5).await;
    assert_eq!(second.requests().len(), asked, "no longer checked");
    assert_eq!(first.server.accepted(), 1, "the other kept its connection");
    watch.monitor.update(targets.to_vec());
    let change = watch.change().await;
    assert_eq!(
        (change.target, change.from, change.to),
        (key(second.server.addr), HealthState::Unknown, HealthState::Up)
    );
}

#[tokio::test]
async fn stop_does_not_wait_for_checks_in_progress() {
    let silent = Server::tcp(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let long = HealthCheck { timeout: Duration::from_secs(60), ..check(https()) };
    let (done, ended) = std::sync::mpsc::channel();
    let sink = Box::new(move |_| done.send(()).unwrap());
    let monitor = Monitor::spawn(MonitorOptions::default(), sink).unwrap();
    monitor.update(vec![target(silent.addr, long)]);
    while silent.accepted() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let start = Instant::now();
    monitor.stop();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(ended.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected), "the sink is dropped");
}
