//! The orders of [`Controller`], in any sequence of facts and however late the table and the reconciler are.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use cplb_config::Config;
use ipvs::ServiceKey;
use lb_proxy::BackendState;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::plan::{Member, directed};
use super::super::prober::{ProbeResult, ProbeTarget};
use super::*;

const ID: InstanceId = InstanceId(51);
/// This node and two others.
const HOSTS: [u8; 3] = [11, 12, 13];

fn config(kind: &str, vips: &[&str]) -> Config {
    let servers: String =
        vips.iter().map(|vip| format!("  - {{ipAddress: {vip}, lbKind: {kind}}}\n")).collect();
    let servers = if vips.is_empty() { String::new() } else { format!("  virtualServers:\n{servers}") };
    let text = format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  \
         vrrpInstances: [{{virtualRouterID: 51, virtualIPs: [10.0.0.100/24, 10.0.0.101/24]}}]\n  \
         backends: {{static: [10.0.0.11, 10.0.0.12, 10.0.0.13]}}\n{servers}"
    );
    cplb_config::load(&text, "f.yaml").unwrap_or_else(|errors| panic!("{}", errors.report().plain())).config
}

fn plan(kind: &str, vips: &[&str], sync: bool) -> IpvsPlan {
    IpvsPlan { virtual_servers: directed(&config(kind, vips)), sync }
}

fn interfaces() -> BTreeMap<InstanceId, Option<String>> {
    BTreeMap::from([(ID, Some("eth0".to_owned()))])
}

fn members(states: [BackendState; 3]) -> Members {
    let member = |(host, state): (u8, BackendState)| Member {
        addr: SocketAddr::from(([10, 0, 0, host], 6443)),
        weight: 1,
        state,
        spares_sessions: state != BackendState::Down,
    };
    let all = HOSTS.into_iter().zip(states).map(member).collect();
    Members::from([("kube-apiserver".to_owned(), all)])
}

/// Every server answers probes with these results; this node is the first.
fn report(plan: &IpvsPlan, results: [Option<ProbeResult>; 3]) -> ProbeReport {
    let mut report = ProbeReport::default();
    for it in &plan.virtual_servers {
        for (host, result) in HOSTS.into_iter().zip(results) {
            let target = ProbeTarget {
                vip: SocketAddr::new(it.vip, it.port.get()),
                server: [10, 0, 0, host].into(),
                tunnel: it.kind == LbKind::Tunnel,
            };
            report.results.extend(result.map(|result| (target, result)));
        }
    }
    report.local = [([10, 0, 0, 11].into(), BTreeSet::from(["eth0".to_owned()]))].into();
    report
}

/// The kernel beside a controller: the table and IPVS follow later, one change at a time.
struct World {
    now: Instant,
    controller: Controller,
    /// Whether the addresses are on this node.
    held: bool,
    /// Rules that are on their way into the table.
    pending: Option<Vec<Director>>,
    table: Vec<Director>,
    services: BTreeSet<ServiceKey>,
    last: Output,
}

impl World {
    fn new(plan: &IpvsPlan) -> Self {
        let controller = Controller::new(plan.clone(), interfaces());
        let table = controller.rules().to_vec();
        let (now, services) = (Instant::now(), BTreeSet::new());
        Self { now, controller, held: false, pending: None, table, services, last: Output::default() }
    }

    fn tell(&mut self, input: Input) {
        match &input {
            Input::Held(_) => self.held = true,
            Input::Lost(_) => self.held = false,
            _ => {}
        }
        let output = self.controller.handle(input, self.now);
        if let Some(rules) = &output.rules {
            self.pending = Some(rules.clone());
        }
        if let Some(wanted) = &output.wanted {
            self.services = wanted.services.services().map(|it| it.service.key()).collect();
        }
        self.last = output;
    }

    /// The table takes the rules that are pending.
    fn apply_table(&mut self) {
        if let Some(rules) = self.pending.take() {
            self.table.clone_from(&rules);
            self.tell(Input::RulesApplied(rules));
        }
    }

    /// The reconciler has made what was wanted last.
    fn observe(&mut self) {
        let news = News { unavailable: None, faults: Vec::new(), ready: self.services.clone() };
        self.tell(Input::Observed(news));
    }

    /// Lets everything come to rest.
    fn rest(&mut self) {
        for _ in 0..4 {
            self.observe();
            self.apply_table();
        }
    }

    fn rule(&self, vip: [u8; 4]) -> Option<&Director> {
        self.table.iter().find(|rule| rule.vip == IpAddr::from(vip))
    }
}

