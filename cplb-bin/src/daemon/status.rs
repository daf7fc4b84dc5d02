//! Gathers the status of all parts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use lb_proxy::{BackendSnapshot, BackendState, ServiceSnapshot};
use netlink_vip::{AddressState, AddressStatus, GroupState, GroupStatus, InterfaceState};
use vrrp::channel::{InstanceReport, TransitionReport};
use vrrp::router::StateName;
use vrrp::runner::{InstanceStatus, InterfaceStatus, Transport};

use crate::status::schema::{
    ActiveRouter, AddressCopy, Backend, Channel, ConnectClass, ConnectTimes, Delivery, Discovery, Instance,
    Interface, Kernel, Peer, PeerInstance, PeerTransition, SCHEMA, Service, Status, Transition,
};

use crate::discovery::State;

use super::backends::ClusterState;
use super::group::{Board, PeerState};
use super::ids::{group_of, instance_of};
use super::table::{Delivered, Reason};
use super::vip::Election;
use super::{Daemon, mismatches};

impl Daemon {
    /// The document of `cplb status`.
    pub(super) fn status(&self) -> Status {
        let (mut instances, mut interfaces) = (Vec::new(), Vec::new());
        let (mut real_time, mut kernel) = (false, None);
        if let Some(election) = &self.election {
            let status = election.runner.status();
            real_time = status.realtime.realtime;
            instances = status
                .instances
                .iter()
                .map(|found| instance(found, election, self.verdict.faults(found.id)))
                .collect();
            for (shown, found) in instances.iter_mut().zip(&status.instances) {
                let current = self.mismatches.current(found.id.0, Instant::now());
                shown.foreign_owners = self.foreign_owners(found.id);
                shown.end_to_end = self.end_to_end_status(found.id);
                shown.mismatch_seconds_ago =
                    current.into_iter().map(|(kind, ago)| (kind, ago.as_secs_f64())).collect();
            }
            interfaces = status.interfaces.iter().map(interface).collect();
            kernel = Some(kernel_counters(&election.keeper.status().counters));
        }
        let unowned: Vec<String> = instances.iter().filter_map(unowned).collect();
        let mut causes = self.problems.counts();
        if !unowned.is_empty() {
            causes.insert(UNOWNED, unowned.len() as u64);
        }
        Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            config: self.args.config.config.display().to_string(),
            degraded: self.problems.texts().into_iter().chain(unowned).collect(),
            degraded_causes: causes.into_iter().map(|(cause, count)| (cause.to_owned(), count)).collect(),
            serving: self.verdict.status(Instant::now()),
            real_time,
            instances,
            kernel,
            peers: self.group.peers().iter().map(peer).collect(),
            channels: self.group.boards().iter().map(channel).collect(),
            interfaces,
            services: self.services(),
            discovery: self.backends.clusters.known().map(|known| discovery(&known)).collect(),
            ipvs: self.ipvs.status(&self.members()),
            table: self.table.status(),
        }
    }

    fn services(&self) -> Vec<Service> {
        let Some(balancer) = self.proxy.balancer() else { return Vec::new() };
        let snapshot = balancer.snapshot();
        let found = |name: &str| snapshot.services.iter().find(|service| &*service.name == name);
        let delivered = self.delivered();
        let shown = self.config.services.iter().filter_map(|config| {
            let delivery = delivery(&delivered, config.port.number());
            let mut shown = Service { delivery, ..service(config, found(&config.name)?) };
            self.explain_drains(&mut shown);
            Some(shown)
        });
        shown.collect()
    }

    /// Tells of drained backends that an operator drains them, and for how long.
    fn explain_drains(&self, service: &mut Service) {
        let now = Instant::now();
        for backend in &mut service.backends {
            let Some(drain) =
                backend.address.parse().ok().and_then(|address| self.drains.of(&service.name, address, now))
            else {
                continue;
            };
            let rest = drain.map(|rest| format!(", for another {} s", rest.as_secs())).unwrap_or_default();
            backend.reason = Some(format!("an operator drains it{rest}"));
        }
    }

    /// The delivery of connections, with the reasons that interfaces give.
    pub(super) fn delivered(&self) -> BTreeMap<SocketAddr, Delivered> {
        let interfaces = self.election.as_ref().map(translating_interfaces).unwrap_or_default();
        self.table.delivered(&interfaces)
    }
}

