//! The distribution of clients over backends and workers.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use lb_proxy::Balance;
use socket2::{Domain, Socket, Type};

use crate::support::{Balancer, Echo, connect, in_threads, ping, visit, wait_until};

fn echoes() -> [Echo; 3] {
    [Echo::start(0), Echo::start(1), Echo::start(2)]
}

fn addresses(echoes: &[Echo]) -> Vec<SocketAddr> {
    echoes.iter().map(|echo| echo.addr).collect()
}

fn totals(balancer: &Balancer) -> Vec<u64> {
    balancer.backends().iter().map(|backend| backend.total).collect()
}

#[test]
fn round_robin_is_even_over_all_workers() {
    let echoes = echoes();
    let balancer = Balancer::start(&addresses(&echoes), |options, _| options.workers = 3).checked();
    in_threads(4, |_| (0..75).for_each(|_| assert!(visit(balancer.addr).unwrap() < 3)));
    assert_eq!(totals(&balancer), [100, 100, 100]);
    assert!(echoes.iter().all(|echo| echo.count() == 100));
}

#[test]
fn weighted_follows_the_weights_and_zero_drains() {
    let echoes = echoes();
    let balancer = Balancer::start(&addresses(&echoes), |_, service| {
        service.balance = Balance::Weighted;
        service.backends[0].weight = 5;
        service.backends[2].weight = 0;
    });
    (0..120).for_each(|_| assert!(visit(balancer.addr).unwrap() < 2));
    assert_eq!(totals(&balancer), [100, 20, 0]);
}

#[test]
fn least_connections_prefers_the_least_loaded() {
    let echoes = echoes();
    let balancer = Balancer::start(&addresses(&echoes), |_, service| {
        service.balance = Balance::LeastConnections;
    });
    let mut held: Vec<_> = (0..30).map(|_| connect(balancer.addr).unwrap()).collect();
    let active = || -> Vec<usize> { balancer.backends().iter().map(|backend| backend.active).collect() };
    assert_eq!(active(), [10, 10, 10]);
    held.retain(|(_, identity)| *identity != 1);
    wait_until("the sessions have ended", || active() == [10, 0, 10]);
    for _ in 0..10 {
        let (stream, identity) = connect(balancer.addr).unwrap();
        assert_eq!(identity, 1);
        held.push((stream, identity));
    }
    assert_eq!(active(), [10, 10, 10]);
}

#[test]
fn source_hash_keeps_each_client_on_its_backend() {
    let echoes = echoes();
    let balancer = Balancer::start(&addresses(&echoes), |_, service| {
        service.balance = Balance::SourceHash;
        service.listen = vec![([0, 0, 0, 0], 0).into()];
    });
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, balancer.addr.port()));
    let mut home: HashMap<u8, u8> = HashMap::new();
    for _ in 0..3 {
        for client in 2..=121 {
            let identity = visit_from(Ipv4Addr::new(127, 0, 0, client), target);
            assert_eq!(*home.entry(client).or_insert(identity), identity, "client {client} moved");
        }
    }
    for identity in 0..3 {
        let clients = home.values().filter(|home| **home == identity).count();
        assert!((20..=60).contains(&clients), "backend {identity} has {clients} of 120 clients");
    }
}

fn visit_from(source: Ipv4Addr, target: SocketAddr) -> u8 {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&target.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    let mut identity = [0];
    std::io::Read::read_exact(&mut stream, &mut identity).unwrap();
    identity[0]
}

#[test]
fn long_lived_connections_spread_evenly_over_the_workers() {
    let echo = Echo::start(0);
    let balancer = Balancer::start(&[echo.addr], |options, _| options.workers = 3);
    let mut held = Vec::new();
    for count in [12, 60, 300] {
        held.resize_with(count, || connect(balancer.addr).unwrap().0);
        let workers = balancer.lb.snapshot().workers;
        let sessions: Vec<usize> = workers.iter().map(|worker| worker.sessions).collect();
        let (least, most) = (sessions.iter().min().unwrap(), sessions.iter().max().unwrap());
        // Distribution by the kernel's hash alone gives 30 and more between the extremes of 300.
        assert!(most - least <= 10, "{sessions:?} of {count}");
    }
    assert!(balancer.lb.snapshot().workers.iter().any(|worker| worker.handed_off > 0));
    held.iter_mut().for_each(|stream| ping(stream).unwrap());
}
