//! Reads a configuration file for `run`, `check` and a reload.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use cplb_config::{Backend, Errors, Format, K0S_KUBECONFIG, Loaded, MAX_BYTES, Theme, load_bytes};
use nix::fcntl::OFlag;

use crate::cli::BackendArgs;
use crate::exit::{Failure, Kind};

/// Columns of a report where the terminal's width is not known.
const WIDTH: usize = 100;

/// Reads and validates `path`, a regular file.
pub(crate) fn load(path: &Path) -> Result<Loaded, Failure> {
    let bytes = read_file(path, MAX_BYTES).map_err(|error| unreadable(path, &error))?;
    load_bytes(&bytes, &path.display().to_string()).map_err(|errors| refusal(&errors))
}

/// As [`load`]; `-` is standard input.
pub(crate) fn load_or_stdin(path: &Path) -> Result<Loaded, Failure> {
    if path != Path::new("-") {
        return load(path);
    }
    let bytes = read(io::stdin().lock(), MAX_BYTES).map_err(|error| unreadable(path, &error))?;
    load_bytes(&bytes, "standard input").map_err(|errors| refusal(&errors))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let kind = if error.kind() == io::ErrorKind::PermissionDenied { Kind::Permission } else { Kind::NoInput };
    Failure::new(kind, format_args!("cannot read the configuration {}: {error}", path.display()))
}

/// What a wrong configuration ends a command with.
pub(crate) fn refusal(errors: &Errors) -> Failure {
    Failure::new(Kind::Config, describe(errors))
}

/// Adds the backends and the kubeconfig of the command line, and tells which are left out and why: they would make the
/// proxy talk to itself, or nothing would use them. Beside k0s the API itself is asked as well, with k0s's own kubeconfig.
pub(crate) fn add_backends(loaded: &mut Loaded, backends: &BackendArgs) -> Vec<String> {
    let add = |backend: &Backend| {
        let refused = loaded.config.add_backend(backend.clone()).err()?;
        Some(format!("--backend {backend} is ignored: {refused}"))
    };
    let mut ignored: Vec<String> = backends.backends.iter().filter_map(add).collect();
    if let Some(path) = backends.kubeconfig.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        // Another directory may be the current one when it is read again.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        if let Err(refused) = loaded.config.set_kubeconfig(absolute) {
            ignored.push(format!("--kubeconfig {} is ignored: {refused}", path.display()));
        }
    }
    if loaded.document.format != Format::Native && loaded.config.backends.kubeconfig.is_none() {
        // Unused, if it has no load balancer.
        let _ = loaded.config.set_kubeconfig(K0S_KUBECONFIG.into());
    }
    ignored
}

/// Reads a regular file, whose content may be in another one that it links to. A FIFO or a device would block, or never
/// end. One byte more than `limit` is read at most, by which the caller knows that there is more.
pub(crate) fn read_file(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file (`cplb check --config -` reads standard input)",
        ));
    }
    read(file, limit)
}

fn read(from: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    from.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Drawn with the lines around each error on a terminal, one line each otherwise.
fn describe(errors: &Errors) -> String {
    let report = errors.report();
    let text =
        if io::stderr().is_terminal() { report.graphical(Theme::Color, WIDTH) } else { report.plain() };
    format!("{errors}\n\n{}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_a_fifo_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [fifo.as_path(), Path::new("/dev/zero"), directory.path()] {
            let error = read_file(path, 9).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "0123456789").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_file(&link, 4).unwrap(), b"01234", "a mounted ConfigMap is a link");
    }
}
