//! Virtual IPs in a VRF, where listeners outside of VRFs accept no connections by default.

use netlink_vip::InterfaceState;

/// The sysctl that lets listeners accept connections of every VRF.
const ACCEPT: &str = "/proc/sys/net/ipv4/tcp_l3mdev_accept";

/// Returns whether listeners outside of VRFs accept connections that arrive through a VRF.
pub(crate) fn accepts_vrfs() -> bool {
    std::fs::read_to_string(ACCEPT).is_ok_and(|value| value.trim() == "1")
}

/// The problem of virtual IPs on an interface in a VRF whose clients do not reach the proxy, with the remedy. `accepted` is
/// the result of [`accepts_vrfs`]; `has_tproxy` is false where the table is without tproxy, which then lacks the rules for VRFs.
pub(crate) fn problem(interface: &InterfaceState, accepted: bool, has_tproxy: bool) -> Option<String> {
    let vrf = interface.vrf.as_ref()?;
    let remedy = match (accepted, has_tproxy) {
        (false, _) => "set the sysctl net.ipv4.tcp_l3mdev_accept to 1",
        (true, false) => "load the kernel module nft_tproxy",
        (true, true) => return None,
    };
    Some(format!("{} is in the VRF {vrf}, where the proxy accepts no connections: {remedy}", interface.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_in_a_vrf_needs_the_sysctl_and_tproxy() {
        let member = InterfaceState {
            name: "eth0".into(),
            index: 2,
            mac: Some([2; 6]),
            kind: None,
            vrf: Some("red".into()),
            up: true,
            addresses: Vec::new(),
        };
        let text = problem(&member, false, true).unwrap();
        assert!(
            text.contains("eth0") && text.contains("red") && text.contains("tcp_l3mdev_accept"),
            "{text}"
        );
        assert!(problem(&member, true, false).unwrap().contains("nft_tproxy"));
        assert_eq!(problem(&member, true, true), None);
        assert_eq!(problem(&InterfaceState { vrf: None, ..member }, false, false), None);
    }
}
