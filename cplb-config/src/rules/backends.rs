//! Servers must not be the balancer itself.

use crate::admission::{BackendRule, Unfit};
use crate::model::{Backends, Host, Port};
use crate::read::{BackendsDraft, Placed, PlacedBackend, ServiceDraft};
use crate::walk::{Finding, Reporter};

/// The rule and the ports that servers are compared with.
pub(super) struct Context<'a> {
    pub(super) rule: BackendRule,
    pub(super) bind_ports: &'a [Option<Placed<Port>>],
    pub(super) out: &'a Reporter<'a>,
}

impl Context<'_> {
    /// The reason why connections to the host and port would come back to the load balancer, if they would.
    fn leads_back(&self, host: &Host, port: Port) -> Option<Unfit> {
        self.rule.leads_elsewhere(host, port).err()
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
        && context.rule.moves(*ip)
    {
        let message = format!(
            "{ip} is a virtual IP: the node that holds it would connect to itself; the server is left out"
        );
        let help = "list the controllers' own addresses";
        context.out.warn(&backend.path, backend.at, Finding::new("backend-vip", message, help));
        return true;
    }
    let port_for = |user: &&ServiceDraft| backend.value.port.or_else(|| user.server_port());
    let back = |port: Port| Some((port, context.leads_back(host, port)?));
    if let Some((port, unfit)) = users.iter().filter_map(port_for).find_map(back) {
        let message = if unfit == Unfit::OwnProxy {
            format!("{host} with port {port} is where the proxy itself listens")
        } else {
            format!(
                "{port} is the proxy's bind port on every node, so on {host} a proxy would connect to a proxy"
            )
        };
        let own = users.iter().filter_map(|user| user.server_port()).find(|&port| back(port).is_none());
        let help = match own {
            Some(own) => format!("write the server's own port, such as {own}"),
            None => "choose a bind port that differs from the servers' port".to_owned(),
        };
        context.out.error(&backend.path, backend.at, Finding::new("backend-proxy", message, help));
    }
    false
}
