//! Descriptors run out: told, survived, without spinning.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use lb_proxy::Event;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};

use crate::support::{Balancer, Echo, block_on, connect, parents_backend, run_test, visit, wait_until};

#[test]
fn running_out_of_descriptors_is_survived() {
    run_test("exhaustion::child_runs_out_of_descriptors", Some(&Echo::start(1)));
}

#[test]
#[ignore = "limits its descriptors: run by running_out_of_descriptors_is_survived"]
fn child_runs_out_of_descriptors() {
    let balancer = Balancer::start(&[parents_backend()], |_, _| {}).checked();
    visit(balancer.addr).unwrap();
    // Clients whose descriptors exist already; connecting needs no new one.
    let clients: Vec<_> = (0..200)
        .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap())
        .collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let highest = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, highest + 40, hard).unwrap();

    let clients: Vec<TcpStream> = clients
        .into_iter()
        .map(|client| {
            client.connect(&balancer.addr.into()).unwrap();
            client.into()
        })
        .collect();
    wait_until("it is told", || balancer.has_event(|e| matches!(e, Event::ResourcesExhausted { .. })));
    let mut served = 0;
    // Round by round, because a client may wait for the descriptors of one that was served after it.
    let mut waiting = clients;
    wait_until("every client is served or refused", || {
        waiting.retain_mut(|client| {
            client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            match std::io::Read::read(client, &mut [0]) {
                Ok(1) => served += 1,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                other => panic!("neither served nor refused: {other:?}"),
            }
            false
        });
        waiting.is_empty()
    });
    assert!(served > 0);
    wait_until("sessions have ended", || balancer.sessions() == 0);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    for _ in 0..50 {
        visit(balancer.addr).unwrap();
    }
    block_on(balancer.lb.heartbeat(Duration::from_secs(5))).unwrap();
}

#[test]
fn waiting_for_descriptors_takes_no_processor_time() {
    run_test("exhaustion::child_waits_for_descriptors", Some(&Echo::start(1)));
}

#[test]
#[ignore = "limits its descriptors: run by waiting_for_descriptors_takes_no_processor_time"]
fn child_waits_for_descriptors() {
    let balancer = Balancer::start(&[parents_backend()], |_, _| {}).checked();
    let mut held = connect(balancer.addr).unwrap().0;
    let mut waiting: Vec<_> = (0..50)
        .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap())
        .collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Not one more.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    waiting.iter_mut().for_each(|client| client.connect(&balancer.addr.into()).unwrap());
    wait_until("it is told", || balancer.has_event(|e| matches!(e, Event::ResourcesExhausted { .. })));
    let before = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let after = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |usage: nix::sys::resource::Usage| {
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec()
    };
    let used = time(after) - time(before);
    assert!(used < 200_000, "{used} µs in a second of waiting");
    crate::support::ask(&mut held).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    drop(waiting);
    wait_until("it goes on", || visit(balancer.addr).is_ok());
    drop(held);
}
