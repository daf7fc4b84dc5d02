//! Health checks that need a network namespace of their own.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lb_proxy::health::{CheckFailure, HealthChange, HealthState, Monitor, MonitorOptions, Target};
use lb_proxy::{Backend, Event, HealthCheck, LoadBalancer, MARK, Options, Refusal, Service};

use crate::ns::{add_address, listen};
use crate::{block_on, find, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("health_checks_carry_the_mark", health_checks_carry_the_mark),
    ("a_backend_without_a_source_address_is_unreachable", a_backend_without_a_source_address_is_unreachable),
    ("a_check_connected_to_itself_fails", a_check_connected_to_itself_fails),
];

/// Returns the first health state of a TCP check.
fn state(backend: &str, mark: u32) -> HealthState {
    let backend: SocketAddr = backend.parse().unwrap();
    let (sender, changes) = std::sync::mpsc::channel();
    let sink = Box::new(move |change: HealthChange| sender.send(change.to).unwrap());
    let monitor = Monitor::spawn(MonitorOptions { mark, seed: 0 }, sink).unwrap();
    monitor.update(vec![Target::new("api", backend, HealthCheck::default()).unwrap()]);
    let status = changes.recv_timeout(Duration::from_secs(5)).unwrap();
    monitor.stop();
    status
}

fn health_checks_carry_the_mark() {
    add_address("10.0.0.100/32", "lo");
    // Only a connection that is not redirected finds a listener.
    let _direct = listen(6443);
    block_on(find().apply(&table())).unwrap();
    assert_eq!(state("10.0.0.100:6443", MARK), HealthState::Up);
    let redirected = state("10.0.0.100:6443", 0);
    assert!(
        matches!(redirected, HealthState::Down { reason: CheckFailure::TimedOut { .. } }),
        "{redirected}"
    );
}

/// A host without IPv6 reports the same error as one that has no local port left.
fn a_backend_without_a_source_address_is_unreachable() {
    fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let found = state("[2001:db8::1]:6443", MARK);
    assert!(matches!(found, HealthState::Down { reason: CheckFailure::Unreachable(_) }), "{found}");
    let (sender, events) = std::sync::mpsc::channel();
    let service =
        Service::new("api", vec!["127.0.0.1:6444".parse().unwrap()], vec![backend("[2001:db8::1]:6443")]);
    let sink = Box::new(move |event| drop(sender.send(event)));
    let balancer = LoadBalancer::start(Options::default(), vec![service], sink).unwrap();
    // The client is reset, perhaps before it knows that it is connected.
    let _client = TcpStream::connect_timeout(&"127.0.0.1:6444".parse().unwrap(), Duration::from_secs(5));
    let refusal_of = |event: &Event| match event {
        Event::ClientsRefused { reason, .. } => Some(*reason),
        _ => None,
    };
    let timeout = Duration::from_secs(5);
    let refusal =
        std::iter::from_fn(|| events.recv_timeout(timeout).ok()).find_map(|event| refusal_of(&event));
    assert_eq!(refusal, Some(Refusal::NoBackend));
    balancer.stop();
}

fn backend(addr: &str) -> Backend {
    addr.parse::<SocketAddr>().unwrap().into()
}

/// The kernel can choose the destination port as the local port; here it has no other choice.
fn a_check_connected_to_itself_fails() {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000").unwrap();
    assert_eq!(state("127.0.0.1:40000", 0), HealthState::Down { reason: CheckFailure::Refused });
}
