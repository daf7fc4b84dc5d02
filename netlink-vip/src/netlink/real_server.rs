//! Links, local routes and neighbours for a real server and its directors. Nothing in real time waits for these, but
//! they share the keeper's synchronous socket: a handle of `rtnetlink` would need a runtime and a task for its
//! connection in every program that only wants a dummy link, and it loses both an answer in which one attribute cannot
//! be read (its caller waits without end) and the kernel's words beside an error number. It takes 10 µs for a question
//! that takes 6 µs here.

use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;
use nix::libc;

use super::{NetlinkKernel, tolerate};
use crate::sessions::SessionsError;
use crate::socket::KernelError;
use crate::wire::VipScope;
use crate::wire::decode::{LinkUpdate, Message, NetEvent, ObservedRoute};
use crate::wire::encode::real_server as encode;
use crate::wire::encode::{Lifetime, Request, put_address};
use crate::wire::neighbour::{FoundRoute, ObservedNeighbour};

impl NetlinkKernel {
    /// Resets the TCP sessions whose local address is one of `ips`; returns how many.
    pub(crate) fn reset_sessions(&mut self, ips: &[IpAddr]) -> Result<usize, SessionsError> {
        self.diag()?.destroy(ips)
    }

    /// The link of this name, which is not one of its alternative names.
    pub(crate) fn link_named(&mut self, name: &str) -> Result<Option<LinkUpdate>, KernelError> {
        let found = self.one_link(|| encode::get_link_named(name))?;
        Ok(found.filter(|link| link.name.as_deref() == Some(name)))
    }

    /// The link of this index.
    pub(crate) fn link(&mut self, index: u32) -> Result<Option<LinkUpdate>, KernelError> {
        self.one_link(|| encode::get_link(index))
    }

    fn one_link(&mut self, request: impl Fn() -> Request) -> Result<Option<LinkUpdate>, KernelError> {
        let pick = |event| match event {
            NetEvent::Link(link) => Some(link),
            _ => None,
        };
        match self.dump(request, pick) {
            Ok(links) => Ok(links.into_iter().next()),
            Err(error) if error.refused() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The neighbours on one interface in the family of `like`.
    pub(crate) fn neighbours(
        &mut self,
        index: u32,
        like: IpAddr,
    ) -> Result<Vec<ObservedNeighbour>, KernelError> {
        let request = |sequence| encode::dump_neighbours(like).encode(sequence);
        let read = |message: &Message<'_>| {
            ObservedNeighbour::decode(message).filter(|neighbour| neighbour.index == index)
        };
        self.socket.dump(request, read)
    }

    /// Starts finding out, or confirming, the link-layer address of an address that [`Self::is_on_link`].
    pub(crate) fn probe_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<(), KernelError> {
        self.write(encode::use_neighbour(index, ip))
    }

    /// Returns whether packets of this node to an address leave by the interface and need no router.
    pub(crate) fn is_on_link(&mut self, ip: IpAddr, index: u32) -> Result<bool, KernelError> {
        let route = self.route_to(ip)?;
        Ok(matches!(route, Some(FoundRoute::Out { index: out, is_direct: true, .. }) if out == index))
    }

    /// Where packets of this node for an address go; `None` if nowhere.
    pub(crate) fn route_to(&mut self, ip: IpAddr) -> Result<Option<FoundRoute>, KernelError> {
        let request = |sequence| encode::get_route(ip).encode(sequence);
        match self.socket.dump(request, FoundRoute::decode) {
            Ok(routes) => Ok(routes.into_iter().next()),
            // There is no route, or one of type "unreachable" or the like.
            Err(error) if error.refused().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The IPv4 routes of the local table to addresses of one interface.
    pub(crate) fn local_routes(&mut self, index: u32) -> Result<Vec<ObservedRoute>, KernelError> {
        let pick = |event| match event {
            NetEvent::Route(route)
                if route.table == u32::from(libc::RT_TABLE_LOCAL)
                    && route.kind == libc::RTN_LOCAL
                    && route.interfaces == [index] =>
            {
                Some(route)
            }
            _ => None,
        };
        match self.dump(|| encode::dump_local_routes(index), pick) {
            Err(error) if matches!(error.refused(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Makes the worse local route of an address; one that is there is fine.
    pub(crate) fn put_local_route(&mut self, index: u32, ip: Ipv4Addr) -> Result<(), KernelError> {
        tolerate(self.write(encode::put_local_route(index, ip)), &[Errno::EEXIST])
    }

    /// Deletes the worse local route of an address; one that is gone is fine.
    pub(crate) fn delete_local_route(&mut self, index: u32, ip: Ipv4Addr) -> Result<(), KernelError> {
        tolerate(self.write(encode::delete_local_route(index, ip)), &[Errno::ESRCH, Errno::ENODEV])
    }

    /// Deletes the kernel's own local route of an address; one that is gone is fine.
    pub(crate) fn delete_kernel_route(&mut self, index: u32, ip: Ipv4Addr) -> Result<(), KernelError> {
        tolerate(self.write(encode::delete_kernel_route(index, ip)), &[Errno::ESRCH, Errno::ENODEV])
    }

    /// Creates a tunnel that unpacks what is sent to `local`.
    pub(crate) fn create_tunnel(&mut self, name: &str, local: IpAddr) -> Result<(), KernelError> {
        self.write(encode::create_tunnel(name, local))
    }

    /// Writes an alias on a link.
    pub(crate) fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), KernelError> {
        self.write(encode::set_alias(index, alias))
    }

    /// Sets the largest packet of a link, in bytes.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), KernelError> {
        self.write(encode::set_mtu(index, mtu))
    }

    /// Creates a dummy link.
    pub(crate) fn create_dummy(&mut self, name: &str) -> Result<(), KernelError> {
        self.write(encode::create_dummy(name))
    }

    /// Sets a link up.
    pub(crate) fn set_link_up(&mut self, index: u32) -> Result<(), KernelError> {
        self.write(encode::set_link_up(index))
    }

    /// Deletes a link; one that is gone is fine.
    pub(crate) fn delete_link(&mut self, index: u32) -> Result<(), KernelError> {
        tolerate(self.write(encode::delete_link(index)), &[Errno::ENODEV])
    }

    /// Adds an address without end.
    pub(crate) fn put_permanent(&mut self, index: u32, ip: IpAddr) -> Result<(), KernelError> {
        self.write(put_address(index, ip, Lifetime::Permanent, VipScope::Host))
    }
}
