//! Rules between services: names, ports and what they inherit.

use crate::model::{API_SERVICE, Port, Service};
use crate::read::{BackendsDraft, Given, HealthDraft, PROXY_BIND_PORT, Placed, Section, ServiceDraft};
use crate::walk::{Finding, Reporter, join};
use crate::yaml::Span;

use super::backends;
use super::common::{Common, unique};

/// The service that k0s balances when none is listed.
pub(super) fn api_service(at: Span, api_port: Option<Port>) -> ServiceDraft {
    let placed = |port| Placed { value: port, at, path: "spec.api.port".to_owned() };
    ServiceDraft {
        path: String::new(),
        at,
        name: Some(Placed { value: API_SERVICE.to_owned(), at, path: String::new() }),
        port: api_port.map(placed),
        bind_port: Given::Absent,
        backend_port: Given::Absent,
        backends: None,
        balance: Given::Absent,
        health: HealthDraft::default(),
        max_connections: None,
        max_connections_per_client: None,
    }
}

/// Checks names and ports and returns each service's bind port, as far as it is known.
pub(super) fn check(
    section: &Section,
    drafts: &[ServiceDraft],
    out: &Reporter<'_>,
) -> Vec<Option<Placed<Port>>> {
    let (first_bind_port, status) = (&section.proxy_bind_port, section.status_listen.as_ref());
    let has_instances = !section.instances.is_empty();
    let names: Vec<_> = drafts.iter().map(|draft| draft.name.as_ref()).collect();
    unique("duplicate-service", "the name", &names, out);
    let ports: Vec<_> = drafts.iter().map(|draft| draft.port.as_ref()).collect();
    unique("duplicate-port", "port", &ports, out);
    let bind_ports: Vec<_> = drafts
        .iter()
        .enumerate()
        .map(|(index, draft)| bind_port(draft, index, first_bind_port, out))
        .collect();
    for (index, bind_port) in bind_ports.iter().enumerate() {
        let Some(bind_port) = bind_port else { continue };
        bind_port_clash(index, bind_port, drafts, &bind_ports, out);
        let discovers = drafts[index].backends.as_ref().unwrap_or(&section.backends).kubeconfig.is_some();
        own_server(&drafts[index], bind_port, has_instances, discovers, out);
        if let Some(status) = status.filter(|status| status.value.port() == bind_port.value.number()) {
            let message = format!("port {} is already the bind port of a service", bind_port.value);
            out.error(
                &status.path,
                status.at,
                Finding::new("port-clash", message, "give the status page another port"),
            );
        }
    }
    if !section.disable_load_balancer {
        check_api(section, drafts, out);
    }
    bind_ports
}

/// Warns of an empty list of services, `at` its document.
pub(super) fn warn_none(at: Span, out: &Reporter<'_>) {
    let message = "no service is listed, so nothing is balanced, and the virtual IPs are held without a server behind them";
    let help = "list one, such as `{name: kube-apiserver, port: 6443}`; remove `services` for just that one; or write \
                `disableLoadBalancer: true`";
    out.warn("services", at, Finding::new("no-services", message, help));
}

/// Warns of services without a load balancer, `at` the first of them.
pub(super) fn warn_unused(at: Span, out: &Reporter<'_>) {
    let help = "remove `services`, or remove `disableLoadBalancer`";
    let message = "services have no effect with disableLoadBalancer";
    out.warn("services", at, Finding::new("unused", message, help));
}

/// Returns whether the servers of the service listen on its own bind port, which shows that they run on other nodes.
///
/// A plain load balancer is reached at its bind port, so its servers' port is a natural choice. With virtual IPs any
/// bind port will do, and the nodes of the load balancer are the controllers.
pub(super) fn is_apart(draft: &ServiceDraft, bind_port: Port, shared: &BackendsDraft) -> bool {
    let servers = &draft.backends.as_ref().unwrap_or(shared).fixed;
    draft.server_port() == Some(bind_port)
        && servers.iter().all(|server| server.value.port.is_none_or(|port| port == bind_port))
}

fn bind_port(
    draft: &ServiceDraft,
    index: usize,
    first: &Given<Port>,
    out: &Reporter<'_>,
) -> Option<Placed<Port>> {
    match &draft.bind_port {
        Given::Value(placed) => return Some(placed.clone()),
        Given::Wrong => return None,
        Given::Absent => {}
    }
    // Where no service is listed, the first bind port is the only setting of it in the file.
    let (path, at) = match first {
        Given::Value(placed) if draft.path.is_empty() => (placed.path.clone(), placed.at),
        _ => (join(&draft.path, "bindPort"), draft.at),
    };
    let number = usize::from(first.or(PROXY_BIND_PORT)?.number()) + index;
    let port = u16::try_from(number).ok().and_then(Port::new);
    if port.is_none() {
        let message = format!("the default bind port, userSpaceProxyBindPort + {index}, would be {number}");
        out.error(&path, at, Finding::new("bind-port-overflow", message, "give the service a `bindPort`"));
    }
    Some(Placed { value: port?, at, path })
}

