//! Sessions, priorities, dummy links and sysctls on the real kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::Instant;

use netlink_vip::acceptance::{AcceptanceError, Egress, EgressLookup};
use netlink_vip::sessions::Listener;
use netlink_vip::{DummyError, DummyLink, KeeperEvent, Release, SysctlGuard, SysctlKey, Warning, sessions};

use crate::fixture::{Fixture, MS, ONE, SOON, beside, group};

crate::trials![
    a_planned_release_resets_sessions_while_the_vip_is_there,
    an_unplanned_release_leaves_no_session,
    only_sessions_at_the_given_addresses_are_reset,
    listening_sockets_are_listed,
    egress_follows_the_routes,
    the_thread_is_realtime_or_says_why_not,
    a_kernel_without_dummy_links_is_reported,
    sysctls_are_restored,
];

/// A namespace with a client beside the test's own, connected by eth0; the client runs `body`.
fn with_client<T: Send + 'static>(
    fixture: &Fixture,
    body: impl FnOnce(&Fixture) -> T + Send + 'static,
) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<T>) {
    let (thread, go, handle) = beside(move |client: &Fixture| {
        client.ip("link set peer0 up");
        client.ip("addr add 10.0.0.2/24 dev peer0");
        client.ip("addr add fd00::2/64 dev peer0 nodad");
        client.wait_for_link_local("peer0");
        body(client)
    });
    fixture.veth("eth0", "peer0");
    fixture.ip(&format!("link set peer0 netns {thread}"));
    fixture.ip("addr add 10.0.0.1/24 dev eth0");
    fixture.ip("addr add fd00::1/64 dev eth0 nodad");
    (go, handle)
}

/// The end of a session and its time, for a client that waits for data.
fn end_of(mut stream: TcpStream) -> (ErrorKind, Instant) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let end = match stream.read(&mut [0; 1]) {
        Ok(_) => ErrorKind::UnexpectedEof,
        Err(error) => error.kind(),
    };
    (end, Instant::now())
}

fn a_planned_release_resets_sessions_while_the_vip_is_there(fixture: &Fixture) {
    let (connected, wait) = channel();
    let (go, client) = with_client(fixture, move |_| {
        let through_vip: Vec<TcpStream> =
            ["10.0.0.100:7000", "[fd00::100]:7000"].map(|to| TcpStream::connect(to).unwrap()).into();
        let mut own = TcpStream::connect("10.0.0.1:7000").unwrap();
        connected.send(()).unwrap();
        let ends: Vec<_> = through_vip.into_iter().map(end_of).collect();
        own.write_all(b"?").unwrap();
        own.set_read_timeout(Some(SOON)).unwrap();
        let mut answer = [0; 1];
        own.read_exact(&mut answer).unwrap();
        ends
    });
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24", "fd00::100/64"])]);
    // The client raises its end of the link, without which there is no carrier.
    let listener = TcpListener::bind("[::]:7000").unwrap();
    go.send(()).unwrap();
    keeper.wait("up", |event| matches!(event, KeeperEvent::Interface { state: Some(state), .. } if state.up));
    keeper.install(ONE);
    let vip_listener = TcpListener::bind("10.0.0.100:7001").unwrap();
    let mut accepted: Vec<TcpStream> = keeper.while_claiming(ONE, 300 * MS, || {
        wait.recv_timeout(SOON).expect("three connections");
        (0..3).map(|_| listener.accept().unwrap().0).collect()
    });

    let told = Instant::now();
    keeper.handle.release(ONE, Release::Planned);
    keeper.wait("Removed", |event| matches!(event, KeeperEvent::Removed { .. }));
    let mut own = accepted.pop().unwrap();
    own.read_exact(&mut [0; 1]).unwrap();
    own.write_all(b"!").unwrap();
    for (end, at) in client.join().unwrap() {
        assert_eq!(end, ErrorKind::ConnectionReset);
        println!("client told {:?} after the release", at - told);
        assert!(at - told < 500 * MS);
    }
    keeper.shows("two sessions", |status| status.counters.sessions_reset == 2);
    keeper.install(ONE);
    TcpStream::connect("10.0.0.100:7001").unwrap();
    vip_listener.accept().expect("a listener on the VIP is a service and survives");
    keeper.end();
}