const UP: [BackendState; 3] = [BackendState::Up; 3];
const ACCEPTS: [Option<ProbeResult>; 3] = [Some(ProbeResult::Accepts); 3];

/// A world in which the addresses are held and IPVS directs them.
fn directing(plan: &IpvsPlan) -> World {
    let mut world = World::new(plan);
    world.tell(Input::Members(members(UP)));
    world.tell(Input::InitialSync);
    world.tell(Input::Probed(report(plan, ACCEPTS)));
    world.rest();
    world.tell(Input::Held(ID));
    world.rest();
    world
}

#[test]
fn nothing_is_changed_before_the_first_sync_of_the_keeper() {
    let plan = plan("DR", &["10.0.0.100"], true);
    let mut world = World::new(&plan);
    for input in [Input::Members(members(UP)), Input::Held(ID), Input::Probed(report(&plan, ACCEPTS))] {
        world.tell(input);
        assert_eq!((&world.last.rules, &world.last.wanted), (&None, &None));
    }
    assert_eq!(world.last.probe.targets.len(), 3, "servers are probed from the start");
    world.tell(Input::InitialSync);
    assert!(world.last.wanted.is_some());
}

#[test]
fn a_held_address_that_is_translated_gets_its_rule_when_ipvs_has_its_servers() {
    let plan = plan("NAT", &["10.0.0.100"], true);
    let mut world = World::new(&plan);
    world.tell(Input::Members(members(UP)));
    world.tell(Input::InitialSync);
    world.tell(Input::Observed(News {
        unavailable: Some("no module".into()),
        faults: Vec::new(),
        ready: BTreeSet::new(),
    }));
    world.tell(Input::Held(ID));
    world.apply_table();
    assert_eq!(world.rule([10, 0, 0, 100]), None, "without IPVS the proxy serves");
    world.rest();
    assert!(world.rule([10, 0, 0, 100]).is_some());
    assert_eq!(world.services.len(), 1);
}

#[test]
fn a_service_stays_until_the_table_has_dropped_its_rule() {
    let both = plan("NAT", &["10.0.0.100", "10.0.0.101"], true);
    let mut world = directing(&both);
    assert_eq!((world.services.len(), world.table.len()), (2, 2));
    let one = plan("NAT", &["10.0.0.100"], true);
    world.tell(Input::Configured(one, Some(interfaces())));
    assert_eq!(world.last.wanted, None, "the table still has the rule");
    world.tell(Input::Tick);
    assert_eq!(world.services.len(), 2);
    world.apply_table();
    assert_eq!((world.services.len(), world.table.len()), (1, 1));
}

#[test]
fn a_departing_node_refuses_probes_before_it_stops_being_a_server() {
    let plan = plan("DR", &["10.0.0.100"], true);
    let mut world = directing(&plan);
    assert!(!world.rule([10, 0, 0, 100]).unwrap().departing);
    world.tell(Input::Depart);
    let until = world.controller.departure().unwrap();
    assert_eq!(until, world.now + DEPARTURE);
    world.rest();
    assert!(world.table.iter().all(|rule| rule.departing));
    assert!(matches!(world.last.wanted.as_ref().unwrap().node, NodeWish::Server(_)));
    world.now += DEPARTURE / 2;
    world.tell(Input::Depart);
    assert_eq!(world.controller.departure(), Some(until), "it departs once");
}

#[test]
fn a_node_that_no_director_uses_departs_at_once() {
    for plan in [plan("NAT", &["10.0.0.100"], true), plan("DR", &[], true)] {
        let mut world = directing(&plan);
        world.tell(Input::Depart);
        assert_eq!(world.controller.departure(), Some(world.now));
    }
}

#[test]
fn a_dropped_virtual_server_is_accepted_and_refuses_probes_until_directors_know() {
    let mut world = directing(&plan("DR", &["10.0.0.100", "10.0.0.101"], true));
    world.tell(Input::Lost(ID));
    world.tell(Input::Configured(plan("DR", &["10.0.0.100"], true), Some(interfaces())));
    world.rest();
    let vips = |world: &World| match &world.last.wanted.as_ref().unwrap().node {
        NodeWish::Server(config) => config.vips.len(),
        _ => 0,
    };
    assert_eq!(vips(&world), 2);
    assert!(world.rule([10, 0, 0, 101]).unwrap().departing);
    assert!(!world.rule([10, 0, 0, 100]).unwrap().departing);
    world.now += DEPARTURE;
    world.tell(Input::Tick);
    world.rest();
    assert_eq!((vips(&world), world.rule([10, 0, 0, 101])), (1, None));
}

