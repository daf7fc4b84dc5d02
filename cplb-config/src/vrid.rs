//! Proposes a VRID that other clusters do not use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::diagnostic::{Diagnostic, Severity};
use crate::load::Loaded;

impl Loaded {
    /// Proposes a `virtualRouterID` for each instance that leaves it to the default, which is also that of every other
    /// cluster on the link. All findings are advice. Pass them to [`Document::report`](crate::Document::report) to give
    /// them their place.
    #[must_use]
    pub fn propose_vrids(&self) -> Vec<Diagnostic> {
        let mut used: BTreeSet<u8> = self.config.instances.iter().map(|it| it.vrid.get()).collect();
        let mut found = Vec::new();
        for (index, instance) in self.config.instances.iter().enumerate() {
            let path = format!("vrrpInstances[{index}].virtualRouterID");
            let Some(vip) = instance.virtual_ips.first() else { continue };
            let Some(own) = vrid_for(vip.ip(), &used).filter(|_| !self.document.has(&path)) else { continue };
            used.insert(own);
            found.push(Diagnostic {
                severity: Severity::Advice,
                rule: "default-vrid",
                path,
                location: None,
                text: String::new(),
                message: format!(
                    "virtualRouterID is {} by default, as in every other cluster on the same link",
                    instance.vrid.get()
                ),
                help: format!(
                    "write `virtualRouterID: {own}`, which follows from {}, on every controller; controllers with \
                     different ones do not hear each other, so change it while cplb is stopped on all of them",
                    vip.ip()
                ),
            });
        }
        found
    }
}

/// The defaults of other programs: 1 is in most examples, and 51 + index is k0s's.
fn is_usual(id: u8) -> bool {
    id <= 1 || (51..=60).contains(&id)
}

/// A VRID that always follows from the same address: its last byte, since clusters on one link have different virtual
/// IPs; else the next one that is free and no usual default.
fn vrid_for(ip: IpAddr, used: &BTreeSet<u8>) -> Option<u8> {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    (last..=u8::MAX).chain(0..last).find(|id| !is_usual(*id) && !used.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;

    #[test]
    fn proposed_vrids_follow_from_the_virtual_ip_and_are_free() {
        let propose = |ip: &str, used: &[u8]| vrid_for(ip.parse().unwrap(), &used.iter().copied().collect());
        assert_eq!(propose("10.0.0.100", &[]), Some(100));
        assert_eq!(propose("10.0.0.100", &[100, 101]), Some(102));
        assert_eq!(propose("10.0.0.51", &[]), Some(61));
        assert_eq!(propose("10.0.0.0", &[]), Some(2));
        assert_eq!(propose("fd00::1:ff", &[255]), Some(2));
        assert_eq!(propose("10.0.0.1", &(0..=255).collect::<Vec<u8>>()), None);
    }

    #[test]
    fn only_instances_without_a_vrid_get_a_proposal() {
        let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
                    - virtualIPs: [10.0.0.100/24]\n  - virtualIPs: [10.0.0.100/24]\n    virtualRouterID: 52\n  \
                    - virtualIPs: [10.0.0.102/24]\n  backends: {static: [10.0.0.11]}\n";
        let loaded = load(&text.replacen("100/24", "101/24", 1), "c.yaml").unwrap();
        let proposals = loaded.document.report(loaded.propose_vrids()).diagnostics;
        let shown: Vec<_> = proposals.iter().map(|it| (it.path.as_str(), it.line(), it.severity)).collect();
        assert_eq!(
            shown,
            [
                ("vrrpInstances[0].virtualRouterID", 5, Severity::Advice),
                ("vrrpInstances[2].virtualRouterID", 8, Severity::Advice)
            ]
        );
        assert!(proposals[0].help.contains("virtualRouterID: 101"), "{}", proposals[0].help);
    }
}