fn discovery(
    (kubeconfig, known, answered): &(&Path, &ClusterState, Option<(SocketAddr, Instant)>),
) -> Discovery {
    let (waiting, error) = match &known.interruption {
        Some(State::Waiting(why)) => (Some(why.clone()), None),
        Some(State::Failing(why)) => (None, Some(why.clone())),
        None => (None, None),
    };
    Discovery {
        kubeconfig: kubeconfig.display().to_string(),
        source: known.source.as_str().to_owned(),
        servers: known.servers.iter().map(ToString::to_string).collect(),
        waiting,
        error,
        kept: known.list_fault.clone(),
        answered_by: answered.map(|(server, _)| server.to_string()),
        answered_seconds_ago: answered.map(|(_, at)| age(at)),
    }
}

/// Returns whether the kernel has confirmed each address of a group.
fn is_held(group: &GroupStatus) -> bool {
    let present = |address: &AddressStatus| address.state == AddressState::Present;
    matches!(group.state, GroupState::Held { .. }) && group.addresses.iter().all(present)
}

fn copy(found: &netlink_vip::AddressCopy) -> AddressCopy {
    AddressCopy { address: format!("{}/{}", found.ip, found.prefix_len), interface: found.interface.clone() }
}

fn instance(found: &InstanceStatus, election: &Election, unfit: Vec<String>) -> Instance {
    let config = election.instances.get(&found.id);
    let keeper = election.keeper.status();
    let group = keeper.groups.iter().find(|group| group.id == group_of(found.id));
    let interface = group.and_then(|group| group.interface.as_ref());
    let lowest = |priority: u8| config.map_or(priority, |config| config.router.router.priority.get());
    Instance {
        virtual_router_id: found.vrid.get(),
        interface: match (interface, group) {
            (Some(interface), _) => interface.name.clone(),
            (None, Some(group)) => group.selector.clone(),
            (None, None) => String::new(),
        },
        interface_up: interface.is_some_and(|interface| interface.up),
        virtual_ips: config
            .map(|config| config.group.addresses.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        state: found.state.as_str().to_owned(),
        since_seconds: age(found.since),
        reason: found.reason.to_string(),
        holds_virtual_ips: group.is_some_and(is_held),
        unfit,
        foreign_owners: Vec::new(),
        end_to_end: Vec::new(),
        copies: group.map(|group| group.copies.iter().map(copy).collect()).unwrap_or_default(),
        priority: lowest(found.priority.0),
        advertised_priority: found.priority.0,
        advert_interval_seconds: config.map_or(0.0, |config| config.router.router.interval().as_secs_f64()),
        lease_seconds: group.map_or(0.0, |group| f64::from(group.lease.as_secs())),
        active_router: found
            .active
            .map(|active| ActiveRouter { address: active.source.to_string(), priority: active.priority.0 }),
        unicast_peers: config.and_then(|config| match &config.router.transport {
            Transport::Multicast => None,
            Transport::Unicast { peers } => Some(peers.iter().map(ToString::to_string).collect()),
        }),
        advertisements_sent: found.traffic.sent,
        advertisements_received: found.traffic.received,
        discarded: found
            .counters
            .discarded
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.as_str().to_owned(), count))
            .collect(),
        mismatches: mismatches::counts(&found.counters),
        mismatch_seconds_ago: BTreeMap::new(),
        transitions: found.transitions.iter().rev().map(transition).collect(),
        transition_totals: totals(&found.transition_totals),
    }
}

fn totals(found: &BTreeMap<(StateName, &'static str), u64>) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut totals: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ((to, reason), count) in found {
        totals.entry(to.as_str().to_owned()).or_default().insert((*reason).to_owned(), *count);
    }
    totals
}

/// The time for which an Active may lack addresses, and a Backup may hear no Active, without an entry in `degraded`:
/// longer than either takes normally.
const SETTLING_SECONDS: f64 = 1.0;

/// The word for the cause of these problems.
const UNOWNED: &str = "unowned";

/// The problem of an instance whose addresses no host has, as far as this node can know: another host has them only if
/// this node hears its advertisements.
fn unowned(instance: &Instance) -> Option<String> {
    let Instance { virtual_router_id: vrid, virtual_ips, state, since_seconds, .. } = instance;
    let addresses = virtual_ips.join(", ");
    let is_settled = |settling: f64| *since_seconds > settling;
    // The time after which a Backup that hears no router takes over is three intervals and Skew_Time of less than one.
    let down = 4.0 * instance.advert_interval_seconds;
    match state.as_str() {
        "active" if !instance.holds_virtual_ips && is_settled(SETTLING_SECONDS) => Some(format!(
            "virtual router {vrid} is Active, and this node does not have all of its virtual IPs: {addresses}"
        )),
        "backup" if instance.active_router.is_none() && is_settled(down + SETTLING_SECONDS) => Some(format!(
            "virtual router {vrid} hears no Active: as far as this node knows, no host has {addresses}"
        )),
        "init" | "listening" | "stopped" if is_settled(SETTLING_SECONDS) => Some(format!(
            "virtual router {vrid} is in state {state} and does not take part: this node does not know which host has \
             {addresses}"
        )),
        _ => None,
    }
}

