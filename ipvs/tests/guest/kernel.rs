//! Settings, refusals and permissions of the kernel.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use ipvs::reconcile::{Desired, DesiredService, Options, Planner};
use ipvs::wire::Request;
use ipvs::{
    Client, DaemonError, DestinationError, EngineName, ForwardMethod, InterfaceName, Netmask, RequestError,
    SchedulerName, Seconds, Service, ServiceError, ServiceFlags, SyncDaemon, SyncState, Tunnel, TunnelFlags,
    Weight,
};
use testbed::Tool;
use testbed::guest::{load_module, unload_module};

use crate::fixture::{block_on, destination, tcp, with_client};
use crate::tables;

/// A second reconciliation makes no changes, whatever the desired state.
pub(crate) fn settings() {
    with_client(async |client| {
        let mut odd = Service::new(tcp("10.0.0.100", 1), SchedulerName::RR);
        odd.timeout = Seconds(77);
        let odd = odd.with_netmask(Netmask::V4([255, 0, 255, 0].into())).expect("IPv4");
        let idle = Service::new(tcp("10.0.0.100", 2), SchedulerName::NONE);
        let long = Service::new(tcp("10.0.0.100", 3), SchedulerName::SH).persistent(Seconds(31 * 86_400));
        let mut masked =
            Service::new(tcp("10.0.0.100", 4), SchedulerName::SH).with_flags(ServiceFlags::SH_PORT);
        masked.flags_mask = ServiceFlags::SH_PORT;
        let destinations = [
            destination("10.0.0.11", 7777, ForwardMethod::DIRECT_ROUTE),
            destination("10.0.0.12", 0, ForwardMethod::TUNNEL).with_weight(Weight(i32::MAX as u32)),
            destination("10.0.0.13", 1, ForwardMethod::BYPASS)
                .with_thresholds(i32::MAX as u32, i32::MAX as u32),
            destination("10.0.0.14", 1, ForwardMethod::DIRECT_ROUTE).with_thresholds(0, 9),
            destination("10.0.0.15", 1, ForwardMethod::MASQUERADE)
                .with_tunnel(Tunnel::gue(1, TunnelFlags::CHECKSUM)),
            destination("127.0.0.1", 1, ForwardMethod::MASQUERADE),
            destination("10.0.0.1", 1, ForwardMethod::DIRECT_ROUTE),
            destination("10.0.0.16", 1, ForwardMethod::LOCAL),
        ];
        let with_all = |service| destinations.iter().fold(service, |s: DesiredService, d| s.with(*d));
        let mut desired: Desired = tables::table()
            .into_iter()
            .map(|(service, destinations)| {
                destinations.into_iter().fold(DesiredService::new(service), DesiredService::with)
            })
            .collect();
        desired.insert(with_all(DesiredService::new(odd)));
        desired.extend([idle, long, masked].map(DesiredService::new));
        reconcile(client, &desired).await;
        // The kernel keeps each of these values.
        let kept = client.destinations(&tcp("10.0.0.100", 1)).await.expect("a list");
        let kept: BTreeSet<_> = kept.iter().map(|entry| format!("{:?}", entry.destination)).collect();
        assert_eq!(kept, destinations.iter().map(|destination| format!("{destination:?}")).collect());
        let odd = client.service(&tcp("10.0.0.100", 1)).await.expect("it is there").service;
        assert_eq!((odd.timeout, odd.netmask().to_string().as_str()), (Seconds(77), "255.0.255.0"));
        assert_eq!((odd.flags, odd.flags_mask), (ServiceFlags::HASHED, ServiceFlags::ALL));
    });
}

