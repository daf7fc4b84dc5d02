//! kube-proxy in mode ipvs, with which this node's IPVS is shared.

use nix::net::if_::if_nametoindex;

/// The dummy link where it keeps the addresses of services.
const LINK: &str = "kube-ipvs0";

/// Whether it runs, or has run, on this node.
pub(crate) fn is_here() -> bool {
    if_nametoindex(LINK).is_ok()
}

/// The consequence for a node where IPVS balances for us, for people.
pub(crate) fn fault(is_here: bool) -> Option<String> {
    is_here.then(|| {
        format!(
            "kube-proxy in mode ipvs ({LINK}) shares this node's IPVS: it keeps trying to delete cplb's services, unless \
             its ipvs.excludeCIDRs has \"0.0.0.0/32\" and \"::/128\", where it sees what matches a mark"
        )
    })
}