fn peer(found: &PeerState) -> Peer {
    let report = &found.report;
    Peer {
        address: found.address.to_string(),
        node: report.node.clone(),
        version: report.version.clone(),
        authenticated: found.authenticated,
        heard_seconds_ago: age(found.heard),
        clock_ahead_seconds: found.clock_ahead as f64 / 1000.0,
        serving: report.serving.as_ref().map(Result::is_ok),
        reason: report.serving.clone().and_then(Result::err).filter(|reason| !reason.is_empty()),
        degraded: report.degraded.clone(),
        degraded_unlisted: report.unlisted,
        instances: report.instances.iter().map(peer_instance).collect(),
        transitions: report
            .transitions
            .iter()
            .rev()
            .map(|it| peer_transition(it, found.clock_ahead))
            .collect(),
    }
}

/// `clock_ahead` is the difference of the peer's clock to this node's in milliseconds.
fn peer_transition(found: &TransitionReport, clock_ahead: i64) -> PeerTransition {
    let at = found.at.saturating_add_signed(clock_ahead.saturating_neg());
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(at)).unwrap_or(SystemTime::UNIX_EPOCH);
    PeerTransition {
        virtual_router_id: found.vrid,
        seconds_ago: at.elapsed().unwrap_or_default().as_secs_f64(),
        to: found.to.map_or("unknown", StateName::as_str).to_owned(),
        reason: found.reason.clone(),
    }
}

fn peer_instance(found: &InstanceReport) -> PeerInstance {
    PeerInstance {
        virtual_router_id: found.vrid,
        state: found.state.map_or("unknown", StateName::as_str).to_owned(),
        advertised_priority: found.priority,
        claim_seconds: f64::from(found.claim) / 1000.0,
    }
}

fn channel((interface, board): &(String, Board)) -> Channel {
    let discarded = board.discarded.iter().map(|(reason, count)| (reason.as_str().to_owned(), *count));
    let strangers = (board.strangers > 0).then(|| (STRANGER.to_owned(), board.strangers));
    let reflected = vrrp::channel::Discard::Reflected;
    let own = board.own + board.discarded.get(&reflected).copied().unwrap_or_default();
    let own = (own > 0).then(|| (reflected.as_str().to_owned(), own));
    Channel {
        interface: interface.clone(),
        messages_sent: board.sent,
        messages_received: board.received,
        discarded: discarded.chain(strangers).chain(own).collect(),
    }
}

/// The reason for which datagrams of hosts that are no known controllers are not used, where there are no keys.
const STRANGER: &str = "stranger";

fn kernel_counters(counters: &netlink_vip::Counters) -> Kernel {
    Kernel {
        overruns: counters.overruns,
        resyncs: counters.resyncs,
        missing: counters.missing,
        errors: counters.kernel_errors,
    }
}

fn interface(found: &InterfaceStatus) -> Interface {
    Interface {
        name: found.name.clone(),
        received: found.received,
        malformed: found.malformed,
        foreign: found.foreign.clone(),
    }
}

fn transition(past: &vrrp::runner::PastTransition) -> Transition {
    Transition {
        seconds_ago: past.at.elapsed().unwrap_or_default().as_secs_f64(),
        from: past.transition.from.as_str().to_owned(),
        to: past.transition.to.as_str().to_owned(),
        reason: past.transition.reason.to_string(),
    }
}

fn service(config: &cplb_config::Service, found: &ServiceSnapshot) -> Service {
    Service {
        name: config.name.clone(),
        port: config.port.number(),
        bind_port: config.bind_port.number(),
        balance: found.balance.to_string(),
        delivery: Vec::new(),
        connections_active: found.backends.iter().map(|backend| backend.active as u64).sum(),
        connections_accepted: found.accepted,
        connections_refused: found.refused,
        refusals: found.refusals.iter().map(|(why, count)| (why.as_str().to_owned(), *count)).collect(),
        max_connections: found.max_connections as u64,
        max_connections_per_client: found.max_connections_per_client.map(|limit| limit as u64),
        backends: found.backends.iter().map(backend).collect(),
    }
}

fn delivery(delivered: &BTreeMap<SocketAddr, Delivered>, port: u16) -> Vec<Delivery> {
    let of_port = delivered.iter().filter(|(endpoint, _)| endpoint.port() == port);
    let shown = of_port.map(|(endpoint, it)| Delivery {
        virtual_ip: endpoint.ip().to_string(),
        mode: it.mode().to_string(),
        reason: it.reason.as_ref().map(ToString::to_string),
    });
    shown.collect()
}

