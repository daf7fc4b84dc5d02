//! Addresses of groups that are on this node without being leased: what another program or a person has placed.
//!
//! The node answers neighbours and takes connections for such a copy whichever node is Active, and no lease ends it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Manager, Urgency};
use crate::event::{AddressCopy, KeeperEvent};
use crate::kernel::Kernel;
use crate::ownership::{DUMMY_LINK, is_our_permanent, is_ours};
use crate::select::Link;
use crate::socket::KernelError;
use crate::types::GroupId;
use crate::wire::decode::ObservedAddress;

/// The copies of one group's addresses among all addresses of the node, in the order of interfaces.
fn copies(
    has: impl Fn(IpAddr) -> bool,
    addresses: &[ObservedAddress],
    links: &BTreeMap<u32, Link>,
    kernel_marks: bool,
) -> Vec<AddressCopy> {
    let name = |index: u32| links.get(&index).map_or_else(|| index.to_string(), |link| link.name.clone());
    let dummy = |seen: &ObservedAddress| {
        links.get(&seen.index).is_some_and(|link| link.name == DUMMY_LINK)
            && is_our_permanent(seen, kernel_marks)
    };
    let foreign = addresses.iter().filter(|seen| !is_ours(seen, kernel_marks) && !dummy(seen));
    let mut found: Vec<AddressCopy> = foreign
        .filter(|seen| has(seen.ip))
        .map(|seen| AddressCopy {
            interface: name(seen.index),
            index: seen.index,
            ip: seen.ip,
            prefix_len: seen.prefix_len,
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

impl<K: Kernel> Manager<K> {
    /// An address came or went that is not one of our leases.
    pub(super) fn mark_copies_dirty(&mut self, ip: IpAddr) {
        if self.groups.values().any(|group| group.has(ip)) {
            self.dirty.copies = true;
            self.dirty.mark(self.kernel.now(), Urgency::Soon);
        }
    }

    /// Looks for copies of all groups' addresses on all interfaces.
    pub(super) fn read_copies(&mut self) -> Result<(), KernelError> {
        if !std::mem::take(&mut self.dirty.copies) || self.groups.is_empty() {
            return Ok(());
        }
        let addresses = self.kernel.addresses(0).inspect_err(|_| self.dirty.copies = true)?;
        let marks = self.kernel.marks_addresses();
        let mut changed: Vec<(GroupId, Vec<AddressCopy>)> = Vec::new();
        for (&id, group) in &mut self.groups {
            let found = copies(|ip| group.has(ip), &addresses, &self.links, marks);
            if found != group.copies {
                group.copies.clone_from(&found);
                changed.push((id, found));
            }
        }
        self.events.extend(changed.into_iter().map(|(id, copies)| KeeperEvent::Copies { id, copies }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{PERMANENT_PROTOCOL, PROTOCOL, address_flag};

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 100));

    fn links() -> BTreeMap<u32, Link> {
        let link = |name: &str| Link { name: name.to_owned(), ..Link::default() };
        [(1, link("lo")), (2, link("eth0")), (3, link("dummyvip0"))].into()
    }

    fn seen(index: u32, prefix_len: u8, protocol: Option<u8>, valid: Option<u32>) -> ObservedAddress {
        let flags = address_flag::PERMANENT;
        ObservedAddress { index, ip: VIP, prefix_len, scope: 0, flags, protocol, valid }
    }

    fn found(addresses: &[ObservedAddress]) -> Vec<String> {
        let all = copies(|ip| ip == VIP, addresses, &links(), true);
        all.iter().map(|it| format!("{}/{} {}", it.ip, it.prefix_len, it.interface)).collect()
    }

    #[test]
    fn leases_and_the_real_server_s_dummy_link_are_no_copies() {
        let lease = seen(2, 32, Some(PROTOCOL), Some(2));
        let dummy = seen(3, 32, Some(PERMANENT_PROTOCOL), None);
        assert!(found(&[lease, dummy]).is_empty());
        let mut other = seen(1, 32, None, None);
        other.ip = [10, 0, 0, 1].into();
        assert!(found(&[other]).is_empty(), "an address of the node's own");
    }

    #[test]
    fn an_address_without_a_lease_is_a_copy_on_any_interface() {
        let all = [
            seen(2, 24, None, None),
            seen(2, 32, None, Some(86_400)),
            seen(1, 32, None, None),
            seen(1, 32, Some(PERMANENT_PROTOCOL), None),
            seen(3, 32, None, None),
            seen(9, 32, None, None),
        ];
        let expected = [
            "10.0.0.100/32 9",
            "10.0.0.100/32 dummyvip0",
            "10.0.0.100/24 eth0",
            "10.0.0.100/32 eth0",
            "10.0.0.100/32 lo",
        ];
        assert_eq!(found(&all), expected);
    }
}
