//! The planner against a model of the kernel's table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::model::*;
use crate::testing::kernel::FakeKernel;

fn observe(kernel: &FakeKernel) -> Table {
    let mut table = Table::default();
    for entry in kernel.services.values() {
        table.insert(entry.service.clone(), entry.destinations.values());
    }
    table
}

fn carry_out(kernel: &mut FakeKernel, plan: &Plan) {
    for step in &plan.steps {
        assert_eq!(kernel.handle(&step.request()), Ok(Vec::new()), "{step}");
    }
}

/// Plans and carries out until nothing is left to do, letting the time for draining pass.
fn reconcile_fully(
    kernel: &mut FakeKernel,
    planner: &mut Planner,
    start: Instant,
    desired: &Desired,
    owned: &mut BTreeSet<ServiceKey>,
) -> usize {
    let mut now = start;
    for round in 0..4 {
        let plan = planner.plan(now, desired, &observe(kernel), owned);
        owned.extend(&plan.claims);
        owned.retain(|key| !plan.gone.contains(key));
        if plan.is_empty() && plan.draining.is_empty() {
            return round;
        }
        carry_out(kernel, &plan);
        now = plan.next_deadline().unwrap_or(now);
    }
    panic!("never settles");
}

fn key(number: u8) -> ServiceKey {
    ServiceKey::tcp([10, 0, 0, number].into(), 80)
}

fn real(number: u8) -> DestinationKey {
    DestinationKey::new([10, 0, 1, number].into(), 80)
}

fn route(number: u8) -> Destination {
    Destination::new(real(number), ForwardMethod::DIRECT_ROUTE)
}

fn service(number: u8) -> DesiredService {
    DesiredService::new(Service::new(key(number), SchedulerName::RR))
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(ToString::to_string).collect()
}

/// A kernel with one service, owned, with two destinations.
fn one_service() -> (FakeKernel, BTreeSet<ServiceKey>) {
    let mut kernel = FakeKernel::default();
    let desired: Desired = [service(1).with(route(1)).with(route(2))].into_iter().collect();
    let mut owned = BTreeSet::new();
    let mut planner = Planner::new(Options::default());
    reconcile_fully(&mut kernel, &mut planner, Instant::now(), &desired, &mut owned);
    (kernel, owned)
}

fn active(kernel: &mut FakeKernel, number: u8, connections: u32) {
    let service = kernel.services.get_mut(&key(1)).unwrap();
    service.destinations.get_mut(&real(number)).unwrap().active_connections = connections;
}

#[test]
fn a_replaced_destination_is_added_quiesced_drained_and_deleted() {
    let (mut kernel, owned) = one_service();
    active(&mut kernel, 1, 3);
    let desired: Desired = [service(1).with(route(2)).with(route(3))].into_iter().collect();
    let start = Instant::now();
    let mut planner = Planner::new(Options::default());

    let plan = planner.plan(start, &desired, &observe(&kernel), &owned);
    let expected = [
        "add destination 10.0.1.3:80 (Route, weight 1) to TCP 10.0.0.1:80",
        "quiesce destination 10.0.1.1:80 of TCP 10.0.0.1:80",
    ];
    assert_eq!(steps(&plan), expected);
    assert_eq!(plan.next_deadline(), Some(start + Duration::from_secs(30)));
    carry_out(&mut kernel, &plan);

    let plan = planner.plan(start + Duration::from_secs(1), &desired, &observe(&kernel), &owned);
    assert_eq!((steps(&plan).len(), plan.draining[0].active_connections), (0, 3));
    assert_eq!(plan.next_deadline(), Some(start + Duration::from_secs(30)), "the deadline stays");

    let mut idle = kernel.clone();
    active(&mut idle, 1, 0);
    let plan = planner.clone().plan(start + Duration::from_secs(2), &desired, &observe(&idle), &owned);
    assert_eq!(steps(&plan), ["delete destination 10.0.1.1:80 of TCP 10.0.0.1:80 (drained)"]);

    let plan = planner.plan(start + Duration::from_secs(30), &desired, &observe(&kernel), &owned);
    let overdue = ["delete destination 10.0.1.1:80 of TCP 10.0.0.1:80 (overdue, 3 active connections)"];
    assert_eq!(steps(&plan), overdue);
    carry_out(&mut kernel, &plan);
    assert!(planner.plan(start, &desired, &observe(&kernel), &owned).is_empty());
}

