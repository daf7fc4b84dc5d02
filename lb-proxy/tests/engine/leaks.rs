//! Leaks: closed sessions leave no resources, and idle ones use only their sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::ScopedJoinHandle;

use lb_proxy::RelayMode;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::support::{
    Balancer, Echo, connect, descriptors, in_threads, loopback, ping, pipes, run_test, visit, wait_until,
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

/// Makes sessions of every kind: orderly, bulk in both directions, abandoned at once, reset with bytes under way.
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

/// Sends this number of bytes and reads the echo, at the same time.
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
    let balancer = Balancer::start(&[echo.addr], |options, _| options.relay = RelayMode::Splice);
    let before = pipes();
    let mut sessions: Vec<_> = (0..300).map(|_| connect(balancer.addr).unwrap().0).collect();
    std::thread::scope(|scope| {
        for chunk in sessions.chunks_mut(75) {
            scope.spawn(move || chunk.iter_mut().for_each(|stream| bulk(stream, 200_000)));
        }
    });
    sessions.iter_mut().for_each(|stream| ping(stream).unwrap());
    // The workers keep at most 64 pipes each, of two descriptors.
    wait_until("sessions gave their pipes back", || pipes() - before <= 2 * 64 * 2);
    assert_eq!(balancer.sessions(), 300);
    drop(sessions);
    wait_until("workers without sessions keep none", || pipes() == before);
}

#[test]
fn pipes_are_limited_and_sessions_without_one_lose_nothing() {
    run_test("leaks::child_has_more_bulk_sessions_than_pipes", None);
}

/// Sockets with descriptor numbers that the balancer does not reach, as if they were another process's.
fn sockets_out_of_the_way(count: usize) -> Vec<Socket> {
    let _lower: Vec<_> = (0..400).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    (0..count).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect()
}

#[test]
#[ignore = "counts pipes and limits descriptors: run by pipes_are_limited_and_sessions_without_one_lose_nothing"]
fn child_has_more_bulk_sessions_than_pipes() {
    const SESSIONS: usize = 48;
    const PIPES: usize = 40;
    /// A length that exceeds the buffers of the sockets and a pipe.
    const LENGTH: usize = 12 << 20;
    let content: Vec<u8> = (0..LENGTH).map(|i| (i % 251) as u8).collect();
    for relay in [RelayMode::Splice, RelayMode::Auto] {
        let backend = TcpListener::bind(loopback()).unwrap();
        let addr = backend.local_addr().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 8 * PIPES as u64, hard).unwrap();
        let balancer = Balancer::start(&[addr], |options, _| {
            options.relay = relay;
            options.workers = 1;
        });
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let balancer = balancer.checked();
        backend.accept().unwrap();
        let before = pipes();
        let clients = sockets_out_of_the_way(SESSIONS);
        clients.iter().for_each(|client| client.connect(&balancer.addr.into()).unwrap());
        wait_until("all are connected", || balancer.backend(addr).active == SESSIONS);
        let clients = clients.into_iter().map(TcpStream::from);
        let sessions: Vec<_> = clients.map(|client| (client, backend.accept().unwrap().0)).collect();
        std::thread::scope(|scope| {
            for (_, server) in &sessions {
                scope.spawn(|| (&mut &*server).write_all(&content).unwrap());
            }
            // Each session holds bytes, because its client does not read.
            wait_until("all pipes are in use", || pipes() - before == 2 * PIPES);
            let readers: Vec<_> = sessions
                .iter()
                .map(|(client, _)| {
                    scope.spawn(|| {
                        let mut received = vec![0; 1 << 16];
                        for expected in content.chunks(received.len()) {
                            (&mut &*client).read_exact(&mut received[..expected.len()]).unwrap();
                            assert!(
                                received[..expected.len()] == *expected,
                                "the echo differs from the bytes sent"
                            );
                        }
                    })
                })
                .collect();
            while !readers.iter().all(ScopedJoinHandle::is_finished) {
                assert!(pipes() - before <= 2 * PIPES);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        drop(sessions);
        wait_until("the descriptors are back", || balancer.sessions() == 0 && pipes() == before);
    }
}
