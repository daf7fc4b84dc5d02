//! One daemon with virtual IPs per network namespace.
//!
//! Two daemons in one network namespace would manage the same addresses, ports and tables. The lock is an abstract Unix
//! socket: the kernel keeps these names per network namespace, independent of mounts, and frees a name with its process.
//! Any user of the namespace may bind the name, so its holder is identified by SO_PEERCRED; a holder that cannot be a
//! daemon does not stop this one.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::geteuid;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::exit::{Failure, Kind};

/// The name of the socket, `@cplb` in the output of `ss -xlp`.
const NAME: &str = "cplb";

/// The bit of CAP_NET_ADMIN, see capabilities(7).
const CAP_NET_ADMIN: u32 = 12;

/// The pause after a failed `accept`, and the time in which a holder of the name must answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Attempts to identify the holder in that time.
const ATTEMPTS: u32 = 20;

/// A failure to lock the network namespace.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    #[error("another cplb ({0}) runs in this network namespace already")]
    Held(Holder),
    #[error(
        "the abstract socket @{NAME}, which is the lock of the network namespace, is held by {0}, which is not cplb"
    )]
    Occupied(Holder),
    #[error("cannot bind the abstract socket @{NAME}: {0}")]
    Io(#[from] io::Error),
}

impl From<&LockError> for Failure {
    fn from(error: &LockError) -> Self {
        let help = match error {
            LockError::Io(_) => return Self::new(Kind::System, error),
            LockError::Held(_) => {
                "stop the other one: one cplb runs any number of vrrpInstances and services"
            }
            LockError::Occupied(_) => "stop that process",
        };
        Self::new(Kind::Temporary, error).help(help)
    }
}

/// A process that holds the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// `None` if it is in another PID namespace.
    pid: Option<i32>,
    uid: u32,
    /// The name of its program.
    program: Option<String>,
    /// It has CAP_NET_ADMIN in the user namespace of this process.
    is_net_admin: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => f.write_str("a process of another PID namespace")?,
        }
        if let Some(program) = &self.program {
            write!(f, ", program {program}")?;
        }
        write!(f, ", user {}", self.uid)
    }
}

/// The kind of a holder, by its privileges and its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HolderKind {
    Daemon,
    /// Another program with the privileges of a daemon.
    OtherProgram,
    /// A process that cannot manage addresses; the name of its program proves nothing.
    Unprivileged,
}

impl Holder {
    fn kind(&self, own_uid: u32) -> HolderKind {
        // Its capabilities are not in this /proc, so root of another PID namespace counts as privileged.
        let is_root_elsewhere = self.uid == 0 && self.pid.is_none();
        let is_same_user = self.uid == own_uid && own_uid != 0;
        let is_privileged = self.is_net_admin || is_root_elsewhere || is_same_user;
        match &self.program {
            _ if !is_privileged => HolderKind::Unprivileged,
            Some(program) if program != env!("CARGO_BIN_NAME") => HolderKind::OtherProgram,
            _ => HolderKind::Daemon,
        }
    }

    /// Identifies the listener of a name; `None` if it does not listen, or its queue is full.
    fn of(name: &str) -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        connect(client.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).ok()?).ok()?;
        let found = getsockopt(&client, PeerCredentials).ok()?;
        let pid = Some(found.pid()).filter(|pid| *pid > 0);
        let program = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        Some(Self {
            pid,
            uid: found.uid(),
            program: program.map(|name| name.trim_end_matches('\n').to_owned()),
            is_net_admin: pid.is_some_and(is_net_admin),
        })
    }
}

/// Returns whether a process has CAP_NET_ADMIN over this network namespace, which that of another user namespace is not.
fn is_net_admin(pid: i32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let same = namespace("self").is_some_and(|own| namespace(&pid.to_string()) == Some(own));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    same && effective & (1 << CAP_NET_ADMIN) != 0
}

/// The result of locking.
#[derive(Debug)]
pub(crate) enum Locked {
    Held(NamespaceLock),
    /// A process that cannot be another daemon holds the name. The daemon runs without the lock, and tries again.
    Without(String),
    /// As `Without`, with a holder that does not answer; it may have just started.
    Unanswered(String),
}

impl Locked {
    /// The lock, if there is one.
    pub(crate) fn held(self) -> Option<NamespaceLock> {
        match self {
            Self::Held(lock) => Some(lock),
            Self::Without(_) | Self::Unanswered(_) => None,
        }
    }
}

