//! Virtual IPs in a VRF, where listeners of the main network do not take connections.

use netlink_vip::InterfaceState;

/// The sysctl that lets listeners take connections of every VRF.
const ACCEPT: &str = "/proc/sys/net/ipv4/tcp_l3mdev_accept";

/// Whether listeners outside of VRFs take connections that come in through one.
pub(crate) fn accepts() -> bool {
    std::fs::read_to_string(ACCEPT).is_ok_and(|value| value.trim() == "1")
}

/// The reason why clients of virtual IPs on this interface do not reach the proxy, with the remedy. `accepted` is the
/// answer of [`accepts`], `has_tproxy` that of the table: the one without tproxy lacks the rules for VRFs, too.
pub(crate) fn problem(interface: &InterfaceState, accepted: bool, has_tproxy: bool) -> Option<String> {
    let vrf = interface.vrf.as_ref()?;
    let remedy = match (accepted, has_tproxy) {
        (false, _) => "set the sysctl net.ipv4.tcp_l3mdev_accept to 1",
        (true, false) => "load the kernel module nft_tproxy",
        (true, true) => return None,
    };
    Some(format!("{} is in the VRF {vrf}, where the proxy takes no connections: {remedy}", interface.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_needs_both_and_other_interfaces_neither() {
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
