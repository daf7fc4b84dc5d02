//! Reads a configuration file for `run`, `check` and a reload.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use cplb_config::{Backend, Errors, Format, K0S_KUBECONFIG, Loaded, MAX_BYTES, Theme, load_bytes};

use crate::cli::BackendArgs;
use crate::exit::{Failure, Kind};

/// Columns of a report where the terminal's width is not known.
const WIDTH: usize = 100;

/// Reads and validates `path`.
pub(crate) fn load(path: &Path) -> Result<Loaded, Failure> {
    let bytes = read(path).map_err(|error| {
        let kind =
            if error.kind() == io::ErrorKind::PermissionDenied { Kind::Permission } else { Kind::NoInput };
        Failure::new(kind, format_args!("cannot read the configuration {}: {error}", path.display()))
    })?;
    load_bytes(&bytes, &path.display().to_string()).map_err(|errors| refusal(&errors))
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

/// More than the limit is not read; the library says that the file is too large.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Drawn with the lines around each error on a terminal, one line each otherwise.
fn describe(errors: &Errors) -> String {
    let report = errors.report();
    let text =
        if io::stderr().is_terminal() { report.graphical(Theme::Color, WIDTH) } else { report.plain() };
    format!("{errors}\n\n{}", text.trim_end())
}
