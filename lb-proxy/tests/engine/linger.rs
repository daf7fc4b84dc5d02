//! Removed listeners: their clients are not refused at once, and the change does not wait for them.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use lb_proxy::{Backend, ListenError, ReconfigureError, Service};

use crate::support::{
    Balancer, Echo, ONCE, PATIENCE, block_on, connect, in_threads, ping, quiet_port, service, visit,
    wait_until,
};

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The service `api` on these addresses.
fn on(listen: &[SocketAddr], backend: &Echo) -> Service {
    Service { listen: listen.to_vec(), ..service(&[backend.addr]) }
}

/// A balancer with `api` on one port and this linger time.
fn balancer(port: u16, backend: &Echo, linger: Duration) -> Balancer {
    Balancer::start(&[backend.addr], |options, service| {
        options.linger = linger;
        service.listen = vec![at(port)];
    })
    .checked()
}

fn is_refused(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_err()
}

#[test]
fn a_removed_listener_serves_until_its_linger_time_ends() {
    let echoes = [Echo::start(1), Echo::start(2)];
    let (old, new) = (quiet_port(), quiet_port());
    let linger = Duration::from_secs(5);
    let balancer = balancer(old, &echoes[0], linger);
    let mut held = connect(at(old)).unwrap().0;
    let start = Instant::now();
    balancer.lb.reconfigure(vec![on(&[at(new)], &echoes[1])]).unwrap();
    assert_eq!(visit(at(new)).unwrap(), 2);
    assert_eq!(visit(at(old)).unwrap(), 2, "with the current backends");
    assert_eq!(balancer.lb.snapshot().services[0].listen, [at(new)]);
    block_on(balancer.lb.heartbeat(PATIENCE)).unwrap();
    wait_until("the former port is closed", || is_refused(at(old)));
    assert!(start.elapsed() >= linger, "{:?}", start.elapsed());
    ping(&mut held).expect("sessions continue");
    // The port is free for other sockets.
    TcpListener::bind(at(old)).unwrap();
    assert_eq!(visit(at(new)).unwrap(), 2);
}

#[test]
fn no_client_is_refused_while_clients_move_to_a_new_port() {
    let echo = Echo::start(1);
    let ports = [quiet_port(), quiet_port()];
    // The port to which clients are directed, as by the nftables table; it follows a little later.
    let led_to_second = AtomicBool::new(false);
    let balancer = balancer(ports[0], &echo, 2 * PATIENCE);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..20 {
                let second = round % 2 == 0;
                balancer.lb.reconfigure(vec![on(&[at(ports[usize::from(second)])], &echo)]).unwrap();
                thread::sleep(Duration::from_millis(20));
                led_to_second.store(second, SeqCst);
                thread::sleep(Duration::from_millis(20));
            }
            over.store(true, SeqCst);
        });
        let visits = in_threads(2, |_| {
            let mut visits = 0;
            while !over.load(SeqCst) {
                visit(at(ports[usize::from(led_to_second.load(SeqCst))])).unwrap();
                visits += 1;
            }
            visits
        });
        assert!(visits.iter().sum::<usize>() > 20, "{visits:?}");
    });
}

#[test]
fn a_lingering_listener_that_is_listed_again_stays() {
    let echoes = [Echo::start(1), Echo::start(2)];
    let (first, second) = (quiet_port(), quiet_port());
    let linger = Duration::from_millis(300);
    let balancer = balancer(first, &echoes[0], linger);
    balancer.lb.reconfigure(vec![on(&[at(second)], &echoes[0])]).unwrap();
    // Another service takes the listener over.
    let other = Service { name: "other".to_owned(), ..on(&[at(first)], &echoes[1]) };
    balancer.lb.reconfigure(vec![other]).unwrap();
    assert_eq!(visit(at(first)).unwrap(), 2);
    wait_until("the other one is closed", || is_refused(at(second)));
    thread::sleep(2 * linger);
    assert_eq!(visit(at(first)).unwrap(), 2);
    assert_eq!(balancer.lb.snapshot().services[0].listen, [at(first)]);
}

#[test]
fn a_port_that_is_being_closed_can_be_bound_again() {
    let echo = Echo::start(1);
    let ports = [quiet_port(), quiet_port()];
    for linger in [Duration::ZERO, Duration::from_millis(1)] {
        let balancer = balancer(ports[0], &echo, linger);
        for round in 0..200 {
            balancer.lb.reconfigure(vec![on(&[at(ports[round % 2])], &echo)]).unwrap();
        }
        assert_eq!(visit(at(ports[1])).unwrap(), 1);
    }
}

