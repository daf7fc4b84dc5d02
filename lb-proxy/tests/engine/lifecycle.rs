//! Drain and stop, evidence and counters.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use lb_proxy::{BackendState, HeartbeatError, ReconfigureError};

use crate::support::{
    Balancer, Echo, PATIENCE, Refusing, block_on, connect, end_of, ping, quiet_port, service, visit,
    wait_until,
};

#[test]
fn drain_serves_queued_clients_and_refuses_later_ones() {
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |_, _| {}).checked();
    let mut sessions: Vec<_> = (0..10).map(|_| connect(balancer.addr).unwrap().0).collect();
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| block_on(balancer.lb.drain(PATIENCE)));
        wait_until("listeners are closed", || TcpStream::connect(balancer.addr).is_err());
        sessions.iter_mut().for_each(|stream| ping(stream).unwrap());
        assert!(!drain.is_finished());
        assert!(balancer.lb.snapshot().draining);
        sessions.clear();
        assert_eq!(drain.join().unwrap(), 0);
    });
    assert!(matches!(balancer.lb.reconfigure(vec![service(&[])]), Err(ReconfigureError::Stopping)));
    let heartbeat = block_on(balancer.lb.heartbeat(PATIENCE));
    assert!(matches!(heartbeat, Err(HeartbeatError::Stopping)));
}

#[test]
fn drain_ends_at_its_deadline_and_stop_resets_the_rest() {
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |_, _| {}).checked();
    let mut session = connect(balancer.addr).unwrap().0;
    let start = Instant::now();
    assert_eq!(block_on(balancer.lb.drain(Duration::from_millis(100))), 1);
    assert!(start.elapsed() >= Duration::from_millis(100));
    ping(&mut session).unwrap();
    balancer.lb.stop();
    assert_eq!(end_of(&mut session), Some(ErrorKind::ConnectionReset));
    wait_until("the backend is rid of it", || echo.open.load(SeqCst) == 0);
    balancer.lb.stop();
}

#[test]
fn a_stopped_balancer_releases_its_port() {
    let echo = Echo::start(1);
    let addr = ([127, 0, 0, 1], quiet_port()).into();
    let first = Balancer::start(&[echo.addr], |_, service| service.listen = vec![addr]).checked();
    // Closed by the balancer's side first: its sockets in TIME_WAIT must not block the next bind.
    visit(addr).unwrap();
    drop(first);
    let second = Balancer::start(&[echo.addr], |_, service| service.listen = vec![addr]);
    assert_eq!(second.addr, addr);
    visit(addr).unwrap();
}

#[test]
fn evidence_tells_local_from_remote_and_healthy_from_not() {
    let echo = Echo::start(1);
    let dead = Refusing::new();
    // A documentation address (RFC 5737), which no host has.
    let remote = "192.0.2.1:6443".parse().unwrap();
    let balancer = Balancer::start(&[echo.addr, dead.0, remote], |_, service| {
        service.health.timeout = Duration::from_millis(100);
    })
    .checked();
    let evidence = balancer.lb.serving_evidence();
    assert_eq!(&*evidence[0].service, "api");
    assert_eq!((evidence[0].backends, evidence[0].remote), (3, 1));
    assert_eq!((evidence[0].healthy, evidence[0].healthy_remote), (1, 0));
}

#[test]
fn bytes_and_connections_are_counted() {
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |_, _| {}).checked();
    for _ in 0..10 {
        visit(balancer.addr).unwrap();
    }
    wait_until("all have ended", || balancer.sessions() == 0);
    let backend = balancer.backend(echo.addr);
    assert_eq!((backend.total, backend.active, backend.connecting, backend.failures), (10, 0, 0, 0));
    assert_eq!((backend.bytes_in, backend.bytes_out), (40, 50));
    assert_eq!(backend.state, BackendState::Up);
    assert!(backend.last_check.is_some());
    let snapshot = balancer.lb.snapshot();
    assert_eq!(snapshot.services[0].accepted, 10);
    assert_eq!(snapshot.workers.iter().map(|worker| worker.accepted).sum::<u64>(), 10);
    assert_eq!(snapshot.services[0].redispatched, 0);
}

#[test]
fn a_refused_socket_option_is_reported_once_and_connections_continue() {
    let echo = Echo::start(1);
    let balancer =
        Balancer::start(&[echo.addr], |options, _| options.congestion = Some("no-such".to_owned()));
    for _ in 0..5 {
        visit(balancer.addr).unwrap();
    }
    let events = balancer.events.lock().unwrap();
    let reports = events.iter().filter(|e| matches!(e, lb_proxy::Event::CongestionRefused { .. }));
    assert_eq!(reports.count(), 1);
}

#[test]
fn the_unspecified_ipv6_address_serves_where_ipv6_is_disabled() {
    // A user namespace, so that this needs no privilege either.
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["lifecycle::child_without_ipv6", "--exact", "--ignored", "--test-threads=1"])
        .output()
        .expect("unshare of util-linux: apt-get install util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
}

#[test]
#[ignore = "disables IPv6 in its namespace: run by the_unspecified_ipv6_address_serves_where_ipv6_is_disabled"]
fn child_without_ipv6() {
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("ip of iproute2: apt-get install iproute2").success());
    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |_, service| {
        service.listen = vec!["[::]:0".parse().unwrap()];
    });
    assert_eq!(visit(([127, 0, 0, 1], balancer.addr.port()).into()).unwrap(), 1);
    block_on(balancer.lb.heartbeat(PATIENCE)).unwrap();
}
