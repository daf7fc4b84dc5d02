//! Nothing is left behind, and idle sessions hold nothing but their sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::{
    Balancer, Echo, ask, connect, descriptors, in_threads, pipes, run_test, visit, wait_until,
};

const CONNECTIONS: usize = 50_000;
const CLIENTS: usize = 8;

#[test]
fn no_descriptor_is_left_after_50_000_connections() {
    run_test("leaks::child_makes_50_000_connections", None);
}

#[test]
#[ignore = "counts descriptors: run by no_descriptor_is_left_after_50_000_connections"]
fn child_makes_50_000_connections() {
    let echoes = [Echo::start(1), Echo::start(2)];
    let balancer = Balancer::start(&[echoes[0].addr, echoes[1].addr], |_, _| {}).checked();
    visit(balancer.addr).unwrap();
    let is_quiet = || {
        balancer.sessions() == 0
            && echoes.iter().all(|e| e.open.load(std::sync::atomic::Ordering::SeqCst) == 0)
    };
    wait_until("all is quiet", is_quiet);
    let before = descriptors();
    in_threads(CLIENTS, |client| {
        for i in 0..CONNECTIONS / CLIENTS {
            connection(balancer.addr, client + i);
        }
    });
    wait_until("all is quiet again", is_quiet);
    wait_until("no descriptor is left", || descriptors().len() <= before.len());
    assert_eq!(pipes(), before.iter().filter(|link| link.starts_with("pipe:")).count());
    let snapshot = balancer.lb.snapshot();
    assert_eq!(snapshot.services[0].accepted, CONNECTIONS as u64 + 1);
    assert_eq!(snapshot.services[0].refused, 0);
}

/// Of every kind: orderly, bulk in both directions, given up at once, reset with bytes under way.
fn connection(addr: SocketAddr, kind: usize) {
    match kind % 50 {
        0 => bulk(&mut connect(addr).unwrap().0, 256 * 1024),
        1 => {
            let stream = socket2::SockRef::from(&connect(addr).unwrap().0).try_clone().unwrap();
            stream.set_linger(Some(std::time::Duration::ZERO)).unwrap();
            let _ = stream.send(&[0; 3000]);
        }
        2 => drop(TcpStream::connect(addr).unwrap()),
        _ => assert!(visit(addr).unwrap() <= 2),
    }
}

/// Sends so many bytes and reads the echo, at the same time.
fn bulk(stream: &mut TcpStream, length: usize) {
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&vec![7; length]).unwrap());
        stream.read_exact(&mut vec![0; length]).unwrap();
    });
}

#[test]
fn idle_sessions_hold_no_pipe() {
    run_test("leaks::child_has_idle_sessions", None);
}

#[test]
#[ignore = "counts pipes: run by idle_sessions_hold_no_pipe"]
fn child_has_idle_sessions() {
    let echo = Echo::start(1);
    let balancer = Balancer::start(&[echo.addr], |options, _| options.relay = lb_proxy::RelayMode::Splice);
    let before = pipes();
    let mut sessions: Vec<_> = (0..300).map(|_| connect(balancer.addr).unwrap().0).collect();
    std::thread::scope(|scope| {
        for chunk in sessions.chunks_mut(75) {
            scope.spawn(move || chunk.iter_mut().for_each(|stream| bulk(stream, 200_000)));
        }
    });
    sessions.iter_mut().for_each(|stream| ask(stream).unwrap());
    // What is kept is kept by the workers, at most 64 each, of two descriptors.
    wait_until("sessions gave their pipes back", || pipes() - before <= 2 * 64 * 2);
    assert_eq!(balancer.sessions(), 300);
    drop(sessions);
    wait_until("workers without sessions keep none", || pipes() == before);
}
