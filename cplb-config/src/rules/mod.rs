//! The rules between fields, and the configuration that obeys them.

mod backends;
mod instances;
mod konnectivity;
mod neighbours;
mod services;
mod timing;
mod virtual_servers;
mod weights;

use std::net::IpAddr;

use crate::admission::BackendRule;
use crate::load::Format;
use crate::model::{Config, Port};
use crate::read::{PROXY_BIND_PORT, Placed, PlacedBackend, Section, ServiceDraft};
use crate::walk::{Finding, Reporter};
use crate::yaml::Span;

pub(crate) use neighbours::{BoundServer, IpvsProxy, KubeProxy};

/// What stands around the section and matters to it.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) format: Format,
    /// Where to point at when nothing is configured.
    pub(crate) at: Span,
    /// The API server's port; `None` if it was wrong, which was reported.
    pub(crate) api_port: Option<Port>,
    /// `spec.api.address`, the node's own address to k0s.
    pub(crate) api_address: Option<Placed<IpAddr>>,
    /// `spec.api.externalAddress`, if not empty.
    pub(crate) external_address: Option<Placed<String>>,
    /// Whether every controller runs without k0s's endpoint reconciler.
    pub(crate) endpoint_reconciler_disabled: bool,
    /// The controllers of a k0sctl file.
    pub(crate) controllers: Vec<PlacedBackend>,
    /// Those of them that are workers too, by name.
    pub(crate) workers: Vec<Placed<String>>,
    /// kube-proxy beside it.
    pub(crate) kube_proxy: KubeProxy,
    /// What binds the API server to one address, if anything does.
    pub(crate) bound_server: Option<BoundServer>,
}

/// Checks everything against everything. `None` only if something was reported.
pub(crate) fn assemble(mut section: Section, around: Surroundings, out: &Reporter<'_>) -> Option<Config> {
    instances::unique_vrids(&section.instances, out);
    let vips = instances::unique_vips(&section.instances, out);
    instances::check_unicast(&section.instances, &vips, out);
    virtual_servers::check(&section, &around, &vips, out);
    neighbours::check(&section, &around, &vips, out);
    instances::check_addresses(&around, &vips, out);

    section.backends.fixed.extend(around.controllers);
    let listed = section.services.is_some();
    let drafts =
        section.services.take().unwrap_or_else(|| vec![services::api_service(around.at, around.api_port)]);
    // After another error this would only repeat that something is missing.
    if section.instances.is_empty() && !listed && section.backends.is_empty() && !out.has_errors() {
        let message = "nothing to do: neither virtual IPs nor servers are configured";
        out.error("", around.at, Finding::new("nothing-configured", message, around.format.first_steps()));
    }
    let has_instances = !section.instances.is_empty();
    if listed && drafts.is_empty() && !section.disable_load_balancer {
        let message = "no service is listed, so nothing is balanced, and the virtual IPs are held without a server behind them";
        let help = "list one, such as `{name: kube-apiserver, port: 6443}`; remove `services` for just that one; or write \
                    `disableLoadBalancer: true`";
        out.warn("services", around.at, Finding::new("no-services", message, help));
    }
    let bind_ports = services::check(&section, &drafts, out);
    if listed && section.disable_load_balancer {
        let at = drafts.first().map_or(around.at, |draft| draft.at);
        let help = "remove `services`, or remove `disableLoadBalancer`";
        out.warn(
            "services",
            at,
            Finding::new("unused", "services have no effect with disableLoadBalancer", help),
        );
    }
    neighbours::k3s(&section, &drafts, &bind_ports, out);
    let common = services::Common {
        balance: &section.balance,
        health: &section.health,
        longest_interval: virtual_servers::longest_interval(&section),
    };
    let bound = |(draft, port): &(&ServiceDraft, Port)| {
        has_instances || !services::is_apart(draft, *port, &section.backends)
    };
    let known_ports =
        || drafts.iter().zip(&bind_ports).filter_map(|(draft, port)| Some((draft, port.as_ref()?.value)));
    let by_hand = section.virtual_server_addresses.iter().map(|placed| placed.value);
    let rule = BackendRule {
        vips: vips.iter().copied().chain(by_hand).collect(),
        bind_ports: known_ports().map(|(_, port)| port).collect(),
        proxy_ports: known_ports().filter(bound).map(|(_, port)| port).collect(),
        ..BackendRule::default()
    };
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
        services: services?,
        backends,
        status_listen: section.status_listen.map(|placed| placed.value),
    })
}

/// Reports every value that an earlier item of the list has too.
fn unique<T: PartialEq + std::fmt::Display>(
    rule: &'static str,
    what: &str,
    values: &[Option<&Placed<T>>],
    out: &Reporter<'_>,
) {
    for (index, placed) in values.iter().enumerate() {
        let Some(placed) = placed else { continue };
        if let Some(first) = values[..index].iter().flatten().find(|other| other.value == placed.value) {
            let message = format!("{what} {} was already given on line {}", placed.value, first.at.line);
            out.error(&placed.path, placed.at, Finding::new(rule, message, "give each service its own"));
        }
    }
}

/// Whether the address is one of the virtual IPs, which are sorted, also when written as an IPv4-mapped IPv6 address.
fn is_vip(vips: &[IpAddr], ip: IpAddr) -> bool {
    vips.binary_search(&ip.to_canonical()).is_ok()
}
