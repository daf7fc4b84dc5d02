//! The Unix sockets on which the daemon answers local programs.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::{Gid, Group, chown};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// A failure to open a socket.
#[derive(Debug, Error)]
pub(crate) enum BindError {
    #[error("another cplb answers at {}", .0.display())]
    InUse(PathBuf),
    #[error("cannot create the socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The listening socket; its file is removed on drop.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The group that may use it, beside the user of this process.
    group: Option<Gid>,
    /// Device and inode of the file.
    identity: Option<(u64, u64)>,
    /// Closed to accept a reader when the process has no other descriptor left: then they are needed most.
    reserve: Mutex<Option<File>>,
}

impl LocalSocket {
    /// Binds `path` with mode 0660, replacing a socket without a listener. A directory that is missing is created, for this user
    /// and the group only.
    pub(crate) fn bind(path: &Path, group: Option<Gid>) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            create_directory(dir, group).map_err(io)?;
        }
        if has_listener(path) {
            return Err(BindError::InUse(path.to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).map_err(io)?;
            }
            Ok(_) => {
                return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket")));
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        give_to(path, group, 0o660).map_err(io)?;
        let identity = identity(path);
        Ok(Self { listener, path: path.to_owned(), group, identity, reserve: Mutex::new(reserve()) })
    }

    /// Creates the socket again if its file was removed, or replaced by a socket without a listener.
    pub(crate) fn keep(&mut self) -> Result<Kept, BindError> {
        if self.is_in_place() {
            return Ok(Kept::Present);
        }
        *self = Self::bind(&self.path, self.group)?;
        Ok(Kept::Restored)
    }

    fn is_in_place(&self) -> bool {
        self.identity.is_some() && identity(&self.path) == self.identity
    }

    /// Accepts the next reader. After an error of `accept` it waits and tries again: there is no other remedy.
    pub(crate) async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.with_reserve(|held| *held = held.take().or_else(reserve));
                    return stream;
                }
                // The closed reserve frees a descriptor for the next attempt.
                Err(_) if self.with_reserve(|held| held.take().is_some()) => {}
                Err(error) => {
                    tracing::debug!(%error, "local socket: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    self.with_reserve(|held| *held = reserve());
                }
            }
        }
    }

    fn with_reserve<T>(&self, action: impl FnOnce(&mut Option<File>) -> T) -> T {
        action(&mut self.reserve.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The state of the file of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Present,
    Restored,
}

fn create_directory(dir: &Path, group: Option<Gid>) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if group.is_some() { give_to(dir, group, 0o750) } else { Ok(()) }
}

fn give_to(path: &Path, group: Option<Gid>, mode: u32) -> io::Result<()> {
    let wanted = group.filter(|group| fs::metadata(path).is_ok_and(|found| found.gid() != group.as_raw()));
    if let Some(group) = wanted
        && let Err(error) = chown(path, None, Some(group))
    {
        // The virtual IPs matter more than readers.
        tracing::warn!(%error, %group, "{} cannot be given to the group", path.display());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The group of this name or number.
///
/// # Errors
/// A text for the operator.
pub(crate) fn group(text: &str) -> Result<Gid, String> {
    let named = || Group::from_name(text).map_err(|error| error.to_string());
    match text.parse() {
        Ok(number) => Ok(Gid::from_raw(number)),
        Err(_) => named()?.map(|group| group.gid).ok_or_else(|| format!("there is no group {text}")),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Returns whether a process listens at `path`. A full queue (EAGAIN) shows a listener, too.
fn has_listener(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|client| connect(client.as_raw_fd(), &UnixAddr::new(path)?));
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

/// Opens a descriptor to hold in reserve; `accept` needs none while others are free.
fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{getegid, geteuid};

    use super::*;

    #[tokio::test]
    async fn a_removed_socket_is_created_again_and_that_of_another_daemon_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/cplb.sock");
        let mut socket = LocalSocket::bind(&path, None).unwrap();
        assert_eq!(socket.keep().unwrap(), Kept::Present);
        fs::remove_file(&path).unwrap();
        assert_eq!(socket.keep().unwrap(), Kept::Restored);
        assert_eq!(socket.keep().unwrap(), Kept::Present);
        assert!(has_listener(&path));
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        assert_eq!(socket.keep().unwrap(), Kept::Restored);
        fs::remove_file(&path).unwrap();
        let other = LocalSocket::bind(&path, None).unwrap();
        assert!(matches!(socket.keep(), Err(BindError::InUse(_))));
        drop(socket);
        assert!(has_listener(&path), "the other daemon's");
        drop(other);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_group_may_use_the_socket_and_enter_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        // Only root may choose another group.
        let group = if geteuid().is_root() { Gid::from_raw(4711) } else { getegid() };
        let path = dir.path().join("run/cplb.sock");
        let _socket = LocalSocket::bind(&path, Some(group)).unwrap();
        for (file, mode) in [(path.as_path(), 0o660), (path.parent().unwrap(), 0o750)] {
            let found = fs::metadata(file).unwrap();
            assert_eq!((found.gid(), found.mode() & 0o777), (group.as_raw(), mode), "{}", file.display());
        }
        let private = dir.path().join("private/cplb.sock");
        let _socket = LocalSocket::bind(&private, None).unwrap();
        assert_eq!(fs::metadata(private.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn groups_have_names_or_numbers() {
        assert_eq!(group("root").unwrap(), Gid::from_raw(0));
        assert_eq!(group("1234").unwrap(), Gid::from_raw(1234));
        assert!(group("no such group").unwrap_err().contains("no such group"));
    }

    #[tokio::test]
    async fn a_socket_without_a_listener_is_replaced_and_another_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cplb.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(LocalSocket::bind(&path, None).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(LocalSocket::bind(&path, None), Err(BindError::Io { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
