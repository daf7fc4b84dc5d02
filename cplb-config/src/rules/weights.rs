//! Weights without effect: the proxy's `balance` and IPVS's `lbAlgo` each use them or not.

use lb_proxy::Balance;

use crate::diagnostic::Severity;
use crate::model::VirtualServer;
use crate::read::{BackendsDraft, Section, ServiceDraft};
use crate::walk::{Finding, Reporter};

use super::common::Common;

/// Servers and the services that connect to them.
type Shared<'a> = (&'a BackendsDraft, Vec<&'a ServiceDraft>);

pub(super) fn check(section: &Section, drafts: &[ServiceDraft], common: &Common<'_>, out: &Reporter<'_>) {
    let servers: Vec<&VirtualServer> =
        section.virtual_servers.iter().filter(|_| !section.disable_load_balancer).collect();
    let sharing = drafts.iter().filter(|draft| draft.backends.is_none()).collect();
    let own = drafts.iter().filter_map(|draft| Some((draft.backends.as_ref()?, vec![draft])));
    let lists: Vec<Shared<'_>> = [(&section.backends, sharing)].into_iter().chain(own).collect();
    let weighted = servers.iter().any(|server| server.algorithm.uses_weights());
    // Of a virtual server that is wrong it is not known whether it would use them.
    let all_read = section.virtual_servers.len() == section.virtual_server_addresses.len();
    let mut differ = false;
    for (list, users) in &lists {
        if !users.is_empty() && !section.disable_load_balancer {
            drained(list, out);
        }
        if (weighted && !users.is_empty()) || users.iter().any(|user| balances_by_weight(user, common)) {
            differ |= have_shares(list);
        } else if all_read {
            unused(list, !servers.is_empty(), out);
        }
    }
    for server in servers.into_iter().filter(|server| differ && !server.algorithm.uses_weights()) {
        let placed = section.virtual_server_addresses.iter().find(|placed| placed.value == server.address);
        let Some(placed) = placed else { continue };
        let message = format!(
            "IPVS does not use the weights for {}: lbAlgo {} has no shares, whatever the balance of the proxy",
            server.address, server.algorithm
        );
        let help = "write `lbAlgo: wrr` or `lbAlgo: wlc`, or remove the weights";
        out.warn(&placed.path, placed.at, Finding::new("weight-ipvs", message, help));
    }
}

/// Returns whether the proxy uses weights for the service. A balance that is wrong may be meant so.
fn balances_by_weight(user: &ServiceDraft, common: &Common<'_>) -> bool {
    !matches!(common.balance_of(user), Some(Balance::RoundRobin | Balance::LeastConnections))
}

/// Returns whether some servers are to get more than others; 0 is no share, and counts everywhere.
fn have_shares(list: &BackendsDraft) -> bool {
    let mut shares = list.fixed.iter().map(|backend| backend.value.weight).filter(|weight| *weight > 0);
    shares.next().is_some_and(|first| shares.any(|other| other != first))
}

/// Weight 0 counts with every balance: the server takes no new connections.
fn drained(list: &BackendsDraft, out: &Reporter<'_>) {
    let idle: Vec<_> = list.fixed.iter().filter(|backend| backend.value.weight == 0).collect();
    let Some(first) = idle.first() else { return };
    if idle.len() == list.fixed.len() && list.kubeconfig.is_none() {
        let message = "every server has weight 0 and is drained: no client gets a connection";
        let help = "remove `weight: 0` from those that shall serve";
        out.warn(&first.path, first.at, Finding::new("drained", message, help));
        return;
    }
    for backend in idle {
        let message =
            format!("{} has weight 0, so it is drained: it takes no new connections", backend.value);
        let finding = Finding::new("drained", message, "nothing to do, if that is meant");
        out.report(Severity::Advice, &backend.path, Some(backend.at), finding);
    }
}

fn unused(list: &BackendsDraft, ipvs: bool, out: &Reporter<'_>) {
    let Some(backend) = list.fixed.iter().find(|backend| backend.value.weight > 1) else { return };
    let (message, help) = if ipvs {
        (
            "weights count only with an lbAlgo that uses them (wrr, wlc, lblc, sh, sed, nq), and for the proxy with the \
             balance weighted or sourceHash",
            "write `lbAlgo: wrr`, `balance: weighted` or both, or remove the weights",
        )
    } else {
        (
            "weights count only with the balance weighted or sourceHash",
            "write `balance: weighted`, or remove the weights",
        )
    };
    out.warn(&backend.path, backend.at, Finding::new("unused-weight", message, help));
}
