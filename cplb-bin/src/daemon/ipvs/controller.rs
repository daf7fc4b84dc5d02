//! The decisions about IPVS: the packets that the nftables table marks for it, its services, and this node as a real server
//! for directors on other nodes. Without I/O: [`Controller::handle`] takes inputs and returns the work that follows.
//!
//! Two orders hold. A service is removed only after the table has dropped its rule, since a packet with its mark needs it;
//! except when its address has left this node or is released with [`Sessions::End`]: then the rule stays, and packets that
//! still arrive are refused. This node stops being a real server only after directors on other nodes have noticed: their
//! probes are refused before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use cplb_config::LbKind;
use ipvs::{InterfaceName, ServiceKey};
use lb_proxy::nft::Director;
use vrrp::runner::InstanceId;

use super::forwarding::forwarding;
use super::input::{Input, Interfaces, Sessions};
use super::plan::{DirectedPort, IpvsPlan, Members, desired, servers, sysctls};
use super::prober::{PROBE_INTERVAL, ProbePlan, ProbeReport, ProbeTarget, TIMEOUT};
use super::reconciler::{NodePlan, ReconcilerReport, Wanted};

/// The names of the tunnel links that receive packets from directors.
const TUNNELS: [&str; 2] = ["cplbtun4", "cplbtun6"];

/// The time that directors on other nodes need to notice a departure: until the next probe, its answer, and the change.
const DEPARTURE: Duration = PROBE_INTERVAL.saturating_add(TIMEOUT).saturating_add(PROBE_INTERVAL);

/// The work that follows from an input.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Output {
    /// The rules for the table, if they have changed.
    pub(super) rules: Option<Vec<Director>>,
    /// The desired state of IPVS; `None` while it must not change.
    pub(super) wanted: Option<Wanted>,
    /// The servers to probe.
    pub(super) probe: ProbePlan,
    /// Set if the reconciler shall read the kernel now.
    pub(super) resync: bool,
}

/// An instance as the keeper reports it.
#[derive(Debug, Default)]
struct InstanceState {
    held: bool,
    interface: Option<String>,
}

/// The state of the decisions.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) plan: IpvsPlan,
    configured: Interfaces,
    pub(super) members: Members,
    instances: BTreeMap<InstanceId, InstanceState>,
    initial_sync_done: bool,
    /// Instances that are releasing their addresses.
    releasing: BTreeSet<InstanceId>,
    pub(super) observed: Option<ReconcilerReport>,
    pub(super) report: ProbeReport,
    /// The desired rules of the table.
    rules: Vec<Director>,
    /// The rules that the table has.
    applied_rules: Vec<Director>,
    /// The services of the last desired state.
    services: BTreeSet<ServiceKey>,
    /// The time by which directors on other nodes have noticed that this node departs, once it does.
    departure: Option<Instant>,
    /// Virtual servers that a reload has dropped, and the time until which probes for them are refused.
    departing: Option<(Vec<DirectedPort>, Instant)>,
}

impl Controller {
    /// A controller before the first input. The first rules are those of interfaces that the configuration names: packets
    /// from directors on other nodes are for the server on this node from the start.
    pub(super) fn new(plan: IpvsPlan, configured: BTreeMap<InstanceId, Option<String>>) -> Self {
        let known = plan.virtual_servers.iter().filter_map(|it| {
            let name = configured.get(&it.instance?)?.clone()?;
            Some(it.director(arrival_interfaces(it, name)))
        });
        let rules: Vec<Director> = known.collect();
        Self {
            plan,
            configured: Some(configured),
            members: Members::new(),
            instances: BTreeMap::new(),
            initial_sync_done: false,
            releasing: BTreeSet::new(),
            observed: None,
            report: ProbeReport::default(),
            applied_rules: rules.clone(),
            rules,
            services: BTreeSet::new(),
            departure: None,
            departing: None,
        }
    }

    /// Takes an input, and returns the work that follows from all inputs so far.
    pub(super) fn handle(&mut self, input: Input, now: Instant) -> Output {
        // A new interface still answers ARP for the virtual addresses.
        let resync = matches!(input, Input::Interface(..));
        self.record(input, now);
        Output { resync, ..self.poll_output(now) }
    }

