//! The fitness of this node to hold all addresses of an instance.
//!
//! An instance's addresses are held together or not at all. A node that cannot install one of them, or where one of them
//! is without a lease, advertises the degraded priority for that instance although it serves, so that a node which can
//! hold them all takes over; if there is none, nothing moves. Fitness depends only on conditions that are the same
//! whether or not the node holds the addresses. Otherwise the addresses would move back and forth.

use std::net::IpAddr;

use netlink_vip::{AddressCopy, AddressState, AddressStatus, GroupStatus, InterfaceState, Refusal};
use vrrp::runner::InstanceId;

use crate::daemon::ids::instance_of;

/// The faults that one round has found for an instance.
#[derive(Debug, Clone)]
pub(crate) struct Fitness {
    pub(crate) id: InstanceId,
    /// The reasons why this node should not hold it, one text for each address.
    pub(crate) faults: Vec<String>,
}

/// Checks an instance by the keeper's status and the host's sysctls. Without an interface there are no faults.
pub(super) fn check(group: &GroupStatus) -> Fitness {
    let faults = group.interface.as_ref().map(|interface| {
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", interface.name);
        let ipv6_disabled = is_ipv6_disabled(&std::fs::read_to_string(path));
        faults(interface, &group.addresses, &group.copies, ipv6_disabled)
    });
    Fitness { id: instance_of(group.id), faults: faults.unwrap_or_default() }
}

/// The reasons why this node cannot hold all these addresses on the interface under leases.
fn faults(
    interface: &InterfaceState,
    addresses: &[AddressStatus],
    copies: &[AddressCopy],
    ipv6_disabled: bool,
) -> Vec<String> {
    let on_interface = copies.iter().filter(|copy| copy.index == interface.index);
    let mut faults: Vec<String> = on_interface.clone().map(copy_text).collect();
    let copied: Vec<IpAddr> = on_interface.map(|copy| copy.ip).collect();
    let name = &interface.name;
    for AddressStatus { ip, state } in addresses {
        let why = match state {
            _ if ip.is_ipv6() && ipv6_disabled => {
                format!(
                    "IPv6 is disabled on {name}: set net.ipv6.conf.{name}.disable_ipv6 to 0, or boot with IPv6"
                )
            }
            AddressState::Refused(Refusal::Foreign { .. }) if copied.contains(ip) => continue,
            // The sysctl, checked above, shows whether this still holds.
            AddressState::Refused(Refusal::Ipv6Disabled) => continue,
            AddressState::Refused(reason) => reason.to_string(),
            _ => continue,
        };
        faults.push(format!("{ip} cannot be installed: {why}"));
    }
    faults
}

/// The text about an address without a lease: its interface, and the remedy.
pub(crate) fn copy_text(copy: &AddressCopy) -> String {
    let AddressCopy { interface, ip, prefix_len, .. } = copy;
    format!(
        "the virtual IP {ip}/{prefix_len} is on {interface} without a lease, placed by another program or by hand: \
         this host answers for it whichever node is Active; remove it with `ip addr del {ip}/{prefix_len} dev {interface}`"
    )
}

/// Returns whether IPv6 addresses are refused on an interface whose sysctl was read with this result. A kernel without
/// IPv6 lacks the sysctl; another read error is no evidence.
fn is_ipv6_disabled(sysctl: &std::io::Result<String>) -> bool {
    match sysctl {
        Ok(text) => text.trim() != "0",
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use netlink_vip::KernelError;

    use super::*;

    #[test]
    fn a_kernel_without_the_sysctl_has_no_ipv6() {
        let failed = |kind: std::io::ErrorKind| is_ipv6_disabled(&Err(kind.into()));
        assert!(failed(std::io::ErrorKind::NotFound));
        assert!(!failed(std::io::ErrorKind::PermissionDenied));
        assert!(is_ipv6_disabled(&Ok("1\n".into())) && !is_ipv6_disabled(&Ok("0\n".into())));
    }

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100));

    /// The faults of both addresses on eth0, which has the index 2.
    fn found(
        v4: &AddressState,
        v6: &AddressState,
        copies: &[AddressCopy],
        ipv6_disabled: bool,
    ) -> Vec<String> {
        let interface = InterfaceState {
            name: "eth0".into(),
            index: 2,
            mac: None,
            up: true,
            addresses: Vec::new(),
            kind: None,
            vrf: None,
        };
        let status = |ip, state: &AddressState| AddressStatus { ip, state: state.clone() };
        let addresses = [status(V4, v4), status("fd00::100".parse().unwrap(), v6)];
        faults(&interface, &addresses, copies, ipv6_disabled)
    }

    fn copy(index: u32, interface: &str) -> AddressCopy {
        AddressCopy { interface: interface.into(), index, ip: V4, prefix_len: 24 }
    }

    const ABSENT: AddressState = AddressState::Absent;
    const PRESENT: AddressState = AddressState::Present;

    #[test]
    fn a_copy_is_a_fault_only_on_the_interface_of_the_instance() {
        let mut copies = vec![copy(1, "lo"), copy(7, "kube-ipvs0")];
        assert_eq!(found(&ABSENT, &ABSENT, &copies, false), Vec::<String>::new());
        copies.push(copy(2, "eth0"));
        let faults = found(&ABSENT, &ABSENT, &copies, false);
        assert!(faults.len() == 1 && faults[0].contains("ip addr del 10.0.0.100/24 dev eth0"), "{faults:?}");
    }

    #[test]
    fn an_address_that_the_kernel_refuses_is_a_fault_with_the_reason() {
        let refused = AddressState::Refused(Refusal::Kernel(KernelError::NoAnswer));
        assert_eq!(
            found(&refused, &ABSENT, &[], false),
            ["10.0.0.100 cannot be installed: no usable answer from the kernel"]
        );
    }

    #[test]
    fn faults_do_not_depend_on_holding_the_addresses() {
        for ipv6_disabled in [false, true] {
            for copied in [false, true] {
                let copies: Vec<AddressCopy> = copied.then(|| copy(2, "eth0")).into_iter().collect();
                let foreign = AddressState::Refused(Refusal::Foreign { prefix_len: 24 });
                let disabled = AddressState::Refused(Refusal::Ipv6Disabled);
                let v4 = if copied { &foreign } else { &PRESENT };
                let v6 = if ipv6_disabled { &disabled } else { &PRESENT };
                let active = found(v4, v6, &copies, ipv6_disabled);
                assert_eq!(active, found(&ABSENT, &ABSENT, &copies, ipv6_disabled));
                assert_eq!(active.len(), usize::from(ipv6_disabled) + usize::from(copied), "{active:?}");
            }
        }
    }
}
