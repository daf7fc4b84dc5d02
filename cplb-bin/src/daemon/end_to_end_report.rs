//! The end-to-end checks: what is checked, and what follows from the results of this node and of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Instant;

use lb_proxy::HealthCheck;
use lb_proxy::health::Target;
use netlink_vip::{GroupId, GroupStatus};
use vrrp::channel::Unanswered;
use vrrp::router::StateName;
use vrrp::runner::{InstanceId, InstanceStatus};

use crate::status::schema;

use super::Daemon;
use super::end_to_end::{self, Checked, Observed, Outcome, Route};
use super::ids::group_of;
use super::instance_log::instance_log;
use super::problems::Cause;
use super::sender::EventSender;
use super::vip::Election;

impl Daemon {
    /// Starts the checks that are due, and reports the services that do not answer through virtual IPs.
    pub(super) fn update_end_to_end(&mut self) {
        let now = Instant::now();
        let wanted = if self.stopping { BTreeMap::new() } else { self.routes() };
        self.end_to_end.set(now, wanted);
        while let Some((token, route)) = self.end_to_end.poll_check(now) {
            let events = EventSender::<Checked>::new(&self.channel);
            let target = self.target(&route);
            tokio::spawn(async move {
                let outcome = match target {
                    Some(target) => end_to_end::check(target).await,
                    // The service is gone, and its routes are with the next change.
                    None => Outcome::Local,
                };
                let _ = events.send(Checked { token, outcome });
            });
        }
        self.report_end_to_end();
        self.report_unanswered();
    }

    pub(super) fn on_checked(&mut self, checked: Checked) {
        self.end_to_end.handle_result(Instant::now(), checked);
    }

