//! Konnectivity's agents: each opens connections until it has reached every server, so it must not always get the same
//! one.

use lb_proxy::Balance;

use crate::diagnostic::Severity;
use crate::model::LbAlgorithm;
use crate::read::{Section, ServiceDraft};
use crate::walk::{Finding, Reporter, join};

use super::common::Common;

const WHY: &str = "an agent of konnectivity opens connections until it has reached every server";

/// Refuses settings that always lead an agent to the same server, for that service only where that is possible.
pub(super) fn check(section: &Section, drafts: &[ServiceDraft], common: &Common<'_>, out: &Reporter<'_>) {
    if section.disable_load_balancer {
        return;
    }
    let Some(service) = drafts.iter().find(|draft| draft.is_konnectivity()) else { return };
    for draft in drafts.iter().filter(|draft| draft.is_konnectivity()) {
        if common.balance_of(draft) == Some(Balance::SourceHash) {
            let message = format!("sourceHash leads each client to one server for ever, but {WHY}");
            let help = "write `balance: roundRobin` for this service";
            let path = join(&draft.path, "balance");
            out.error(&path, draft.at, Finding::new("konnectivity-balance", message, help));
        }
    }
    for server in &section.virtual_servers {
        let placed = section.virtual_server_addresses.iter().find(|placed| placed.value == server.address);
        let Some(placed) = placed else { continue };
        if leads_to_one_server(server.algorithm) {
            let message = format!(
                "lbAlgo {} leads each client to one server for ever, but {WHY}, and its service is on line {}",
                server.algorithm, service.at.line
            );
            let help = "write `lbAlgo: rr`, `wrr`, `lc`, `wlc`, `sed` or `nq`";
            out.error(&placed.path, placed.at, Finding::new("konnectivity-balance", message, help));
        } else if server.persistence_timeout.is_some() {
            let message = format!(
                "the persistence of {} does not count for the service on line {}: {WHY}",
                server.address, service.at.line
            );
            let help = "nothing to do: it counts for the other services; `persistenceTimeoutSeconds: 0` ends it for all";
            let finding = Finding::new("konnectivity-persistence", message, help);
            out.report(Severity::Advice, &placed.path, Some(placed.at), finding);
        }
    }
}

/// By the client's address, or by that of the service, which all clients share.
fn leads_to_one_server(algorithm: LbAlgorithm) -> bool {
    matches!(
        algorithm,
        LbAlgorithm::SourceHashing
            | LbAlgorithm::DestinationHashing
            | LbAlgorithm::LocalityBasedLeastConnections
    )
}
