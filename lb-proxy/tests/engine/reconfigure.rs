//! Reconfiguration under load.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use lb_proxy::{
    Backend, BackendState, Balance, Event, HealthKind, InvalidService, ListenError, LoadBalancer, Options,
    ReconfigureError, Service, StartError,
};

use crate::support::{Balancer, Echo, connect, in_threads, ping, quiet_port, service, visit, wait_until};

#[test]
fn no_session_breaks_while_backends_and_listeners_change() {
    let echoes = [Echo::start(0), Echo::start(1), Echo::start(2)];
    let all: Vec<_> = echoes.iter().map(|echo| echo.addr).collect();
    let balancer = Balancer::start(&all, |_, _| {}).checked();
    let mut watches: Vec<_> = (0..30).map(|_| connect(balancer.addr).unwrap()).collect();
    let over = AtomicBool::new(false);
    let visits: usize = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..150 {
                let mut changed = service(&all[..1 + round % 3]);
                changed.listen = vec![([127, 0, 0, 1], 0).into()];
                changed.balance = [Balance::RoundRobin, Balance::LeastConnections][round % 2];
                if round % 2 == 0 {
                    changed.listen.push(([127, 0, 0, 2], 0).into());
                }
                balancer.lb.reconfigure(vec![changed]).unwrap();
            }
            over.store(true, SeqCst);
        });
        let clients = in_threads(4, |_| {
            let mut visits = 0;
            while !over.load(SeqCst) || visits < 50 {
                visit(balancer.addr).unwrap();
                visits += 1;
            }
            visits
        });
        clients.into_iter().sum()
    });
    assert!(visits >= 200);
    for (stream, _) in &mut watches {
        ping(stream).expect("a session continues, also on a removed backend");
    }
    let total: u64 = balancer.lb.snapshot().services[0].accepted;
    assert_eq!(total, visits as u64 + 30, "counters survive");
}

#[test]
fn a_removed_backend_drains_and_keeps_its_counters_when_it_returns() {
    let echoes = [Echo::start(0), Echo::start(1)];
    let all = [echoes[0].addr, echoes[1].addr];
    let balancer = Balancer::start(&all, |_, _| {}).checked();
    let mut held: Vec<_> = (0..2).map(|_| connect(balancer.addr).unwrap()).collect();
    balancer.lb.reconfigure(vec![service(&all[..1])]).unwrap();
    for _ in 0..10 {
        assert_eq!(visit(balancer.addr).unwrap(), 0);
    }
    let removed = balancer.backend(all[1]);
    assert_eq!((removed.state, removed.active), (BackendState::Draining, 1));
    held.iter_mut().for_each(|(stream, _)| ping(stream).unwrap());

    balancer.lb.reconfigure(vec![service(&all)]).unwrap();
    assert_eq!(balancer.backend(all[1]).total, 1);
    assert_eq!(balancer.backend(all[1]).active, 1);
    balancer.lb.reconfigure(vec![service(&all[..1])]).unwrap();
    held.clear();
    wait_until("forgotten with its last session", || balancer.backends().len() == 1);
}

#[test]
fn a_listener_moves_to_an_overlapping_address_and_to_another_service() {
    let echoes = [Echo::start(0), Echo::start(1)];
    let port = quiet_port();
    let balancer = Balancer::start(&[echoes[0].addr], |_, service| {
        service.listen = vec![([127, 0, 0, 1], port).into()];
    })
    .checked();
    let mut wide = service(&[echoes[0].addr]);
    wide.listen = vec![([0, 0, 0, 0], port).into()];
    balancer.lb.reconfigure(vec![wide.clone()]).unwrap();
    assert_eq!(visit((Ipv4Addr::new(127, 0, 0, 9), port).into()).unwrap(), 0);

    let mut other = service(&[echoes[1].addr]);
    other.name = "other".to_owned();
    other.listen = wide.listen;
    let mut held = connect(balancer.addr).unwrap().0;
    balancer.lb.reconfigure(vec![other]).unwrap();
    assert_eq!(visit(balancer.addr).unwrap(), 1, "no client was refused in between");
    ping(&mut held).unwrap();
}

