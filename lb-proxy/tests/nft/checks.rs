//! Health checks where it takes a network namespace to show something.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use lb_proxy::health::{Change, CheckFailure, Monitor, MonitorOptions, Status, Target};
use lb_proxy::{HealthCheck, MARK};

use crate::ns::{add_address, listen};
use crate::{block_on, find, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("health_checks_carry_the_mark", health_checks_carry_the_mark),
    ("a_check_connected_to_itself_is_no_success", a_check_connected_to_itself_is_no_success),
];

/// The first status of a TCP check.
fn status(backend: &str, mark: u32) -> Status {
    let backend: SocketAddr = backend.parse().unwrap();
    let (sender, changes) = std::sync::mpsc::channel();
    let sink = Box::new(move |change: Change| sender.send(change.to).unwrap());
    let monitor = Monitor::spawn(MonitorOptions { mark, seed: 0 }, sink).unwrap();
    monitor.update(vec![Target::new("api", backend, HealthCheck::default()).unwrap()]);
    let status = changes.recv_timeout(Duration::from_secs(5)).unwrap();
    monitor.stop();
    status
}

fn health_checks_carry_the_mark() {
    add_address("10.0.0.100/32", "lo");
    // Only whoever is not redirected finds somebody.
    let _direct = listen(6443);
    block_on(find().apply(&table())).unwrap();
    assert_eq!(status("10.0.0.100:6443", MARK), Status::Up);
    let redirected = status("10.0.0.100:6443", 0);
    assert!(matches!(redirected, Status::Down { reason: CheckFailure::TimedOut { .. } }), "{redirected}");
}

/// The kernel can pick the port that is connected to as the port to connect from; here it has no other choice.
fn a_check_connected_to_itself_is_no_success() {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40000").unwrap();
    assert_eq!(status("127.0.0.1:40000", 0), Status::Down { reason: CheckFailure::Refused });
}
