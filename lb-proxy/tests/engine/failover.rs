//! Failover: a dead backend is invisible to the client.

use std::io::ErrorKind;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use lb_proxy::{BackendState, Event, Failure};

use crate::support::{
    Balancer, BlackHole, Echo, Refusing, connect, end_of, in_threads, ping, visit, wait_until,
};

const CONNECTIONS: usize = 10_000;
const CLIENTS: usize = 16;

/// Makes all connections. Returns the duration of each.
fn visit_often(balancer: &Balancer) -> Vec<Duration> {
    let times = in_threads(CLIENTS, |_| {
        let visits = (0..CONNECTIONS / CLIENTS).map(|i| {
            let start = Instant::now();
            visit(balancer.addr).unwrap_or_else(|error| panic!("connection {i}: {error}"));
            start.elapsed()
        });
        visits.collect::<Vec<_>>()
    });
    times.concat()
}

#[test]
fn one_refusing_backend_of_three_fails_no_client() {
    let echoes = [Echo::start(1), Echo::start(2)];
    let dying = Echo::start(3);
    let dead = dying.addr;
    let balancer = Balancer::start(&[echoes[0].addr, dead, echoes[1].addr], |_, service| {
        service.health.interval = Duration::from_secs(3);
    })
    .checked();
    assert_eq!(visit_often(&balancer).len(), CONNECTIONS);
    assert!(dying.count() > CONNECTIONS / 4, "it received its share");
    dying.kill();
    visit_often(&balancer);
    let both = echoes.iter().map(Echo::count).sum::<usize>();
    assert!(both >= CONNECTIONS + CONNECTIONS / 2, "{both}");
    assert_eq!(balancer.lb.snapshot().services[0].refused, 0);
    let failures = balancer.backend(dead).failures;
    assert!((1..200).contains(&failures), "{failures} failures, although avoided after the first");
    wait_until("the check made after the refusals agrees", || {
        balancer.backend(dead).state == BackendState::Down
    });
}

#[test]
fn one_unresponsive_backend_of_three_delays_few_clients() {
    let echoes = [Echo::start(1), Echo::start(2)];
    let mut hole = BlackHole::new();
    let balancer = Balancer::start(&[echoes[0].addr, hole.addr, echoes[1].addr], |_, service| {
        // Only the clients' own connects can detect the failure.
        service.health.timeout = Duration::from_secs(600);
        service.connect_timeout = Duration::from_secs(60);
    })
    .checked();
    hole.swallow();
    let times = visit_often(&balancer);
    assert_eq!(echoes.iter().map(Echo::count).sum::<usize>(), CONNECTIONS);
    let slow = times.iter().filter(|time| **time >= Duration::from_millis(190)).count();
    assert!((1..CONNECTIONS / 100).contains(&slow), "{slow} clients waited");
    let slowest = times.iter().max().unwrap();
    assert!(*slowest < Duration::from_secs(10), "no client waits for the connect timeout: {slowest:?}");
    let suspected = |event: &Event| matches!(event, Event::BackendSuspected { reason: Failure::Slow, .. });
    assert!(balancer.has_event(suspected));
}

