//! The client against a model of the kernel, on a socket that can be tampered with.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::connection::serve;
use super::*;
use crate::InterfaceName;
use crate::model::{AddressFamily, ForwardMethod, SchedulerName, Seconds, Version, Weight};
use crate::reconcile::{Desired, DesiredService, Options, Outcome, Planner, Step, Table};
use crate::testing::socket::{FakeSocket, FarEnd};

struct Ground {
    client: Client,
    far: Arc<Mutex<FarEnd>>,
}

impl Ground {
    fn far(&self) -> MutexGuard<'_, FarEnd> {
        self.far.lock().unwrap()
    }
}

/// A client of a kernel whose family has number 30.
fn ground() -> Ground {
    let (socket, far) = FakeSocket::with_family(Some(30));
    let (handle, connection) = serve(socket);
    tokio::spawn(connection);
    Ground { client: Client::on(handle).with_timeout(Duration::from_secs(1)), far }
}

fn key(number: u8) -> ServiceKey {
    ServiceKey::tcp([10, 0, 0, number].into(), 80)
}

fn service(number: u8) -> Service {
    Service::new(key(number), SchedulerName::RR)
}

fn route(number: u8) -> Destination {
    let key = DestinationKey::new([10, 0, 1, number].into(), 80);
    Destination::new(key, ForwardMethod::DIRECT_ROUTE)
}

#[tokio::test]
async fn every_command_reaches_the_kernel() {
    let Ground { client, .. } = &ground();
    assert_eq!(client.info().await.unwrap().version, Version(0x01_02_01));
    client.add_service(&service(1)).await.unwrap();
    client.add_service(&service(2)).await.unwrap();
    client.set_service(&service(2).persistent(Seconds(5))).await.unwrap();
    client.add_destination(&key(1), &route(1)).await.unwrap();
    client.add_destination(&key(1), &route(2)).await.unwrap();
    client.set_destination(&key(1), &route(2).with_weight(Weight(7))).await.unwrap();
    client.delete_destination(&key(1), &route(1).key).await.unwrap();
    let destinations = client.destinations(&key(1)).await.unwrap();
    assert_eq!(destinations, [DestinationEntry::new(route(2).with_weight(Weight(7)))]);
    assert_eq!(client.destinations(&key(9)).await.unwrap(), []);
    assert!(client.service(&key(2)).await.unwrap().service.is_persistent());
    assert_eq!(client.services().await.unwrap().len(), 2);
    client.zero(None).await.unwrap();
    client.zero(Some(&key(1))).await.unwrap();
    client.delete_service(&key(1)).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(client.services().await.unwrap(), []);

    let change = TimeoutChange { udp: Some(Seconds(30)), ..TimeoutChange::default() };
    client.set_timeouts(&change).await.unwrap();
    assert_eq!(client.timeouts().await.unwrap(), Timeouts { udp: Seconds(30), ..Timeouts::default() });
    let daemon = SyncDaemon::new(SyncState::MASTER, InterfaceName::new("eth0").unwrap(), 7);
    client.start_daemon(&daemon).await.unwrap();
    assert_eq!(client.daemons().await.unwrap(), [daemon]);
    client.stop_daemon(SyncState::MASTER).await.unwrap();
    assert_eq!(client.daemons().await.unwrap(), []);
}

#[tokio::test]
async fn refusals_are_classified() {
    let Ground { client, .. } = &ground();
    let missing = SchedulerName::new("missing").unwrap();
    let unknown = client.add_service(&Service::new(key(1), missing)).await;
    assert_eq!(unknown, Err(ServiceError::UnknownScheduler(missing)));
    assert_eq!(client.service(&key(1)).await, Err(ServiceError::NotFound(key(1))));
    let none = client.add_destination(&key(1), &route(1)).await;
    assert_eq!(none, Err(DestinationError::ServiceNotFound(key(1))));
    client.add_service(&service(1)).await.unwrap();
    assert_eq!(client.add_service(&service(1)).await, Err(ServiceError::AlreadyExists(key(1))));
    assert_eq!(client.set_destination(&key(1), &route(1)).await, Err(DestinationError::NotFound));
    let heavy = client.add_destination(&key(1), &route(1).with_weight(Weight(u32::MAX))).await;
    assert_eq!(heavy, Err(DestinationError::OutOfRange));
    assert_eq!(client.stop_daemon(SyncState::BACKUP).await, Err(DaemonError::NotRunning(SyncState::BACKUP)));
}

