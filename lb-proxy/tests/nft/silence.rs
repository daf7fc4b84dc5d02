//! Clients that vanish without a FIN or RST, as after a power failure.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lb_proxy::{LoadBalancer, Options, Service};

use crate::ns::{Peer, add_address, connect, nft};

pub(crate) const TESTS: &[(&str, fn())] =
    &[("the_session_of_a_vanished_idle_client_ends", the_session_of_a_vanished_idle_client_ends)];

fn sessions(balancer: &LoadBalancer) -> usize {
    balancer.snapshot().workers.iter().map(|worker| worker.sessions).sum()
}

fn the_session_of_a_vanished_idle_client_ends() {
    let client = Peer::new("lan");
    add_address("10.0.0.1/24", "lan");
    client.run(|| add_address("10.0.0.9/24", "eth0"));
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = SocketAddr::from(([10, 0, 0, 1], 6444));
    let mut service = Service::new("api", vec![listen], vec![backend.local_addr().unwrap().into()]);
    service.health.interval = Duration::from_secs(3600);
    let options = Options { keepalive: Duration::from_secs(1), ..Options::default() };
    let limit = 4 * options.keepalive;
    let balancer = LoadBalancer::start(options, vec![service], Box::new(drop)).unwrap();
    // The check's connection.
    backend.accept().unwrap();

    let mut far: TcpStream = client.run(move || connect(listen));
    let (mut near, _) = backend.accept().unwrap();
    thread::sleep(2 * limit);
    assert_eq!(sessions(&balancer), 1, "a present client answers probes");
    far.write_all(b"still here").unwrap();
    near.read_exact(&mut [0; 10]).unwrap();

    client.run(|| {
        nft("add table ip gone");
        for hook in ["input", "output"] {
            nft(&format!("add chain ip gone {hook} {{ type filter hook {hook} priority 0; policy drop; }}"));
        }
    });
    let start = Instant::now();
    while sessions(&balancer) > 0 {
        assert!(start.elapsed() < 5 * limit, "the session does not end");
        thread::sleep(Duration::from_millis(20));
    }
    println!("the session of a vanished idle client ended after {:?}", start.elapsed());
    let error = near.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
