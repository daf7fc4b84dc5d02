//! The kernel's IP forwarding, without which the director drops the answers of servers behind NAT.
//!
//! Forwarding is the administrator's decision, so it is checked and reported, not switched on.

use std::fs;
use std::path::{Path, PathBuf};

use cplb_config::LbKind;

use super::plan::DirectedPort;

/// The address families that need forwarding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Forwarding {
    v4: bool,
    v6: bool,
}

/// The forwarding that the services need, on every node that may hold their addresses.
pub(super) fn forwarding(all: &[DirectedPort]) -> Forwarding {
    let nat = |v4: bool| all.iter().any(|it| it.kind == LbKind::Nat && it.vip.is_ipv4() == v4);
    Forwarding { v4: nat(true), v6: nat(false) }
}

impl Forwarding {
    /// The faults, for the operator. `interfaces` are those of the virtual IPs.
    pub(super) fn faults(self, interfaces: &[String]) -> Vec<String> {
        self.missing(interfaces, Path::new("/proc/sys/net"))
            .into_iter()
            .map(|name| {
                format!("{name} is 0, so the answers of servers behind lbKind NAT end here: set it to 1")
            })
            .collect()
    }

    fn missing(self, interfaces: &[String], root: &Path) -> Vec<&'static str> {
        // IPv4 uses the setting of the arrival interface, IPv6 that of all interfaces.
        let of = |name: &String| root.join("ipv4/conf").join(name).join("forwarding");
        let mut v4: Vec<PathBuf> = interfaces.iter().map(of).collect();
        if v4.is_empty() {
            v4.push(root.join("ipv4/ip_forward"));
        }
        let mut missing = Vec::new();
        if self.v4 && v4.iter().all(|path| is_off(path)) {
            missing.push("net.ipv4.ip_forward");
        }
        if self.v6 && is_off(&root.join("ipv6/conf/all/forwarding")) {
            missing.push("net.ipv6.conf.all.forwarding");
        }
        missing
    }
}

fn is_off(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_forwarding_that_is_off_is_a_fault() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        };
        write("ipv4/ip_forward", "0");
        write("ipv4/conf/eth0/forwarding", "1");
        write("ipv4/conf/eth1/forwarding", "0");
        write("ipv6/conf/all/forwarding", "0");
        let missing = |v4, v6, interfaces: &[&str]| {
            let interfaces: Vec<String> = interfaces.iter().map(ToString::to_string).collect();
            Forwarding { v4, v6 }.missing(&interfaces, root.path())
        };
        assert_eq!(missing(true, true, &[]), ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]);
        assert_eq!(missing(true, false, &["eth1"]), ["net.ipv4.ip_forward"]);
        assert_eq!(missing(true, false, &["eth0", "eth1"]), [""; 0]);
        assert_eq!(missing(false, false, &["eth1"]), [""; 0]);
        // An interface that does not exist yet is not checked.
        assert_eq!(missing(true, false, &["eth2"]), [""; 0]);
    }
}
