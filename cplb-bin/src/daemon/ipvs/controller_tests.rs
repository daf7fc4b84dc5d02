//! The orders of [`Controller`], in any sequence of inputs with any delay of the table and the reconciler.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use cplb_config::Config;
use ipvs::ServiceKey;
use lb_proxy::BackendState;
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::plan::Member;
use super::super::prober::ProbeResult;
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
    IpvsPlan { sync, ..IpvsPlan::new(&config(kind, vips)) }
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

/// A report in which every server has these results. This node is the first.
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

/// A controller with a simulated kernel: the table and IPVS follow later, one change at a time.
struct Simulation {
    now: Instant,
    controller: Controller,
    /// Set while the addresses are on this node.
    held: bool,
    /// Rules that are not in the table yet.
    pending: Option<Vec<Director>>,
    table: Vec<Director>,
    services: BTreeSet<ServiceKey>,
    last: Output,
}

impl Simulation {
    fn new(plan: &IpvsPlan) -> Self {
        let controller = Controller::new(plan.clone(), interfaces());
        let table = controller.rules().to_vec();
        let (now, services) = (Instant::now(), BTreeSet::new());
        Self { now, controller, held: false, pending: None, table, services, last: Output::default() }
    }

    fn handle(&mut self, input: Input) {
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

    /// Applies the pending rules to the table.
    fn apply_table(&mut self) {
        if let Some(rules) = self.pending.take() {
            self.table.clone_from(&rules);
            self.handle(Input::RulesApplied(rules));
        }
    }

    /// Lets the reconciler report the last desired state.
    fn observe(&mut self) {
        let report = ReconcilerReport { unavailable: None, faults: Vec::new(), ready: self.services.clone() };
        self.handle(Input::Observed(report));
    }

    /// Applies and observes all pending changes.
    fn converge(&mut self) {
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

/// A simulation in which the addresses are held and IPVS directs them.
fn directing(plan: &IpvsPlan) -> Simulation {
    let mut simulation = Simulation::new(plan);
    simulation.handle(Input::Members(members(UP)));
    simulation.handle(Input::InitialSync);
    simulation.handle(Input::Probed(report(plan, ACCEPTS)));
    simulation.converge();
    simulation.handle(Input::Held(ID));
    simulation.converge();
    simulation
}

#[test]
fn nothing_is_changed_before_the_first_sync_of_the_keeper() {
    let plan = plan("DR", &["10.0.0.100"], true);
    let mut simulation = Simulation::new(&plan);
    for input in [Input::Members(members(UP)), Input::Held(ID), Input::Probed(report(&plan, ACCEPTS))] {
        simulation.handle(input);
        assert_eq!((&simulation.last.rules, &simulation.last.wanted), (&None, &None));
    }
    assert_eq!(simulation.last.probe.targets.len(), 3, "servers are probed from the start");
    simulation.handle(Input::InitialSync);
    assert!(simulation.last.wanted.is_some());
}

#[test]
fn a_held_nat_address_gets_its_rule_once_ipvs_has_servers() {
    let plan = plan("NAT", &["10.0.0.100"], true);
    let mut simulation = Simulation::new(&plan);
    simulation.handle(Input::Members(members(UP)));
    simulation.handle(Input::InitialSync);
    simulation.handle(Input::Observed(ReconcilerReport {
        unavailable: Some("no module".into()),
        faults: Vec::new(),
        ready: BTreeSet::new(),
    }));
    simulation.handle(Input::Held(ID));
    simulation.apply_table();
    assert_eq!(simulation.rule([10, 0, 0, 100]), None, "without IPVS the proxy serves");
    simulation.converge();
    assert!(simulation.rule([10, 0, 0, 100]).is_some());
    assert_eq!(simulation.services.len(), 1);
}

#[test]
fn a_service_is_removed_after_its_rule() {
    let both = plan("NAT", &["10.0.0.100", "10.0.0.101"], true);
    let mut simulation = directing(&both);
    assert_eq!((simulation.services.len(), simulation.table.len()), (2, 2));
    let one = plan("NAT", &["10.0.0.100"], true);
    simulation.handle(Input::Configured(one, Some(interfaces())));
    assert_eq!(simulation.last.wanted, None, "the table still has the rule");
    simulation.handle(Input::Tick);
    assert_eq!(simulation.services.len(), 2);
    simulation.apply_table();
    assert_eq!((simulation.services.len(), simulation.table.len()), (1, 1));
}

#[test]
fn a_table_that_cannot_be_changed_does_not_keep_dead_servers_in_ipvs() {
    let both = plan("NAT", &["10.0.0.100", "10.0.0.101"], true);
    let mut simulation = directing(&both);
    simulation.handle(Input::Configured(plan("NAT", &["10.0.0.100"], true), Some(interfaces())));
    assert_eq!(simulation.last.wanted, None, "the change of the table is under way");
    let rules = simulation.pending.take().unwrap();
    simulation.handle(Input::RulesApplied(rules));
    assert_eq!(
        (simulation.services.len(), simulation.table.len()),
        (1, 2),
        "the kernel keeps the former rule"
    );
}

#[test]
fn a_departing_node_refuses_probes_while_it_is_still_a_server() {
    let plan = plan("DR", &["10.0.0.100"], true);
    let mut simulation = directing(&plan);
    assert!(!simulation.rule([10, 0, 0, 100]).unwrap().departing);
    simulation.handle(Input::Depart);
    let until = simulation.controller.departure().unwrap();
    assert_eq!(until, simulation.now + DEPARTURE);
    simulation.converge();
    assert!(simulation.table.iter().all(|rule| rule.departing));
    assert!(matches!(simulation.last.wanted.as_ref().unwrap().node, NodePlan::Server(_)));
    simulation.now += DEPARTURE / 2;
    simulation.handle(Input::Depart);
    assert_eq!(simulation.controller.departure(), Some(until), "it departs once");
}

#[test]
fn a_node_without_directors_departs_at_once() {
    for plan in [plan("NAT", &["10.0.0.100"], true), plan("DR", &[], true)] {
        let mut simulation = directing(&plan);
        simulation.handle(Input::Depart);
        assert_eq!(simulation.controller.departure(), Some(simulation.now));
    }
}

#[test]
fn a_dropped_virtual_server_stays_a_real_server_for_the_departure_time() {
    let mut simulation = directing(&plan("DR", &["10.0.0.100", "10.0.0.101"], true));
    simulation.handle(Input::Lost(ID));
    simulation.handle(Input::Configured(plan("DR", &["10.0.0.100"], true), Some(interfaces())));
    simulation.converge();
    let vips = |simulation: &Simulation| match &simulation.last.wanted.as_ref().unwrap().node {
        NodePlan::Server(config) => config.vips.len(),
        _ => 0,
    };
    assert_eq!(vips(&simulation), 2);
    assert!(simulation.rule([10, 0, 0, 101]).unwrap().departing);
    assert!(!simulation.rule([10, 0, 0, 100]).unwrap().departing);
    simulation.now += DEPARTURE;
    simulation.handle(Input::Tick);
    simulation.converge();
    assert_eq!((vips(&simulation), simulation.rule([10, 0, 0, 101])), (1, None));
}

#[test]
fn a_planned_release_removes_services_unless_sessions_continue() {
    for (sessions, left) in [(Sessions::End, 0), (Sessions::Continue, 1)] {
        let mut simulation = directing(&plan("DR", &["10.0.0.100"], false));
        simulation.handle(Input::PlannedRelease(ID, sessions));
        assert_eq!(simulation.services.len(), left, "{sessions:?}");
        simulation.handle(Input::Held(ID));
        assert_eq!(simulation.services.len(), 1, "it is claimed again");
    }
}

#[test]
fn a_service_stays_when_all_its_servers_are_replaced_by_unprobed_ones() {
    let plan = plan("DR", &["10.0.0.100"], true);
    let mut simulation = Simulation::new(&plan);
    simulation.handle(Input::Members(members(UP)));
    simulation.handle(Input::InitialSync);
    simulation.handle(Input::Held(ID));
    simulation.converge();
    assert!(simulation.services.is_empty(), "at first connections are left to the server on this node");
    simulation.handle(Input::Probed(report(&plan, ACCEPTS)));
    assert_eq!(simulation.services.len(), 1);
    simulation.handle(Input::Probed(report(&plan, [None; 3])));
    assert_eq!(simulation.services.len(), 1);
}

#[test]
fn a_late_release_does_not_affect_the_next_claim() {
    let mut simulation = directing(&plan("DR", &["10.0.0.100"], false));
    simulation.handle(Input::Lost(ID));
    simulation.handle(Input::PlannedRelease(ID, Sessions::End));
    assert!(simulation.services.is_empty());
    simulation.handle(Input::Held(ID));
    assert_eq!(simulation.services.len(), 1);
}

#[test]
fn a_changed_interface_causes_a_resync() {
    let mut simulation = directing(&plan("DR", &["10.0.0.100"], true));
    assert!(!simulation.last.resync);
    simulation.handle(Input::Interface(ID, Some("eth1".to_owned())));
    assert!(simulation.last.resync);
    simulation.converge();
    assert!(simulation.rule([10, 0, 0, 100]).unwrap().from.contains("eth1"));
    simulation.handle(Input::Interface(ID, None));
    simulation.converge();
    assert!(
        simulation.rule([10, 0, 0, 100]).unwrap().from.contains("eth0"),
        "the one that the configuration names"
    );
}

/// An input, or a step of the simulated kernel.
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

fn take(simulation: &mut Simulation, plans: &[IpvsPlan], step: &Step) {
    match *step {
        Step::Configured(index) => {
            let plan = plans[index % plans.len()].clone();
            simulation.handle(Input::Configured(plan, Some(interfaces())));
        }
        Step::Members(states) => simulation.handle(Input::Members(members(states))),
        Step::Held => simulation.handle(Input::Held(ID)),
        Step::Lost => simulation.handle(Input::Lost(ID)),
        Step::Release(sessions) => simulation.handle(Input::PlannedRelease(ID, sessions)),
        Step::Probed(results) => {
            let report = report(&simulation.controller.plan, results);
            simulation.handle(Input::Probed(report));
        }
        Step::Unavailable => {
            let unavailable = Some("no module".to_owned());
            simulation.handle(Input::Observed(ReconcilerReport {
                unavailable,
                faults: Vec::new(),
                ready: BTreeSet::new(),
            }));
        }
        Step::Observe => simulation.observe(),
        Step::ApplyTable => simulation.apply_table(),
        Step::Wait(millis) => {
            simulation.now += Duration::from_millis(millis);
            simulation.handle(Input::Tick);
        }
        Step::Depart => simulation.handle(Input::Depart),
    }
}

/// Checks the orders after each step. `former` is the state before it.
fn check(simulation: &Simulation, former: &Former) -> Result<(), TestCaseError> {
    // Rules before services: IPVS is changed only while the table has no rule that is to be removed.
    if simulation.last.wanted.is_some() {
        for rule in &simulation.table {
            let stays = has_rule(simulation.controller.rules(), rule.vip, rule.port);
            prop_assert!(stays, "IPVS changes while the table still has the rule of {}", rule.vip);
        }
    }
    // A removed service has no rule in the table, unless its address is not held or being released.
    for it in &former.virtual_servers {
        let is_removed = former.services.contains(&it.key()) && !simulation.services.contains(&it.key());
        if is_removed && has_rule(&simulation.table, it.vip, it.port) {
            let still = simulation.controller.plan.virtual_servers.iter().find(|now| now.key() == it.key());
            let is_held = still.is_some_and(|now| simulation.controller.holds(now));
            prop_assert!(!is_held, "the service of {} was removed before its rule", it.vip);
        }
    }
    // A rule for a held address comes only once IPVS has its servers.
    for it in simulation.controller.plan.virtual_servers.iter().filter(|it| simulation.controller.holds(it)) {
        let is_added = has_rule(simulation.controller.rules(), it.vip, it.port)
            && !has_rule(&former.rules, it.vip, it.port);
        prop_assert!(
            !is_added || simulation.controller.has_servers(it),
            "the rule of {} was added early",
            it.vip
        );
    }
    // Departure before release: a departing node refuses probes, and stays a server until directors have noticed.
    if simulation.controller.departure().is_some() {
        prop_assert!(simulation.controller.rules().iter().all(|rule| rule.departing));
    }
    let known = simulation.controller.departing().chain(&simulation.controller.plan.virtual_servers);
    let accepted: BTreeSet<IpAddr> = known.filter(|it| it.instance.is_some()).map(|it| it.vip).collect();
    if let Some(Wanted { node, .. }) = &simulation.last.wanted {
        match node {
            NodePlan::Server(config) => prop_assert_eq!(&accepted, &config.vips.iter().copied().collect()),
            NodePlan::Unchanged => {}
            NodePlan::None => prop_assert!(accepted.is_empty()),
        }
    }
    Ok(())
}

/// The state before a step.
struct Former {
    virtual_servers: Vec<DirectedPort>,
    services: BTreeSet<ServiceKey>,
    rules: Vec<Director>,
}

impl Former {
    fn of(simulation: &Simulation) -> Self {
        Self {
            virtual_servers: simulation.controller.plan.virtual_servers.clone(),
            services: simulation.services.clone(),
            rules: simulation.controller.rules().to_vec(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn ipvs_rules_are_removed_before_services_and_departure_precedes_release(
        kind in prop_oneof![Just("DR"), Just("NAT"), Just("TUN")],
        sync in any::<bool>(),
        steps in vec(step(), 1..60),
    ) {
        let vips: [&[&str]; 4] = [&["10.0.0.100"], &["10.0.0.100", "10.0.0.101"], &["10.0.0.101"], &[]];
        let plans = vips.map(|vips| plan(kind, vips, sync));
        let mut simulation = directing(&plans[1]);
        for step in steps {
            let former = Former::of(&simulation);
            take(&mut simulation, &plans, &step);
            check(&simulation, &former).map_err(|error| TestCaseError::fail(format!("{step:?}: {error}")))?;
        }
    }

    #[test]
    fn after_convergence_each_held_address_has_its_rule_and_service(
        kind in prop_oneof![Just("DR"), Just("NAT"), Just("TUN")],
        steps in vec(step(), 1..40),
    ) {
        let plans = [plan(kind, &["10.0.0.100"], true), plan(kind, &["10.0.0.100", "10.0.0.101"], true)];
        let mut simulation = directing(&plans[1]);
        for step in steps {
            take(&mut simulation, &plans, &step);
        }
        let plan = simulation.controller.plan.clone();
        simulation.handle(Input::Probed(report(&plan, ACCEPTS)));
        simulation.handle(Input::Held(ID));
        simulation.converge();
        for it in &plan.virtual_servers {
            prop_assert!(simulation.services.contains(&it.key()), "no service for {}", it.vip);
            prop_assert!(has_rule(&simulation.table, it.vip, it.port), "no rule for {}", it.vip);
        }
    }
}
