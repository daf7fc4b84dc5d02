//! Finds out whether servers accept the packets that a director would send them for a virtual address.
//!
//! An ordinary connection is no proof: on a node that holds the address, or has it on its dummy link, the kernel keeps
//! such a connection to itself. So a question is a TCP SYN for the virtual address that goes to one server on purpose,
//! by its link-layer address (direct routing) or in a tunnel, from an address of this node. The answer comes back to
//! that address, with the virtual one as its source. Packet sockets see it before anything else does; this node's
//! kernel takes an IPv4 one for a forgery, and logs it if `log_martians` is set, and finds no connection for an IPv6
//! one. A rule that drops these packets before routing keeps both quiet. A connection that is accepted is reset at
//! once, and what is not answered in time is taken back as well.
//!
//! This finds what nothing else does: a server that listens on one of its addresses only, one whose dummy link or
//! tunnel is gone, and one that is not on the same link.
//!
//! This node itself cannot be asked. Nor can, by [`Path::Direct`], the node that directs at the moment, if it takes the
//! question for a client's: where it would forward it to another server it drops it, because a question makes one hop
//! only, so that no server answers for another one. A director that leaves what has no hop left to its own server can
//! be asked like all others.
//!
//! ```no_run
//! use std::time::Duration;
//! use netlink_vip::acceptance::{Acceptance, Answer, Path, Question};
//!
//! let mut acceptance = Acceptance::open("eth0", [10, 0, 0, 1].into())?;
//! let question = Question {
//!     virtual_address: ([10, 0, 0, 100], 6443).into(),
//!     server: [10, 0, 0, 2].into(),
//!     path: Path::Direct,
//! };
//! let answers = acceptance.ask(&[question], Duration::from_secs(1))?;
//! assert_eq!(answers[&question], Answer::Accepts);
//! # Ok::<(), netlink_vip::acceptance::AcceptanceError>(())
//! ```

mod egress;
mod packet;
mod round;
mod socket;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;

use crate::netlink::NetlinkKernel;
use crate::select::link_flag;
use crate::socket::KernelError;

use round::Round;
use socket::{Port, Receiver, Sender};

pub use egress::{Egress, EgressLookup};

/// Longest round.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// One server to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// The virtual address and port.
    pub virtual_address: SocketAddr,
    /// The server's own address, of the same family.
    pub server: IpAddr,
    /// Forwarding of a director to it.
    pub path: Path,
}

/// Forwarding of a director.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// As it is, to the server's link-layer address.
    Direct,
    /// In another IP packet, of the same family.
    Tunnel,
}

/// Answer of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It accepts connections to the virtual address.
    Accepts,
    /// It has the virtual address, and nothing listens there; or its firewall resets such connections.
    Refuses,
    /// Nothing in time: it does not have the virtual address, or no tunnel, or drops such packets, or is dead.
    Silent,
    /// Only by [`Path::Direct`]: it has not been asked, because its link-layer address was not found in time. It is
    /// dead, or not on the link although its address is. A director has nowhere to forward to either.
    Unresolved,
    /// Only by [`Path::Direct`]: it has not been asked, because the way there leads by a router, by another interface,
    /// to this node itself, or nowhere. Nothing is wrong with the server, but no director can forward to it directly.
    NotOnLink,
}

