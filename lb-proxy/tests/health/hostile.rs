//! Servers that hang, drip, flood or send garbage: a precise health state in bounded time, without effect on other
//! checks.

use std::time::Duration;

use bytes::Bytes;
use lb_proxy::health::{CheckFailure, HealthState, Step};
use lb_proxy::{HealthCheck, HealthKind};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::sleep;

use crate::servers::{Api, BlackHole, Server, tls};
use crate::{PATIENCE, Watch, check, https, key, target};

const LIMIT: Duration = Duration::from_millis(300);

fn quick(kind: HealthKind) -> HealthCheck {
    HealthCheck { timeout: LIMIT, ..check(kind) }
}

/// Returns the reason of a target's first health state, which must be down.
async fn failure(server: &Server, kind: HealthKind) -> CheckFailure {
    let mut watch = Watch::new([target(server.addr, quick(kind))]);
    let status = watch.state().await;
    let known = watch.after_checks(3).await;
    assert_eq!((known.failures, known.state.is_down()), (known.checks, true), "no check succeeds");
    match status {
        HealthState::Down { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn timed_out(step: Step) -> CheckFailure {
    CheckFailure::TimedOut { step, after: LIMIT }
}

/// Answers each connection over TLS with `bytes`, after a first read.
fn says(bytes: impl Into<Bytes>) -> Server {
    let bytes = bytes.into();
    Server::tls(tls(), move |mut stream| {
        let bytes = bytes.clone();
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            // The connection stays open: the client has to decide by itself.
            sleep(PATIENCE).await;
        }
    })
}

async fn drip(mut stream: impl AsyncWrite + Unpin, text: &[u8]) {
    for byte in text.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_timeout_names_its_step() {
    let mute = Server::tcp(|stream| async move {
        sleep(PATIENCE).await;
        drop(stream);
    });
    assert_eq!(failure(&mute, HealthKind::Tls).await, timed_out(Step::Handshake));
    assert_eq!(failure(&mute, https()).await, timed_out(Step::Handshake));
    let deaf = Server::tls(tls(), |stream| async move {
        sleep(PATIENCE).await;
        drop(stream);
    });
    assert_eq!(failure(&deaf, https()).await, timed_out(Step::Response));
}

#[tokio::test]
async fn a_black_hole_times_out_while_connecting() {
    let hole = BlackHole::new();
    for kind in [HealthKind::Tcp, HealthKind::Tls, https()] {
        let mut watch = Watch::new([target(hole.addr, quick(kind))]);
        assert_eq!(watch.state().await, HealthState::Down { reason: timed_out(Step::Connect) });
    }
}

#[tokio::test]
async fn slowly_dripping_servers_time_out() {
    let head = Server::tls(tls(), |stream| drip(stream, b"HTTP/1.1 200 OK\r\nX: y\r\n"));
    assert_eq!(failure(&head, https()).await, timed_out(Step::Response));
    let body = Server::tls(tls(), |mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        drip(stream, b"1\r\nx\r\n").await;
    });
    assert_eq!(failure(&body, https()).await, timed_out(Step::Response));
    let interim = Server::tls(tls(), |stream| drip(stream, b"HTTP/1.1 100 Continue\r\n\r\n"));
    assert_eq!(failure(&interim, https()).await, timed_out(Step::Response));
    // A record header of a handshake message, then one byte at a time.
    let record = Server::tcp(|mut stream| async move {
        let _ = stream.write_all(&[22, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xf0]).await;
        drip(stream, b"\0").await;
    });
    assert_eq!(failure(&record, HealthKind::Tls).await, timed_out(Step::Handshake));
}

#[tokio::test]
async fn garbage_instead_of_tls_is_named() {
    for garbage in ["HTTP/1.1 400 Bad Request\r\n\r\nthis is no TLS", "SSH-2.0-OpenSSH_9.2\r\n"] {
        let server = Server::tcp(move |mut stream| async move {
            let _ = stream.write_all(garbage.as_bytes()).await;
            sleep(PATIENCE).await;
        });
        for kind in [HealthKind::Tls, https()] {
            let reason = failure(&server, kind).await;
            assert!(matches!(reason, CheckFailure::Tls(_)), "{reason:?}");
        }
    }
}

#[tokio::test]
async fn garbage_instead_of_http_is_named() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(1_000_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(1_000));
    for garbage in
        ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 9999 No\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n", &long, &many]
    {
        let reason = failure(&says(garbage.to_owned()), https()).await;
        assert!(matches!(reason, CheckFailure::Http(_)), "{garbage:.40} {reason:?}");
    }
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n";
    let reason = failure(&says(chunks), https()).await;
    assert!(
        matches!(reason, CheckFailure::Closed { step: Step::Response, .. } | CheckFailure::Http(_)),
        "{reason:?}"
    );
}

#[tokio::test]
async fn an_early_close_is_named() {
    let at_once = Server::tcp(|stream| async move { drop(stream) });
    let reason = failure(&at_once, https()).await;
    assert!(matches!(reason, CheckFailure::Closed { step: Step::Handshake, .. }), "{reason:?}");
    let after_request = Server::tls(tls(), |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    });
    let reason = failure(&after_request, https()).await;
    assert!(matches!(reason, CheckFailure::Closed { step: Step::Response, .. }), "{reason:?}");
    let in_body = Server::tls(tls(), |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort").await;
        let _ = stream.shutdown().await;
    });
    let reason = failure(&in_body, https()).await;
    assert!(matches!(reason, CheckFailure::Closed { step: Step::Response, .. }), "{reason:?}");
}

