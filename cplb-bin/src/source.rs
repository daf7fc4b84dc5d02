//! Reads a configuration file for `run`, `check` and a reload.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use cplb_config::{
    Backend, Config, Errors, Format, K0S_KUBECONFIG, Loaded, MAX_BYTES, Report, Severity, Theme, load_bytes,
};
use nix::fcntl::OFlag;

use crate::cli::BackendArgs;
use crate::exit::{Failure, Kind};

/// The width of a report, in columns.
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

/// The failure of a command whose configuration has errors.
pub(crate) fn refusal(errors: &Errors) -> Failure {
    Failure::new(Kind::Config, describe(errors))
}

/// Adds the backends and the kubeconfig of the command line, and returns a message about each that is ignored: it would
/// make the proxy connect to itself, or nothing would use it. With a file of k0s the API servers are discovered as well,
/// with k0s's own kubeconfig.
pub(crate) fn add_backends(loaded: &mut Loaded, backends: &BackendArgs) -> Vec<String> {
    let add = |backend: &Backend| {
        let refused = loaded.config.add_backend(backend.clone()).err()?;
        Some(format!("--backend {backend} is ignored: {refused}"))
    };
    let mut ignored: Vec<String> = backends.backends.iter().filter_map(add).collect();
    if let Some(path) = backends.kubeconfig.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        // The file is read again later, and the current directory may have changed by then.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        if let Err(refused) = loaded.config.set_kubeconfig(absolute) {
            ignored.push(format!("--kubeconfig {} is ignored: {refused}", path.display()));
        }
    }
    if loaded.document.format != Format::Native && loaded.config.backends.kubeconfig.is_none() {
        // Refused without a load balancer, which alone would use it.
        let _ = loaded.config.set_kubeconfig(K0S_KUBECONFIG.into());
    }
    ignored
}

/// Logs the warnings about an effective configuration, and returns them for the status. The backends of the command line
/// have to be in it already.
///
/// # Errors
/// [`Kind::Config`] with the first error.
pub(crate) fn admit(config: &Config) -> Result<Vec<String>, Failure> {
    let (mut refusal, mut warnings) = (None, Vec::new());
    for finding in config.check_effective() {
        if finding.severity == Severity::Error {
            refusal.get_or_insert(Failure::new(Kind::Config, finding.message).help(finding.help));
            continue;
        }
        tracing::warn!(path = %finding.path, "{} ({})", finding.message, finding.help);
        warnings.push(format!("configuration: {} ({})", finding.message, finding.help));
    }
    refusal.map_or(Ok(warnings), Err)
}

/// Reads a regular file, through symbolic links. A FIFO or a device would block, or never end. A file that is longer than
/// `limit` yields one byte more than that.
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

/// A report for standard error: on a terminal with the lines around each finding, else with one line for each.
pub(crate) fn render(report: &Report) -> String {
    if io::stderr().is_terminal() { report.graphical(Theme::Color, WIDTH) } else { report.plain() }
}

fn describe(errors: &Errors) -> String {
    format!("{errors}\n\n{}", render(errors.report()).trim_end())
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

    fn config(spec: &str) -> Config {
        let text = format!("apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n{spec}");
        cplb_config::load(&text, "f.yaml")
            .unwrap_or_else(|errors| panic!("{}", errors.report().plain()))
            .config
    }

    #[test]
    fn only_errors_keep_a_configuration_from_running() {
        let warnings = admit(&config("  services: [{name: a, port: 6443}]\n")).unwrap();
        assert!(warnings[0].contains("no backend is configured for a"), "{warnings:?}");
        let services: String = (1..=64).map(|port| format!("{{name: s{port}, port: {port}}}, ")).collect();
        let spec = format!(
            "  virtualServers: [{{ipAddress: 10.0.0.100}}, {{ipAddress: 10.0.0.101}}]\n  services: [{services}]\n"
        );
        let Err(refusal) = admit(&config(&spec)) else { panic!("128 virtual servers have too few marks") };
        assert!(refusal.to_string().contains("127 or fewer"), "{refusal}");
    }
}