#[tokio::test]
async fn refusals_that_concern_every_request_are_told_apart() {
    let ground = ground();
    ground.client.info().await.unwrap();
    ground.far().refuse = Some(97);
    let unsupported = ServiceError::FamilyNotSupported(AddressFamily::V4);
    assert_eq!(ground.client.add_service(&service(1)).await, Err(unsupported));
    ground.far().refuse = Some(12);
    let other = RequestError::Refused(Errno::ENOMEM);
    assert_eq!(ground.client.services().await, Err(other));
    assert_eq!(ground.client.set_service(&service(1)).await, Err(ServiceError::Request(other)));
    ground.far().refuse = Some(1);
    assert_eq!(ground.client.services().await, Err(RequestError::NotPermitted));
    let added = ground.client.add_service(&service(1)).await;
    assert_eq!(added, Err(ServiceError::Request(RequestError::NotPermitted)));
}

#[tokio::test]
async fn the_family_may_come_go_and_come_again() {
    let ground = ground();
    let client = &ground.client;
    ground.far().family = None;
    assert_eq!(client.services().await, Err(RequestError::NoFamily));
    ground.far().family = Some(31);
    client.add_service(&service(1)).await.unwrap();
    ground.far().family = None;
    assert_eq!(client.services().await, Err(RequestError::NoFamily));
    let gone = client.add_service(&service(2)).await;
    assert_eq!(gone, Err(ServiceError::Request(RequestError::NoFamily)));
    ground.far().family = Some(32);
    client.add_service(&service(2)).await.unwrap();
    ground.far().family = Some(33);
    assert_eq!(client.services().await.unwrap().len(), 2);
    ground.far().family = Some(34);
    assert_eq!(client.info().await.unwrap().connection_table_size, 4096);
}

/// Holds with every kernel and for every user.
#[tokio::test]
async fn a_real_kernel_answers() {
    let answer = Client::spawn().unwrap().info().await;
    assert!(matches!(answer, Ok(_) | Err(RequestError::NoFamily | RequestError::NotPermitted)), "{answer:?}");
}

#[tokio::test]
async fn interrupted_dumps_and_lost_answers_are_asked_for_again() {
    let ground = ground();
    let client = &ground.client;
    client.add_service(&service(1)).await.unwrap();
    ground.far().interrupt = 3;
    assert_eq!(client.services().await.unwrap().len(), 1);
    ground.far().interrupt = 100;
    assert_eq!(client.services().await, Err(RequestError::Interrupted));
    ground.far().interrupt = 0;
    ground.far().lose = 3;
    assert_eq!(client.services().await.unwrap().len(), 1);
    ground.far().lose = 1;
    client.set_service(&service(1)).await.unwrap();
    // Adding twice could not tell whose service it is.
    ground.far().lose = 1;
    let added = client.add_service(&service(2)).await;
    assert_eq!(added, Err(ServiceError::Request(RequestError::Overrun)));
    ground.far().lose = 100;
    assert_eq!(client.services().await, Err(RequestError::Overrun));
}

#[tokio::test]
async fn a_daemon_that_is_stopped_without_an_answer_is_stopped() {
    let ground = ground();
    let client = &ground.client;
    ground.far().forgetful = true;
    let daemon = SyncDaemon::new(SyncState::MASTER, InterfaceName::new("eth0").unwrap(), 7);
    client.start_daemon(&daemon).await.unwrap();
    client.stop_daemon(SyncState::MASTER).await.unwrap();
    let none = DaemonError::NotRunning(SyncState::MASTER);
    assert_eq!(client.stop_daemon(SyncState::MASTER).await, Err(none));
    let commands = [
        Request::Flush,
        Request::NewDaemon(daemon),
        Request::DeleteDaemon(SyncState::MASTER),
        Request::Flush,
    ];
    assert_eq!(client.run(&commands).await, [Ok(()); 4]);
}

#[tokio::test]
async fn a_connection_ends_with_its_last_client() {
    let (handle, connection) = serve(FakeSocket::with_family(Some(30)).0);
    let served = tokio::spawn(connection);
    let client = Client::on(handle);
    let another = client.clone();
    client.info().await.unwrap();
    drop(client);
    another.info().await.unwrap();
    drop(another);
    tokio::time::timeout(Duration::from_secs(5), served).await.expect("it ends").unwrap();
}

