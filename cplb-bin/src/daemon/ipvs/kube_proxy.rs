//! kube-proxy in mode ipvs, with which this node's IPVS is shared.

use nix::net::if_::if_nametoindex;

/// The dummy link where it keeps the addresses of services.
const LINK: &str = "kube-ipvs0";

/// Whether it runs, or has run, on this node.
pub(crate) fn is_here() -> bool {
    if_nametoindex(LINK).is_ok()
}

/// Warns once that the two meet.
#[derive(Debug, Default)]
pub(crate) struct Notice {
    told: bool,
}

impl Notice {
    /// For a node where IPVS balances for us; `is_here` is not asked again after it was told.
    pub(crate) fn look(&mut self, is_here: impl FnOnce() -> bool) -> bool {
        if self.told || !is_here() {
            return false;
        }
        self.told = true;
        tracing::warn!(
            link = LINK,
            "kube-proxy in mode ipvs shares this node's IPVS: it keeps trying to delete cplb's services, \
             unless its ipvs.excludeCIDRs has \"0.0.0.0/32\" and \"::/128\", where it sees what matches a mark"
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_once_whenever_it_comes() {
        let mut notice = Notice::default();
        let told = [false, false, true, true, false, true].map(|here| notice.look(|| here));
        assert_eq!(told, [false, false, true, false, false, false]);
    }
}
