//! Private state files that survive a crash: written whole, synced, then renamed into place.
//!
//! What they hold decides over addresses, links and sysctls at the next start, so they are untrusted input. A directory
//! counts only if its owner is root or the user of this process and no other user can write to it; a file is opened
//! below a handle of that directory, never through a link, and is held to the same rule. Contents are validated by the
//! `Deserialize` of their types.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Larger files are none of ours, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The format of the files of this crate. Later ones are not guessed at.
const VERSION: u32 = 1;

/// Permission bits by which others than the owner could write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// In a directory with this bit all users may create files, as in /tmp.
const STICKY: u32 = 0o1000;

/// Number of attempts to find an unused name for a temporary file.
const ATTEMPTS: u8 = 8;

/// The end of the names of temporary files.
const TEMPORARY: &str = ".new";

/// The text around every content.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    /// `/proc/sys/kernel/random/boot_id`: what a file of another boot describes is gone.
    boot_id: String,
    content: T,
}

/// The result of reading a file.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded<T> {
    /// There is none, or it is of an earlier boot.
    Nothing,
    /// Its content.
    Content(T),
    /// It cannot be used, for this reason.
    Unreadable(String),
}

/// A directory or a file that others could have written to.
#[derive(Debug, thiserror::Error)]
enum Untrusted {
    #[error(
        "{path} belongs to user {uid}: make it private with `chown -R {own} {path} && chmod 0700 {path}`"
    )]
    Owner { path: String, uid: u32, own: u32 },
    #[error(
        "{path} can be written by other users (mode {mode:04o}): make it private with `chmod 0700 {path}`"
    )]
    Mode { path: String, mode: u32 },
    #[error("{0} is a symbolic link of another user: name the directory itself")]
    Link(String),
}

fn own() -> u32 {
    geteuid().as_raw()
}

impl From<Untrusted> for io::Error {
    fn from(error: Untrusted) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, error)
    }
}

/// Creates the state directory with mode 0700 if it is absent, and checks that only its owner can write to it. An
/// empty one of this process's user, such as a fresh volume, is given that mode.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] with a text that names the remedy for one that others can write to; otherwise
/// the system's error.
pub fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let directory = Directory::open_unchecked(path)?;
    let metadata = directory.0.metadata()?;
    // A sticky one, such as /tmp, is meant to be shared.
    let is_meant_for_all = metadata.mode() & STICKY != 0;
    if metadata.uid() == own() && !is_meant_for_all && check(&metadata, path).is_err() && is_empty(path) {
        fchmod(&directory.0, Mode::S_IRWXU)?;
    }
    check(&directory.0.metadata()?, path)
}

/// Returns whether an error comes from the state of a file system (full, over quota, read-only, failing) and not of a
/// wrong path: it may end without another configuration.
pub fn is_storage_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let is_failing = error.raw_os_error() == Some(Errno::EIO as i32);
    is_failing || matches!(error.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

/// Checks that a file can be written in the directory, which is created as by [`create_directory`].
///
/// # Errors
/// As [`create_directory`], and what keeps a file from being written, such as a full or a read-only file system.
pub fn probe_directory(path: &Path) -> io::Result<()> {
    create_directory(path)?;
    let directory = Directory::open(path)?;
    let (mut file, name) = directory.create_temporary(OsStr::new("probe"))?;
    let written = file.write_all(&[0]);
    directory.unlink(&name)?;
    written
}

/// Replaces the file at `path`, so that after a crash there is the old one or the new one, and syncs it.
///
/// # Errors
/// As [`probe_directory`]; the old file is then as it was.
pub fn store<T: Serialize>(path: &Path, content: &T) -> io::Result<()> {
    let bytes = encode(content, &boot_id())?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let (directory, name) = Directory::of(path)?;
    let (mut file, temporary) = directory.create_temporary(name)?;
    let written = file
        .write_all(&bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| directory.rename(&temporary, Path::new(name)));
    if written.is_err() {
        let _ = directory.unlink(&temporary);
    }
    written.and_then(|()| directory.0.sync_all())
}

/// Removes the file; one that is not there is fine.
///
/// # Errors
/// The system's error.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = Directory::of(path).and_then(|(directory, name)| {
        directory.unlink(Path::new(name))?;
        directory.0.sync_all()
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Validity of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlives {
    /// Until the machine is booted again: it describes what the kernel has.
    Process,
    /// Whatever happens to the machine.
    Boot,
}

/// Reads a file about the state of the kernel; see [`load_as`].
///
/// # Errors
/// As [`load_as`].
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Loaded<T>> {
    load_as(path, Outlives::Process)
}

/// Reads the file for a person, and changes nothing, as its user may be at work.
///
/// # Errors
/// As [`create_directory`] for a directory that exists, or the system's error.
pub fn peek_as<T: DeserializeOwned>(path: &Path, outlives: Outlives) -> io::Result<Loaded<T>> {
    let read = Directory::of(path).and_then(|(directory, name)| directory.read(path, name));
    match read {
        Ok(bytes) => Ok(decode(&bytes, outlives, &boot_id())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Loaded::Nothing),
        Err(error) => Err(error),
    }
}

/// Reads the file. One that cannot be used is put aside under the extension `bad`, so that the next one can be written
/// and this one can be inspected. Each file has one user, which reads it before writing: what a crash left of a
/// temporary file is removed here.
///
/// # Errors
/// As [`create_directory`] for a directory that exists, or the system's error.
pub fn load_as<T: DeserializeOwned>(path: &Path, outlives: Outlives) -> io::Result<Loaded<T>> {
    let (directory, name) = match Directory::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
        other => other?,
    };
    directory.sweep(path, name);
    let loaded = match directory.read(path, name) {
        Ok(bytes) => decode(&bytes, outlives, &boot_id()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
        Err(error) => Loaded::Unreadable(error.to_string()),
    };
    let Loaded::Unreadable(why) = loaded else { return Ok(loaded) };
    let aside = Path::new(name).with_extension("bad");
    Ok(Loaded::Unreadable(match directory.rename(Path::new(name), &aside) {
        Ok(()) => why,
        Err(error) => format!("{why} (and it cannot be put aside: {error})"),
    }))
}

/// The bytes of a file with this content, written in the boot with this id.
///
/// # Errors
/// If the content cannot be written as JSON.
pub fn encode<T: Serialize>(content: &T, boot_id: &str) -> io::Result<Vec<u8>> {
    let envelope = Envelope { version: VERSION, boot_id: boot_id.to_owned(), content };
    let mut bytes = serde_json::to_vec_pretty(&envelope)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The content of a file, read in the boot with this id.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], outlives: Outlives, boot_id: &str) -> Loaded<T> {
    match serde_json::from_slice::<Envelope<serde_json::Value>>(bytes) {
        Err(error) => Loaded::Unreadable(error.to_string()),
        Ok(envelope) if outlives == Outlives::Process && envelope.boot_id != boot_id => Loaded::Nothing,
        Ok(envelope) if envelope.version != VERSION => {
            Loaded::Unreadable(format!("format {} is not known, only {VERSION}", envelope.version))
        }
        Ok(envelope) => match serde_json::from_value(envelope.content) {
            Ok(content) => Loaded::Content(content),
            Err(error) => Loaded::Unreadable(error.to_string()),
        },
    }
}