fn an_unplanned_release_leaves_no_session(fixture: &Fixture) {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
    keeper.install(ONE);
    let listener = TcpListener::bind("0.0.0.0:7000").unwrap();
    let _client = TcpStream::connect("10.0.0.100:7000").unwrap();
    let (session, _) = listener.accept().unwrap();
    let waiting = std::thread::spawn(move || end_of(session));
    let told = Instant::now();
    keeper.handle.release(ONE, Release::Lost);
    let (end, at) = waiting.join().unwrap();
    assert!(matches!(end, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset), "{end:?}");
    assert!(at - told < 500 * MS);
    keeper.end();
}

fn only_sessions_at_the_given_addresses_are_reset(fixture: &Fixture) {
    fixture.with_eth0();
    for address in ["10.0.0.50/24 dev eth0", "10.0.0.51/24 dev eth0", "fd00::50/64 dev eth0 nodad"] {
        fixture.ip(&format!("addr add {address}"));
    }
    fixture.tables();
    let listener = TcpListener::bind("[::]:7000").unwrap();
    let connect = |to: &str| {
        let client = TcpStream::connect(to).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let (kept, kept_session) = connect("10.0.0.51:7000");
    let reset = [connect("10.0.0.50:7000"), connect("[fd00::50]:7000"), connect("10.0.0.50:7000")];
    let ips: [IpAddr; 2] = [[10, 0, 0, 50].into(), "fd00::50".parse().unwrap()];
    // Both ends are on this node, and a client of a local address has that address too.
    let count = sessions::destroy(&ips).unwrap();
    assert!((3..=6).contains(&count), "{count}");
    assert_eq!(sessions::destroy(&ips), Ok(0));
    for (client, _) in reset {
        let end = end_of(client).0;
        assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted), "{end:?}");
    }
    (&kept_session).write_all(b"!").unwrap();
    assert_eq!(end_of(kept).0, ErrorKind::UnexpectedEof, "still in use");
}

/// `policy` of `/proc/<pid>/task/<tid>/stat`, field 41; 2 is SCHED_RR.
fn policy_of_keeper_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats
        .filter(|stat| stat.contains("(vip-keeper)"))
        .map(|stat| stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap().to_owned())
        .collect()
}