#[test]
fn a_port_in_use_is_named_and_nothing_changes() {
    let echo = Echo::start(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let balancer = Balancer::start(&[echo.addr], |_, service| {
        service.listen = vec![([127, 0, 0, 1], quiet_port()).into()];
    })
    .checked();
    let mut bad = service(&[]);
    bad.listen.push(taken);
    let error = balancer.lb.reconfigure(vec![bad.clone()]).unwrap_err();
    assert!(matches!(error, ReconfigureError::Listen(ListenError::PortInUse { addr }) if addr == taken));
    assert!(error.to_string().contains(&taken.to_string()));
    assert_eq!(visit(balancer.addr).unwrap(), 0);

    let error = LoadBalancer::start(Options::default(), vec![bad], Box::new(drop)).unwrap_err();
    assert!(matches!(error, StartError::Listen(ListenError::PortInUse { addr }) if addr == taken));

    // A listener that was closed for a change that then failed is restored.
    let mut wide = service(&[echo.addr]);
    wide.listen = vec![([0, 0, 0, 0], balancer.addr.port()).into(), taken];
    balancer.lb.reconfigure(vec![wide]).unwrap_err();
    assert_eq!(visit(balancer.addr).unwrap(), 0);

    // The port of a second balancer is in use, too, although that uses `SO_REUSEPORT`.
    let mut same = service(&[]);
    same.listen = vec![balancer.addr];
    let error = LoadBalancer::start(Options::default(), vec![same], Box::new(drop)).unwrap_err();
    assert!(matches!(error, StartError::Listen(ListenError::PortInUse { addr }) if addr == balancer.addr));
}

#[test]
fn contradictory_services_are_refused_by_name() {
    let start =
        |services: Vec<Service>| match LoadBalancer::start(Options::default(), services, Box::new(drop)) {
            Err(StartError::Invalid(invalid)) => invalid,
            other => panic!("{other:?}"),
        };
    let name = || "api".to_owned();
    let addr = "127.0.0.1:18443".parse().unwrap();
    let mut twin = service(&[]);
    twin.name = "twin".to_owned();
    twin.listen = vec![addr];
    assert_eq!(
        start(vec![service(&[]), Service { listen: vec![addr], ..service(&[]) }]),
        InvalidService::DuplicateName { name: name() }
    );
    let mut first = service(&[]);
    first.listen = vec![addr];
    assert_eq!(
        start(vec![first, twin]),
        InvalidService::DuplicateListen { name: "twin".to_owned(), other: name(), addr }
    );
    assert_eq!(
        start(vec![Service { listen: vec![], ..service(&[]) }]),
        InvalidService::NoListen { name: name() }
    );
    assert_eq!(start(vec![service(&[addr, addr])]), InvalidService::DuplicateBackend { name: name(), addr });
    let zero = Service { connect_timeout: std::time::Duration::ZERO, ..service(&[]) };
    assert!(matches!(start(vec![zero]), InvalidService::ZeroDuration { setting: "connect_timeout", .. }));
    let mut path = service(&[addr]);
    path.health.kind = HealthKind::https("readyz");
    assert!(matches!(start(vec![path]), InvalidService::Check { .. }));
}

#[test]
fn a_backend_at_the_balancers_own_listener_is_left_out() {
    let echo = Echo::start(3);
    let vip = "127.0.0.50:6443".parse().unwrap();
    let port = quiet_port();
    let balancer = Balancer::start(&[vip, echo.addr], |options, service| {
        options.forbidden = vec![vip.ip()];
        service.listen = vec![([127, 0, 0, 1], port).into()];
    });
    let forbidden = |addr| {
        balancer.has_event(|e| matches!(e, Event::BackendForbidden { backend, .. } if *backend == addr))
    };
    assert!(forbidden(vip));
    assert_eq!(balancer.backends().len(), 1);

    // Its own listener under another of this node's addresses.
    let mut own = service(&[echo.addr]);
    own.listen = vec![([0, 0, 0, 0], port).into()];
    let loops =
        ["127.0.0.1", "127.0.0.8", "0.0.0.0"].map(|ip| (ip.parse::<Ipv4Addr>().unwrap(), port).into());
    own.backends.extend(loops.map(Backend::new));
    balancer.lb.reconfigure(vec![own]).unwrap();
    assert!(loops.into_iter().all(forbidden));
    for _ in 0..8 {
        assert_eq!(visit(balancer.addr).unwrap(), 3);
    }

    balancer.lb.forbid(vec![echo.addr.ip()]);
    balancer.lb.reconfigure(vec![service(&[echo.addr])]).unwrap();
    assert_eq!(balancer.lb.serving_evidence()[0].backends, 0);
}

#[test]
fn an_identical_configuration_changes_nothing() {
    let echoes = [Echo::start(0), Echo::start(1), Echo::start(2)];
    let all: Vec<_> = echoes.iter().map(|echo| echo.addr).collect();
    let vip = "127.0.0.50:6443".parse().unwrap();
    let with_vip: Vec<_> = all.iter().copied().chain([vip]).collect();
    let balancer = Balancer::start(&with_vip, |options, _| options.forbidden = vec![vip.ip()]).checked();
    let turns: Vec<u8> = (0..9)
        .map(|_| {
            balancer.lb.reconfigure(vec![service(&with_vip)]).unwrap();
            visit(balancer.addr).unwrap()
        })
        .collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0, 1, 2], "the position is kept");
    let events = balancer.events.lock().unwrap();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::BackendForbidden { .. })).count(), 1);
}
