//! Checks of the system before the daemon changes anything.

use std::fs;
use std::path::Path;

use cplb_config::Config;
use netlink_vip::files;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cli::RunArgs;
use crate::exit::{Failure, Kind};
use crate::source;

/// Bit numbers of capabilities(7).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// Checks the limits, the kernel features, the privileges and the state directory. Returns the warnings, which are logged
/// already.
pub(crate) fn check(config: &Config, args: &RunArgs) -> Result<Vec<String>, Failure> {
    let mut warnings: Vec<String> = raise_descriptor_limit().into_iter().collect();
    warnings.extend(source::admit(config)?);
    if !config.instances.is_empty() {
        privileges()?;
        state_dir(&args.state_dir)?;
    }
    Ok(warnings)
}

/// Refuses to start without the capabilities that VIPs need, naming each missing one.
fn privileges() -> Result<(), Failure> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| {
        Failure::new(Kind::System, format_args!("cannot read /proc/self/status: {error}"))
    })?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        return Ok(());
    }
    let message =
        format!("virtual IPs need the privileges {}, which this process lacks", missing.join(" and "));
    Err(Failure::new(Kind::Permission, message).help(
        "run as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_NICE CAP_IPC_LOCK",
    ))
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    [("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_NET_RAW", CAP_NET_RAW)]
        .into_iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| name)
        .collect()
}

/// Creates the state directory (0700), and checks that only this user can write to it. A full or read-only file system may
/// recover, and is left to [`crate::daemon::state_dir`].
fn state_dir(dir: &Path) -> Result<(), Failure> {
    match files::probe_directory(dir) {
        Ok(()) => Ok(()),
        Err(error) if files::is_storage_fault(&error) => Ok(()),
        Err(error) => Err(Failure::new(
            Kind::CannotCreate,
            format_args!("cannot use the state directory {}: {error}", dir.display()),
        )
        .help("make it writable for this process alone, or name another one with --state-dir")),
    }
}

/// Raises the soft limit of descriptors to the hard one: each connection needs two, and the usual soft limit of 1024 is
/// meant for programs that use select(2). Returns the warning if that fails.
fn raise_descriptor_limit() -> Option<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok().filter(|(soft, hard)| soft < hard)?;
    let error = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).err()?;
    tracing::warn!(%error, soft, hard, "limit of open files not raised");
    Some(format!("the limit of open files is {soft} and cannot be raised to {hard}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_listed_by_name() {
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(missing_capabilities("CapEff:\t0000000000001000\n"), ["CAP_NET_RAW"]);
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n"), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }

    #[test]
    fn an_unusable_state_directory_is_reported_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        state_dir(&dir.path().join("a/b")).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let text = state_dir(&file).unwrap_err().to_string();
        assert!(text.contains("file") && text.contains("--state-dir"), "{text}");
        let shared = dir.path().join("shared");
        fs::create_dir_all(shared.join("content")).unwrap();
        fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let text = state_dir(&shared).unwrap_err().to_string();
        assert!(text.contains("chmod 0700") && text.contains("--state-dir"), "{text}");
    }
}
