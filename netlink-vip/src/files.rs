//! Small files that must survive a crash: written whole, synced, then renamed into place.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Files beyond this size are not ours.
const MAX_SIZE: u64 = 1 << 20;

/// The format of the files of this crate. Later ones are not guessed at.
const VERSION: u32 = 1;

/// What every file says around its content.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    /// `/proc/sys/kernel/random/boot_id`: what a file of another boot describes is gone.
    boot_id: String,
    content: T,
}

/// What a file held.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded<T> {
    /// There is none, or it is of an earlier boot.
    Nothing,
    /// Its content.
    Content(T),
    /// It cannot be read, for this reason.
    Unreadable(String),
}

/// Creates the state directory, for its owner only.
pub fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces the file at `path`, so that after a crash there is the old one or the new one, and syncs it.
pub fn store<T: Serialize>(path: &Path, content: &T) -> io::Result<()> {
    let envelope = Envelope { version: VERSION, boot_id: boot_id(), content };
    let mut bytes = serde_json::to_vec_pretty(&envelope)?;
    bytes.push(b'\n');
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path)
}

/// Removes the file; one that is not there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_directory(path),
    }
}

/// How long what a file says is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlives {
    /// Until the machine is booted again: it describes what the kernel has.
    Process,
    /// Whatever happens to the machine.
    Boot,
}

/// Reads a file that tells what the kernel has; see [`load_as`].
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Loaded<T>> {
    load_as(path, Outlives::Process)
}

/// Reads the file. One that cannot be read is put aside under the extension `bad`, so that the next one can be
/// written and somebody can look at this one.
pub fn load_as<T: DeserializeOwned>(path: &Path, outlives: Outlives) -> io::Result<Loaded<T>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Nothing),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    let loaded = match serde_json::from_slice::<Envelope<serde_json::Value>>(&bytes) {
        Err(error) => Loaded::Unreadable(error.to_string()),
        Ok(envelope) if outlives == Outlives::Process && envelope.boot_id != boot_id() => Loaded::Nothing,
        Ok(envelope) if envelope.version != VERSION => {
            Loaded::Unreadable(format!("format {} is not known, only {VERSION}", envelope.version))
        }
        Ok(envelope) => match serde_json::from_value(envelope.content) {
            Ok(content) => Loaded::Content(content),
            Err(error) => Loaded::Unreadable(error.to_string()),
        },
    };
    if matches!(loaded, Loaded::Unreadable(_)) {
        std::fs::rename(path, path.with_extension("bad"))?;
    }
    Ok(loaded)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_comes_back_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("deep/state");
        create_directory(&state).unwrap();
        let path = state.join("x.json");
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
        store(&path, &vec![1, 2]).unwrap();
        store(&path, &vec![3]).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Content(vec![3]));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&state)), (0o600, 0o700));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
    }

    #[test]
    fn what_cannot_be_read_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        let boot = boot_id();
        let later = format!(r#"{{"version":2,"boot_id":"{boot}","content":[1]}}"#);
        let other = format!(r#"{{"version":1,"boot_id":"{boot}","content":"text"}}"#);
        for bad in ["", "{", "null", "\u{0}\u{0}", &later, &other] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(load::<Vec<u8>>(&path).unwrap(), Loaded::Unreadable(_)), "{bad}");
            assert!(!path.exists() && path.with_extension("bad").exists());
        }
    }

    #[test]
    fn a_file_of_another_boot_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.json");
        std::fs::write(&path, r#"{"version":1,"boot_id":"another","content":[1]}"#).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Loaded::Nothing);
        assert_eq!(load_as::<Vec<u8>>(&path, Outlives::Boot).unwrap(), Loaded::Content(vec![1]));
    }
}
