//! The network of a node, from inside the node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use nix::net::if_::if_nametoindex;

use super::{INTERFACE, Node};
use crate::{Address, Error, Mac, Neighbour, netlink};

/// The link that carries the VIPs of a node that is an IPVS real server.
const DUMMY: &str = "dummyvip0";

/// The configuration of a node's interface.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    pub(crate) mac: Mac,
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    /// The lifetime of the addresses; `None` for ever.
    pub(crate) lifetime: Option<Duration>,
    pub(crate) gateways: Vec<IpAddr>,
}

impl Node {
    /// All addresses of the node, on all interfaces.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn addresses(&self) -> Result<Vec<Address>, Error> {
        netlink::request(&self.0.netns, self.doing("list addresses"), |handle| async move {
            netlink::addresses(&handle).await
        })
    }

    /// The node's link-local address, the source of VRRP over IPv6. The kernel derives it from the hardware address
    /// (RFC 4291 appendix A), also after the link was down.
    #[must_use]
    pub fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac().0;
        let pair = u16::from_be_bytes;
        let identifier = [pair([a ^ 2, b]), pair([c, 0xff]), pair([0xfe, d]), pair([e, f])];
        let [a, b, c, d] = identifier;
        Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, d)
    }

    /// Returns whether the node has this address on any interface except the dummy link of IPVS real servers.
    ///
    /// # Panics
    /// If addresses cannot be listed.
    #[must_use]
    pub fn has_address(&self, ip: impl Into<IpAddr>) -> bool {
        let ip = ip.into();
        let addresses = self.addresses().unwrap_or_else(|error| panic!("{error}"));
        let dummy = self.run(|| if_nametoindex(DUMMY).ok());
        addresses.iter().any(|address| address.ip == ip && Some(address.interface) != dummy)
    }

    /// Adds an address to `eth0`.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn add_address(&self, ip: impl Into<IpAddr>, prefix_len: u8) -> Result<(), Error> {
        let ip = ip.into();
        netlink::request(&self.0.netns, self.doing(&format!("add {ip}")), |handle| async move {
            let index = netlink::index(&handle, INTERFACE).await?;
            netlink::add_address(&handle, index, ip, prefix_len, None).await
        })
    }

    /// Removes an address from every interface.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn delete_address(&self, ip: impl Into<IpAddr>) -> Result<(), Error> {
        let ip = ip.into();
        netlink::request(&self.0.netns, self.doing(&format!("delete {ip}")), |handle| async move {
            netlink::delete_address(&handle, ip).await
        })
    }

    /// The node's neighbour (ARP or NDP) entry for `ip`.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn neighbour(&self, ip: impl Into<IpAddr>) -> Result<Option<Neighbour>, Error> {
        let ip = ip.into();
        netlink::request(&self.0.netns, self.doing("list neighbours"), |handle| async move {
            netlink::neighbour(&handle, ip).await
        })
    }

    /// Flushes the node's neighbour caches.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn flush_neighbours(&self) -> Result<(), Error> {
        netlink::request(&self.0.netns, self.doing("flush neighbours"), |handle| async move {
            netlink::flush_neighbours(&handle).await
        })
    }

    /// Sets `eth0` down inside the node, as `ip link set eth0 down` does.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn link_down(&self) -> Result<(), Error> {
        netlink::request(&self.0.netns, self.doing("take the link down"), |handle| async move {
            netlink::set_down(&handle, netlink::index(&handle, INTERFACE).await?).await
        })
    }

    /// Sets `eth0` up again. The kernel has dropped its IPv6 addresses and its routes when the link went down.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn link_up(&self) -> Result<(), Error> {
        netlink::request(&self.0.netns, self.doing("bring the link up"), |handle| async move {
            netlink::set_up(&handle, netlink::index(&handle, INTERFACE).await?).await
        })
    }

    /// Sets `eth0` up with the node's own addresses and its default routes, as a network manager does. Tests call it
    /// after [`Node::link_up`] where they need that.
    ///
    /// # Errors
    /// [`Error::Netlink`].
    pub fn configure(&self) -> Result<(), Error> {
        let Interface { addresses, lifetime, gateways, .. } = &self.0.interface;
        netlink::request(&self.0.netns, self.doing("assign addresses"), |handle| async move {
            let index = netlink::index(&handle, INTERFACE).await?;
            netlink::set_up(&handle, index).await?;
            for &(ip, prefix_len) in addresses {
                netlink::add_address(&handle, index, ip, prefix_len, *lifetime).await?;
            }
            let is_host =
                |v4: bool| addresses.iter().any(|(ip, len)| ip.is_ipv4() == v4 && *len == host_len(ip));
            for &gateway in gateways {
                if is_host(gateway.is_ipv4()) {
                    netlink::add_route(&handle, (gateway, host_len(&gateway)), None, Some(index)).await?;
                }
                netlink::add_route(&handle, default_of(gateway), Some(gateway), Some(index)).await?;
            }
            Ok(())
        })
    }
}

/// The prefix length of a single address.
fn host_len(ip: &IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The default destination of an address's family.
fn default_of(ip: IpAddr) -> (IpAddr, u8) {
    match ip {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}