/// A handle of a directory that only its owner can write to.
struct Directory(File);

impl Directory {
    fn open(path: &Path) -> io::Result<Self> {
        let directory = Self::open_unchecked(path)?;
        check(&directory.0.metadata()?, path)?;
        Ok(directory)
    }

    fn open_unchecked(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = match open(path, flags, Mode::empty()) {
            // With both flags a link is no directory.
            Err(Errno::ELOOP | Errno::ENOTDIR) if path.is_symlink() => {
                // An administrator may have moved the directory. A link of another user can change at any moment.
                if !is_trusted(std::fs::symlink_metadata(path)?.uid()) {
                    return Err(Untrusted::Link(path.display().to_string()).into());
                }
                open(&path.canonicalize()?, flags, Mode::empty())?
            }
            other => other?,
        };
        Ok(Self(handle.into()))
    }

    /// The directory of a file, and its name there.
    fn of(path: &Path) -> io::Result<(Self, &OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok((Self::open(parent.unwrap_or(Path::new(".")))?, name))
    }

    fn read(&self, path: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
        // A FIFO in its place must not block.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file: File = match openat(&self.0, name, flags, Mode::empty()) {
            Err(Errno::ELOOP) => return Err(io::Error::other("it is a symbolic link")),
            other => other?.into(),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        check(&metadata, path)?;
        if metadata.len() > MAX_SIZE {
            return Err(io::Error::other(format!("it has more than {MAX_SIZE} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Creates a file that did not exist, under a name that cannot be foreseen.
    fn create_temporary(&self, name: &OsStr) -> io::Result<(File, PathBuf)> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for _ in 0..ATTEMPTS {
            let random = RandomState::new().build_hasher().finish();
            let temporary = format!("{}{random:016x}{TEMPORARY}", temporary_prefix(name));
            match openat(&self.0, temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Err(Errno::EEXIST) => {}
                other => return Ok((other?.into(), temporary.into())),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes what a crash has left of temporary files for `name`.
    fn sweep(&self, path: &Path, name: &OsStr) {
        let prefix = temporary_prefix(name);
        let entries = path.parent().into_iter().filter_map(|parent| parent.read_dir().ok()).flatten();
        for entry in entries.flatten() {
            let found = entry.file_name();
            let found = found.to_string_lossy();
            if found.starts_with(&prefix) && found.ends_with(TEMPORARY) {
                let _ = self.unlink(Path::new(&*found));
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        renameat(&self.0, from, &self.0, to).map_err(io::Error::from)
    }

    fn unlink(&self, name: &Path) -> io::Result<()> {
        unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir).map_err(io::Error::from)
    }
}

fn temporary_prefix(name: &OsStr) -> String {
    format!(".{}.", name.to_string_lossy())
}

/// Returns whether files of this user are as good as our own.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == own()
}

/// Checks that only a trusted owner can write there.
fn check(metadata: &Metadata, path: &Path) -> io::Result<()> {
    let path = || path.display().to_string();
    if !is_trusted(metadata.uid()) {
        return Err(Untrusted::Owner { path: path(), uid: metadata.uid(), own: own() }.into());
    }
    let mode = metadata.mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(Untrusted::Mode { path: path(), mode }.into());
    }
    Ok(())
}

fn is_empty(path: &Path) -> bool {
    path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
