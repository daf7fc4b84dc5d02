//! The real kernel.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use crate::kernel::{Kernel, KernelError};
use crate::plan::{Step, VipScope};
use crate::sessions::{Sessions, SessionsError};
use crate::socket::RequestSocket;
use crate::types::full_prefix;
use crate::wire::PROTOCOL;
use crate::wire::decode::{
    LinkUpdate, Message, NetEvent, ObservedAddress, ObservedLabel, ObservedRoute, decode_event,
};
use crate::wire::diag::SocketId;
use crate::wire::encode::{self, Lifetime, Request};
use crate::wire::neighbour::{FoundRoute, ObservedNeighbour};

/// Unicast routes of the main table (`rtnetlink.h`).
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u32 = 254;
/// The routes to the node's own addresses.
const RTN_LOCAL: u8 = 2;
const RT_TABLE_LOCAL: u32 = 255;

/// Speaks rtnetlink in the network namespace in which it was opened.
pub(crate) struct NetlinkKernel {
    socket: RequestSocket,
    sessions: Option<Sessions>,
    marks_addresses: bool,
}

impl NetlinkKernel {
    /// Opens the socket.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = RequestSocket::open(NETLINK_ROUTE)?;
        // Now, because sessions also have to be reset when there are no descriptors left.
        let sessions = Sessions::open().ok();
        Ok(Self { socket, sessions, marks_addresses: kernel_is_at_least(5, 18) })
    }

    /// Whether the process may change addresses, found by asking for a change that cannot be made.
    pub(crate) fn check_privilege(&mut self) -> Result<(), KernelError> {
        let nowhere = encode::delete_address(u32::MAX >> 1, IpAddr::from([192, 0, 2, 1]), 32);
        match self.write(nowhere) {
            Err(error) if error.refused() == Some(Errno::EPERM) => Err(error),
            _ => Ok(()),
        }
    }

    fn diag(&mut self) -> Result<&mut Sessions, SessionsError> {
        match &mut self.sessions {
            Some(sessions) => Ok(sessions),
            closed => Ok(closed.insert(Sessions::open()?)),
        }
    }

    /// Resets the TCP sessions whose local address is one of `ips`; returns how many.
    pub(crate) fn reset_sessions(&mut self, ips: &[IpAddr]) -> Result<usize, SessionsError> {
        self.diag()?.destroy(ips)
    }

    fn write(&mut self, request: Request) -> Result<(), KernelError> {
        self.socket.transact(|sequence| request.encode(sequence))
    }

    fn dump<T>(
        &mut self,
        request: impl Fn() -> Request,
        pick: impl Fn(NetEvent) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let read = |message: &Message<'_>| decode_event(message).ok().and_then(&pick);
        self.socket.dump(|sequence| request().encode(sequence), read)
    }

    /// Routes of the main table. An IPv4 main table that nobody has used yet does not exist.
    fn routes(
        &mut self,
        protocol: Option<u8>,
        keep: impl Fn(&ObservedRoute) -> bool,
    ) -> Result<Vec<ObservedRoute>, KernelError> {
        let mut found = Vec::new();
        for v4 in [true, false] {
            let pick = |event| match event {
                NetEvent::Route(route) if route.table == RT_TABLE_MAIN && keep(&route) => Some(route),
                _ => None,
            };
            match self.dump(|| encode::dump_routes(v4, protocol), pick) {
                Ok(routes) => found.extend(routes),
                Err(error) if error.refused() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
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

    /// The neighbours of one family on one interface.
    pub(crate) fn neighbours(&mut self, index: u32, v4: bool) -> Result<Vec<ObservedNeighbour>, KernelError> {
        let request = |sequence| encode::dump_neighbours(v4).encode(sequence);
        let read = |message: &Message<'_>| {
            ObservedNeighbour::decode(message).filter(|neighbour| neighbour.index == index)
        };
        self.socket.dump(request, read)
    }

    /// Starts finding out, or confirming, the link-layer address of an address that [`Self::is_on_link`].
    pub(crate) fn probe_neighbour(&mut self, index: u32, ip: IpAddr) -> Result<(), KernelError> {
        self.write(encode::use_neighbour(index, ip))
    }

    /// Whether packets of this node to an address leave by the interface and need no router.
    pub(crate) fn is_on_link(&mut self, ip: IpAddr, index: u32) -> Result<bool, KernelError> {
        let route = self.route_to(ip)?;
        Ok(matches!(route, Some(FoundRoute::Out { index: out, is_direct: true, .. }) if out == index))
    }

    /// Where packets of this node for an address go; `None` if nowhere.
    pub(crate) fn route_to(&mut self, ip: IpAddr) -> Result<Option<FoundRoute>, KernelError> {
        let request = |sequence| encode::get_route(ip).encode(sequence);
        match self.socket.dump(request, FoundRoute::decode) {
            Ok(routes) => Ok(routes.into_iter().next()),
            // There is no route, or one that says so.
            Err(error) if error.refused().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The IPv4 routes of the local table to addresses of one interface.
    pub(crate) fn local_routes(&mut self, index: u32) -> Result<Vec<ObservedRoute>, KernelError> {
        let pick = |event| match event {
            NetEvent::Route(route)
                if route.table == RT_TABLE_LOCAL
                    && route.kind == RTN_LOCAL
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
        self.write(encode::put_address(index, ip, Lifetime::Permanent, VipScope::Host))
    }
}

impl Kernel for NetlinkKernel {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn links(&mut self) -> Result<Vec<LinkUpdate>, KernelError> {
        self.dump(encode::dump_links, |event| match event {
            NetEvent::Link(link) => Some(link),
            _ => None,
        })
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<ObservedAddress>, KernelError> {
        let pick = |event| match event {
            NetEvent::Address(address) if index == 0 || address.index == index => Some(address),
            _ => None,
        };
        match self.dump(|| encode::dump_addresses(index), pick) {
            Err(error) if error.refused() == Some(Errno::ENODEV) => Ok(Vec::new()),
            other => other,
        }
    }

    fn default_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.routes(None, |route| route.destination.is_empty() && route.kind == RTN_UNICAST)
    }

    fn marked_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.routes(Some(PROTOCOL), |route| route.protocol == PROTOCOL)
    }

    fn labels(&mut self) -> Result<Vec<ObservedLabel>, KernelError> {
        self.dump(encode::dump_labels, |event| match event {
            NetEvent::Label(label) => Some(label),
            _ => None,
        })
    }

    fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        match *step {
            Step::PutAddress { index, ip, lease, scope } => {
                self.write(encode::put_address(index, ip, Lifetime::Lease(lease), scope))
            }
            Step::MoveAddress { index, ip, .. } => {
                self.apply(&Step::DeleteAddress { index, ip, prefix_len: full_prefix(ip) })?;
                self.apply(&step.again())
            }
            Step::DeleteAddress { index, ip, prefix_len } => {
                let gone = [Errno::EADDRNOTAVAIL, Errno::ENODEV, Errno::ENXIO];
                tolerate(self.write(encode::delete_address(index, ip, prefix_len)), &gone)
            }
            Step::PutRoute { index, prefix } => {
                tolerate(self.write(encode::put_route(index, prefix)), &[Errno::EEXIST])
            }
            Step::DeleteRoute { index, prefix } => {
                tolerate(self.write(encode::delete_route(index, prefix)), &[Errno::ESRCH, Errno::ENODEV])
            }
            Step::PutLabel { ip, label } => {
                tolerate(self.write(encode::put_label(ip, label)), &[Errno::EEXIST])
            }
            Step::DeleteLabel { ip, label } => {
                tolerate(self.write(encode::delete_label(ip, label)), &[Errno::ESRCH])
            }
        }
    }

    fn sessions(&mut self, ips: &[IpAddr]) -> Result<Vec<SocketId>, SessionsError> {
        self.diag()?.list(ips)
    }

    fn end_sessions(&mut self, sessions: &[SocketId]) -> Result<usize, SessionsError> {
        self.diag()?.end(sessions)
    }

    fn marks_addresses(&self) -> bool {
        self.marks_addresses
    }
}

/// Takes errors that say "it is so already" for success.
fn tolerate(result: Result<(), KernelError>, fine: &[Errno]) -> Result<(), KernelError> {
    match result {
        Err(error) if error.refused().is_some_and(|errno| fine.contains(&errno)) => Ok(()),
        other => other,
    }
}

/// By `uname`, because a kernel that does not know an attribute ignores it silently.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    release.is_ok_and(|release| version_of(&release) >= (major, minor))
}

/// The first two numbers of a kernel release.
fn version_of(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version_of("6.18.44-fc-v669"), (6, 18));
        assert_eq!(version_of("5.4.0-200-generic"), (5, 4));
        assert_eq!(version_of("6-rc1"), (6, 0));
        assert_eq!(version_of(""), (0, 0));
        assert!(
            version_of("5.18") >= (5, 18) && version_of("5.9.1") < (5, 18) && version_of("10.0") > (5, 18)
        );
    }
}
