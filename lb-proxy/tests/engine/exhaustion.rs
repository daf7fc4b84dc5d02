//! A lack of descriptors: it is reported, sessions survive it, and no worker spins.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lb_proxy::{Event, Refusal, Service};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};

use crate::support::{
    Balancer, Echo, PATIENCE, block_on, connect, end_of, loopback, parents_backend, ping, run_test, service,
    spawn_test, unless_reset, visit, wait_until,
};

#[test]
fn sessions_survive_a_lack_of_descriptors() {
    run_test("exhaustion::child_runs_out_of_descriptors", Some(&Echo::start(1)));
}

#[test]
#[ignore = "limits its descriptors: run by sessions_survive_a_lack_of_descriptors"]
fn child_runs_out_of_descriptors() {
    let balancer = Balancer::start(&[parents_backend()], |_, _| {}).checked();
    visit(balancer.addr).unwrap();
    // The clients have their descriptors already; connecting needs no new one.
    let clients: Vec<_> = (0..200)
        .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap())
        .collect();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let highest = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, highest + 40, hard).unwrap();

    let clients: Vec<TcpStream> = clients
        .into_iter()
        .filter_map(|client| unless_reset(client.connect(&balancer.addr.into())).map(|()| client.into()))
        .collect();
    wait_until("the shortage is reported", || {
        balancer.has_event(|e| matches!(e, Event::ResourcesExhausted { .. }))
    });
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // No descriptor is left.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    waiting.iter_mut().for_each(|client| client.connect(&balancer.addr.into()).unwrap());
    wait_until("the shortage is reported", || {
        balancer.has_event(|e| matches!(e, Event::ResourcesExhausted { .. }))
    });
    let heartbeat = runtime.block_on(balancer.lb.heartbeat(Duration::from_secs(1)));
    assert!(heartbeat.unwrap_err().is_inconclusive(), "a lack of descriptors is inconclusive");
    let before = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let after = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |usage: nix::sys::resource::Usage| {
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec()
    };
    let used = time(after) - time(before);
    assert!(used < 200_000, "{used} µs in a second of waiting");
    crate::support::ping(&mut held).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    drop(waiting);
    wait_until("the child answers", || visit(balancer.addr).is_ok());
    drop(held);
}

#[test]
fn limits_refuse_by_a_reset_are_counted_and_can_be_changed() {
    let echo = Echo::start(1);
    let limit = |service: &mut Service, all, client| {
        (service.max_connections, service.max_connections_per_client) = (all, client);
    };
    let balancer = Balancer::start(&[echo.addr], |_, service| limit(service, Some(2), None)).checked();
    let refused = || {
        let client = unless_reset(TcpStream::connect(balancer.addr));
        assert!(client.is_none_or(|mut client| end_of(&mut client) == Some(ErrorKind::ConnectionReset)));
    };
    let mut first = connect(balancer.addr).unwrap().0;
    let second = connect(balancer.addr).unwrap().0;
    refused();
    refused();
    let snapshot = balancer.lb.snapshot().services.swap_remove(0);
    assert_eq!((snapshot.accepted, snapshot.refused, snapshot.max_connections), (2, 2, 2));
    assert_eq!(snapshot.refusals, [(Refusal::MaxConnections, 2)]);
    let is_report = |e: &Event| {
        matches!(e, Event::ClientsRefused { reason: Refusal::MaxConnections, limit: Some(2), .. })
    };
    assert!(balancer.has_event(is_report));
    drop(second);
    wait_until("its place is free", || visit(balancer.addr).is_ok());

    let mut service = service(&[echo.addr]);
    service.listen = vec![loopback()];
    limit(&mut service, Some(10), Some(1));
    balancer.lb.reconfigure(vec![service]).unwrap();
    wait_until("nothing but the first is open", || balancer.sessions() == 1);
    let before = balancer.lb.snapshot().services[0].refused;
    let third = connect(balancer.addr).unwrap().0;
    refused();
    let snapshot = balancer.lb.snapshot().services.swap_remove(0);
    assert_eq!(
        snapshot.refusals,
        [(Refusal::MaxConnections, before), (Refusal::MaxConnectionsPerClient, 1)],
        "the limit of clients counts from now on"
    );
    ping(&mut first).unwrap();
    drop(third);
}

/// Descriptors that the balancer's process may open.
const DESCRIPTORS: u64 = 256;
/// Clients of another process.
const CLIENTS: usize = 600;

#[test]
fn clients_beyond_the_descriptors_are_reset_and_heartbeats_pass() {
    let echo = Echo::start(1);
    let mut child = spawn_test("exhaustion::child_has_few_descriptors", Some(&echo));
    let mut orders = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut order = |order: &str| -> String {
        writeln!(orders, "{order}").unwrap();
        // The test harness writes to the same lines.
        let answer = |line: String| line.split_once("answer: ").map(|(_, answer)| answer.to_owned());
        answers.by_ref().map(Result::unwrap).find_map(answer).expect("the child answers")
    };
    let addr: SocketAddr = order("address").parse().unwrap();
    let mut all: Vec<TcpStream> =
        (0..CLIENTS).filter_map(|_| unless_reset(TcpStream::connect(addr))).collect();
    all.retain_mut(|client| {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        match client.read(&mut [0]) {
            Ok(1) => true,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            other => panic!("neither served nor reset: {other:?}"),
        }
    });
    let served = all.len();
    assert!(served >= 30, "{served} of {CLIENTS} are served");
    for _ in 0..20 {
        assert_eq!(order("heartbeat"), "ok");
    }
    assert_eq!(order("refused"), format!("{} by descriptors, exhausted false", CLIENTS - served));
    all.iter_mut().for_each(|client| ping(client).unwrap());
    drop(all);
    wait_until("the sessions have ended", || order("sessions") == "0");
    let again: Vec<_> = (0..served).map(|_| connect(addr)).collect();
    assert!(again.iter().all(Result::is_ok), "as many as before are served at once");
    drop(orders);
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "limits its descriptors: run by clients_beyond_the_descriptors_are_reset_and_heartbeats_pass"]
fn child_has_few_descriptors() {
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).unwrap();
    let balancer = Balancer::start(&[parents_backend()], |_, _| {}).checked();
    for order in std::io::stdin().lines() {
        match order.unwrap().as_str() {
            "address" => println!("answer: {}", balancer.addr),
            "heartbeat" => match block_on(balancer.lb.heartbeat(Duration::from_secs(1))) {
                Ok(()) => println!("answer: ok"),
                Err(error) => println!("answer: {error}"),
            },
            "sessions" => println!("answer: {}", balancer.sessions()),
            "refused" => {
                let refusals = balancer.lb.snapshot().services.swap_remove(0).refusals;
                let words: Vec<_> = refusals.iter().map(|(why, count)| format!("{count} by {why}")).collect();
                let exhausted = balancer.has_event(|e| matches!(e, Event::ResourcesExhausted { .. }));
                println!("answer: {}, exhausted {exhausted}", words.join(", "));
            }
            other => panic!("{other}"),
        }
    }
}