#[test]
fn a_lingering_listener_is_closed_for_an_overlapping_one_and_restored_if_that_fails() {
    let echo = Echo::start(1);
    let (first, second) = (quiet_port(), quiet_port());
    let balancer = balancer(first, &echo, ONCE);
    balancer.lb.reconfigure(vec![on(&[at(second)], &echo)]).unwrap();
    let wide: SocketAddr = ([0, 0, 0, 0], first).into();
    // On the same port, so that the conflict appears only after the lingering listener is closed.
    let foreign = TcpListener::bind(("127.0.0.9", first)).unwrap();
    let error = balancer.lb.reconfigure(vec![on(&[wide], &echo)]).unwrap_err();
    assert!(
        matches!(error, ReconfigureError::Listen(ListenError::PortInUse { addr }) if addr == wide),
        "{error}"
    );
    assert_eq!(visit(at(first)).unwrap(), 1);
    assert_eq!(visit(at(second)).unwrap(), 1);
    drop(foreign);
    balancer.lb.reconfigure(vec![on(&[wide], &echo)]).unwrap();
    assert_eq!(visit(([127, 0, 0, 9], first).into()).unwrap(), 1);
    assert_eq!(visit(at(second)).unwrap(), 1, "the replaced listener lingers, too");
}

#[test]
fn a_removed_service_continues_with_its_last_backends() {
    let echoes = [Echo::start(1), Echo::start(2)];
    let (first, second) = (quiet_port(), quiet_port());
    let balancer = balancer(first, &echoes[0], ONCE);
    let other = Service { name: "other".to_owned(), ..on(&[at(second)], &echoes[1]) };
    balancer.lb.reconfigure(vec![on(&[at(first)], &echoes[0]), other.clone()]).unwrap();
    balancer.lb.reconfigure(vec![other]).unwrap();
    assert_eq!(visit(at(first)).unwrap(), 1);
    balancer.lb.reconfigure(Vec::new()).unwrap();
    assert_eq!((visit(at(first)).unwrap(), visit(at(second)).unwrap()), (1, 2));
}

#[test]
fn stop_and_drain_close_lingering_listeners_at_once() {
    let echo = Echo::start(1);
    let ports = [quiet_port(), quiet_port()];
    for by_drain in [false, true] {
        let balancer = balancer(ports[0], &echo, ONCE);
        balancer.lb.reconfigure(vec![on(&[at(ports[1])], &echo)]).unwrap();
        visit(at(ports[0])).unwrap();
        let start = Instant::now();
        if by_drain {
            assert_eq!(block_on(balancer.lb.drain(PATIENCE)), 0);
        } else {
            balancer.lb.stop();
        }
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        for port in ports {
            assert!(is_refused(at(port)), "by drain: {by_drain}");
        }
    }
}

#[test]
fn a_port_needed_by_a_local_backend_does_not_linger() {
    let echo = Echo::start(1);
    let (old, new) = (quiet_port(), quiet_port());
    let balancer = balancer(old, &echo, ONCE);
    let mut moved = on(&[at(new)], &echo);
    // Otherwise the balancer would be its own backend.
    moved.backends.push(Backend::new(at(old)));
    balancer.lb.reconfigure(vec![moved]).unwrap();
    wait_until("the former port is free for the backend", || TcpListener::bind(at(old)).is_ok());
    assert_eq!(visit(at(new)).unwrap(), 1);
}

#[test]
fn a_reconfiguration_that_fails_for_one_service_changes_none() {
    let echoes = [Echo::start(1), Echo::start(2), Echo::start(3)];
    let ports = [quiet_port(), quiet_port(), quiet_port(), quiet_port()];
    let taken = at(quiet_port());
    let foreign = TcpListener::bind(taken).unwrap();
    let balancer = balancer(ports[0], &echoes[0], Duration::from_millis(100));
    let named = |name: &str, service| Service { name: name.to_owned(), ..service };
    let before = vec![on(&[at(ports[0])], &echoes[0]), named("second", on(&[at(ports[1])], &echoes[1]))];
    balancer.lb.reconfigure(before).unwrap();

    let after = vec![
        on(&[at(ports[2])], &echoes[2]),
        named("second", on(&[at(ports[3]), taken], &echoes[2])),
        named("third", on(&[at(ports[1])], &echoes[2])),
    ];
    let error = balancer.lb.reconfigure(after.clone()).unwrap_err();
    assert!(
        matches!(error, ReconfigureError::Listen(ListenError::PortInUse { addr }) if addr == taken),
        "{error}"
    );
    assert!(error.to_string().contains(&taken.port().to_string()), "{error}");
    thread::sleep(Duration::from_millis(500));
    assert_eq!((visit(at(ports[0])).unwrap(), visit(at(ports[1])).unwrap()), (1, 2));
    assert!(is_refused(at(ports[2])) && is_refused(at(ports[3])));
    let services = balancer.lb.snapshot().services;
    let seen: Vec<_> = services.iter().map(|s| (&*s.name, s.listen[0], s.backends[0].addr)).collect();
    assert_eq!(seen, [("api", at(ports[0]), echoes[0].addr), ("second", at(ports[1]), echoes[1].addr)]);
    block_on(balancer.lb.heartbeat(PATIENCE)).unwrap();

    drop(foreign);
    balancer.lb.reconfigure(after).unwrap();
    for addr in [at(ports[2]), at(ports[3]), at(ports[1]), taken] {
        assert_eq!(visit(addr).unwrap(), 3);
    }
    wait_until("the unlisted port is closed", || is_refused(at(ports[0])));
}