#[test]
fn a_planned_release_takes_services_away_unless_the_next_director_goes_on_with_them() {
    for (sessions, left) in [(Sessions::End, 0), (Sessions::Continue, 1)] {
        let mut world = directing(&plan("DR", &["10.0.0.100"], false));
        world.tell(Input::PlannedRelease(ID, sessions));
        assert_eq!(world.services.len(), left, "{sessions:?}");
        world.tell(Input::Held(ID));
        assert_eq!(world.services.len(), 1, "it is claimed again");
    }
}

#[test]
fn a_service_stays_when_all_its_servers_are_replaced_by_others_that_were_not_probed() {
    let plan = plan("DR", &["10.0.0.100"], true);
    let mut world = World::new(&plan);
    world.tell(Input::Members(members(UP)));
    world.tell(Input::InitialSync);
    world.tell(Input::Held(ID));
    world.rest();
    assert!(world.services.is_empty(), "at first connections are left to the server on this node");
    world.tell(Input::Probed(report(&plan, ACCEPTS)));
    assert_eq!(world.services.len(), 1);
    world.tell(Input::Probed(report(&plan, [None; 3])));
    assert_eq!(world.services.len(), 1);
}

#[test]
fn a_release_that_is_reported_after_the_addresses_have_gone_takes_nothing_away_from_the_next_claim() {
    let mut world = directing(&plan("DR", &["10.0.0.100"], false));
    world.tell(Input::Lost(ID));
    world.tell(Input::PlannedRelease(ID, Sessions::End));
    assert!(world.services.is_empty());
    world.tell(Input::Held(ID));
    assert_eq!(world.services.len(), 1);
}

#[test]
fn an_interface_that_changes_is_read_by_the_reconciler_at_once() {
    let mut world = directing(&plan("DR", &["10.0.0.100"], true));
    assert!(!world.last.resync);
    world.tell(Input::Interface(ID, Some("eth1".to_owned())));
    assert!(world.last.resync);
    world.rest();
    assert!(world.rule([10, 0, 0, 100]).unwrap().from.contains("eth1"));
    world.tell(Input::Interface(ID, None));
    world.rest();
    assert!(
        world.rule([10, 0, 0, 100]).unwrap().from.contains("eth0"),
        "the one that the configuration names"
    );
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    Configured(usize),
    Members([BackendState; 3]),
    Held,
    Lost,
    Release(Sessions),
    Probed([Option<ProbeResult>; 3]),
    Unavailable,
    Observe,
    ApplyTable,
    Wait(u64),
    Depart,
}

fn step() -> impl Strategy<Value = Step> {
    let state =
        prop_oneof![Just(BackendState::Up), Just(BackendState::Down), Just(BackendState::Terminating)];
    let result = prop_oneof![
        Just(None),
        Just(Some(ProbeResult::Accepts)),
        Just(Some(ProbeResult::Refuses)),
        Just(Some(ProbeResult::Silent)),
    ];
    prop_oneof![
        2 => (0..4_usize).prop_map(Step::Configured),
        2 => [state.clone(), state.clone(), state].prop_map(Step::Members),
        3 => Just(Step::Held),
        2 => Just(Step::Lost),
        1 => prop_oneof![Just(Sessions::End), Just(Sessions::Continue)].prop_map(Step::Release),
        2 => [result.clone(), result.clone(), result].prop_map(Step::Probed),
        1 => Just(Step::Unavailable),
        4 => Just(Step::Observe),
        4 => Just(Step::ApplyTable),
        2 => (1..3_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Depart),
    ]
}

fn take(world: &mut World, plans: &[IpvsPlan], step: &Step) {
    match *step {
        Step::Configured(index) => {
            let plan = plans[index % plans.len()].clone();
            world.tell(Input::Configured(plan, Some(interfaces())));
        }
        Step::Members(states) => world.tell(Input::Members(members(states))),
        Step::Held => world.tell(Input::Held(ID)),
        Step::Lost => world.tell(Input::Lost(ID)),
        Step::Release(sessions) => world.tell(Input::PlannedRelease(ID, sessions)),
        Step::Probed(results) => {
            let report = report(&world.controller.plan, results);
            world.tell(Input::Probed(report));
        }
        Step::Unavailable => {
            let unavailable = Some("no module".to_owned());
            world.tell(Input::Observed(News { unavailable, faults: Vec::new(), ready: BTreeSet::new() }));
        }
        Step::Observe => world.observe(),
        Step::ApplyTable => world.apply_table(),
        Step::Wait(millis) => {
            world.now += Duration::from_millis(millis);
            world.tell(Input::Tick);
        }
        Step::Depart => world.tell(Input::Depart),
    }
}