#[test]
fn all_dead_is_refused_fast() {
    let dead = [Refusing::new(), Refusing::new(), Refusing::new()];
    let balancer = Balancer::start(&[dead[0].0, dead[1].0, dead[2].0], |_, _| {}).checked();
    for _ in 0..100 {
        let start = Instant::now();
        assert_eq!(visit(balancer.addr).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    let snapshot = &balancer.lb.snapshot().services[0];
    assert_eq!((snapshot.refused, snapshot.accepted), (100, 100));
    for backend in &snapshot.backends {
        assert_eq!(backend.state, BackendState::Down);
        assert_eq!(backend.failures, 100, "all are tried, each once for a client");
    }
    assert!(balancer.has_event(|event| matches!(event, Event::ClientsRefused { .. })));
    wait_until("no session is left", || balancer.sessions() == 0);
}

#[test]
fn clients_are_refused_soon_when_all_backends_are_known_to_be_down() {
    let mut holes = [BlackHole::new(), BlackHole::new()];
    holes.iter_mut().for_each(BlackHole::swallow);
    let balancer = Balancer::start(&[holes[0].addr, holes[1].addr], |_, service| {
        service.health.timeout = Duration::from_millis(100);
        service.connect_timeout = Duration::from_secs(600);
    })
    .checked();
    let start = Instant::now();
    assert_eq!(visit(balancer.addr).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn clients_of_a_service_without_backends_are_refused() {
    let balancer = Balancer::start(&[], |_, _| {});
    assert_eq!(visit(balancer.addr).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn backends_that_are_all_down_but_responding_are_used() {
    // The backends speak no TLS, so every check fails.
    let echo = Echo::start(7);
    let balancer = Balancer::start(&[echo.addr], |_, service| {
        service.health.kind = lb_proxy::HealthKind::Tls;
        service.health.timeout = Duration::from_millis(200);
    })
    .checked();
    assert_eq!(balancer.backends()[0].state, BackendState::Down);
    assert_eq!(visit(balancer.addr).unwrap(), 7);
}

#[test]
fn a_backend_that_resets_mid_stream_resets_its_client_only() {
    let listener = std::net::TcpListener::bind(crate::support::loopback()).unwrap();
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[listener.local_addr().unwrap(), echo.addr], |_, _| {}).checked();
    let (check, _) = listener.accept().unwrap();
    drop(check);
    let mut victim = std::net::TcpStream::connect(balancer.addr).unwrap();
    let (backend, _) = listener.accept().unwrap();
    let mut bystander = connect(balancer.addr).unwrap().0;
    // The backend ends with unread bytes, like a process under load.
    std::io::Write::write_all(&mut victim, b"unread").unwrap();
    wait_until("the bytes have arrived", || backend.peek(&mut [0; 16]).unwrap() == 6);
    drop(backend);
    drop(listener);
    assert_eq!(end_of(&mut victim), Some(ErrorKind::ConnectionReset));
    ping(&mut bystander).unwrap();
    for _ in 0..20 {
        assert_eq!(visit(balancer.addr).unwrap(), 1);
    }
}

#[test]
fn sessions_of_a_silent_backend_are_reset_on_both_sides() {
    let [dying, healthy] = [Echo::start(1), Echo::start(2)];
    let balancer = Balancer::start(&[dying.addr, healthy.addr], |_, service| {
        service.health.interval = Duration::from_millis(50);
        service.health.timeout = Duration::from_millis(100);
    })
    .checked();
    let mut sessions: Vec<_> = (0..40).map(|_| connect(balancer.addr).unwrap()).collect();
    sessions.iter_mut().for_each(|(stream, _)| ping(stream).unwrap());
    // Its connections stay open; only checks can detect the failure.
    dying.fall_silent();
    for (stream, identity) in &mut sessions {
        if *identity == 1 {
            assert_eq!(end_of(stream), Some(ErrorKind::ConnectionReset));
        } else {
            ping(stream).unwrap();
        }
    }
    let had = sessions.iter().filter(|(_, identity)| *identity == 1).count();
    assert_eq!(had, 20);
    wait_until("the backend's side is reset too", || {
        let errors = dying.errors.lock().unwrap();
        errors.iter().filter(|kind| **kind == ErrorKind::ConnectionReset).count() == had
    });
    let is_report = |event: &Event| matches!(event, Event::BackendDown { sessions, .. } if *sessions == had);
    assert!(balancer.has_event(is_report));
    assert_eq!(healthy.open.load(SeqCst), 20);
}

#[test]
fn a_backend_that_closes_its_port_keeps_its_sessions_and_gets_no_others() {
    let [leaving, healthy] = [Echo::start(1), Echo::start(2)];
    let balancer = Balancer::start(&[leaving.addr, healthy.addr], |_, service| {
        service.health.interval = Duration::from_millis(50);
    })
    .checked();
    let mut sessions: Vec<_> = (0..10).map(|_| connect(balancer.addr).unwrap()).collect();
    leaving.close_listener();
    wait_until("it is down", || balancer.backends()[0].state == BackendState::Down);
    for _ in 0..20 {
        assert_eq!(visit(balancer.addr).unwrap(), 2);
    }
    sessions.iter_mut().for_each(|(stream, _)| ping(stream).unwrap());
    assert!(balancer.has_event(|event| matches!(event, Event::BackendDown { sessions: 0, .. })));
    assert!(balancer.backends()[0].spares_sessions);
}

#[test]
fn a_recovered_backend_is_used_again() {
    let [first, second] = [Echo::start(1), Echo::start(2)];
    let addr = second.addr;
    let balancer = Balancer::start(&[first.addr, addr], |_, service| {
        service.health.interval = Duration::from_millis(20);
        service.slow_start = Duration::from_millis(200);
    })
    .checked();
    second.kill();
    wait_until("down", || balancer.backend(addr).state == BackendState::Down);
    let second = Echo::start_at(2, addr);
    wait_until("up", || balancer.backend(addr).state == BackendState::Up);
    wait_until("clients reach it", || visit(balancer.addr).unwrap() == 2);
    wait_until("it has its full share", || {
        (0..10).filter(|_| visit(balancer.addr).unwrap() == 2).count() == 5
    });
    assert!(second.count() > 5);
    let up = |event: &Event| matches!(event, Event::BackendUp { backend, .. } if *backend == addr);
    assert!(balancer.has_event(up));
}