    /// Takes an input; the work follows with the next [`Controller::handle`].
    pub(super) fn record(&mut self, input: Input, now: Instant) {
        match input {
            Input::Configured(plan, configured) => self.configure(plan, configured, now),
            Input::Instances(configured) => self.configured = configured,
            Input::Members(members) => self.members = members,
            Input::InitialSync => self.initial_sync_done = true,
            Input::Held(id) => {
                self.instances.entry(id).or_default().held = true;
                self.releasing.remove(&id);
            }
            Input::Lost(id) => {
                self.instances.entry(id).or_default().held = false;
                self.releasing.remove(&id);
            }
            Input::Interface(id, name) => self.instances.entry(id).or_default().interface = name,
            Input::PlannedRelease(_, Sessions::Continue) => {}
            Input::PlannedRelease(id, Sessions::End) => drop(self.releasing.insert(id)),
            Input::Observed(report) => self.observed = Some(report),
            Input::Probed(report) => self.report = report,
            Input::RulesApplied(rules) => self.applied_rules = rules,
            Input::Depart => self.depart(now),
            Input::Tick => {}
        }
    }

    fn configure(&mut self, plan: IpvsPlan, configured: Interfaces, now: Instant) {
        let former = std::mem::replace(&mut self.plan, plan).virtual_servers;
        self.configured = configured;
        let stays = |vip| self.plan.virtual_servers.iter().any(|it| it.vip == vip && it.instance.is_some());
        let mut dropped = self.departing.take().map(|(dropped, _)| dropped).unwrap_or_default();
        dropped.extend(former.into_iter().filter(DirectedPort::continues_after_failover));
        dropped.retain(|it| !stays(it.vip));
        if !dropped.is_empty() {
            self.departing = Some((dropped, now + DEPARTURE));
        }
    }

    fn depart(&mut self, now: Instant) {
        if self.departure.is_some() {
            return;
        }
        let is_probed =
            |it: &DirectedPort| it.continues_after_failover() && servers(&self.members, it).len() > 1;
        let is_probed = self.plan.virtual_servers.iter().any(is_probed);
        self.departure = Some(if is_probed { now + DEPARTURE } else { now });
    }

    /// The time by which directors on other nodes have noticed that this node departs; `None` before [`Input::Depart`].
    pub(super) fn departure(&self) -> Option<Instant> {
        self.departure
    }

    /// The desired rules of the table.
    pub(super) fn rules(&self) -> &[Director] {
        &self.rules
    }

    /// Returns whether the kernel has IPVS; true before the first observation.
    pub(super) fn is_available(&self) -> bool {
        self.observed.as_ref().is_none_or(|observed| observed.unavailable.is_none())
    }

    fn poll_output(&mut self, now: Instant) -> Output {
        let probe = ProbePlan {
            targets: self.probe_targets().collect(),
            reads_addresses: !self.plan.virtual_servers.is_empty(),
        };
        let mut output = Output { probe, ..Output::default() };
        // The services of a former daemon are not changed before the keeper has reported the addresses.
        if !self.initial_sync_done && self.configured.is_some() {
            return output;
        }
        self.departing.take_if(|(_, until)| now >= *until);
        let rules = self.wanted_rules();
        if rules != self.rules {
            self.rules.clone_from(&rules);
            output.rules = Some(rules);
        }
        // A packet that the table still marks needs its service.
        let stays = |it: &Director| has_rule(&self.rules, it.vip, it.port);
        if self.applied_rules.iter().all(stays) {
            let wanted = self.wanted();
            self.services = wanted.services.services().map(|it| it.service.key()).collect();
            output.wanted = Some(wanted);
        }
        output
    }

    /// The servers to probe.
    fn probe_targets(&self) -> impl Iterator<Item = ProbeTarget> {
        self.plan
            .virtual_servers
            .iter()
            .flat_map(|it| servers(&self.members, it).iter().filter_map(|server| it.probe_target(server)))
    }

    /// The desired state of IPVS.
    fn wanted(&self) -> Wanted {
        let (all, members) = (self.plan.virtual_servers.as_slice(), &self.members);
        let sync = self.sync_daemons();
        // IPVS continues a synchronised connection only if it has the server, and handles packets only if it has a service.
        // On nodes without the address no packet gets the mark of a new connection.
        let has = |it: &DirectedPort| {
            let is_needed = self.holds(it) || (sync.is_some() && it.continues_after_failover());
            // A service that packets were directed to stays: without it the kernel refuses them.
            let is_usable = self.services.contains(&it.key()) || self.is_known(it);
            is_needed && it.can_forward_to_any(servers(members, it)) && is_usable
        };
        Wanted {
            services: desired(all, members, &self.report.results, has),
            sync,
            sysctls: if all.is_empty() { Vec::new() } else { sysctls(all) },
            forwarding: forwarding(all),
            node: match self.real_server() {
                Some(_) if self.report.local.is_empty() => NodePlan::Unchanged,
                Some(config) => NodePlan::Server(config),
                None => NodePlan::None,
            },
        }
    }

