//! One daemon per interface and VRID, per virtual IP, and per nftables table.
//!
//! Two routers with one VRID on one link of one host would each see the other as a conflict and both would
//! manage the same addresses. A lock file per network namespace, interface and VRID keeps the second one out.
//! The interface is known late, so the virtual IPs and the table have locks of their own: a second daemon would
//! remove or replace the first one's on its way out.
//!
//! `flock` goes with its process, so a crash leaves nothing to clean up; a clean stop removes the file, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::exit::{Failure, Kind};

/// Where the lock files are, whatever `--socket` and `--state-dir` say: two daemons must meet here.
pub(crate) const DEFAULT_DIR: &str = "/run/cplb/lock";

/// Why an interface and VRID could not be locked.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    #[error("virtual router {vrid} on {interface} is already run by another cplb on this host{}", holder(*pid))]
    Held { interface: String, vrid: u8, pid: Option<u32> },
    #[error("the virtual IP {ip} is already managed by another cplb on this host{}", holder(*pid))]
    AddressHeld { ip: IpAddr, pid: Option<u32> },
    #[error("another cplb on this host{} balances its virtual IPs already: both would use the nftables table {table}", holder(*pid))]
    TableHeld { table: String, pid: Option<u32> },
    #[error("cannot use the lock file {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl From<&LockError> for Failure {
    fn from(error: &LockError) -> Self {
        match error {
            LockError::Io { .. } => Self::new(Kind::CannotCreate, error).help("make it writable"),
            LockError::Held { .. } => Self::new(Kind::Temporary, error)
                .help("stop the other one, or give this instance another virtualRouterID"),
            LockError::AddressHeld { .. } | LockError::TableHeld { .. } => Self::new(Kind::Temporary, error)
                .help("stop the other one: one cplb runs any number of vrrpInstances and services"),
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A held lock; dropping it releases and removes the file.
#[derive(Debug)]
pub(crate) struct HostLock {
    // Dropped, and thereby unlocked, after the file is removed.
    _file: Flock<File>,
    path: PathBuf,
}

impl Drop for HostLock {
    fn drop(&mut self) {
        // What remains is an empty promise: it locks nobody out.
        let _ = fs::remove_file(&self.path);
    }
}

/// How often a lock is tried whose file its former holder removes at the same moment.
const ATTEMPTS: u8 = 8;

impl HostLock {
    /// Locks `vrid` on `interface` of this process's network namespace.
    pub(crate) fn router(dir: &Path, interface: &str, vrid: u8) -> Result<Self, LockError> {
        let held = |pid| LockError::Held { interface: interface.to_owned(), vrid, pid };
        Self::acquire(dir, &format!("{interface}-{vrid}"), held)
    }

    /// Locks a virtual IP in this process's network namespace.
    pub(crate) fn virtual_ip(dir: &Path, ip: IpAddr) -> Result<Self, LockError> {
        Self::acquire(dir, &format!("address-{ip}"), |pid| LockError::AddressHeld { ip, pid })
    }

    /// Locks an nftables table of this process's network namespace.
    pub(crate) fn table(dir: &Path, table: &str) -> Result<Self, LockError> {
        let held = |pid| LockError::TableHeld { table: table.to_owned(), pid };
        // Not the name of an interface and VRID, as long as no table's name is a number.
        Self::acquire(dir, &format!("table-{table}"), held)
    }

    fn acquire(
        dir: &Path,
        name: &str,
        held: impl FnOnce(Option<u32>) -> LockError,
    ) -> Result<Self, LockError> {
        let path = dir.join(format!("{}-{name}", network_namespace()));
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        for _ in 0..ATTEMPTS {
            match Flock::lock(open(&path).map_err(io)?, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) if is_at(&file, &path) => {
                    write_pid(&mut file).map_err(io)?;
                    return Ok(Self { _file: file, path });
                }
                // The former holder removed it after it was opened here; others will meet at a new one.
                Ok(_) => {}
                Err((mut file, Errno::EWOULDBLOCK)) => return Err(held(read_pid(&mut file))),
                Err((_, errno)) => return Err(io(errno.into())),
            }
        }
        Err(io(io::ErrorKind::ResourceBusy.into()))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether this file is still the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
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
        let first = HostLock::router(dir.path(), "eth0", 51).unwrap();
        match HostLock::router(dir.path(), "eth0", 51) {
            Err(LockError::Held { pid, vrid: 51, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        HostLock::router(dir.path(), "eth0", 52).unwrap();
        HostLock::router(dir.path(), "eth1", 51).unwrap();
        drop(first);
        let again = HostLock::router(dir.path(), "eth0", 51).unwrap();
        drop(again);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no file is left behind");
    }

    #[test]
    fn a_file_that_was_removed_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let first = HostLock::router(dir.path(), "eth0", 51).unwrap();
        let late = open(&first.path).unwrap();
        assert!(is_at(&late, &first.path));
        let path = first.path.clone();
        drop(first);
        assert!(!is_at(&late, &path));
        let _second = HostLock::router(dir.path(), "eth0", 51).unwrap();
        assert!(!is_at(&late, &path));
    }

    #[test]
    fn tables_and_addresses_are_locked_apart_from_routers() {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id().to_string();
        let ip = "fd00::100".parse().unwrap();
        let _table = HostLock::table(dir.path(), "cplb").unwrap();
        let _address = HostLock::virtual_ip(dir.path(), ip).unwrap();
        HostLock::router(dir.path(), "table", 51).unwrap();
        HostLock::router(dir.path(), "address", 51).unwrap();
        let error = HostLock::table(dir.path(), "cplb").unwrap_err().to_string();
        assert!(error.contains("table cplb") && error.contains(&own), "{error}");
        let error = HostLock::virtual_ip(dir.path(), ip).unwrap_err().to_string();
        assert!(error.contains("fd00::100") && error.contains(&own), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = HostLock::router(&file.join("lock"), "eth0", 51).unwrap_err();
        assert!(error.to_string().contains("file/lock"), "{error}");
    }
}