#[test]
fn client_futures_can_be_spawned() {
    fn spawnable<T: Send>(_: impl FnOnce() -> T) {}
    let (client, planner) = (|| -> &Client { unreachable!() }, || -> &mut Planner { unreachable!() });
    let (desired, owned) = (Desired::default(), BTreeSet::new());
    spawnable(|| client().reconcile(planner(), &desired, Box::leak(Box::new(owned))));
    spawnable(|| client().apply(Box::leak(Box::default()), |_, _| {}));
}

#[tokio::test(start_paused = true)]
async fn missing_answers_and_a_dead_connection_are_errors() {
    let ground = ground();
    let client = &ground.client;
    client.info().await.unwrap();
    ground.far().silent = true;
    assert_eq!(client.services().await, Err(RequestError::TimedOut(Duration::from_secs(1))));
    let under_way = tokio::spawn({
        let client = client.clone();
        async move { client.services().await }
    });
    tokio::task::yield_now().await;
    ground.far().break_down();
    assert_eq!(under_way.await.unwrap(), Err(RequestError::Closed));
    assert_eq!(client.info().await, Err(RequestError::Closed));

    let (handle, connection) = serve(FakeSocket::with_family(None).0);
    drop(connection);
    assert_eq!(Client::on(handle).info().await, Err(RequestError::Closed));
}

#[tokio::test]
async fn unreadable_answers_are_errors_of_their_request() {
    let ground = ground();
    ground.client.add_service(&service(1)).await.unwrap();
    ground.far().garbage = Some(vec![1, 2, 3]);
    let malformed = RequestError::Malformed(DecodeError::Trailing { length: 3 });
    assert_eq!(ground.client.services().await, Err(malformed));
    assert_eq!(ground.client.info().await, Err(malformed));
    ground.far().garbage = None;
    assert_eq!(ground.client.services().await.unwrap().len(), 1);
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let ground = ground();
    ground.client.info().await.unwrap();
    let add = |number: u8, port| {
        Request::NewService(Service::new(ServiceKey::udp([10, 9, 0, number].into(), port), SchedulerName::RR))
    };
    let asked: Vec<_> = (0..200)
        .map(|number| {
            let client = ground.client.clone();
            let commands: Vec<_> = (0..10).map(|port| add(number, port)).collect();
            tokio::spawn(async move { client.run(&commands).await })
        })
        .collect();
    for asked in asked {
        assert!(asked.await.unwrap().iter().all(Result::is_ok));
    }
    assert_eq!(ground.far().kernel.services.len(), 2000);
    assert!(ground.far().most_queued <= 64, "{}", ground.far().most_queued);
}

#[tokio::test]
async fn a_small_receive_buffer_gets_small_batches() {
    let (socket, far) = FakeSocket::with_family(Some(30));
    let (mut handle, connection) = serve(socket);
    tokio::spawn(connection);
    handle.receive_buffer = 8192;
    let client = Client::on(handle);
    client.info().await.unwrap();
    let desired: Desired = (0..9).map(|n| DesiredService::new(service(n)).with(route(1))).collect();
    let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
    let (_, report) = client.reconcile(&mut planner, &desired, &mut owned).await.unwrap();
    assert!(report.is_complete());
    let commands: Vec<_> = (0..9).map(|n| Request::DeleteService(key(n))).collect();
    assert_eq!(client.run(&commands).await, [Ok(()); 9]);
    let far = far.lock().unwrap();
    let sizes = far.datagrams.iter().map(Vec::len);
    assert_eq!(sizes.max(), Some(3));
}

#[tokio::test]
async fn several_commands_share_datagrams_and_keep_their_order() {
    let ground = ground();
    let mut commands: Vec<_> = (0..100).map(|number| Request::NewService(service(number))).collect();
    commands.insert(50, Request::NewService(service(3)));
    let results = ground.client.run(&commands).await;
    for (at, result) in results.iter().enumerate() {
        let expected = CommandError::Service(ServiceError::AlreadyExists(key(3)));
        assert_eq!(*result, if at == 50 { Err(expected) } else { Ok(()) });
    }
    let sizes: Vec<usize> = ground.far().datagrams.iter().map(Vec::len).filter(|&size| size > 0).collect();
    assert_eq!(sizes, [64, 37]);
    ground.far().lose = 1;
    let lost = ground.client.run(&commands).await;
    assert_eq!(lost, vec![Err(CommandError::Request(RequestError::Overrun)); 101]);
}

