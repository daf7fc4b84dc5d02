//! The real kernel.

#[cfg(feature = "keeper")]
mod keeper;
#[cfg(feature = "real-server")]
mod real_server;

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use nix::libc;

use crate::sessions::{Sessions, SessionsError};
use crate::socket::{KernelError, RequestSocket};
use crate::wire::decode::{LinkUpdate, Message, NetEvent, ObservedAddress, ObservedRoute, decode_event};
use crate::wire::encode::{self, Request};

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

    fn diag(&mut self) -> Result<&mut Sessions, SessionsError> {
        match &mut self.sessions {
            Some(sessions) => Ok(sessions),
            closed => Ok(closed.insert(Sessions::open()?)),
        }
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

    /// Routes of the main table. An IPv4 main table that was never used does not exist.
    fn routes(
        &mut self,
        protocol: Option<u8>,
        keep: impl Fn(&ObservedRoute) -> bool,
    ) -> Result<Vec<ObservedRoute>, KernelError> {
        let mut found = Vec::new();
        for v4 in [true, false] {
            let pick = |event| match event {
                NetEvent::Route(route) if route.table == u32::from(libc::RT_TABLE_MAIN) && keep(&route) => {
                    Some(route)
                }
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

    /// Returns whether the kernel keeps `IFA_PROTO`.
    pub(crate) fn marks_addresses(&self) -> bool {
        self.marks_addresses
    }

    /// Deletes exactly this address with this prefix length; one that is gone is fine.
    pub(crate) fn delete_address(
        &mut self,
        index: u32,
        ip: IpAddr,
        prefix_len: u8,
    ) -> Result<(), KernelError> {
        let gone = [Errno::EADDRNOTAVAIL, Errno::ENODEV, Errno::ENXIO];
        tolerate(self.write(encode::delete_address(index, ip, prefix_len)), &gone)
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<LinkUpdate>, KernelError> {
        self.dump(encode::dump_links, |event| match event {
            NetEvent::Link(link) => Some(link),
            _ => None,
        })
    }

    /// The addresses of one interface, 0 for all.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<ObservedAddress>, KernelError> {
        let pick = |event| match event {
            NetEvent::Address(address) if index == 0 || address.index == index => Some(address),
            _ => None,
        };
        match self.dump(|| encode::dump_addresses(index), pick) {
            Err(error) if error.refused() == Some(Errno::ENODEV) => Ok(Vec::new()),
            other => other,
        }
    }

    /// The default routes of the main table, of both families.
    pub(crate) fn default_routes(&mut self) -> Result<Vec<ObservedRoute>, KernelError> {
        self.routes(None, |route| route.destination.is_empty() && route.kind == libc::RTN_UNICAST)
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