#[tokio::test]
async fn a_huge_body_is_not_read() {
    let api = Api::new();
    api.set(|behaviour| behaviour.body = Bytes::from(vec![b'x'; 10_000_000]));
    let mut watch = Watch::new([target(api.server.addr, quick(https()))]);
    assert_eq!(watch.state().await, HealthState::Up);
    let known = watch.after_checks(5).await;
    assert_eq!(known.failures, 0);
    assert!(api.server.accepted() >= 6, "each response ends its connection");
    api.set(|behaviour| behaviour.status = 500);
    assert_eq!(watch.state().await, HealthState::Down { reason: CheckFailure::Status(500) });
    let endless = Server::tls(tls(), |mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while stream.write_all(b"1000\r\n").await.is_ok()
            && stream.write_all(&[b'x'; 0x1000]).await.is_ok()
            && stream.write_all(b"\r\n").await.is_ok()
        {}
    });
    let mut watch = Watch::new([target(endless.addr, quick(https()))]);
    assert_eq!(watch.state().await, HealthState::Up);
}

#[tokio::test]
async fn unsolicited_responses_are_not_matched_to_the_next_request() {
    let server = Server::tls(tls(), |mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let answer =
            b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let _ = stream.write_all(answer).await;
        sleep(PATIENCE).await;
    });
    let reason = failure(&server, https()).await;
    assert_eq!(reason, CheckFailure::Status(500));
}

#[tokio::test]
async fn a_slow_response_within_the_timeout_succeeds() {
    let api = Api::new();
    api.set(|behaviour| behaviour.delay = Duration::from_millis(400));
    let patient = HealthCheck { timeout: Duration::from_secs(2), fall: 1, ..check(https()) };
    let mut watch = Watch::new([target(api.server.addr, patient)]);
    assert_eq!(watch.state().await, HealthState::Up);
    let known = watch.after_checks(3).await;
    assert_eq!(known.failures, 0);
    assert!(known.last_check.unwrap().latency >= Duration::from_millis(400));
    assert_eq!(api.server.accepted(), 1);
}

#[tokio::test]
async fn hostile_servers_delay_no_other_check() {
    let good = Api::new();
    let hole = BlackHole::new();
    let mute = Server::tcp(|stream| async move {
        sleep(PATIENCE).await;
        drop(stream);
    });
    let flood = Server::tls(tls(), |mut stream| async move {
        while stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok() {}
    });
    let slow = HealthCheck { timeout: Duration::from_secs(5), ..check(https()) };
    let mut targets: Vec<_> =
        [hole.addr, mute.addr, flood.addr].map(|addr| target(addr, slow.clone())).into();
    targets.push(target(good.server.addr, HealthCheck { fall: 1, ..check(https()) }));
    let mut watch = Watch::new(targets);
    let change = watch.change().await;
    assert_eq!((change.target, change.to), (key(good.server.addr), HealthState::Up));
    sleep(Duration::from_secs(3)).await;
    let known =
        watch.monitor.snapshot().into_iter().find(|known| known.target == key(good.server.addr)).unwrap();
    assert_eq!(known.failures, 0);
    // 60 would be undisturbed, 1 held up by one of the others. The flood shares the processor of the good server.
    assert!(known.checks >= 15, "{}", known.checks);
}