/// Reconciles, and checks that a second reconciliation makes no changes.
async fn reconcile(client: &Client, desired: &Desired) {
    let (mut planner, mut owned) = (Planner::new(Options::default()), BTreeSet::new());
    let (plan, report) = client.reconcile(&mut planner, desired, &mut owned).await.expect("a table");
    let failures: Vec<_> = report.failures(&plan).map(|(step, error)| format!("{step}: {error}")).collect();
    assert!(report.is_complete(), "{failures:?}");
    let (plan, _) = client.reconcile(&mut planner, desired, &mut owned).await.expect("a table");
    assert!(plan.is_empty(), "{:?}", plan.steps);

    // A foreign change is put back, with no more than that.
    let key = tcp("10.0.0.100", 1);
    let mut changed = client.service(&key).await.expect("it is there").service;
    changed.scheduler = SchedulerName::LC;
    client.set_service(&changed).await.expect("it changes");
    let route = destination("10.0.0.11", 7777, ForwardMethod::DIRECT_ROUTE).with_weight(Weight(9));
    client.set_destination(&key, &route).await.expect("it changes");
    let (plan, report) = client.reconcile(&mut planner, desired, &mut owned).await.expect("a table");
    let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    let expected = [
        "set service TCP 10.0.0.100:1 (rr)",
        "set destination 10.0.0.11:7777 (Route, weight 1) of TCP 10.0.0.100:1",
    ];
    assert_eq!(steps, expected);
    assert!(report.is_complete());
}

pub(crate) fn refusals() {
    with_client(async |client| {
        let key = tcp("10.0.0.100", 80);
        let service = Service::new(key, SchedulerName::RR);
        let missing = SchedulerName::new("none-such").expect("a name");
        let unknown = ServiceError::UnknownScheduler(missing);
        assert_eq!(client.add_service(&Service::new(key, missing)).await, Err(unknown));
        let engine = EngineName::new("none-such").expect("a name");
        let unknown = ServiceError::UnknownSchedulerOrEngine { scheduler: SchedulerName::RR, engine };
        assert_eq!(client.add_service(&service.clone().with_engine(engine)).await, Err(unknown));
        let nothing = Service::new(tcp("fd00::100", 80), SchedulerName::RR);
        let nothing = nothing.persistent(Seconds(1)).with_netmask(Netmask::V6(0)).expect("IPv6");
        assert_eq!(client.add_service(&nothing).await, Err(ServiceError::Invalid(nothing.key())));

        let missing = ServiceError::NotFound(key);
        let route = destination("10.0.0.11", 80, ForwardMethod::DIRECT_ROUTE);
        assert_eq!(client.service(&key).await, Err(missing));
        assert_eq!(client.set_service(&service).await, Err(missing));
        assert_eq!(client.delete_service(&key).await, Err(missing));
        assert_eq!(client.zero(Some(&key)).await, Err(missing));
        let nowhere = DestinationError::ServiceNotFound(key);
        assert_eq!(client.add_destination(&key, &route).await, Err(nowhere));
        assert_eq!(client.delete_destination(&key, &route.key).await, Err(nowhere));
        assert_eq!(client.destinations(&key).await, Ok(Vec::new()));

        client.add_service(&service).await.expect("it is added");
        assert_eq!(client.add_service(&service).await, Err(ServiceError::AlreadyExists(key)));
        let dumps = [Request::DumpServices, Request::DumpDestinations(key), Request::DumpDaemons];
        let refused = client.run(&dumps).await;
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        assert_eq!(client.set_destination(&key, &route).await, Err(DestinationError::NotFound));
        assert_eq!(client.delete_destination(&key, &route.key).await, Err(DestinationError::NotFound));
        client.add_destination(&key, &route).await.expect("it is added");
        assert_eq!(client.add_destination(&key, &route).await, Err(DestinationError::AlreadyExists));
        for (refused, error) in [
            (route.with_weight(Weight(1 << 31)), DestinationError::OutOfRange),
            (route.with_thresholds(2, 1), DestinationError::OutOfRange),
            (route.with_thresholds(0, 1 << 31), DestinationError::Invalid),
            (destination("224.0.0.1", 80, ForwardMethod::DIRECT_ROUTE), DestinationError::Invalid),
            (destination("fd00::11", 80, ForwardMethod::DIRECT_ROUTE), DestinationError::Invalid),
            (
                destination("10.0.0.12", 80, ForwardMethod::TUNNEL)
                    .with_tunnel(Tunnel::gue(0, TunnelFlags::NO_CHECKSUM)),
                DestinationError::Invalid,
            ),
        ] {
            let mut refused = refused;
            refused.key.port += 1;
            assert_eq!(client.add_destination(&key, &refused).await, Err(error), "{refused:?}");
        }
        daemons(client).await;
    });
}