/// The held lock; dropping it releases the name.
#[derive(Debug)]
pub(crate) struct NamespaceLock(JoinHandle<()>);

impl Drop for NamespaceLock {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Locks the network namespace of this thread, within a runtime.
///
/// # Errors
/// [`LockError`], if another daemon holds it, or another program with the privileges of one.
pub(crate) fn acquire() -> Result<Locked, LockError> {
    acquire_as(NAME)
}

/// As [`acquire`], but waits up to a second for a holder that has bound the name and does not listen yet.
///
/// # Errors
/// As [`acquire`].
pub(crate) async fn acquire_at_start() -> Result<Locked, LockError> {
    for _ in 0..ATTEMPTS {
        match acquire()? {
            Locked::Unanswered(_) => tokio::time::sleep(PAUSE / ATTEMPTS).await,
            locked => return Ok(locked),
        }
    }
    acquire()
}

fn acquire_as(name: &str) -> Result<Locked, LockError> {
    let listener = match StdUnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) => return occupied(name),
        other => other?,
    };
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    Ok(Locked::Held(NamespaceLock(tokio::spawn(answer(listener)))))
}

/// Accepts the connections by which other processes identify the holder, so that the queue stays short. The credentials
/// come from the kernel: nothing is written.
async fn answer(listener: UnixListener) {
    loop {
        if listener.accept().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn occupied(name: &str) -> Result<Locked, LockError> {
    let Some(holder) = Holder::of(name) else {
        return Ok(Locked::Unanswered(without("a process that does not answer")));
    };
    match holder.kind(geteuid().as_raw()) {
        HolderKind::Daemon => Err(LockError::Held(holder)),
        HolderKind::OtherProgram => Err(LockError::Occupied(holder)),
        HolderKind::Unprivileged => Ok(Locked::Without(without(holder))),
    }
}

fn without(holder: impl fmt::Display) -> String {
    format!(
        "the abstract socket @{NAME}, which is the lock of the network namespace, is held by {holder}: stop it (`ss -xlp | \
         grep @{NAME}`). It lacks the privileges of a daemon, so this daemon runs without the lock, and a second one would \
         not be refused"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(uid: u32, program: &str, is_net_admin: bool) -> Holder {
        Holder { pid: Some(7), uid, program: Some(program.to_owned()), is_net_admin }
    }

    #[tokio::test]
    async fn a_second_lock_names_the_holder_until_the_first_is_dropped() {
        let name = format!("cplb-test-{}", std::process::id());
        let Locked::Held(first) = acquire_as(&name).unwrap() else { panic!("the name is free") };
        for _ in 0..3 {
            let error = acquire_as(&name).unwrap_err();
            let text = Failure::from(&error).to_string();
            assert!(
                text.contains(&format!("process {}", std::process::id())) && text.contains("stop"),
                "{text}"
            );
        }
        drop(first);
        tokio::task::yield_now().await;
        assert!(matches!(acquire_as(&name).unwrap(), Locked::Held(_)));
    }

    #[tokio::test]
    async fn a_holder_that_does_not_listen_does_not_stop_the_daemon() {
        let name = format!("cplb-silent-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let silent = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        nix::sys::socket::bind(silent.as_raw_fd(), &address).unwrap();
        let Locked::Unanswered(why) = acquire_as(&name).unwrap() else { panic!("the name is bound") };
        assert!(why.contains("does not answer") && why.contains("ss -xlp"), "{why}");
    }

    #[test]
    fn only_holders_with_the_privileges_of_a_daemon_refuse_the_lock() {
        assert_eq!(holder(0, "cplb", true).kind(0), HolderKind::Daemon);
        assert_eq!(
            holder(990, "cplb", true).kind(0),
            HolderKind::Daemon,
            "a service with capabilities and no root"
        );
        assert_eq!(holder(990, "cplb", false).kind(990), HolderKind::Daemon);
        assert_eq!(holder(0, "socat", true).kind(990), HolderKind::OtherProgram);
        assert_eq!(holder(1000, "cplb", false).kind(0), HolderKind::Unprivileged, "a name proves nothing");
        assert_eq!(holder(1000, "sleep", false).kind(0), HolderKind::Unprivileged);
        let text = without(holder(1000, "sleep", false));
        assert!(text.contains("process 7, program sleep, user 1000"), "{text}");
    }
}