/// The orders that hold after each step. `former` is the state before it.
fn check(world: &World, former: &Former) -> Result<(), TestCaseError> {
    // Rules before services: IPVS is changed only while the table has no rule that is on its way out of it.
    if world.last.wanted.is_some() {
        for rule in &world.table {
            let stays = has_rule(world.controller.rules(), rule.vip, rule.port);
            prop_assert!(stays, "IPVS changes while the table still has the rule of {}", rule.vip);
        }
    }
    // A service that goes has no rule in the table, unless its address is not held or given up.
    for it in &former.virtual_servers {
        let went = former.services.contains(&it.key()) && !world.services.contains(&it.key());
        if went && has_rule(&world.table, it.vip, it.port) {
            let still = world.controller.plan.virtual_servers.iter().find(|now| now.key() == it.key());
            let is_held = still.is_some_and(|now| world.controller.holds(now));
            prop_assert!(!is_held, "the service of {} went before its rule", it.vip);
        }
    }
    // A rule for a held address comes only once IPVS has its servers.
    for it in world.controller.plan.virtual_servers.iter().filter(|it| world.controller.holds(it)) {
        let came =
            has_rule(world.controller.rules(), it.vip, it.port) && !has_rule(&former.rules, it.vip, it.port);
        prop_assert!(!came || world.controller.has_servers(it), "the rule of {} came early", it.vip);
    }
    // Departure before release: a node that departs refuses probes, and stays a server until directors know.
    if world.controller.departure().is_some() {
        prop_assert!(world.controller.rules().iter().all(|rule| rule.departing));
    }
    let known = world.controller.departing().chain(&world.controller.plan.virtual_servers);
    let accepted: BTreeSet<IpAddr> = known.filter(|it| it.instance.is_some()).map(|it| it.vip).collect();
    if let Some(Wanted { node, .. }) = &world.last.wanted {
        match node {
            NodeWish::Server(config) => prop_assert_eq!(&accepted, &config.vips.iter().copied().collect()),
            NodeWish::AsItIs => {}
            NodeWish::Nothing => prop_assert!(accepted.is_empty()),
        }
    }
    Ok(())
}

/// What [`check`] compares with.
struct Former {
    virtual_servers: Vec<Directed>,
    services: BTreeSet<ServiceKey>,
    rules: Vec<Director>,
}

impl Former {
    fn of(world: &World) -> Self {
        Self {
            virtual_servers: world.controller.plan.virtual_servers.clone(),
            services: world.services.clone(),
            rules: world.controller.rules().to_vec(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn rules_go_before_services_and_a_node_departs_before_it_is_released(
        kind in prop_oneof![Just("DR"), Just("NAT"), Just("TUN")],
        sync in any::<bool>(),
        steps in vec(step(), 1..60),
    ) {
        let vips: [&[&str]; 4] = [&["10.0.0.100"], &["10.0.0.100", "10.0.0.101"], &["10.0.0.101"], &[]];
        let plans = vips.map(|vips| plan(kind, vips, sync));
        let mut world = directing(&plans[1]);
        for step in steps {
            let former = Former::of(&world);
            take(&mut world, &plans, &step);
            check(&world, &former).map_err(|error| TestCaseError::fail(format!("{step:?}: {error}")))?;
        }
    }

    #[test]
    fn a_directing_node_at_rest_has_a_service_for_each_rule_of_a_held_address(
        kind in prop_oneof![Just("DR"), Just("NAT"), Just("TUN")],
        steps in vec(step(), 1..40),
    ) {
        let plans = [plan(kind, &["10.0.0.100"], true), plan(kind, &["10.0.0.100", "10.0.0.101"], true)];
        let mut world = directing(&plans[1]);
        for step in steps {
            take(&mut world, &plans, &step);
        }
        let plan = world.controller.plan.clone();
        world.tell(Input::Probed(report(&plan, ACCEPTS)));
        world.tell(Input::Held(ID));
        world.rest();
        for it in &plan.virtual_servers {
            prop_assert!(world.services.contains(&it.key()), "no service for {}", it.vip);
            prop_assert!(has_rule(&world.table, it.vip, it.port), "no rule for {}", it.vip);
        }
    }
}