#[tokio::test]
async fn reconcile_converges_and_then_has_no_steps() {
    let ground = ground();
    let client = &ground.client;
    let destinations = |service| (0..20).fold(service, |service: DesiredService, n| service.with(route(n)));
    let desired: Desired = (0..50).map(|n| destinations(DesiredService::new(service(n)))).collect();
    let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
    let (plan, report) = client.reconcile(&mut planner, &desired, &mut owned).await.unwrap();
    assert!(report.is_complete());
    assert_eq!((plan.steps.len(), owned.len()), (1050, 50));
    assert!(ground.far().datagrams.len() < 25, "{}", ground.far().datagrams.len());
    let before = ground.far().datagrams.len();
    let (plan, report) = client.reconcile(&mut planner, &desired, &mut owned).await.unwrap();
    assert!(plan.is_empty() && report.is_complete());
    let queries = ground.far().datagrams[before..].iter().flatten().all(Request::is_query);
    assert!(queries);
    let (_, report) = client.reconcile(&mut planner, &Desired::default(), &mut owned).await.unwrap();
    assert!(report.is_complete() && owned.is_empty());
    assert!(ground.far().kernel.services.is_empty());
}

#[tokio::test]
async fn no_destination_is_added_to_a_foreign_service() {
    let ground = ground();
    let client = &ground.client;
    let desired: Desired =
        [1, 2].into_iter().map(|n| DesiredService::new(service(n)).with(route(1))).collect();
    let mut owned = BTreeSet::new();
    let table = client.table(&owned).await.unwrap();
    let plan = Planner::new(Options::default()).plan(Instant::now(), &desired, &table, &owned);
    owned.extend(&plan.claims);
    client.add_service(&service(1)).await.unwrap();
    let mut heard = Vec::new();
    let report = client.apply(&plan, |step, outcome| heard.push((step.clone(), *outcome))).await;
    let exists = CommandError::Service(ServiceError::AlreadyExists(key(1)));
    let expected = [Outcome::Failed(exists), Outcome::Done, Outcome::Skipped, Outcome::Done];
    assert_eq!(report.outcomes, expected);
    assert_eq!(heard.len(), 4);
    assert_eq!(report.failures(&plan).count(), 1);
    report.release(&plan, &mut owned);
    assert_eq!(owned, BTreeSet::from([key(2)]));
    assert!(ground.far().kernel.services[&key(1)].destinations.is_empty());

    // The kernel's list may have left out what is ours.
    let mut owned = BTreeSet::from([key(1), key(2)]);
    let plan = Planner::new(Options::default()).plan(Instant::now(), &desired, &Table::default(), &owned);
    assert!(plan.claims.is_empty());
    client.apply(&plan, |_, _| {}).await.release(&plan, &mut owned);
    assert_eq!(owned, BTreeSet::from([key(1), key(2)]));
}

#[tokio::test]
async fn an_absent_entry_counts_as_deleted_and_a_dead_connection_stops() {
    let ground = ground();
    let client = &ground.client;
    let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
    let desired: Desired = (0..3).map(|n| DesiredService::new(service(n)).with(route(1))).collect();
    let (_, report) = client.reconcile(&mut planner, &desired, &mut owned).await.unwrap();
    assert!(report.is_complete());
    let table = client.table(&owned).await.unwrap();
    let plan = planner.plan(Instant::now(), &Desired::default(), &table, &owned);
    client.delete_service(&key(0)).await.unwrap();
    assert!(client.apply(&plan, |_, _| {}).await.is_complete());

    let (_, report) = client.reconcile(&mut planner, &desired, &mut owned).await.unwrap();
    assert!(report.is_complete());
    let plan =
        planner.plan(Instant::now(), &Desired::default(), &client.table(&owned).await.unwrap(), &owned);
    assert!(plan.steps.iter().all(|step| matches!(step, Step::DeleteService(_))));
    ground.far().refuse = Some(1);
    let report = client.apply(&plan, |_, _| {}).await;
    assert_eq!(report.stopped, Some(RequestError::NotPermitted));
    report.release(&plan, &mut owned);
    assert_eq!(owned.len(), 3, "their outcome is unknown");
}
