//! Silence about addresses of other links.

use super::RealServerError;
use crate::repair::Repair;
use crate::sysctl::{SysctlError, SysctlGuard, SysctlKey};

/// Makes an interface answer ARP only for its own addresses, and ask only with them. What the administrator set
/// stays where it is as strict.
pub(super) fn suppress(guard: &mut SysctlGuard, interface: &str) -> Result<Vec<Repair>, RealServerError> {
    let mut repairs = Vec::new();
    let plans: [(&str, Planner); 2] = [("arp_ignore", ignore), ("arp_announce", announce)];
    for (name, plan) in plans {
        let key = |interface: &str| {
            SysctlKey::ipv4_conf(interface, name).ok_or_else(|| SysctlError::Name(interface.to_owned()))
        };
        let key_of_all = key("all")?;
        let key = key(interface)?;
        let found = key.read()?;
        let all = number(&key_of_all.read()?);
        match plan(all, number(&found)) {
            Plan::Fine => {}
            Plan::Set(value) => {
                guard.set(&key, value)?;
                repairs.push(Repair::Sysctl { key, found, value: value.to_owned() });
            }
            Plan::Hopeless => return Err(RealServerError::ArpAnswered { value: all }),
        }
    }
    Ok(repairs)
}

/// Decides on one sysctl by the value of all interfaces and the interface's own.
type Planner = fn(u32, u32) -> Plan;

/// The decision on one sysctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Fine,
    Set(&'static str),
    /// Whatever the interface says, the value of all interfaces decides.
    Hopeless,
}

/// `arp_ignore`: the larger value counts, and 1, 2, 3 and 8 keep quiet about addresses of other links that are valid
/// on the host only, as those of a dummy link are. The kernel takes all others for 0.
fn ignore(all: u32, own: u32) -> Plan {
    let quiet = |value: u32| matches!(value, 1 | 2 | 3 | 8);
    match all.max(own) {
        effective if quiet(effective) => Plan::Fine,
        _ if all == 0 || quiet(all) => Plan::Set("1"),
        _ => Plan::Hopeless,
    }
}

/// `arp_announce`: the larger value counts; from 2 on the kernel asks only with addresses of the interface.
fn announce(all: u32, own: u32) -> Plan {
    if all.max(own) >= 2 { Plan::Fine } else { Plan::Set("2") }
}

fn number(value: &str) -> u32 {
    value.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quieter_arp_settings_stay() {
        for (all, own) in [(0, 1), (1, 0), (0, 2), (2, 1), (0, 3), (0, 8), (8, 0), (3, 8)] {
            assert_eq!(ignore(all, own), Plan::Fine, "{all} {own}");
        }
        for (all, own) in [(0, 2), (2, 0), (1, 2)] {
            assert_eq!(announce(all, own), Plan::Fine, "{all} {own}");
        }
    }

    #[test]
    fn arp_is_suppressed_where_it_would_be_answered() {
        for (all, own) in [(0, 0), (0, 4), (0, 9), (1, 5)] {
            assert_eq!(ignore(all, own), Plan::Set("1"), "{all} {own}");
        }
        for (all, own) in [(4, 0), (9, 8), (5, 5)] {
            assert_eq!(ignore(all, own), Plan::Hopeless, "{all} {own}");
        }
        for (all, own) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            assert_eq!(announce(all, own), Plan::Set("2"), "{all} {own}");
        }
    }
}
