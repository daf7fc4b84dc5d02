//! The filter that lets nothing in whose sender is behind another interface (`rp_filter`, RFC 3704). IPv6 has none.

use crate::sysctl::{RP_FILTER, SysctlError, SysctlKey};

/// The value with which any route back will do.
pub(crate) const LOOSE: &str = "2";

/// That of an interface, or of "all".
pub(crate) fn key(interface: &str) -> Result<SysctlKey, SysctlError> {
    SysctlKey::ipv4_conf(interface, RP_FILTER).ok_or_else(|| SysctlError::Name(interface.to_owned()))
}

/// A link without IPv4 has none, and drops nothing for it.
pub(crate) fn read(interface: &str) -> Result<u8, SysctlError> {
    match key(interface)?.read() {
        Ok(value) => Ok(value.parse().unwrap_or_default()),
        Err(error) if error.is_absent() => Ok(0),
        Err(error) => Err(error),
    }
}

/// Returns whether an interface lets nothing in that did not take the best way, given the value of all interfaces and
/// its own: the larger one counts.
pub(crate) fn is_strict(all: u8, own: u8) -> bool {
    all.max(own) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_one_is_strict() {
        for (all, own) in [(1, 0), (0, 1), (1, 1)] {
            assert!(is_strict(all, own), "{all} {own}");
        }
        for (all, own) in [(0, 0), (2, 1), (1, 2), (0, 2)] {
            assert!(!is_strict(all, own), "{all} {own}");
        }
    }
}
