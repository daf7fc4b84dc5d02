//! The decisions about IPVS: which packets the nftables table leaves to it, which services it has, and what this node is
//! to directors on other nodes. Without I/O: facts come in by [`Controller::handle`], and work comes out.
//!
//! Two orders hold. A service goes only after the table has dropped its rule: a packet that still gets its mark needs it.
//! This node stops being a real server only after directors on other nodes know: they probe it, and are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use cplb_config::LbKind;
use ipvs::{InterfaceName, ServiceKey};
use lb_proxy::nft::Director;
use vrrp::runner::InstanceId;

use super::forwarding::forwarding;
use super::plan::{Directed, Members, desired, servers, sysctls};
use super::prober::{PROBE_INTERVAL, ProbePlan, ProbeReport, TIMEOUT};
use super::reconciler::{News, NodeWish, Wanted};

/// The names of the links that receive what directors send by tunnel.
pub(crate) const TUNNELS: [&str; 2] = ["cplbtun4", "cplbtun6"];

/// How long directors on other nodes are told that this node departs: until the next probe, its answer, and the change.
const DEPARTURE: Duration = PROBE_INTERVAL.saturating_add(TIMEOUT).saturating_add(PROBE_INTERVAL);

/// The work of IPVS under a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IpvsPlan {
    pub(crate) virtual_servers: Vec<Directed>,
    /// Whether directors keep each other's connections in step.
    pub(crate) sync: bool,
}

/// The interfaces of the instances that the election runs, where the configuration names them. `None` without an
/// election.
pub(crate) type Interfaces = Option<BTreeMap<InstanceId, Option<String>>>;

/// A fact.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Another configuration is in use.
    Configured(IpvsPlan, Interfaces),
    /// The election runs other instances under the same configuration.
    Instances(Interfaces),
    /// The servers of each service, as the health checks see them.
    Members(Members),
    /// The keeper has found out which addresses and interfaces there are.
    InitialSync,
    /// The addresses of an instance are on this node.
    Held(InstanceId),
    /// The addresses of an instance are not on this node any more.
    Lost(InstanceId),
    /// An instance has this interface.
    Interface(InstanceId, Option<String>),
    /// An instance is about to give its addresses up.
    PlannedRelease(InstanceId, Sessions),
    /// The reconciler has observed the kernel's IPVS.
    Observed(News),
    /// The prober has another report.
    Probed(ProbeReport),
    /// The table has these rules now, or refuses them.
    RulesApplied(Vec<Director>),
    /// This node is about to stop.
    Depart,
    /// Time has passed.
    Tick,
}

/// The fate of the sessions of an instance that moves to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// The next director goes on with them, so the services stay until the addresses have gone: without them, this node
    /// would reset what still arrives.
    Continue,
    End,
}

/// The work that follows from a fact.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Output {
    /// The rules for the table, where they have changed.
    pub(crate) rules: Option<Vec<Director>>,
    /// The state that IPVS is to have; `None` while it must not change.
    pub(crate) wanted: Option<Wanted>,
    /// The servers to probe.
    pub(crate) probe: ProbePlan,
    /// Whether the reconciler is to read the kernel now.
    pub(crate) resync: bool,
}

/// An instance as the keeper reports it. Its status may be a little older than its events.
#[derive(Debug, Default)]
struct InstanceState {
    held: bool,
    interface: Option<String>,
}

/// The state of the decisions.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(super) plan: IpvsPlan,
    configured: Interfaces,
    pub(super) members: Members,
    instances: BTreeMap<InstanceId, InstanceState>,
    initial_sync_done: bool,
    /// Instances that are giving their addresses up.
    releasing: BTreeSet<InstanceId>,
    pub(super) news: Option<News>,
    pub(super) report: ProbeReport,
    /// The rules that the table is to have.
    rules: Vec<Director>,
    /// Those that it has.
    applied_rules: Vec<Director>,
    /// The services that were wanted last.
    services: BTreeSet<ServiceKey>,
    /// When directors on other nodes know that this node departs, once it does.
    departure: Option<Instant>,
    /// Virtual servers that a reload has dropped, and until when directors are told so.
    departing: Option<(Vec<Directed>, Instant)>,
}

