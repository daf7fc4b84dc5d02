//! What must be there before anything is touched.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use cplb_config::Config;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cli::RunArgs;
use crate::exit::{Failure, Kind};
use crate::support;

/// Bit numbers of capabilities(7).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

/// Everything that can be known before the first change to the system.
pub(crate) fn check(config: &Config, args: &RunArgs) -> Result<(), Failure> {
    raise_descriptor_limit();
    support::admit(config)?;
    if config.instances.is_empty() {
        return Ok(());
    }
    privileges()?;
    state_dir(&args.state_dir)
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

/// Creates the state directory (0700) and proves that it can be written.
fn state_dir(dir: &Path) -> Result<(), Failure> {
    let probe = dir.join(".write-test");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| fs::write(&probe, b""))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|error| {
            Failure::new(
                Kind::CannotCreate,
                format_args!("cannot write the state directory {}: {error}", dir.display()),
            )
            .help("make it writable, or name another one with --state-dir")
        })
}

/// Each connection needs two descriptors; the soft limit of 1024 is for programs that use select(2).
fn raise_descriptor_limit() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(missing_capabilities("CapEff:\t0000000000001000\n"), ["CAP_NET_RAW"]);
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n"), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }

    #[test]
    fn an_unusable_state_directory_is_named_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        state_dir(&dir.path().join("a/b")).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let text = state_dir(&file).unwrap_err().to_string();
        assert!(text.contains("file") && text.contains("--state-dir"), "{text}");
    }
}
