//! Admission: decides which of the addresses that were found for a service may be its backends.

use std::net::SocketAddr;

use cplb_config::{BackendRule, Config, Host, Origin, Service, Unfit};

use super::resolved::ResolvedBackends;

/// The backends of each service of a configuration, and the addresses that were refused.
#[derive(Debug)]
pub(crate) struct Admitted<'a> {
    pub(crate) services: Vec<(&'a Service, Vec<lb_proxy::Backend>)>,
    pub(crate) refusals: Vec<Refusal>,
}

/// An address that the [`BackendRule`] does not admit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    pub(crate) service: String,
    pub(crate) server: SocketAddr,
    pub(crate) origin: Origin,
    pub(crate) unfit: Unfit,
}

/// Applies the [`BackendRule`] to every address that was found. Every backend of the proxy and of IPVS passes through here.
pub(crate) fn admit<'a>(config: &'a Config, resolved: &ResolvedBackends) -> Admitted<'a> {
    let (rule, mut refusals) = (rule(config, resolved), Vec::new());
    let services = config.services.iter().map(|service| {
        let found =
            written(config, service, resolved).into_iter().chain(discovered(config, service, resolved));
        (service, admitted(&rule, service, found, &mut refusals))
    });
    Admitted { services: services.collect(), refusals }
}

fn rule(config: &Config, resolved: &ResolvedBackends) -> BackendRule {
    config.backend_rule().on_node(resolved.node().iter().copied())
}

/// The API servers that the configuration gives, by address or by name.
pub(super) fn written_servers(config: &Config, resolved: &ResolvedBackends) -> Vec<SocketAddr> {
    let Some(service) = config.api_service() else { return Vec::new() };
    let rule = rule(config, resolved);
    let backends = admitted(&rule, service, written(config, service, resolved), &mut Vec::new());
    backends.into_iter().map(|backend| backend.addr).collect()
}

/// The address at which a service uses a server that the API lists. The API's own service uses the listed port, unless the
/// configuration gives another one; the other services run on the same nodes.
pub(super) fn listed_at(config: &Config, service: &Service, server: SocketAddr) -> SocketAddr {
    let own_port = is_api(config, service) && service.backend_port == service.port;
    if own_port { server } else { SocketAddr::new(server.ip(), service.backend_port.number()) }
}

/// An address for a service before admission.
struct Candidate {
    server: SocketAddr,
    origin: Origin,
    weight: u32,
    name: Option<String>,
}

fn admitted(
    rule: &BackendRule,
    service: &Service,
    found: impl IntoIterator<Item = Candidate>,
    refusals: &mut Vec<Refusal>,
) -> Vec<lb_proxy::Backend> {
    let mut backends: Vec<lb_proxy::Backend> = Vec::new();
    for Candidate { server, origin, weight, name } in found {
        match rule.admit(server, service, origin) {
            Ok(addr) if backends.iter().all(|known| known.addr != addr) => {
                backends.push(lb_proxy::Backend { addr, weight, name });
            }
            Ok(_) => {}
            Err(unfit) => {
                refusals.push(Refusal { service: service.name.clone(), server, origin, unfit });
            }
        }
    }
    backends
}

/// The servers that the configuration gives, by address or by name.
fn written(config: &Config, service: &Service, resolved: &ResolvedBackends) -> Vec<Candidate> {
    let mut found = Vec::new();
    for backend in &config.backends_of(service).fixed {
        let port = backend.port.unwrap_or(service.backend_port).number();
        let (addresses, host_name) = match &backend.host {
            Host::Address(ip) => (std::slice::from_ref(ip), None),
            Host::Name(name) => (resolved.addresses(name), Some(name)),
        };
        let origin = if host_name.is_none() || backend.host.is_this_node() {
            Origin::Written
        } else {
            Origin::Resolved
        };
        found.extend(addresses.iter().map(|ip| Candidate {
            server: SocketAddr::new(*ip, port),
            origin,
            weight: backend.weight,
            name: backend.name.as_ref().or(host_name).cloned(),
        }));
    }
    found
}

/// The discovered servers of a service, and local candidates until there are any.
fn discovered(config: &Config, service: &Service, resolved: &ResolvedBackends) -> Vec<Candidate> {
    let kubeconfig = config.backends_of(service).kubeconfig.as_ref();
    let Some(servers) = kubeconfig.and_then(|path| resolved.discovered(path)) else { return Vec::new() };
    let found = |server, origin| Candidate { server, origin, weight: 1, name: None };
    let port = service.backend_port.number();
    let listed = servers.discovered.iter().map(|server| listed_at(config, service, *server));
    let own = servers.local_candidates.iter().map(|ip| SocketAddr::new(*ip, port));
    let listed = listed.map(|server| found(server, Origin::Discovered));
    listed.chain(own.map(|server| found(server, Origin::LocalCandidate))).collect()
}

/// Returns whether a service is that of the API servers.
pub(crate) fn is_api(config: &Config, service: &Service) -> bool {
    config.api_service().is_some_and(|api| api.name == service.name)
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