fn bind_port_clash(
    index: usize,
    bind_port: &Placed<Port>,
    drafts: &[ServiceDraft],
    bind_ports: &[Option<Placed<Port>>],
    out: &Reporter<'_>,
) {
    let port = bind_port.value;
    let taken = |candidate: Port| {
        bind_ports.iter().flatten().any(|other| other.value == candidate)
            || drafts.iter().filter_map(|draft| draft.port.as_ref()).any(|other| other.value == candidate)
    };
    let free = (port.number()..=u16::MAX).filter_map(Port::new).find(|&candidate| !taken(candidate));
    let help = match free {
        Some(free) => format!("write `bindPort: {free}`"),
        None => "give each service its own bindPort".to_owned(),
    };
    let earlier = bind_ports[..index].iter().flatten().find(|other| other.value == port);
    let message = if let Some(earlier) = earlier {
        format!("bind port {port} is already that of a service on line {}", earlier.at.line)
    } else {
        let mut others =
            drafts.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, draft)| draft);
        let Some(other) = others.find(|draft| draft.port.as_ref().is_some_and(|placed| placed.value == port))
        else {
            return;
        };
        format!("bind port {port} is the port of the service on line {}", other.at.line)
    };
    out.error(&bind_port.path, bind_port.at, Finding::new("port-clash", message, help));
}

/// A controller's own server already listens on its port, so the proxy cannot; or the server cannot, where the proxy
/// started first, as where servers are discovered.
fn own_server(
    draft: &ServiceDraft,
    bind_port: &Placed<Port>,
    has_instances: bool,
    discovers: bool,
    out: &Reporter<'_>,
) {
    let Some(server) = draft.server_port() else {
        return;
    };
    if has_instances && server == bind_port.value {
        let message = format!(
            "on a controller the server itself listens on port {server}, so only one of it and the proxy can"
        );
        let help = "choose another bind port; clients reach it through the virtual IPs all the same";
        let finding = Finding::new("bind-port-server", message, help);
        if discovers {
            out.error(&bind_port.path, bind_port.at, finding);
        } else {
            out.warn(&bind_port.path, bind_port.at, finding);
        }
    }
}

/// Reports a service that looks like the API's and is treated like any other, and one with discovered servers at other
/// ports than listed.
fn check_api(section: &Section, drafts: &[ServiceDraft], out: &Reporter<'_>) {
    const USUAL: Option<Port> = Port::new(6443);
    let named = |draft: &&ServiceDraft| draft.name.as_ref().is_some_and(|name| name.value == API_SERVICE);
    let api = drafts.iter().find(named).or(drafts.first().filter(|_| drafts.len() == 1));
    let Some(api) = api else {
        if let Some(draft) = drafts.iter().find(|draft| draft.server_port() == USUAL) {
            let message =
                "this looks like the API servers' service, and is checked like any other: by a TLS handshake";
            let help = "write `name: kube-apiserver`";
            let path = join(&draft.path, "name");
            out.warn(&path, draft.at, Finding::new("no-api-service", message, help));
        }
        return;
    };
    let discovers = api.backends.as_ref().unwrap_or(&section.backends).kubeconfig.is_some();
    let Some(port) = api.port.as_ref().filter(|port| discovers && Some(port.value) != USUAL) else { return };
    // k0s configures the port of its API servers.
    if matches!(api.backend_port, Given::Absent) && !api.path.is_empty() {
        let message = format!(
            "servers that the API lists are used at the ports that it lists, all others at port {}",
            port.value
        );
        let help = "write `backendPort: 6443`, or the port that the API servers listen on";
        out.warn(&port.path, port.at, Finding::new("discovered-port", message, help));
    }
}

/// The services, or `None` if something about them was reported.
pub(super) fn build(
    drafts: &[ServiceDraft],
    common: &Common<'_>,
    context: &backends::Context<'_>,
) -> Option<Vec<Service>> {
    let single = drafts.len() == 1;
    let service = |(draft, bind_port): (&ServiceDraft, &Option<Placed<Port>>)| {
        let own = draft.backends.as_ref().map(|backends| backends::build(backends, &[draft], context));
        let name = draft.name.as_ref()?.value.clone();
        let port = draft.port.as_ref()?.value;
        Some(Service {
            health: draft.health.resolve(
                common.health,
                name == API_SERVICE || (single && !draft.is_konnectivity()),
                common.longest_interval,
            ),
            name,
            port,
            bind_port: bind_port.as_ref()?.value,
            backend_port: draft.backend_port.or(Some(port))?,
            backends: own,
            balance: common.balance_of(draft)?,
            max_connections: draft.max_connections,
            max_connections_per_client: draft.max_connections_per_client,
        })
    };
    // Every service is visited, so that every finding is reported.
    let services: Vec<_> = drafts.iter().zip(context.bind_ports).map(service).collect();
    services.into_iter().collect()
}