    /// The desired rules of the table for IPVS. The proxy serves clients of this node while IPVS is unavailable, and until a
    /// new service has a server: without one the kernel refuses connections.
    fn wanted_rules(&self) -> Vec<Director> {
        let stay =
            self.plan.virtual_servers.iter().filter(|it| it.can_forward_to_any(servers(&self.members, it)));
        let stay = stay.filter(|it| match it.instance {
            _ if self.holds(it) => self.is_available() && self.is_ready(it),
            // Packets from directors on other nodes are for the server on this node.
            Some(_) => true,
            None => it.kind != LbKind::Nat,
        });
        let stay = stay.map(|it| (it, self.departure.is_some()));
        let depart = self.departing.iter().flat_map(|(dropped, _)| dropped);
        let depart = depart.filter(|it| !self.holds(it)).map(|it| (it, true));
        let rule = |(it, departing): (&DirectedPort, bool)| Director {
            departing,
            peers: self.peers(it),
            ..it.director(self.interfaces(it))
        };
        stay.chain(depart).map(rule).collect()
    }

    /// Returns whether packets may be directed to IPVS. Once they are, they stay so, because connections cannot move to the
    /// proxy.
    fn is_ready(&self, directed: &DirectedPort) -> bool {
        has_rule(&self.rules, directed.vip, directed.port) || self.has_servers(directed)
    }

    pub(super) fn has_servers(&self, directed: &DirectedPort) -> bool {
        self.observed.as_ref().is_some_and(|observed| observed.ready.contains(&directed.key()))
    }

    /// Returns whether the prober knows a server. Until then connections go to the server on this node, because other
    /// servers may not accept them.
    fn is_known(&self, directed: &DirectedPort) -> bool {
        let mut targets = servers(&self.members, directed)
            .iter()
            .filter_map(|server| directed.probe_target(server))
            .peekable();
        targets.peek().is_none() || targets.any(|target| self.report.results.contains_key(&target))
    }

    /// Returns whether this node has the virtual address, and is not releasing it.
    pub(super) fn holds(&self, directed: &DirectedPort) -> bool {
        match directed.instance {
            Some(id) => self.instances.get(&id).is_some_and(|it| it.held) && !self.releasing.contains(&id),
            None => self.report.local.get(&directed.vip).is_some_and(|links| {
                // With direct routing and tunnels, real servers have the address on a dummy link.
                directed.kind == LbKind::Nat || !links.is_empty()
            }),
        }
    }

    /// Returns whether the table directs the packets of a virtual address to IPVS.
    pub(super) fn is_applied(&self, directed: &DirectedPort) -> bool {
        has_rule(&self.applied_rules, directed.vip, directed.port)
    }

    /// The name of an instance's interface, or the one in the configuration while there is no such interface.
    pub(super) fn interface(&self, id: InstanceId) -> Option<String> {
        let found = self.instances.get(&id).and_then(|it| it.interface.clone());
        found.or_else(|| self.configured.as_ref()?.get(&id)?.clone())
    }

    /// The interface and the id of the sync daemons. They follow from the first instance, which is the same on all nodes.
    fn sync_daemons(&self) -> Option<(InterfaceName, u32)> {
        let first = self.plan.virtual_servers.iter().filter(|_| self.plan.sync).find_map(|it| it.instance)?;
        Some((InterfaceName::new(&self.interface(first)?).ok()?, first.0))
    }

    /// Virtual servers that a reload has dropped, until directors have noticed.
    pub(super) fn departing(&self) -> impl Iterator<Item = &DirectedPort> {
        self.departing.iter().flat_map(|(dropped, _)| dropped)
    }
}

fn has_rule(rules: &[Director], vip: IpAddr, port: NonZeroU16) -> bool {
    rules.iter().any(|rule| (rule.vip, rule.port) == (vip, port))
}

/// The interfaces by which packets for a virtual server arrive: that of its address, and the tunnel links if it uses them.
pub(super) fn arrival_interfaces(directed: &DirectedPort, interface: String) -> BTreeSet<String> {
    let tunnels = TUNNELS.map(str::to_owned).into_iter().filter(|_| directed.kind == LbKind::Tunnel);
    tunnels.chain([interface]).collect()
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