#[test]
fn a_destination_that_comes_back_while_it_drains_gets_its_weight_back() {
    let (mut kernel, owned) = one_service();
    active(&mut kernel, 1, 1);
    let mut planner = Planner::new(Options::default());
    let without: Desired = [service(1).with(route(2))].into_iter().collect();
    let with: Desired = [service(1).with(route(1)).with(route(2))].into_iter().collect();
    let start = Instant::now();
    let plan = planner.plan(start, &without, &observe(&kernel), &owned);
    carry_out(&mut kernel, &plan);
    let plan = planner.plan(start, &with, &observe(&kernel), &owned);
    assert_eq!(steps(&plan), ["set destination 10.0.1.1:80 (Route, weight 1) of TCP 10.0.0.1:80"]);
    carry_out(&mut kernel, &plan);
    // Its time starts anew when it goes again.
    let later = start + Duration::from_secs(60);
    let plan = planner.plan(later, &without, &observe(&kernel), &owned);
    assert_eq!(plan.next_deadline(), Some(later + Duration::from_secs(30)));
}

#[test]
fn a_dead_destination_is_deleted_at_once() {
    let (mut kernel, owned) = one_service();
    active(&mut kernel, 1, 9);
    let desired: Desired = [service(1).with_dead(real(1)).with(route(2))].into_iter().collect();
    let mut planner = Planner::new(Options::default());
    let plan = planner.plan(Instant::now(), &desired, &observe(&kernel), &owned);
    assert_eq!(steps(&plan), ["delete destination 10.0.1.1:80 of TCP 10.0.0.1:80 (dead)"]);
    carry_out(&mut kernel, &plan);
    assert!(planner.plan(Instant::now(), &desired, &observe(&kernel), &owned).is_empty());
}

#[test]
fn a_service_that_goes_does_so_at_once_or_drained() {
    let (mut kernel, owned) = one_service();
    active(&mut kernel, 2, 1);
    let start = Instant::now();
    let mut planner = Planner::new(Options::default());
    let plan = planner.plan(start, &Desired::default(), &observe(&kernel), &owned);
    assert_eq!(steps(&plan), ["delete service TCP 10.0.0.1:80"]);

    let options = Options { service_removal: ServiceRemoval::Drained, ..Options::default() };
    let mut planner = Planner::new(options);
    let plan = planner.plan(start, &Desired::default(), &observe(&kernel), &owned);
    let quiesced = [
        "quiesce destination 10.0.1.1:80 of TCP 10.0.0.1:80",
        "quiesce destination 10.0.1.2:80 of TCP 10.0.0.1:80",
    ];
    assert_eq!(steps(&plan), quiesced);
    carry_out(&mut kernel, &plan);
    assert!(planner.plan(start, &Desired::default(), &observe(&kernel), &owned).is_empty());
    active(&mut kernel, 2, 0);
    let plan = planner.plan(start, &Desired::default(), &observe(&kernel), &owned);
    assert_eq!(steps(&plan), ["delete service TCP 10.0.0.1:80"]);
    carry_out(&mut kernel, &plan);
    let plan = planner.plan(start, &Desired::default(), &observe(&kernel), &owned);
    assert!(plan.is_empty() && plan.gone == owned);
}

#[test]
fn foreign_entries_are_conflicts() {
    let (kernel, _) = one_service();
    let desired: Desired = [service(1).with(route(9))].into_iter().collect();
    let mut planner = Planner::new(Options::default());
    let plan = planner.plan(Instant::now(), &desired, &observe(&kernel), &BTreeSet::new());
    assert!(plan.is_empty() && plan.claims.is_empty());
    assert_eq!(plan.conflicts, BTreeSet::from([key(1)]));
}

#[test]
fn ineffective_differences_are_not_set() {
    let (kernel, owned) = one_service();
    let mut wanted = Service::new(key(1), SchedulerName::RR)
        .with_netmask(Netmask::v4_prefix(24).unwrap())
        .unwrap()
        .with_flags(ServiceFlags::HASHED);
    wanted.timeout = Seconds(5);
    let tunnel = Tunnel::gue(6080, TunnelFlags::CHECKSUM);
    let plan_for = |service: Service, destination: Destination| {
        let desired = [DesiredService::new(service).with(destination).with(route(2))];
        Planner::new(Options::default()).plan(
            Instant::now(),
            &desired.into_iter().collect(),
            &observe(&kernel),
            &owned,
        )
    };
    assert_eq!(steps(&plan_for(wanted.clone(), route(1).with_tunnel(tunnel))), [""; 0]);
    let persistent = wanted.persistent(Seconds(5));
    let tunnelled = Destination { method: ForwardMethod::TUNNEL, ..route(1).with_tunnel(tunnel) };
    let expected = [
        "set service TCP 10.0.0.1:80 (rr)",
        "set destination 10.0.1.1:80 (Tunnel, weight 1) of TCP 10.0.0.1:80",
    ];
    assert_eq!(steps(&plan_for(persistent, tunnelled)), expected);
}

