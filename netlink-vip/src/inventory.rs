//! A snapshot of the interfaces of this network namespace, without privileges and without a keeper.

use std::collections::BTreeMap;
use std::io;

use crate::netlink::NetlinkKernel;
use crate::select::{Link, View, merge, select};
use crate::socket::KernelError;
use crate::types::{FoundInterface, InterfaceSelector, VipAddress};
use crate::wire::decode::{ObservedAddress, ObservedRoute};

/// The interfaces, addresses and default routes at one moment.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    links: BTreeMap<u32, Link>,
    addresses: Vec<ObservedAddress>,
    defaults: Vec<ObservedRoute>,
}

impl Inventory {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`io::Error`], if there is no netlink socket or the kernel does not answer.
    pub fn read() -> io::Result<Self> {
        let mut kernel = NetlinkKernel::open()?;
        let refused = |error: KernelError| io::Error::other(error.to_string());
        let mut found = Self::default();
        for update in kernel.links().map_err(refused)? {
            merge(&mut found.links, update);
        }
        found.addresses = kernel.addresses(0).map_err(refused)?;
        found.defaults = kernel.default_routes().map_err(refused)?;
        Ok(found)
    }

    /// All interfaces.
    pub fn interfaces(&self) -> impl Iterator<Item = FoundInterface> + '_ {
        self.links.iter().map(|(index, link)| {
            let own = self.addresses.iter().filter(|seen| seen.index == *index);
            FoundInterface {
                name: link.name.clone(),
                alternative_names: link.alternative_names.clone(),
                vrf: link.vrf(&self.links).map(str::to_owned),
                addresses: own.map(|seen| (seen.ip, seen.prefix_len)).collect(),
            }
        })
    }

    /// The name of the interface that a keeper would choose for these addresses now.
    #[must_use]
    pub fn select(&self, selector: &InterfaceSelector, vips: &[VipAddress]) -> Option<&str> {
        let view = View { links: &self.links, defaults: &self.defaults, addresses: &self.addresses };
        let index = select(selector, vips, None, view)?;
        self.links.get(&index).map(|link| link.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_without_privileges() {
        let found = Inventory::read().unwrap();
        assert!(found.interfaces().any(|interface| interface.name == "lo"));
        let lo = InterfaceSelector::Name("lo".to_owned());
        assert_eq!(found.select(&lo, &[]), Some("lo"));
    }

    #[test]
    fn a_vrf_is_named_and_a_bridge_is_not() {
        let link = |name: &str, kind: Option<&str>, master| Link {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            master,
            ..Link::default()
        };
        let links = BTreeMap::from([
            (1, link("red", Some("vrf"), None)),
            (2, link("eth0", None, Some(1))),
            (3, link("br0", Some("bridge"), None)),
            (4, link("eth1", None, Some(3))),
        ]);
        let found = Inventory { links, ..Inventory::default() };
        let vrfs: Vec<_> = found.interfaces().map(|it| it.vrf).collect();
        assert_eq!(vrfs, [None, Some("red".to_owned()), None, None]);
    }
}