/// Failure to ask any server. It says nothing about the servers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptanceError {
    /// There is no such interface, or no longer the one on which the sockets were opened: open them again.
    #[error("there is no interface {0}, or it was made anew")]
    NoInterface(String),
    /// The interface is no Ethernet one.
    #[error("servers cannot be asked through {0}, which is no Ethernet interface")]
    NotEthernet(String),
    /// The interface is down, or has no carrier.
    #[error("interface {0} is down or has no carrier")]
    Down(String),
    /// The interface does not have the address to ask from, or no longer: open again with another one.
    #[error("interface {interface} does not have the address {address} to ask from")]
    NoSource {
        /// The interface.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// No route leads to the server, or this node has no address to ask it from.
    #[error("no route of this node leads to {0}")]
    NoRoute(IpAddr),
    /// A question mixes families, or is of another one than the address to ask from.
    #[error("{} at {} cannot be asked about from {from}: all three have to be of one family", .question.virtual_address, .question.server)]
    Family {
        /// The question.
        question: Question,
        /// The address to ask from.
        from: IpAddr,
    },
    /// A capability is missing.
    #[error("asking servers needs {0}")]
    Permission(&'static str),
    /// A socket failed.
    #[error("{operation}: {source}")]
    Socket {
        /// The operation that failed.
        operation: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel did not list its links, addresses or neighbours.
    #[error("looking for the servers' link-layer addresses: {0}")]
    Kernel(KernelError),
}

/// Asks servers of one family through one interface.
///
/// It works in the network namespace of the thread that opens it, which must be that of the threads that ask, and needs
/// CAP_NET_RAW and CAP_NET_ADMIN.
pub struct Acceptance {
    interface: String,
    index: u32,
    source: IpAddr,
    kernel: NetlinkKernel,
    sender: Sender,
    receiver: Receiver,
    sequence: u32,
}

impl Acceptance {
    /// Opens the sockets. `source` is the address of the interface that servers answer to. It must not be a virtual
    /// one, which servers take for their own.
    ///
    /// # Errors
    /// [`AcceptanceError`].
    pub fn open(interface: &str, source: IpAddr) -> Result<Self, AcceptanceError> {
        let kernel = NetlinkKernel::open().map_err(socket::failed("opening a netlink socket"))?;
        let address = socket::ethernet_address(interface)?;
        let index = u32::try_from(address.ifindex())
            .map_err(|_| AcceptanceError::NoInterface(interface.to_owned()))?;
        let sender = Sender::open(&address, source)?;
        let receiver = Receiver::open(&address, source)?;
        let interface = interface.to_owned();
        let mut opened = Self { interface, index, source, kernel, sender, receiver, sequence: seed() };
        opened.check_interface()?;
        Ok(opened)
    }

    /// The link-layer addresses of the hosts behind the interface, as far as this one knows them.
    ///
    /// # Errors
    /// [`AcceptanceError::Kernel`].
    pub fn neighbours(&mut self) -> Result<HashMap<IpAddr, [u8; 6]>, AcceptanceError> {
        let known = self.kernel.neighbours(self.index, self.source);
        let known = known.map_err(AcceptanceError::Kernel)?;
        Ok(known.into_iter().filter_map(|it| Some((it.ip, it.mac?))).collect())
    }

    /// Asks all at once, and waits until every server has answered or `timeout` is over, which is at most a minute; a
    /// second suits a LAN. Each question is repeated twice in that time if no answer comes. Every question has its
    /// answer in the result. One server that is asked for the same virtual address by both paths at once may confuse
    /// the two.
    ///
    /// The kernel is told to find out the link-layer addresses that it does not know. This takes a round trip; it
    /// repeats itself once a second. It is also told to confirm those that it has not confirmed lately, but these
    /// are used meanwhile, by a director as well: with a server's new network card both fail to reach it for some
    /// seconds.
    ///
    /// It blocks the thread.
    ///
    /// # Errors
    /// [`AcceptanceError`] if no server could be asked. The next call may succeed, but for
    /// [`AcceptanceError::NoInterface`] and [`AcceptanceError::NoSource`], which ask for another
    /// [`Acceptance::open`] unless the address comes back.
    pub fn ask(
        &mut self,
        questions: &[Question],
        timeout: Duration,
    ) -> Result<HashMap<Question, Answer>, AcceptanceError> {
        let is_ours = |ip: IpAddr| ip.is_ipv4() == self.source.is_ipv4();
        let other =
            |question: &&Question| !is_ours(question.virtual_address.ip()) || !is_ours(question.server);
        if let Some(&question) = questions.iter().find(other) {
            return Err(AcceptanceError::Family { question, from: self.source });
        }
        let mac = self.check_interface()?;
        // Another one each time: a server that still has half a connection from the port answers for that one.
        let port = Port::reserve(self.source, self.index)?;
        self.receiver.listen_to(port.local())?;
        Round::new(self, mac, port.local(), questions).run(timeout.min(MAX_TIMEOUT))
    }

    /// Returns whether the interface is as it was; returns its link-layer address.
    fn check_interface(&mut self) -> Result<[u8; 6], AcceptanceError> {
        let link = self.kernel.link(self.index).map_err(AcceptanceError::Kernel)?;
        let no_interface = || AcceptanceError::NoInterface(self.interface.clone());
        let link = link.ok_or_else(no_interface)?;
        let mac = link.mac.ok_or_else(no_interface)?;
        let up = link_flag::UP | link_flag::LOWER_UP;
        if link.flags & up != up {
            return Err(AcceptanceError::Down(self.interface.clone()));
        }
        let addresses = self.kernel.addresses(self.index).map_err(AcceptanceError::Kernel)?;
        if !addresses.iter().any(|address| address.ip == self.source) {
            return Err(AcceptanceError::NoSource {
                interface: self.interface.clone(),
                address: self.source,
            });
        }
        Ok(mac)
    }

    /// Classifies a refusal of the kernel.
    fn refused(error: KernelError) -> AcceptanceError {
        match error.refused() {
            Some(Errno::EPERM | Errno::EACCES) => AcceptanceError::Permission("CAP_NET_ADMIN"),
            _ => AcceptanceError::Kernel(error),
        }
    }
}

/// Something that differs between processes, so that late answers to another one are told apart.
fn seed() -> u32 {
    let pid = std::process::id();
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.subsec_nanos());
    nanoseconds.wrapping_mul(0x9e37_79b1) ^ pid.rotate_left(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prober_can_move_between_threads() {
        fn assert_send<T: Send + 'static>() {}
        assert_send::<Acceptance>();
        assert_send::<AcceptanceError>();
    }
}
