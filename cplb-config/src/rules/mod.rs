//! The rules between fields, and the configuration that they admit.

mod backends;
mod cluster_conflicts;
mod common;
mod context;
mod instances;
mod konnectivity;
mod services;
mod timing;
mod virtual_servers;
mod weights;

use std::net::IpAddr;

use crate::admission::BackendRule;
use crate::model::{Config, Port};
use crate::read::{PROXY_BIND_PORT, Placed, Section, ServiceDraft, host};
use crate::walk::{Finding, Reporter};

pub(crate) use context::{BoundServer, ClusterContext, IpvsProxy, KubeProxy};

/// Checks everything against everything. `None` only if something was reported.
pub(crate) fn assemble(mut section: Section, cluster: ClusterContext, out: &Reporter<'_>) -> Option<Config> {
    instances::unique_vrids(&section.instances, out);
    let vips = instances::unique_vips(&section.instances, out);
    instances::check_unicast(&section.instances, &vips, out);
    virtual_servers::check(&section, &cluster, &vips, out);
    cluster_conflicts::check(&section, &cluster, &vips, out);
    instances::check_addresses(&cluster, &vips, out);

    let external = cluster.external_address.as_ref();
    let external =
        external.and_then(|external| host(&external.value).ok()).or(section.external_address.take());
    section.backends.fixed.extend(cluster.controllers);
    let listed = section.services.is_some();
    let drafts =
        section.services.take().unwrap_or_else(|| vec![services::api_service(cluster.at, cluster.api_port)]);
    // After another error this would only repeat that something is missing.
    if section.instances.is_empty() && !listed && section.backends.is_empty() && !out.has_errors() {
        let message = "nothing to do: neither virtual IPs nor servers are configured";
        out.error("", cluster.at, Finding::new("nothing-configured", message, cluster.format.first_steps()));
    }
    if listed && drafts.is_empty() && !section.disable_load_balancer {
        services::warn_none(cluster.at, out);
    }
    let bind_ports = services::check(&section, &drafts, out);
    if listed && section.disable_load_balancer {
        services::warn_unused(drafts.first().map_or(cluster.at, |draft| draft.at), out);
    }
    cluster_conflicts::k3s(&section, &drafts, &bind_ports, out);
    let common = common::Common {
        balance: &section.balance,
        health: &section.health,
        longest_interval: virtual_servers::longest_interval(&section),
    };
    let rule = backend_rule(&section, &drafts, &bind_ports, &vips);
    let context = backends::Context { rule, bind_ports: &bind_ports, out };
    backends::check_shared(&section.backends, &drafts, &context);
    weights::check(&section, &drafts, &common, out);
    timing::check(&section, &drafts, &common, out);
    konnectivity::check(&section, &drafts, &common, out);
    virtual_servers::check_ports(&section, &drafts, out);
    virtual_servers::check_loopback(&section, &drafts, out);
    virtual_servers::check_intervals(&section, &drafts, out);
    let services = services::build(&drafts, &common, &context);
    let shared_by: Vec<_> = drafts.iter().filter(|draft| draft.backends.is_none()).collect();
    let backends = backends::build(&section.backends, &shared_by, &context);
    if out.has_errors() {
        return None;
    }
    Some(Config {
        instances: section.instances.into_iter().map(|draft| draft.instance).collect::<Option<_>>()?,
        virtual_servers: section.virtual_servers,
        ipvs_sync: section.ipvs_sync.is_some_and(|placed| placed.value),
        disable_load_balancer: section.disable_load_balancer,
        proxy_bind_port: section.proxy_bind_port.or(PROXY_BIND_PORT)?,
        bind_address: section.bind_address,
        external_address: external,
        services: services?,
        backends,
        status_listen: section.status_listen.map(|placed| placed.value),
    })
}

/// The rule for backends, as far as the ports are known.
fn backend_rule(
    section: &Section,
    drafts: &[ServiceDraft],
    bind_ports: &[Option<Placed<Port>>],
    vips: &[IpAddr],
) -> BackendRule {
    let has_instances = !section.instances.is_empty();
    let bound = |(draft, port): &(&ServiceDraft, Port)| {
        has_instances || !services::is_apart(draft, *port, &section.backends)
    };
    let known_ports =
        || drafts.iter().zip(bind_ports).filter_map(|(draft, port)| Some((draft, port.as_ref()?.value)));
    let by_hand = section.virtual_server_addresses.iter().map(|placed| placed.value);
    BackendRule {
        vips: vips.iter().copied().chain(by_hand).collect(),
        bind_ports: known_ports().map(|(_, port)| port).collect(),
        proxy_ports: known_ports().filter(bound).map(|(_, port)| port).collect(),
        ..BackendRule::default()
    }
}
