//! The sysctls below `net.ipv4.vs`, which exist while the kernel has IPVS: set while they are needed, and restored after.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::kube_proxy;
use super::record::{Changed, Record};

/// The desired values, by name.
pub(super) type Values = Vec<(&'static str, &'static str)>;

/// Sets the wanted sysctls, and restores those that are no longer wanted. Returns the faults, for the operator.
pub(super) fn apply(wanted: &Values, record: &mut Record) -> Vec<String> {
    let names: BTreeSet<&str> = wanted.iter().map(|(name, _)| *name).collect();
    let gone: Vec<String> =
        record.sysctls().keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
    let set = wanted.iter().map(|(name, value)| (*name, set(name, value, record)));
    let mut faults: Vec<String> = set.filter_map(|(name, result)| fault(name, result)).collect();
    for name in gone {
        faults.extend(fault(&name, restore(&name, record)));
    }
    faults
}

fn fault(name: &str, result: io::Result<()>) -> Option<String> {
    result.err().map(|error| format!("net.ipv4.vs.{name}: {error}"))
}

fn set(name: &str, value: &str, record: &mut Record) -> io::Result<()> {
    let current = match read(name) {
        // Older kernels lack some of them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if current == value {
        return Ok(());
    }
    let original = record.sysctls().get(name).map_or(current, |changed| changed.original.clone());
    let changed = Changed::new(name, &original, value);
    let changed = changed.ok_or_else(|| {
        io::Error::other(format!(
            "it is {original:?} and is not changed to {value:?}: set it to a documented value"
        ))
    })?;
    record.set_sysctl(name, Some(changed))?;
    fs::write(path(name), value)
}

/// Restores the original value, unless another program has changed it since or the module was unloaded. It is not restored
/// beside kube-proxy either, which sets the same values once, at its start.
fn restore(name: &str, record: &mut Record) -> io::Result<()> {
    if let Some(changed) = record.sysctls().get(name)
        && read(name).is_ok_and(|current| current == changed.written)
        && !kube_proxy::is_present()
    {
        fs::write(path(name), &changed.original)?;
    }
    record.set_sysctl(name, None)
}

fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name)).map(|text| text.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net/ipv4/vs").join(name)
}
