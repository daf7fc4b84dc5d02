//! Queries of the table over one nfnetlink socket, without starting a process.
//!
//! A query costs one system call each way and takes microseconds: the kernel answers within the call, so blocking calls
//! are right even on an asynchronous thread. A receive timeout guards them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::rules::Family;
use super::table::Table;
use super::wire::{self, Content, Query, WireError};

/// Size of the buffer for a dump: the kernel fills at most 32 KiB per datagram, even for a larger buffer
/// (`NLMSG_GOODSIZE` and `max_recvmsg_len` in `net/netlink/af_netlink.c`).
const DUMP_BUFFER: usize = 32 * 1024;
/// Size of the buffer for one object; the largest, a chain with its name and hook, takes a few hundred bytes.
const OBJECT_BUFFER: usize = 4 * 1024;

/// Time limit for an answer of the kernel, generous even on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Attempts to read a list that changes while it is read.
const ATTEMPTS: usize = 8;

/// A query of the kernel's nftables failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// `CAP_NET_ADMIN` is missing.
    #[error("reading the kernel's nftables needs CAP_NET_ADMIN")]
    Permission,
    /// The kernel has no nftables.
    #[error("this kernel has no nftables (CONFIG_NF_TABLES, module nf_tables)")]
    Unsupported,
    /// A system call failed.
    #[error("querying the kernel's nftables failed: {0}")]
    Socket(#[source] io::Error),
    /// The answer is malformed.
    #[error("the kernel's answer about its nftables is malformed: {0}")]
    Wire(#[from] WireError),
    /// The ruleset changed each time it was read.
    #[error("the kernel's nftables changed {ATTEMPTS} times while they were read")]
    Busy,
}

impl QueryError {
    fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::Permission,
            Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
                Self::Unsupported
            }
            other => Self::Socket(other.into()),
        }
    }
}

/// The kernel's number for the current ruleset of this network namespace: every committed change of any
/// table changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Generation(u32);

impl Generation {
    /// The number after exactly one more commit; the kernel leaves out 0.
    pub(super) fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(1))
    }
}

/// A digest of the kernel's table, with the handles it assigned: equal fingerprints mean that the table was not
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    digest: u64,
    pub(super) rules: usize,
    pub(super) elements: usize,
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

enum Reply {
    Complete,
    Interrupted,
    Failed(Errno),
}

impl Kernel {
    pub(super) fn open() -> Result<Self, QueryError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(QueryError::from_errno)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(QueryError::from_errno)?;
        let timeout = TimeVal::new(TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(QueryError::from_errno)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::new() })
    }

    pub(super) fn generation(&mut self) -> Result<Generation, QueryError> {
        let mut found = Err(WireError::Attribute(0));
        match self.query(Query::Generation, |_, object| {
            found = wire::generation(object);
            Ok(())
        })? {
            Reply::Failed(errno) => Err(QueryError::from_errno(errno)),
            Reply::Complete | Reply::Interrupted => Ok(Generation(found?)),
        }
    }

    /// Reads the fingerprint of a table; `None` if the table or one of its chains or sets does not exist.
    pub(super) fn fingerprint(&mut self, table: &Table) -> Result<Option<Fingerprint>, QueryError> {
        // The table itself counts the chains, sets and other objects in it, so additions show there.
        let name = table.name.as_str();
        let chains = table.chains();
        let chains = chains.iter().map(|chain| Query::Chain(name, chain.name));
        let sets =
            Family::BOTH.map(|family| [Query::Set(name, family.set()), Query::Elements(name, family.set())]);
        let others = [Query::Rules(name)].into_iter().chain(sets.into_iter().flatten());
        let mut total = Fingerprint { digest: 0, rules: 0, elements: 0 };
        for query in [Query::Table(name)].into_iter().chain(chains).chain(others) {
            let Some(part) = self.partial(query)? else { return Ok(None) };
            total.digest = total.digest.rotate_left(7) ^ part.digest;
            total.rules += part.rules;
            total.elements += part.elements;
        }
        // Changes are rare, so the large buffer is not kept for the next one.
        self.buffer = Vec::new();
        Ok(Some(total))
    }

    fn partial(&mut self, query: Query<'_>) -> Result<Option<Fingerprint>, QueryError> {
        for _ in 0..ATTEMPTS {
            let mut part = Fingerprint { digest: 0, rules: 0, elements: 0 };
            let reply = self.query(query, |kind, object| {
                let (digest, elements) = wire::digest(kind, object)?;
                // Rules count in their order, the pieces of an element list in any.
                part.digest = match query {
                    Query::Elements(..) => part.digest.wrapping_add(digest),
                    _ => part.digest.rotate_left(1) ^ digest,
                };
                part.rules += usize::from(matches!(query, Query::Rules(_)));
                part.elements += elements;
                Ok(())
            })?;
            match reply {
                Reply::Complete => return Ok(Some(part)),
                Reply::Interrupted => {}
                Reply::Failed(Errno::ENOENT) => return Ok(None),
                Reply::Failed(errno) => return Err(QueryError::from_errno(errno)),
            }
        }
        Err(QueryError::Busy)
    }

    /// Sends `query` and calls `each` with every object of the answer.
    fn query(
        &mut self,
        query: Query<'_>,
        mut each: impl FnMut(u16, &[u8]) -> Result<(), WireError>,
    ) -> Result<Reply, QueryError> {
        self.sequence = self.sequence.wrapping_add(1);
        let fd = self.socket.as_raw_fd();
        send(fd, &query.encode(self.sequence), MsgFlags::empty()).map_err(QueryError::from_errno)?;
        self.buffer.resize(if query.is_dump() { DUMP_BUFFER } else { OBJECT_BUFFER }, 0);
        let mut interrupted = false;
        loop {
            let length = match recv(fd, &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => continue,
                result => result.map_err(|errno| QueryError::Socket(errno.into()))?,
            };
            let available = self.buffer.len();
            let datagram =
                self.buffer.get(..length).ok_or(WireError::Length { claimed: length, available })?;
            for message in wire::messages(datagram) {
                let message = message?;
                // The rest of an answer that an earlier query abandoned.
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.interrupted;
                match message.content {
                    Content::Object { kind, attributes } => each(kind, attributes)?,
                    Content::Error(0) | Content::Done(0) => return Ok(finished(interrupted)),
                    Content::Error(errno) | Content::Done(errno) => {
                        return Ok(Reply::Failed(Errno::from_raw(errno)));
                    }
                    Content::Control => continue,
                }
                if !query.is_dump() {
                    return Ok(finished(interrupted));
                }
            }
        }
    }
}

fn finished(interrupted: bool) -> Reply {
    if interrupted { Reply::Interrupted } else { Reply::Complete }
}
