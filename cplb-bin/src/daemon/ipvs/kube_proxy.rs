//! kube-proxy in mode ipvs, with which this node's IPVS is shared.

use nix::net::if_::if_nametoindex;

/// The dummy link to which kube-proxy adds the addresses of services.
const LINK: &str = "kube-ipvs0";

/// Returns whether kube-proxy in mode ipvs runs, or has run, on this node.
pub(super) fn is_present() -> bool {
    if_nametoindex(LINK).is_ok()
}

/// The problem for a node where IPVS balances, for the operator.
pub(super) fn fault(is_present: bool) -> Option<String> {
    is_present.then(|| {
        format!(
            "kube-proxy in mode ipvs ({LINK}) shares this node's IPVS: it keeps trying to delete cplb's services, unless \
             its ipvs.excludeCIDRs has \"0.0.0.0/32\" and \"::/128\", by which it sees services that match a mark"
        )
    })
}
