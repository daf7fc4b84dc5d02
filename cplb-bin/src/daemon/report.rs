//! Gathers the status of all parts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use lb_proxy::{BackendSnapshot, ServiceSnapshot};
use netlink_vip::GroupState;
use vrrp::router::Counters;
use vrrp::runner::{InstanceStatus, InterfaceStatus};

use crate::status::schema::{
    ActiveRouter, Backend, Delivery, Discovery, Instance, Interface, Kernel, SCHEMA, Service, Status,
    Transition,
};

use crate::discovery::State;

use super::Daemon;
use super::election::Election;
use super::found::Known;
use super::table::{Delivered, Reason};

impl Daemon {
    /// What `cplb status` shows.
    pub(crate) fn status(&self) -> Status {
        let (mut instances, mut interfaces) = (Vec::new(), Vec::new());
        let (mut real_time, mut kernel) = (false, None);
        if let Some(election) = &self.election {
            let status = election.runner.status();
            real_time = status.realtime.realtime;
            instances = status.instances.iter().map(|found| instance(found, election)).collect();
            interfaces = status.interfaces.iter().map(interface).collect();
            kernel = Some(news(&election.keeper.status().counters));
        }
        Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            config: self.args.config.config.display().to_string(),
            degraded: self.problems.texts(),
            serving: self.verdict.status(),
            real_time,
            instances,
            kernel,
            interfaces,
            services: self.services(),
            discovery: self.clusters.known().map(|known| discovery(&known)).collect(),
            ipvs: self.ipvs_status(),
            table: self.table.status(),
        }
    }

    fn services(&self) -> Vec<Service> {
        let Some(balancer) = &self.balancer else { return Vec::new() };
        let snapshot = balancer.snapshot();
        let found = |name: &str| snapshot.services.iter().find(|service| &*service.name == name);
        let delivered = self.delivered();
        let shown = self.config.services.iter().filter_map(|config| {
            let delivery = delivery(&delivered, config.port.number());
            Some(Service { delivery, ..service(config, found(&config.name)?) })
        });
        shown.collect()
    }

    fn delivered(&self) -> BTreeMap<SocketAddr, Delivered> {
        let bridges = self.election.as_ref().map(bridges).unwrap_or_default();
        self.table.delivered(&bridges)
    }

    /// Says how connections arrive, once per change.
    pub(crate) fn log_delivery(&mut self) {
        let delivered = self.delivered();
        for (endpoint, now) in
            delivered.iter().filter(|(endpoint, now)| self.delivered.get(endpoint) != Some(now))
        {
            let (vip, port, mode) = (endpoint.ip(), endpoint.port(), now.mode());
            match &now.reason {
                None => tracing::info!(%vip, port, %mode, "delivery of connections"),
                Some(reason @ Reason::Unavailable(_)) => {
                    tracing::warn!(%vip, port, %mode, %reason, "delivery of connections");
                }
                Some(reason) => tracing::info!(%vip, port, %mode, %reason, "delivery of connections"),
            }
        }
        self.delivered = delivered;
    }
}

fn discovery((kubeconfig, known, answered): &(&Path, &Known, Option<(SocketAddr, Instant)>)) -> Discovery {
    let (waiting, error) = match &known.trouble {
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
        kept: known.kept.clone(),
        answered_by: answered.map(|(server, _)| server.to_string()),
        answered_seconds_ago: answered.map(|(_, at)| age(at)),
    }
}

fn instance(found: &InstanceStatus, election: &Election) -> Instance {
    let config = election.instances.get(&found.id);
    let keeper = election.keeper.status();
    let group = keeper.groups.iter().find(|group| group.id.0 == found.id.0);
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
        holds_virtual_ips: group.is_some_and(|group| matches!(group.state, GroupState::Held { .. })),
        priority: lowest(found.priority.0),
        advertised_priority: found.priority.0,
        advert_interval_seconds: config.map_or(0.0, |config| config.router.router.interval().as_secs_f64()),
        lease_seconds: group.map_or(0.0, |group| f64::from(group.lease.as_secs())),
        active_router: found
            .active
            .map(|active| ActiveRouter { address: active.source.to_string(), priority: active.priority.0 }),
        advertisements_sent: found.traffic.sent,
        advertisements_received: found.traffic.received,
        discarded: found
            .counters
            .discarded
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| (reason.as_str().to_owned(), count))
            .collect(),
        mismatches: mismatches(&found.counters),
        transitions: found.transitions.iter().rev().map(transition).collect(),
    }
}

fn news(counters: &netlink_vip::Counters) -> Kernel {
    Kernel {
        overruns: counters.overruns,
        resyncs: counters.resyncs,
        missing: counters.missing,
        errors: counters.kernel_errors,
    }
}

fn mismatches(counters: &Counters) -> BTreeMap<String, u64> {
    [("address_list", counters.address_list_mismatches), ("interval", counters.interval_mismatches)]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| (what.to_owned(), count))
        .collect()
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

/// The virtual IPs whose interface is a bridge, with its name.
fn bridges(election: &Election) -> BTreeMap<IpAddr, String> {
    let mut bridges = BTreeMap::new();
    for group in &election.keeper.status().groups {
        let bridge = group.interface.as_ref().filter(|it| it.kind.as_deref() == Some("bridge"));
        let instance = election.instances.get(&vrrp::runner::InstanceId(group.id.0));
        if let (Some(bridge), Some(instance)) = (bridge, instance) {
            bridges.extend(instance.addresses().map(|ip| (ip.to_canonical(), bridge.name.clone())));
        }
    }
    bridges
}

fn backend(found: &BackendSnapshot) -> Backend {
    Backend {
        address: found.addr.to_string(),
        state: found.state.as_str().to_owned(),
        since_seconds: age(found.since),
        reason: Some(&found.reason).filter(|why| !why.is_empty() && **why != found.state.as_str()).cloned(),
        connections_active: found.active as u64,
        connections_total: found.total,
        connect_failures: found.failures,
        last_check_seconds_ago: found.last_check.as_ref().map(|check| age(check.at)),
    }
}

fn age(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