impl Controller {
    /// The decisions before anything is known. The first rules are those of interfaces that the configuration names: what
    /// directors on other nodes send here is for the server on this one from the start.
    pub(crate) fn new(plan: IpvsPlan, configured: BTreeMap<InstanceId, Option<String>>) -> Self {
        let known = plan.virtual_servers.iter().filter_map(|it| {
            let name = configured.get(&it.instance?)?.clone()?;
            Some(it.director(behind(it, name)))
        });
        let rules: Vec<Director> = known.collect();
        Self {
            plan,
            configured: Some(configured),
            members: Members::new(),
            instances: BTreeMap::new(),
            initial_sync_done: false,
            releasing: BTreeSet::new(),
            news: None,
            report: ProbeReport::default(),
            applied_rules: rules.clone(),
            rules,
            services: BTreeSet::new(),
            departure: None,
            departing: None,
        }
    }

    /// Takes a fact, and returns the work that follows from everything known.
    pub(crate) fn handle(&mut self, input: Input, now: Instant) -> Output {
        let resync = matches!(input, Input::Interface(..));
        self.record(input, now);
        Output { resync, ..self.poll_output(now) }
    }

    /// Takes a fact whose work follows with the next one.
    pub(crate) fn record(&mut self, input: Input, now: Instant) {
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
            Input::Observed(news) => self.news = Some(news),
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
        dropped.extend(former.into_iter().filter(Directed::outlives_its_director));
        dropped.retain(|it| !stays(it.vip));
        if !dropped.is_empty() {
            self.departing = Some((dropped, now + DEPARTURE));
        }
    }

    fn depart(&mut self, now: Instant) {
        if self.departure.is_some() {
            return;
        }
        let is_probed = |it: &Directed| it.outlives_its_director() && servers(&self.members, it).len() > 1;
        let is_probed = self.plan.virtual_servers.iter().any(is_probed);
        self.departure = Some(if is_probed { now + DEPARTURE } else { now });
    }

    /// When directors on other nodes know that this node departs; `None` before [`Input::Depart`].
    pub(crate) fn departure(&self) -> Option<Instant> {
        self.departure
    }

    /// The rules that the table is to have.
    pub(crate) fn rules(&self) -> &[Director] {
        &self.rules
    }

    /// Whether the kernel has IPVS, as far as it is known.
    pub(crate) fn is_available(&self) -> bool {
        self.news.as_ref().is_none_or(|news| news.unavailable.is_none())
    }

    fn poll_output(&mut self, now: Instant) -> Output {
        let probe = ProbePlan {
            targets: self.probe_targets().collect(),
            reads_addresses: !self.plan.virtual_servers.is_empty(),
        };
        let mut output = Output { probe, ..Output::default() };
        // What a daemon before this one made is not touched before it is known what is still wanted.
        if !self.initial_sync_done && self.configured.is_some() {
            return output;
        }
        self.departing.take_if(|(_, until)| now >= *until);
        let rules = self.wanted_rules();
        if rules != self.rules {
            self.rules.clone_from(&rules);
            output.rules = Some(rules);
        }
        // A packet that still gets its mark needs its service.
        let stays = |it: &Director| has_rule(&self.rules, it.vip, it.port);
        if self.applied_rules.iter().all(stays) {
            let wanted = self.wanted();
            self.services = wanted.services.services().map(|it| it.service.key()).collect();
            output.wanted = Some(wanted);
        }
        output
    }

    /// The servers to ask whether directors can count on them.
    fn probe_targets(&self) -> impl Iterator<Item = super::ProbeTarget> {
        self.plan
            .virtual_servers
            .iter()
            .flat_map(|it| servers(&self.members, it).iter().filter_map(|server| it.probe_target(server)))
    }

    /// The state that IPVS is to have.
    fn wanted(&self) -> Wanted {
        let (all, members) = (self.plan.virtual_servers.as_slice(), &self.members);
        let sync = self.sync_daemons();
        // IPVS goes on with a connection that it was told of only if it has the server, and looks at packets only if it
        // has a service. Elsewhere than on the holder no packet has the mark of a new connection.
        let has = |it: &Directed| {
            let here = self.holds(it) || (sync.is_some() && it.outlives_its_director());
            // Once packets are left to a service, it stays: without it the kernel refuses them.
            let is_useful = self.services.contains(&it.key()) || self.is_known(it);
            here && it.takes_any(servers(members, it)) && is_useful
        };
        Wanted {
            services: desired(all, members, &self.report.results, has),
            sync,
            sysctls: if all.is_empty() { Vec::new() } else { sysctls(all) },
            forwarding: forwarding(all),
            node: match self.real_server() {
                Some(_) if self.report.local.is_empty() => NodeWish::AsItIs,
                Some(config) => NodeWish::Server(config),
                None => NodeWish::Nothing,
            },
        }
    }

