//! The kernel's forwarding, without which the answers of servers behind NAT end at the director.
//!
//! Whether a node is a router is its administrator's to say, so it is asked for and not switched on.

use std::fs;
use std::path::{Path, PathBuf};

use cplb_config::LbKind;

use super::plan::Directed;

/// The families that need it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forwarding {
    v4: bool,
    v6: bool,
}

/// What the services need, on every node that may come to have them.
pub(crate) fn forwarding(all: &[Directed]) -> Forwarding {
    let nat = |v4: bool| all.iter().any(|it| it.kind == LbKind::Nat && it.vip.is_ipv4() == v4);
    Forwarding { v4: nat(true), v6: nat(false) }
}

impl Forwarding {
    /// What is missing, for people. `interfaces` are those of the virtual IPs.
    pub(crate) fn faults(self, interfaces: &[String]) -> Vec<String> {
        self.missing(interfaces, Path::new("/proc/sys/net"))
            .into_iter()
            .map(|name| {
                format!("{name} is 0, so the answers of servers behind lbKind NAT end here: set it to 1")
            })
            .collect()
    }

    fn missing(self, interfaces: &[String], root: &Path) -> Vec<&'static str> {
        // IPv4 asks the interface that a packet arrives by, IPv6 all of them.
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
    fn it_is_missed_where_it_is_needed_and_off() {
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
        // One that is not there yet is not judged.
        assert_eq!(missing(true, false, &["eth2"]), [""; 0]);
    }
}