fn listening_sockets_are_listed(fixture: &Fixture) {
    fixture.with_eth0();
    let all = TcpListener::bind("[::]:7000").unwrap();
    let _v4 = TcpListener::bind("10.0.0.1:7001").unwrap();
    let _v6 = TcpListener::bind("[fd00::1]:7002").unwrap();
    let only = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    only.set_only_v6(true).unwrap();
    only.bind(&"[::]:7003".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    only.listen(1).unwrap();
    // The kernel keeps a socket on one address of IPv6 to that family. A session is no listener.
    let _client = TcpStream::connect("10.0.0.1:7000").unwrap();
    let _session = all.accept().unwrap();
    let mut found = sessions::listeners().unwrap();
    found.sort_unstable_by_key(|it| it.local.port());
    let told =
        [("[::]:7000", false), ("10.0.0.1:7001", false), ("[fd00::1]:7002", true), ("[::]:7003", true)];
    let told = told.map(|(local, is_v6_only)| Listener { local: local.parse().unwrap(), is_v6_only });
    assert_eq!(found, told);
}

fn egress_follows_the_routes(fixture: &Fixture) {
    fixture.with_eth0();
    // An interface before eth0 that carries its addresses too.
    fixture.ip("addr add 10.0.0.1/32 dev lo");
    fixture.ip("route add 10.9.0.0/16 via 10.0.0.254");
    fixture.ip("route add unreachable 10.8.0.0/16");
    fixture.ip("-6 route add unreachable fd08::/16");
    fixture.ip("-6 route add fd09::/16 via fd00::fe");
    let mut egress = EgressLookup::open().unwrap();
    let mut to = |server: &str| egress.to(server.parse().unwrap());
    let eth0 =
        |source: &str| Egress::Through { interface: "eth0".to_owned(), source: source.parse().unwrap() };
    for here in ["10.0.0.1", "127.0.0.9", "fd00::1", "::1"] {
        assert_eq!(to(here).unwrap(), Egress::Here, "{here}");
    }
    for server in ["10.0.0.2", "10.9.0.1"] {
        assert_eq!(to(server).unwrap(), eth0("10.0.0.1"), "{server}");
    }
    for server in ["fd00::2", "fd09::1"] {
        assert_eq!(to(server).unwrap(), eth0("fd00::1"), "{server}");
    }
    for server in ["10.8.0.1", "192.0.2.1", "fd08::1", "2001:db8::1"] {
        let found = to(server);
        assert!(matches!(found, Err(AcceptanceError::NoRoute(_))), "{server}: {found:?}");
    }
}

fn the_thread_is_realtime_or_says_why_not(fixture: &Fixture) {
    fixture.with_eth0();
    let keeper = fixture.keeper(vec![group(ONE, "eth0", &["10.0.0.100/24"])]);
    keeper.wait("Interface", |event| matches!(event, KeeperEvent::Interface { .. }));
    keeper.shows("a group", |status| !status.groups.is_empty());
    if keeper.handle.status().realtime {
        println!("real-time");
        assert!(policy_of_keeper_threads().iter().any(|policy| policy == "2"));
    } else {
        keeper.end();
        let keeper = fixture.keeper(vec![]);
        let (_, event) = keeper.wait("RealtimeUnavailable", |event| {
            matches!(event, KeeperEvent::Warning { warning: Warning::RealtimeUnavailable { .. }, .. })
        });
        let KeeperEvent::Warning { warning, .. } = event else { unreachable!() };
        println!("{warning}");
        keeper.end();
        return;
    }
    keeper.end();
}

/// This development kind of kernel has none; on one that has, the link is made and removed.
fn a_kernel_without_dummy_links_is_reported(fixture: &Fixture) {
    fixture.veth("dummyvip1", "peer1");
    let vip: IpAddr = [10, 0, 0, 100].into();
    let other = DummyLink::ensure("dummyvip1", &[vip]).err().unwrap();
    assert!(matches!(&other, DummyError::OtherKind { kind: Some(kind), .. } if kind == "veth"), "{other}");
    assert!(fixture.ip("link show dummyvip1").contains("dummyvip1"), "and left alone");
    match DummyLink::ensure("dummyvip0", &[vip, "fd00::100".parse().unwrap()]) {
        Ok(link) => {
            assert!(fixture.ip("addr show dev dummyvip0").contains("inet 10.0.0.100/32 scope host"));
            assert!(fixture.ip("addr show dev dummyvip0").contains("inet6 fd00::100/128"));
            drop(link);
            let mut link = DummyLink::ensure("dummyvip0", &[vip]).unwrap();
            assert!(!fixture.has("fd00::100") && fixture.has("10.0.0.100"));
            link.set_addresses(&[]).unwrap();
            assert!(!fixture.has("10.0.0.100"));
            link.remove().unwrap();
            assert!(!fixture.ip("link show").contains("dummyvip0"));
        }
        Err(DummyError::Unsupported) => println!("{}", DummyError::Unsupported),
        Err(error) => panic!("{error}"),
    }
}

fn sysctls_are_restored(fixture: &Fixture) {
    fixture.with_eth0();
    let value = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/eth0/{name}")).unwrap();
    fixture.write_sysctl("net/ipv4/conf/eth0/arp_announce", "1");
    let state = fixture.fresh_state();
    let (mut guard, _) = SysctlGuard::open(&state).unwrap();
    guard.hide_other_addresses("eth0").unwrap();
    assert_eq!((value("arp_ignore").trim(), value("arp_announce").trim()), ("1", "2"));
    let missing = SysctlKey::ipv4_conf("eth9", "arp_ignore").unwrap();
    assert!(guard.set(&missing, "1").is_err());
    std::mem::forget(guard);

    let (guard, recovery) = SysctlGuard::open(&state).unwrap();
    assert_eq!((recovery.restored.len(), recovery.failed.len()), (2, 0));
    assert_eq!((value("arp_ignore").trim(), value("arp_announce").trim()), ("0", "1"));
    drop(guard);
}
