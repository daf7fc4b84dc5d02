//! Connections through the kernel.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ipvs::reconcile::{Deletion, Desired, DesiredService, Options, Planner, Step};
use ipvs::{Client, DestinationEntry, ForwardMethod, SchedulerName, Service, ServiceKey, Stats};
use testbed::eventually;

use crate::fixture::{destination, ip, ipvsadm, tcp, with_client};

/// A service on an address of this machine, whose only destination is the machine.
fn service() -> (ServiceKey, Desired, TcpListener) {
    let key = tcp("10.0.0.1", 80);
    let local = DesiredService::new(Service::new(key, SchedulerName::RR)).with(destination(
        "10.0.0.1",
        80,
        ForwardMethod::LOCAL,
    ));
    let listener = TcpListener::bind("10.0.0.1:80").expect("a listener");
    (key, [local].into_iter().collect(), listener)
}

/// A connection through the service, and a byte through it.
fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut near = TcpStream::connect("10.0.0.1:80").expect("a connection");
    let (mut far, _) = listener.accept().expect("it arrives");
    near.write_all(b"x").expect("it takes");
    far.read_exact(&mut [0]).expect("it gives");
    (near, far)
}

async fn only(client: &Client, key: &ServiceKey) -> DestinationEntry {
    let mut entries = client.destinations(key).await.expect("a list");
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

/// The columns that `ipvsadm` prints for the service, then for its destination.
fn columns(arguments: &str) -> Vec<Vec<u64>> {
    let text = ipvsadm(arguments);
    let lines = text.lines().filter(|line| line.contains("10.0.0.1:80"));
    let numbers =
        |line: &str| line.split_whitespace().rev().take(5).map(|n| n.parse().expect("a number")).collect();
    lines
        .map(|line| {
            let mut row: Vec<u64> = numbers(line);
            row.reverse();
            row
        })
        .collect()
}

fn totals(stats: &Stats) -> Vec<u64> {
    vec![
        stats.connections,
        stats.incoming_packets,
        stats.outgoing_packets,
        stats.incoming_bytes,
        stats.outgoing_bytes,
    ]
}

fn rates(stats: &Stats) -> Vec<u64> {
    vec![
        stats.connection_rate,
        stats.incoming_packet_rate,
        stats.outgoing_packet_rate,
        stats.incoming_byte_rate,
        stats.outgoing_byte_rate,
    ]
}

pub(crate) fn counted() {
    with_client(async |client| {
        let (key, desired, listener) = service();
        let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
        let (_, report) = client.reconcile(&mut planner, &desired, &mut owned).await.expect("a table");
        assert!(report.is_complete());
        let open: Vec<_> = (0..3).map(|_| connect(&listener)).collect();
        let entry = only(client, &key).await;
        assert_eq!((entry.active_connections, entry.inactive_connections), (3, 0));
        // The kernel counts per processor and sums up every two seconds.
        let counted = || columns("-L -n --stats --exact").iter().all(|row| row[0] == 3);
        eventually("connections are counted", Duration::from_secs(20), counted);
        let entry = only(client, &key).await;
        let stats = client.service(&key).await.expect("it is there").stats();
        assert_eq!(stats.connections, 3);
        // SYN, ACK and data of each, and other segments of TCP.
        assert!(stats.incoming_packets >= 9 && stats.incoming_bytes > 9 * 40, "{stats:?}");
        assert_eq!(columns("-L -n --stats --exact"), [totals(&stats), totals(&entry.stats())]);
        // Rates are estimated every two seconds.
        eventually("rates are estimated", Duration::from_secs(20), || {
            columns("-L -n --rate --exact")[0][1] > 0
        });
        let shown = columns("-L -n --rate --exact");
        let stats = client.service(&key).await.expect("it is there").stats();
        println!("{shown:?} {:?}", rates(&stats));
        assert!(rates(&stats)[1] > 0 && rates(&stats)[3] > rates(&stats)[1]);

        drop(open);
        std::thread::sleep(Duration::from_millis(200));
        let entry = only(client, &key).await;
        assert_eq!((entry.active_connections, entry.inactive_connections), (0, 3));
        client.zero(Some(&key)).await.expect("it is zeroed");
        let stats = client.service(&key).await.expect("it is there").stats();
        assert_eq!(totals(&stats), [0; 5]);
        assert_eq!(totals(&only(client, &key).await.stats()), [0; 5]);
        client.zero(None).await.expect("all are zeroed");
        datagrams(client).await;
    });
}

/// Of UDP, no connection counts as active.
async fn datagrams(client: &Client) {
    let key = ServiceKey::udp("10.0.0.1".parse().expect("an address"), 53);
    client.add_service(&Service::new(key, SchedulerName::RR)).await.expect("it is added");
    let local = destination("10.0.0.1", 53, ForwardMethod::LOCAL);
    client.add_destination(&key, &local).await.expect("it is added");
    let (near, far) = (UdpSocket::bind("10.0.0.1:0"), UdpSocket::bind("10.0.0.1:53"));
    let (near, far) = (near.expect("a socket"), far.expect("a socket"));
    near.send_to(b"x", "10.0.0.1:53").expect("it is sent");
    far.recv(&mut [0]).expect("it arrives");
    let entry = only(client, &key).await;
    assert_eq!((entry.active_connections, entry.inactive_connections), (0, 1));
}

pub(crate) fn drained() {
    ip("link set lo up");
    with_client(async |client| {
        ip("addr add 10.0.0.2/8 dev dummy0");
        let (key, old, listener) = service();
        let other = destination("10.0.0.2", 80, ForwardMethod::LOCAL);
        let new: Desired =
            [DesiredService::new(Service::new(key, SchedulerName::RR)).with(other)].into_iter().collect();
        let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
        client.reconcile(&mut planner, &old, &mut owned).await.map(drop).expect("a table");
        let (near, far) = connect(&listener);

        let (plan, report) = client.reconcile(&mut planner, &new, &mut owned).await.expect("a table");
        assert!(report.is_complete());
        assert!(matches!(plan.steps[..], [Step::AddDestination(..), Step::Quiesce(..)]), "{:?}", plan.steps);
        let since = Instant::now();
        let others: Vec<_> = (0..4).map(|_| connect(&listener)).collect();
        let (plan, _) = client.reconcile(&mut planner, &new, &mut owned).await.expect("a table");
        assert!(plan.is_empty(), "{:?}", plan.steps);
        assert_eq!((plan.draining.len(), plan.draining[0].active_connections), (1, 1), "{since:?}");
        let entries = client.destinations(&key).await.expect("a list");
        let shares: BTreeSet<_> =
            entries.iter().map(|entry| (entry.destination.key, entry.active_connections)).collect();
        assert_eq!(shares.iter().map(|(_, active)| *active).collect::<Vec<_>>(), [1, 4]);

        drop((near, far));
        std::thread::sleep(Duration::from_millis(200));
        let (plan, report) = client.reconcile(&mut planner, &new, &mut owned).await.expect("a table");
        assert!(
            matches!(plan.steps[..], [Step::DeleteDestination(_, _, Deletion::Drained)]),
            "{:?}",
            plan.steps
        );
        assert!(report.is_complete() && plan.draining.is_empty());
        drop(others);
    });
}