    /// The rules of the table about IPVS. Without IPVS the proxy serves clients that reach this node, and also until a new
    /// service has its servers: without one the kernel refuses connections.
    fn wanted_rules(&self) -> Vec<Director> {
        let stay = self.plan.virtual_servers.iter().filter(|it| it.takes_any(servers(&self.members, it)));
        let stay = stay.filter(|it| match it.instance {
            _ if self.holds(it) => self.is_available() && self.is_ready(it),
            // What another node directs here is for the server on this one.
            Some(_) => true,
            None => it.kind != LbKind::Nat,
        });
        let stay = stay.map(|it| (it, self.departure.is_some()));
        let depart = self.departing.iter().flat_map(|(dropped, _)| dropped);
        let depart = depart.filter(|it| !self.holds(it)).map(|it| (it, true));
        let rule = |(it, departing): (&Directed, bool)| Director {
            departing,
            peers: self.peers(it),
            ..it.director(self.interfaces(it))
        };
        stay.chain(depart).map(rule).collect()
    }

    /// Whether packets may be left to IPVS. Once they are, they stay so: connections would not survive the proxy.
    fn is_ready(&self, directed: &Directed) -> bool {
        has_rule(&self.rules, directed.vip, directed.port) || self.has_servers(directed)
    }

    pub(super) fn has_servers(&self, directed: &Directed) -> bool {
        self.news.as_ref().is_some_and(|news| news.ready.contains(&directed.key()))
    }

    /// Whether the prober knows a server. Until then it is better to leave connections to the server on this node than to
    /// send them to servers that may not accept them.
    fn is_known(&self, directed: &Directed) -> bool {
        let mut targets = servers(&self.members, directed)
            .iter()
            .filter_map(|server| directed.probe_target(server))
            .peekable();
        targets.peek().is_none() || targets.any(|target| self.report.results.contains_key(&target))
    }

    /// Whether this node has the virtual address, and is not giving it up.
    pub(super) fn holds(&self, directed: &Directed) -> bool {
        match directed.instance {
            Some(id) => self.instances.get(&id).is_some_and(|it| it.held) && !self.releasing.contains(&id),
            None => self.report.local.get(&directed.vip).is_some_and(|links| {
                // With direct routing and tunnels, servers have the address, too.
                directed.kind == LbKind::Nat || !links.is_empty()
            }),
        }
    }

    /// Whether the table leaves the packets of a virtual address to IPVS.
    pub(super) fn is_applied(&self, directed: &Directed) -> bool {
        has_rule(&self.applied_rules, directed.vip, directed.port)
    }

    /// The name of an instance's interface, also of one that is not there.
    pub(super) fn interface(&self, id: InstanceId) -> Option<String> {
        let found = self.instances.get(&id).and_then(|it| it.interface.clone());
        found.or_else(|| self.configured.as_ref()?.get(&id)?.clone())
    }

    /// The interface and the id of the sync daemons: those of the first instance, which is the same on all nodes.
    fn sync_daemons(&self) -> Option<(InterfaceName, u32)> {
        let first = self.plan.virtual_servers.iter().filter(|_| self.plan.sync).find_map(|it| it.instance)?;
        Some((InterfaceName::new(&self.interface(first)?).ok()?, first.0))
    }

    /// Virtual servers that a reload has dropped while directors may not know.
    pub(super) fn departing(&self) -> impl Iterator<Item = &Directed> {
        self.departing.iter().flat_map(|(dropped, _)| dropped)
    }
}

fn has_rule(rules: &[Director], vip: IpAddr, port: NonZeroU16) -> bool {
    rules.iter().any(|rule| (rule.vip, rule.port) == (vip, port))
}

/// The interface of its address, and the tunnels if it has any.
pub(super) fn behind(directed: &Directed, interface: String) -> BTreeSet<String> {
    let tunnels = TUNNELS.map(str::to_owned).into_iter().filter(|_| directed.kind == LbKind::Tunnel);
    tunnels.chain([interface]).collect()
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
