//! One daemon with virtual IPs per network namespace.
//!
//! Two daemons in one network namespace would manage the same addresses, ports and tables. The lock is an abstract Unix
//! socket: the kernel keeps their names per network namespace, whatever a process sees of the file system, and a name
//! goes with its process. Any user of the namespace may bind the name, so its holder is identified by SO_PEERCRED, and
//! one that cannot be another daemon does not keep this one from its work.

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

/// Between a failed `accept` and the next one, and the patience with a process that does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a silent holder is asked in that time.
const ATTEMPTS: u32 = 20;

/// Why the network namespace could not be locked.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    #[error("another cplb ({0}) runs in this network namespace already")]
    Held(Holder),
    #[error(
        "{0}, which is not cplb, has the abstract socket @{NAME}, by which daemons of one network namespace exclude each other"
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

/// A process that has the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// `None` if it is in another PID namespace.
    pid: Option<i32>,
    uid: u32,
    /// The name of its program.
    program: Option<String>,
    /// Whether it has CAP_NET_ADMIN in the user namespace of this process.
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

/// What a holder of the name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Daemon,
    /// As privileged as a daemon.
    Peer,
    /// It could not manage addresses, whatever it calls itself.
    Unprivileged,
}

impl Holder {
    fn rank(&self, own_uid: u32) -> Rank {
        // Root of a container may lack the capability, which only /proc tells.
        let is_root_elsewhere = self.uid == 0 && self.pid.is_none();
        let is_same_user = self.uid == own_uid && own_uid != 0;
        let is_privileged = self.is_net_admin || is_root_elsewhere || is_same_user;
        match &self.program {
            _ if !is_privileged => Rank::Unprivileged,
            Some(program) if program != env!("CARGO_BIN_NAME") => Rank::Peer,
            _ => Rank::Daemon,
        }
    }

    /// Identifies the listener of a name; `None` if it does not listen, or its queue is full.
    fn of(name: &str) -> Option<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let asker = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
        connect(asker.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).ok()?).ok()?;
        let found = getsockopt(&asker, PeerCredentials).ok()?;
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

/// Capabilities in another user namespace do not reach the network namespace of this process.
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
    /// A process that cannot be another daemon has the name. This one works without, and tries again.
    Without(String),
    /// The same of a process that does not answer, be it only because it has just begun.
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
/// [`LockError`], if another daemon has it, or a process that is as privileged as one.
pub(crate) fn acquire() -> Result<Locked, LockError> {
    acquire_as(NAME)
}

/// As [`acquire`]; waits a second for a process to answer that has just bound the name.
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

/// Takes the connections by which other processes identify the holder, so that the queue stays short. The kernel has
/// answered them already.
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
    match holder.rank(geteuid().as_raw()) {
        Rank::Daemon => Err(LockError::Held(holder)),
        Rank::Peer => Err(LockError::Occupied(holder)),
        Rank::Unprivileged => Ok(Locked::Without(without(holder))),
    }
}

fn without(holder: impl fmt::Display) -> String {
    format!(
        "{holder}, has the abstract socket @{NAME}, by which daemons of one network namespace exclude each other: stop it \
         (`ss -xlp | grep @{NAME}`). It lacks the privileges of a daemon and does not keep this one from its work, but a \
         second daemon would go unnoticed"
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
        let Locked::Held(first) = acquire_as(&name).unwrap() else { panic!("it is free") };
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
    async fn a_name_that_is_bound_without_listening_does_not_stop_the_daemon() {
        let name = format!("cplb-mute-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let mute = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        nix::sys::socket::bind(mute.as_raw_fd(), &address).unwrap();
        let Locked::Unanswered(why) = acquire_as(&name).unwrap() else { panic!("it is taken") };
        assert!(why.contains("does not answer") && why.contains("ss -xlp"), "{why}");
    }

    #[test]
    fn only_a_process_with_the_privileges_of_a_daemon_excludes_one() {
        assert_eq!(holder(0, "cplb", true).rank(0), Rank::Daemon);
        assert_eq!(
            holder(990, "cplb", true).rank(0),
            Rank::Daemon,
            "a service with capabilities and no root"
        );
        assert_eq!(holder(990, "cplb", false).rank(990), Rank::Daemon);
        assert_eq!(holder(0, "socat", true).rank(990), Rank::Peer);
        assert_eq!(holder(1000, "cplb", false).rank(0), Rank::Unprivileged, "a name proves nothing");
        assert_eq!(holder(1000, "sleep", false).rank(0), Rank::Unprivileged);
        let text = without(holder(1000, "sleep", false));
        assert!(text.contains("process 7, program sleep, user 1000"), "{text}");
    }
}