/// The virtual IPs whose connections are translated because of the interface.
fn translating_interfaces(election: &Election) -> BTreeMap<IpAddr, Reason> {
    let reason = |interface: &InterfaceState| match (&interface.vrf, interface.kind.as_deref()) {
        (Some(vrf), _) => Some(Reason::Vrf(vrf.clone())),
        (None, Some("bridge")) => Some(Reason::Bridge(interface.name.clone())),
        _ => None,
    };
    let mut found = BTreeMap::new();
    for group in &election.keeper.status().groups {
        let instance = election.instances.get(&instance_of(group.id));
        if let (Some(reason), Some(instance)) = (group.interface.as_ref().and_then(reason), instance) {
            found.extend(instance.addresses().map(|ip| (ip.to_canonical(), reason.clone())));
        }
    }
    found
}

fn backend(found: &BackendSnapshot) -> Backend {
    Backend {
        address: found.addr.to_string(),
        state: found.state.as_str().to_owned(),
        since_seconds: age(found.since),
        reason: latest_reason(
            found.state,
            &found.reason,
            found.last_check.as_ref().and_then(|check| check.failure.as_ref()).map(ToString::to_string),
        ),
        connections_active: found.active as u64,
        connections_total: found.total,
        connect_failures: found.failures,
        last_check_seconds_ago: found.last_check.as_ref().map(|check| age(check.at)),
        last_check_took_seconds: found.last_check.as_ref().map(|check| check.latency.as_secs_f64()),
        bytes_from_clients: found.bytes_in,
        bytes_to_clients: found.bytes_out,
        connect_times: connect_times(&found.connect_times),
    }
}

fn connect_times(found: &lb_proxy::ConnectTimes) -> ConnectTimes {
    let bounds = lb_proxy::ConnectTimes::BOUNDS.iter().map(|bound| Some(bound.as_secs_f64()));
    let classes = bounds
        .chain([None])
        .zip(found.counts)
        .map(|(up_to_seconds, count)| ConnectClass { up_to_seconds, count });
    ConnectTimes { sum_seconds: found.sum.as_secs_f64(), classes: classes.collect() }
}

/// The reason for the state of a backend: that of its last change, or that of a later check, which may differ.
fn latest_reason(state: BackendState, of_change: &str, last_failure: Option<String>) -> Option<String> {
    let accepts_connections = matches!(state, BackendState::Up | BackendState::Suspect);
    let reason = last_failure.filter(|_| !accepts_connections).unwrap_or_else(|| of_change.to_owned());
    (!reason.is_empty() && reason != state.as_str()).then_some(reason)
}

fn age(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(state: &str, since_seconds: f64, holds_virtual_ips: bool, hears_active: bool) -> Option<String> {
        let active = ActiveRouter { address: "10.0.0.12".into(), priority: 200 };
        unowned(&Instance {
            virtual_router_id: 51,
            virtual_ips: vec!["10.0.0.100/24".into()],
            state: state.into(),
            since_seconds,
            holds_virtual_ips,
            advert_interval_seconds: 1.0,
            active_router: hears_active.then_some(active),
            ..Instance::default()
        })
    }

    #[test]
    fn the_reason_of_a_failed_backend_is_that_of_its_last_check() {
        let reason = |state, of_change: &str, last: Option<&str>| {
            latest_reason(state, of_change, last.map(str::to_owned)).unwrap_or_default()
        };
        assert_eq!(reason(BackendState::Down, "connection refused", Some("timed out")), "timed out");
        assert_eq!(reason(BackendState::Down, "connection refused", None), "connection refused");
        assert_eq!(reason(BackendState::Draining, "up", Some("timed out")), "timed out");
        assert_eq!(
            reason(BackendState::Up, "up", Some("timed out")),
            "",
            "one failure does not change the state"
        );
        assert_eq!(reason(BackendState::Up, "up-readiness-unknown", None), "up-readiness-unknown");
    }

    #[test]
    fn addresses_that_no_host_is_known_to_hold_are_a_problem() {
        for (state, since, holds, hears) in [
            ("active", 0.5, false, false),
            ("active", 9.0, true, false),
            ("backup", 4.5, false, false),
            ("backup", 900.0, false, true),
            ("resigning", 1.0, true, false),
            ("init", 0.5, false, false),
        ] {
            assert_eq!(text(state, since, holds, hears), None, "{state} {since}");
        }
        for (state, since, expected) in [
            ("active", 1.5, "does not have all"),
            ("backup", 5.5, "hears no Active"),
            ("init", 1.5, "does not take part"),
            ("listening", 1.5, "does not take part"),
        ] {
            let text = text(state, since, false, false).unwrap();
            assert!(
                text.contains(expected) && text.contains("51") && text.contains("10.0.0.100/24"),
                "{text}"
            );
        }
    }
}