async fn daemons(client: &Client) {
    let daemon = |state, interface| SyncDaemon::new(state, InterfaceName::new(interface).expect("a name"), 1);
    let master = daemon(SyncState::MASTER, "dummy0");
    let none = DaemonError::NotRunning(SyncState::MASTER);
    assert_eq!(client.stop_daemon(SyncState::MASTER).await, Err(none));
    let nowhere = daemon(SyncState::MASTER, "nowhere");
    assert_eq!(client.start_daemon(&nowhere).await, Err(DaemonError::NoInterface));
    client.start_daemon(&master).await.expect("it starts");
    let running = DaemonError::AlreadyRunning(SyncState::MASTER);
    assert_eq!(client.start_daemon(&master).await, Err(running));

    // The kernel may not answer a request to stop a daemon that has just started.
    for _ in 0..20 {
        client.stop_daemon(SyncState::MASTER).await.expect("it stops");
        assert_eq!(client.stop_daemon(SyncState::MASTER).await, Err(none));
        client.start_daemon(&master).await.expect("it starts");
    }

    // Daemons and destinations of another family exclude each other.
    let key = tcp("10.0.0.100", 80);
    let mixed = destination("fd00::11", 80, ForwardMethod::TUNNEL);
    assert_eq!(client.add_destination(&key, &mixed).await, Err(DestinationError::Invalid));
    client.stop_daemon(SyncState::MASTER).await.expect("it stops");
    client.add_destination(&key, &mixed).await.expect("it is added");
    assert_eq!(client.start_daemon(&master).await, Err(DaemonError::Invalid));
}

pub(crate) fn module() {
    with_client(async |client| {
        client.info().await.expect("the module is there");
        let modules = std::fs::read_to_string("/proc/modules").expect("a list");
        let names = modules.lines().filter_map(|line| line.split(' ').next());
        let schedulers: Vec<&str> = names.filter(|name| name.starts_with("ip_vs_")).collect();
        assert!(schedulers.contains(&"ip_vs_rr"), "{modules}");
        for name in &schedulers {
            unload_module(name).unwrap_or_else(|error| panic!("{error}"));
        }
        unload_module("ip_vs").expect("nothing uses it");
        let service = Service::new(tcp("10.0.0.100", 80), SchedulerName::RR);
        assert_eq!(client.services().await, Err(RequestError::NoFamily));
        assert_eq!(client.info().await, Err(RequestError::NoFamily));
        let absent = ServiceError::Request(RequestError::NoFamily);
        assert_eq!(client.add_service(&service).await, Err(absent));
        load_module("ip_vs").expect("it is there");
        let unknown = ServiceError::UnknownScheduler(SchedulerName::RR);
        assert_eq!(client.add_service(&service).await, Err(unknown));
        for name in schedulers {
            load_module(name).unwrap_or_else(|error| panic!("{error}"));
        }
        let results = client.run(&[Request::NewService(service)]).await;
        assert_eq!(results, [Ok(())]);
        assert_eq!(client.services().await.map(|services| services.len()), Ok(1));
    });
}

pub(crate) fn namespaces() {
    with_client(async |client| {
        let service = Service::new(tcp("10.0.0.100", 80), SchedulerName::RR);
        client.add_service(&service).await.expect("it is added");
        let elsewhere = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace");
            block_on(async { Client::spawn().expect("a client").services().await })
        });
        assert_eq!(elsewhere.join().expect("no panic"), Ok(Vec::new()));
    });
}

/// The argument with which the test binary does only [`unprivileged`].
pub(crate) const UNPRIVILEGED: &str = "unprivileged";

pub(crate) fn privilege() {
    let program = std::env::current_exe().expect("this program");
    let status = Command::new(Tool::Setpriv.path().expect("it is installed"))
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args([program.as_os_str(), UNPRIVILEGED.as_ref()])
        .status()
        .expect("it runs");
    assert!(status.success());
}

/// The answers to an ordinary user, also as root of a user namespace.
pub(crate) fn unprivileged() -> ExitCode {
    let not_permitted = || {
        block_on(async {
            let client = Client::spawn().expect("a client");
            assert_eq!(client.services().await, Err(RequestError::NotPermitted));
            assert_eq!(client.flush().await, Err(RequestError::NotPermitted));
        });
    };
    not_permitted();
    let own = nix::sched::CloneFlags::CLONE_NEWUSER | nix::sched::CloneFlags::CLONE_NEWNET;
    nix::sched::unshare(own).expect("namespaces of one's own");
    not_permitted();
    ExitCode::SUCCESS
}
