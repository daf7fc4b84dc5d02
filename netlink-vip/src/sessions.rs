//! The TCP sockets of this node: resets sessions that came through a VIP, and lists listening sockets.
//!
//! Once an address is gone not even a RST leaves in its name and the client hangs. So sessions are reset *before* a
//! planned removal; after an unplanned loss they are destroyed so that nothing lingers.

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use crate::socket::KernelError;
use crate::socket::RequestSocket;
pub use crate::wire::diag::Listener;
use crate::wire::diag::{self, SocketId};

/// Resets every TCP session (not a listener) whose local address is one of `ips`, with a RST to the peer, whichever
/// process it belongs to, in the calling thread's network namespace. Returns how many there were.
///
/// # Errors
/// [`SessionsError::Unsupported`] if there is a session and the kernel was built without
/// `CONFIG_INET_DIAG_DESTROY`, or if it cannot list sessions at all; the other variants if it could not be asked.
pub fn destroy(ips: &[IpAddr]) -> Result<usize, SessionsError> {
    Sessions::open()?.destroy(ips)
}

/// Every TCP socket that listens in the calling thread's network namespace, whichever process it belongs to. The
/// kernel reads these only, however many connections there are. It needs no capability.
///
/// # Errors
/// [`SessionsError::Unsupported`] if the kernel was built without `CONFIG_INET_DIAG`; [`SessionsError::Listing`] and
/// [`SessionsError::Socket`] if it could not be asked.
pub fn listeners() -> Result<Vec<Listener>, SessionsError> {
    Sessions::open()?.listeners()
}

/// Failure to reset sessions or to list sockets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionsError {
    /// The kernel lacks `CONFIG_INET_DIAG` or `CONFIG_INET_DIAG_DESTROY`.
    #[error("the kernel cannot list or destroy sockets (CONFIG_INET_DIAG, CONFIG_INET_DIAG_DESTROY)")]
    Unsupported,
    /// CAP_NET_ADMIN is missing.
    #[error("destroying sockets needs CAP_NET_ADMIN")]
    Permission,
    /// The kernel gave another answer.
    #[error("destroying sockets: {0}")]
    Kernel(#[from] KernelError),
    /// The kernel gave no list.
    #[error("listing sockets: {0}")]
    Listing(KernelError),
    /// The socket could not be opened.
    #[error("opening a socket for inet_diag: {0}")]
    Socket(Errno),
}

/// An open inet_diag socket.
pub(crate) struct Sessions(RequestSocket);

impl Sessions {
    pub(crate) fn open() -> Result<Self, SessionsError> {
        RequestSocket::open(NETLINK_SOCK_DIAG).map(Self).map_err(|error: io::Error| {
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPROTONOSUPPORT) => SessionsError::Unsupported,
                errno => SessionsError::Socket(errno.unwrap_or(Errno::EIO)),
            }
        })
    }

    fn listeners(&mut self) -> Result<Vec<Listener>, SessionsError> {
        let mut found = Vec::new();
        for family in diag::FAMILIES {
            let listed = self.0.dump(
                |sequence| diag::dump_listeners(sequence, family),
                |message| diag::listener(message.payload()),
            );
            found.extend(listed.map_err(|error| match classify_listing(error) {
                SessionsError::Kernel(error) => SessionsError::Listing(error),
                other => other,
            })?);
        }
        Ok(found)
    }

    pub(crate) fn destroy(&mut self, ips: &[IpAddr]) -> Result<usize, SessionsError> {
        let sessions = self.list(ips)?;
        self.end(&sessions)
    }

    /// The sessions whose local address is one of `ips`.
    pub(crate) fn list(&mut self, ips: &[IpAddr]) -> Result<Vec<SocketId>, SessionsError> {
        let mut found = Vec::new();
        for &ip in ips {
            for &family in diag::families(ip) {
                let listed = self.0.dump(
                    |sequence| diag::dump_sessions(sequence, family, ip),
                    |message| SocketId::decode(message.payload()),
                );
                let sessions = listed.map_err(classify_listing)?.into_iter();
                found.extend(sessions.filter(|session| session.local() == Some(ip)));
            }
        }
        Ok(found)
    }

    /// Ends sessions, with a RST to their peers as long as their address is there. Returns how many there still were.
    pub(crate) fn end(&mut self, sessions: &[SocketId]) -> Result<usize, SessionsError> {
        let mut ended = 0;
        for session in sessions {
            match self.0.transact(|sequence| diag::destroy(sequence, session)).map_err(classify) {
                Ok(()) => ended += 1,
                // It ended by itself in the meantime.
                Err(SessionsError::Kernel(error)) if error.refused() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }
}

/// Without inet_diag for TCP there is no such family of requests.
fn classify_listing(error: KernelError) -> SessionsError {
    match error.refused() {
        Some(Errno::ENOENT | Errno::EINVAL) => SessionsError::Unsupported,
        _ => classify(error),
    }
}

fn classify(error: KernelError) -> SessionsError {
    match error.refused() {
        Some(Errno::EOPNOTSUPP) => SessionsError::Unsupported,
        Some(Errno::EPERM | Errno::EACCES) => SessionsError::Permission,
        _ => SessionsError::Kernel(error),
    }
}
