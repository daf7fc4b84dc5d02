//! A peer that is alive but does not read.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::support::{Balancer, PATIENCE, loopback, wait_until};

/// A length that exceeds all buffers from end to end.
const LENGTH: usize = 64 << 20;
/// Keepalive interval; an idle peer is given up after four of these.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Time for which a peer does not read: twice that.
const STALL: Duration = Duration::from_secs(8);

/// A balancer with this user timeout in front of a listener, and both ends of a session.
fn session(user_timeout: Duration) -> (Balancer, TcpStream, TcpStream) {
    let listener = TcpListener::bind(loopback()).unwrap();
    let backend = listener.local_addr().unwrap();
    let balancer = Balancer::start(&[backend], |options, _| {
        options.keepalive = KEEPALIVE;
        options.user_timeout = user_timeout;
    })
    .checked();
    // The check's connection.
    listener.accept().unwrap();
    let client = TcpStream::connect(balancer.addr).unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(STALL + PATIENCE)).unwrap();
    }
    (balancer, client, server)
}

#[test]
fn a_peer_that_does_not_read_for_long_keeps_its_session() {
    let stalled_by = |client_reads: bool| {
        let (_balancer, client, server) = session(lb_proxy::Options::default().user_timeout);
        let (mut writer, mut reader) = if client_reads { (server, client) } else { (client, server) };
        thread::scope(|scope| {
            scope.spawn(move || writer.write_all(&vec![7; LENGTH]).unwrap());
            thread::sleep(STALL);
            let mut received = 0;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => received += n,
                    Err(error) => panic!("after {received} bytes: {error}"),
                }
            }
            assert_eq!(received, LENGTH, "client reads: {client_reads}");
        });
    };
    thread::scope(|scope| {
        scope.spawn(|| stalled_by(true));
        stalled_by(false);
    });
}

/// The documented risk of the option.
#[test]
fn a_user_timeout_ends_the_session_of_a_peer_that_does_not_read() {
    let (balancer, _reader, mut writer) = session(Duration::from_millis(500));
    let error = writer.write_all(&vec![7; LENGTH]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    wait_until("the session has ended", || balancer.sessions() == 0);
}
