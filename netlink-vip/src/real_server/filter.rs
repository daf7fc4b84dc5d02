//! The filter that lets nothing in whose sender is behind another interface (`rp_filter`, RFC 3704).

use super::RealServerError;
use crate::repair::Repair;
use crate::sysctl::{SysctlError, SysctlGuard, SysctlKey};

pub(super) const NAME: &str = "rp_filter";

/// Makes an interface let in what a director sends there in the name of clients that are behind another one. What is
/// not strict stays as it is.
pub(super) fn loosen(guard: &mut SysctlGuard, interface: &str) -> Result<Vec<Repair>, RealServerError> {
    let key = |interface: &str| {
        SysctlKey::ipv4_conf(interface, NAME).ok_or_else(|| SysctlError::Name(interface.to_owned()))
    };
    let (all, key) = (key("all")?.read()?, key(interface)?);
    let found = key.read()?;
    if !is_strict(&all, &found) {
        return Ok(Vec::new());
    }
    guard.set(&key, LOOSE)?;
    Ok(vec![Repair::Sysctl { key, found, value: LOOSE.to_owned() }])
}

/// Any route back will do.
const LOOSE: &str = "2";

/// The larger value counts; 1 is strict.
fn is_strict(all: &str, own: &str) -> bool {
    let number = |value: &str| value.parse::<u32>().unwrap_or_default();
    number(all).max(number(own)) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_strict_is_loosened() {
        for (all, own) in [("1", "0"), ("0", "1"), ("1", "1")] {
            assert!(is_strict(all, own), "{all} {own}");
        }
        for (all, own) in [("0", "0"), ("2", "1"), ("1", "2"), ("0", "2")] {
            assert!(!is_strict(all, own), "{all} {own}");
        }
    }
}