    /// The routes to services of which another router is the Active. A node in a VRF would check from outside of it.
    fn routes(&self) -> BTreeMap<Route, IpAddr> {
        let Some(election) = &self.election else { return BTreeMap::new() };
        let is_balanced =
            |name: &str| self.desired.proxy.services.iter().any(|service| &*service.name == name);
        let services: Vec<(&str, u16)> = self
            .config
            .services
            .iter()
            .map(|service| (service.name.as_str(), service.port.number()))
            .filter(|(name, _)| is_balanced(name))
            .collect();
        let keeper = election.keeper.status();
        let in_vrf = |group: &&GroupStatus| group.interface.as_ref().is_some_and(|found| found.vrf.is_some());
        let in_vrfs: BTreeSet<GroupId> = keeper.groups.iter().filter(in_vrf).map(|group| group.id).collect();
        let mut routes = BTreeMap::new();
        for router in &election.runner.status().instances {
            let Some(active) = router.active.filter(|_| router.state == StateName::Backup) else { continue };
            let Some(instance) = election.instances.get(&router.id) else { continue };
            let Some(interface) = election.interface(router.id).filter(|interface| interface.up) else {
                continue;
            };
            if in_vrfs.contains(&group_of(router.id)) {
                continue;
            }
            for ip in instance.addresses() {
                for (service, port) in &services {
                    let endpoint = match ip {
                        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                            SocketAddrV6::new(ip, *port, 0, interface.index).into()
                        }
                        ip => SocketAddr::new(ip, *port),
                    };
                    let service = (*service).to_owned();
                    routes.insert(Route { instance: router.id, endpoint, service }, active.source);
                }
            }
        }
        routes
    }

    fn target(&self, route: &Route) -> Option<Target> {
        let service = self.desired.proxy.services.iter().find(|service| *service.name == *route.service)?;
        let timeout = end_to_end::time_limit(service.health.timeout);
        let check = HealthCheck { timeout, ..service.health.clone() };
        let target = Target::new(service.name.clone(), route.endpoint, check).ok()?;
        Some(target.with_trust(service.trust.clone()))
    }

    fn report_end_to_end(&mut self) {
        let (begun, ended) = self.end_to_end.changes();
        let fields = Election::log_fields(self.election.as_ref());
        for route in &begun {
            let Some(observed) = self.end_to_end.routes().get(route) else { continue };
            let Some(failure) = observed.failure() else { continue };
            let (service, endpoint, active) = (&route.service, route.endpoint, observed.active);
            instance_log!(warn, fields(route.instance), service, %endpoint, %active, %failure,
                "a service does not answer through a virtual IP");
        }
        for Route { instance, endpoint, service } in &ended {
            instance_log!(info, fields(*instance), service, %endpoint,
                "the service answers through the virtual IP again, or another router has it");
        }
        let mut texts: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (route, observed, failure) in self.end_to_end.failing() {
            let (why, cause) = end_to_end::explain(failure);
            let (endpoint, active) = (route.endpoint, observed.active);
            let text = format!("{endpoint} at {active} does not answer from here ({why}): {cause}");
            texts.entry(route.instance.0).or_default().push(text);
        }
        self.problems.retain(|cause| !matches!(cause, Cause::EndToEnd(id) if !texts.contains_key(id)));
        for (id, texts) in texts {
            self.problems.raise_all(Cause::EndToEnd(id), texts);
        }
    }

    /// The failures of this node's checks, for the Active.
    pub(super) fn unanswered(&self) -> Vec<Unanswered> {
        let status = self.election.as_ref().map(|election| election.runner.status());
        let routers = status.as_ref().map_or(&[][..], |status| &status.instances[..]);
        let groups: BTreeMap<InstanceId, u64> =
            routers.iter().map(|router| (router.id, self.group_number(router))).collect();
        let reported = self.end_to_end.failing().filter_map(|(route, observed, failure)| {
            let (why, cause) = end_to_end::explain(failure);
            Some(Unanswered {
                group: *groups.get(&route.instance)?,
                active: observed.active,
                address: route.endpoint.ip(),
                port: route.endpoint.port(),
                reason: format!("{why}; {cause}"),
            })
        });
        reported.collect()
    }

    /// Reports the services of this node that other controllers do not reach.
    fn report_unanswered(&mut self) {
        let status = self.election.as_ref().map(|election| election.runner.status());
        let routers = status.as_ref().map_or(&[][..], |status| &status.instances[..]);
        let own: BTreeSet<IpAddr> = self.own_addresses().into_iter().collect();
        let peers = self.group.peers();
        let mut texts: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let is_active = |router: &&InstanceStatus| router.state == StateName::Active;
        for router in routers.iter().filter(is_active) {
            let group = self.group_number(router);
            for peer in &peers {
                let of_group = peer.report.unanswered.iter().filter(|found| found.group == group);
                // A report may be older than a move.
                for Unanswered { address, port, reason, .. } in
                    of_group.filter(|found| own.contains(&found.active))
                {
                    let (endpoint, node) = (SocketAddr::new(*address, *port), &peer.report.node);
                    let peer = peer.address;
                    let text =
                        format!("{endpoint} at this node does not answer from {peer} ({node}): {reason}");
                    texts.entry(router.id.0).or_default().push(text);
                }
            }
        }
        self.problems.retain(|cause| !matches!(cause, Cause::Unanswered(id) if !texts.contains_key(id)));
        for (id, texts) in texts {
            let fields = Election::log_fields(self.election.as_ref())(InstanceId(id));
            if self.problems.raise_all(Cause::Unanswered(id), texts.clone()) {
                texts.iter().for_each(|text| instance_log!(warn, fields, "{text}"));
            }
        }
    }

    /// The end-to-end checks of an instance, for the status.
    pub(super) fn end_to_end_status(&self, id: InstanceId) -> Vec<schema::EndToEnd> {
        let of_instance = self.end_to_end.routes().iter().filter(|(route, _)| route.instance == id);
        of_instance.map(|(route, observed)| shown(route, observed)).collect()
    }
}

fn shown(route: &Route, observed: &Observed) -> schema::EndToEnd {
    let (state, reason) = match &observed.outcome {
        None => ("unknown", None),
        Some(Outcome::Answered) => ("answers", None),
        Some(Outcome::Local) => ("local", None),
        Some(Outcome::NoRoute) => ("noRoute", None),
        Some(Outcome::Failed(failure)) => ("fails", Some(end_to_end::explain(failure).0)),
    };
    schema::EndToEnd {
        service: route.service.clone(),
        endpoint: route.endpoint.to_string(),
        active: observed.active.to_string(),
        state: state.to_owned(),
        reason,
        failures: observed.failures,
        checked_seconds_ago: observed.checked.map(|at| at.elapsed().as_secs_f64()),
    }
}
