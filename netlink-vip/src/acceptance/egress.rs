//! By which interface and from which address a server is asked.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::netlink::NetlinkKernel;
use crate::wire::neighbour::FoundRoute;

use super::{AcceptanceError, socket};

/// Egress of this node's packets to a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Egress {
    /// It is this node, which needs no asking.
    Here,
    /// They leave this node; what to [`super::Acceptance::open`] with.
    Through {
        /// By this interface.
        interface: String,
        /// From this address, which may be one of another interface.
        source: IpAddr,
    },
}

/// Finds ways by the kernel's routes, in the network namespace of the thread that opened it.
///
/// It remembers the names of interfaces, so it is for servers that are looked up one after another and no longer.
pub struct EgressLookup {
    kernel: NetlinkKernel,
    names: HashMap<u32, String>,
}

impl EgressLookup {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// [`AcceptanceError::Socket`].
    pub fn open() -> Result<Self, AcceptanceError> {
        let kernel = NetlinkKernel::open().map_err(socket::failed("opening a netlink socket"))?;
        Ok(Self { kernel, names: HashMap::new() })
    }

    /// The way to one server.
    ///
    /// # Errors
    /// [`AcceptanceError::NoRoute`], and [`AcceptanceError::Kernel`] if the kernel did not answer.
    pub fn to(&mut self, server: IpAddr) -> Result<Egress, AcceptanceError> {
        match self.kernel.route_to(server).map_err(AcceptanceError::Kernel)? {
            Some(FoundRoute::Here) => Ok(Egress::Here),
            Some(FoundRoute::Out { index, source: Some(source), .. }) => {
                Ok(Egress::Through { interface: self.name(index)?, source })
            }
            Some(FoundRoute::Out { source: None, .. }) | None => Err(AcceptanceError::NoRoute(server)),
        }
    }

    fn name(&mut self, index: u32) -> Result<String, AcceptanceError> {
        if let Some(name) = self.names.get(&index) {
            return Ok(name.clone());
        }
        let link = self.kernel.link(index).map_err(AcceptanceError::Kernel)?;
        let name = link.and_then(|link| link.name);
        let name = name.ok_or_else(|| AcceptanceError::NoInterface(index.to_string()))?;
        self.names.insert(index, name.clone());
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn this_node_is_its_own_egress() {
        let mut egress = EgressLookup::open().unwrap();
        assert_eq!(egress.to(Ipv4Addr::LOCALHOST.into()).unwrap(), Egress::Here);
    }
}