#[test]
fn services_come_in_groups_with_their_destinations_close_behind() {
    let desired: Desired = (0..100).map(|number| service(number).with(route(1)).with(route(2))).collect();
    let mut planner = Planner::new(Options::default());
    let plan = planner.plan(Instant::now(), &desired, &Table::default(), &BTreeSet::new());
    assert_eq!((plan.steps.len(), plan.claims.len()), (300, 100));
    let added = |step: &Step| matches!(step, Step::AddService(_));
    let furthest = plan.steps.iter().enumerate().filter(|(_, step)| added(step)).map(|(at, step)| {
        let mine = |other: &Step| !added(other) && other.service() == step.service();
        plan.steps.iter().skip(at).position(mine).unwrap()
    });
    assert!(furthest.max().unwrap() < 100);
}

/// Services by number: whether they are persistent, their timeout, and their destinations by number: weight, method,
/// whether they are dead.
type World = BTreeMap<u8, (bool, u32, BTreeMap<u8, (u32, u32, bool)>)>;

/// A small world, so that what is desired and what is there often meet.
fn worlds() -> impl Strategy<Value = World> {
    let destination = (0_u32..3, 0_u32..4, any::<bool>());
    let destinations = prop::collection::btree_map(0_u8..6, destination, 0..6);
    prop::collection::btree_map(0_u8..6, (any::<bool>(), 0_u32..3, destinations), 0..6)
}

fn desired_of(world: &World) -> Desired {
    let services = world.iter().map(|(number, (persistent, timeout, destinations))| {
        let mut wanted = Service::new(key(*number), SchedulerName::WLC);
        wanted.timeout = Seconds(*timeout);
        if *persistent {
            wanted = wanted.persistent(Seconds(*timeout));
        }
        destinations.iter().fold(DesiredService::new(wanted), |service, (number, (weight, method, dead))| {
            let destination = Destination::new(real(*number), ForwardMethod(*method + 8));
            if *dead {
                service.with_dead(destination.key)
            } else {
                service.with(destination.with_weight(Weight(*weight)).with_thresholds(0, *weight))
            }
        })
    });
    services.collect()
}

fn phase(step: &Step) -> u8 {
    match step {
        Step::AddService(_) | Step::AddDestination(..) => 0,
        Step::SetService(_) | Step::SetDestination(..) => 1,
        Step::Quiesce(..) => 2,
        Step::DeleteDestination(..) | Step::DeleteService(_) => 3,
    }
}

proptest! {
    #[test]
    fn plans_reach_the_desired_table(
        was in worlds(),
        is in worlds(),
        foreign in worlds(),
        drained in any::<bool>(),
        connections in 0_u32..2,
    ) {
        let start = Instant::now();
        let service_removal = if drained { ServiceRemoval::Drained } else { ServiceRemoval::AtOnce };
        let mut planner = Planner::new(Options { service_removal, ..Options::default() });
        let mut kernel = FakeKernel::default();

        // Foreign entries, some of them where our services should be.
        let mut others = BTreeSet::new();
        reconcile_fully(&mut kernel, &mut Planner::new(Options::default()), start, &desired_of(&foreign), &mut others);
        let before: BTreeMap<_, _> = observe(&kernel).services().map(|s| (s.service.key(), s.clone())).collect();

        let mut owned = BTreeSet::new();
        reconcile_fully(&mut kernel, &mut planner, start, &desired_of(&was), &mut owned);
        for service in kernel.services.values_mut() {
            for destination in service.destinations.values_mut() {
                destination.active_connections = connections;
            }
        }
        let desired = desired_of(&is);
        let first = planner.clone().plan(start, &desired, &observe(&kernel), &owned);
        prop_assert!(first.steps.is_sorted_by_key(phase), "{:?}", steps(&first));
        let rounds = reconcile_fully(&mut kernel, &mut planner, start, &desired, &mut owned);
        prop_assert!(rounds <= 3);

        let table = observe(&kernel);
        for service in desired.services().filter(|service| !others.contains(&service.service.key())) {
            let there = table.service(&service.service.key()).expect("it is there");
            prop_assert!(table::service_is_as(&service.service, &there.service));
            prop_assert!(service.destinations().map(|d| d.key).eq(there.destinations().map(|d| d.key)));
            let mut pairs = service.destinations().zip(there.destinations());
            prop_assert!(pairs.all(|(wanted, there)| table::destination_is_as(wanted, there)));
        }
        let expected: BTreeSet<_> = desired.services().map(|service| service.service.key()).collect();
        prop_assert_eq!(&owned, &expected.difference(&others).copied().collect());
        prop_assert_eq!(table.services().count(), expected.union(&others).count());
        for (key, service) in &before {
            prop_assert_eq!(&table.service(key).unwrap().service, &service.service);
            prop_assert!(table.service(key).unwrap().destinations().eq(service.destinations()));
        }
        let last = planner.plan(start, &desired, &table, &owned);
        prop_assert!(last.is_empty() && last.draining.is_empty());
    }
}
