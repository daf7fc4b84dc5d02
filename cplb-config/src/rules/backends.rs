//! Servers must not be the balancer itself.

use std::net::IpAddr;

use crate::model::{Backends, Host, Port};
use crate::read::{BackendsDraft, Placed, PlacedBackend, ServiceDraft};
use crate::walk::{Finding, Reporter};

use super::is_vip;
use super::services::server_port;

/// What servers are compared with.
pub(super) struct Context<'a> {
    pub(super) vips: &'a [IpAddr],
    pub(super) bind_ports: &'a [Option<Placed<Port>>],
    /// The bind ports where every node that runs this configuration has its proxy, and no server.
    pub(super) proxy_ports: &'a [Port],
    pub(super) out: &'a Reporter<'a>,
}

impl Context<'_> {
    fn is_proxy(&self, host: &Host, port: Port) -> bool {
        let bound = || self.bind_ports.iter().flatten().any(|placed| placed.value == port);
        self.proxy_ports.contains(&port) || (host.is_this_node() && bound())
    }
}

/// Rules about the servers that several services share.
pub(super) fn check_shared(shared: &BackendsDraft, drafts: &[ServiceDraft], context: &Context<'_>) {
    let users: Vec<&ServiceDraft> = drafts.iter().filter(|draft| draft.backends.is_none()).collect();
    if users.len() > 1 {
        for backend in shared.fixed.iter().filter(|backend| backend.value.port.is_some()) {
            let message =
                format!("{} services share this server, and it names one port for all of them", users.len());
            let help =
                "leave the port out (services have `backendPort`), or list the server under its service";
            context.out.error(&backend.path, backend.at, Finding::new("shared-port", message, help));
        }
    }
}

/// The servers without those that would lead back here. `users` are the services that connect to them.
pub(super) fn build(draft: &BackendsDraft, users: &[&ServiceDraft], context: &Context<'_>) -> Backends {
    let kept = draft.fixed.iter().filter(|backend| !leads_back(backend, users, context));
    Backends {
        fixed: kept.map(|backend| backend.value.clone()).collect(),
        kubeconfig: draft.kubeconfig.clone(),
    }
}

fn leads_back(backend: &PlacedBackend, users: &[&ServiceDraft], context: &Context<'_>) -> bool {
    let host = &backend.value.host;
    if let Host::Address(ip) = host
        && is_vip(context.vips, *ip)
    {
        let message = format!(
            "{ip} is a virtual IP: the node that holds it would connect to itself; the server is left out"
        );
        let help = "list the controllers' own addresses";
        context.out.warn(&backend.path, backend.at, Finding::new("backend-vip", message, help));
        return true;
    }
    let port_for = |user: &&ServiceDraft| backend.value.port.or_else(|| server_port(user));
    if let Some(port) = users.iter().filter_map(port_for).find(|&port| context.is_proxy(host, port)) {
        let message = if host.is_this_node() {
            format!("{host} with port {port} is where the proxy itself listens")
        } else {
            format!(
                "{port} is the proxy's bind port on every node, so on {host} a proxy would connect to a proxy"
            )
        };
        let own =
            users.iter().filter_map(|user| server_port(user)).find(|&port| !context.is_proxy(host, port));
        let help = match own {
            Some(own) => format!("write the server's own port, such as {own}"),
            None => "choose a bind port that differs from the servers' port".to_owned(),
        };
        context.out.error(&backend.path, backend.at, Finding::new("backend-proxy", message, help));
    }
    false
}
