//! One daemon per interface and VRID.
//!
//! Two routers with one VRID on one link of one host would each see the other as a conflict and both would
//! manage the same addresses. A lock file per network namespace, interface and VRID keeps the second one out;
//! `flock` goes with its process, so a crash leaves nothing to clean up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// Where the lock files are, whatever `--socket` and `--state-dir` say: two daemons must meet here.
pub(crate) const DEFAULT_DIR: &str = "/run/cplb/lock";

/// Why an interface and VRID could not be locked.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    #[error("virtual router {vrid} on {interface} is already run by another cplb on this host{}", holder(*pid))]
    Held { interface: String, vrid: u8, pid: Option<u32> },
    #[error("cannot use the lock file {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A held lock; dropping it releases.
#[derive(Debug)]
pub(crate) struct RouterLock {
    _file: Flock<File>,
}

impl RouterLock {
    /// Locks `vrid` on `interface` of this process's network namespace.
    pub(crate) fn acquire(dir: &Path, interface: &str, vrid: u8) -> Result<Self, LockError> {
        let path = dir.join(format!("{}-{interface}-{vrid}", network_namespace()));
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                write_pid(&mut file).map_err(io)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                Err(LockError::Held { interface: interface.to_owned(), vrid, pid: read_pid(&mut file) })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }
}

/// The inode number identifies the namespace among those that exist now.
fn network_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_holder_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = RouterLock::acquire(dir.path(), "eth0", 51).unwrap();
        match RouterLock::acquire(dir.path(), "eth0", 51) {
            Err(LockError::Held { pid, vrid: 51, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        RouterLock::acquire(dir.path(), "eth0", 52).unwrap();
        RouterLock::acquire(dir.path(), "eth1", 51).unwrap();
        drop(first);
        RouterLock::acquire(dir.path(), "eth0", 51).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = RouterLock::acquire(&file.join("lock"), "eth0", 51).unwrap_err();
        assert!(error.to_string().contains("file/lock"), "{error}");
    }
}
