//! A dummy link that carries VIPs on every node, so that each accepts what a director sends it (direct routing).

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::kernel::{Kernel, KernelError, is_ours};
use crate::netlink::NetlinkKernel;
use crate::plan::Step as AddressStep;
use crate::select::link_flag;
use crate::types::full_prefix;
use crate::wire::decode::{LinkUpdate, ObservedAddress};

/// The kernel's limit for interface names (`IFNAMSIZ` without the final zero).
const NAME_MAX: usize = 15;

/// A dummy link of ours.
///
/// Its addresses are permanent, /32 and /128, never a default source, and marked as ours. They do no harm after a
/// crash, because nothing answers ARP or neighbour solicitations on the link itself; a restart takes it over.
pub struct DummyLink {
    kernel: NetlinkKernel,
    name: String,
    index: u32,
}

/// Why there is no dummy link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DummyError {
    /// The name is empty, too long or has characters that the kernel refuses.
    #[error("{0:?} is not a name for a link: 1 to 15 characters, without '/', ':' or blanks")]
    Name(String),
    /// There is a link of that name which is not a dummy.
    #[error("link {name} exists already and is of kind {kind:?}: it is left alone. Rename or remove it")]
    OtherKind {
        /// The name.
        name: String,
        /// What it is; `None` for a physical device.
        kind: Option<String>,
    },
    /// There is a dummy link of that name with addresses that are not ours.
    #[error("link {name} exists already with addresses of somebody else ({}): it is left alone", list(.addresses))]
    ForeignAddresses {
        /// The name.
        name: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The kernel has no dummy links.
    #[error("the kernel has no dummy links: load the module `dummy` (CONFIG_DUMMY)")]
    Unsupported,
    /// CAP_NET_ADMIN is missing.
    #[error("managing links needs CAP_NET_ADMIN")]
    Permission,
    /// The netlink socket could not be opened.
    #[error("opening a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused something else.
    #[error("link {name}: {error}")]
    Kernel {
        /// The link.
        name: String,
        /// Its answer.
        error: KernelError,
    },
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Delete(IpAddr),
    SetUp,
    Add(IpAddr),
}

impl DummyLink {
    /// Makes sure that the dummy link `name` exists, is up, and has exactly `addresses` (and what the kernel gives
    /// every link). An existing link is taken over if it is a dummy whose addresses are wanted or marked as ours.
    /// Sysctls that silence ARP for these addresses belong before this call, see [`crate::SysctlGuard`].
    ///
    /// # Errors
    /// [`DummyError`]; a link that is not ours is not changed.
    pub fn ensure(name: &str, addresses: &[IpAddr]) -> Result<Self, DummyError> {
        if !is_link_name(name) {
            return Err(DummyError::Name(name.to_owned()));
        }
        let kernel = NetlinkKernel::open().map_err(DummyError::Socket)?;
        let mut link = Self { kernel, name: name.to_owned(), index: 0 };
        link.set_addresses(addresses)?;
        Ok(link)
    }

    /// Changes the addresses.
    ///
    /// # Errors
    /// As [`DummyLink::ensure`].
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), DummyError> {
        let (link, observed) = self.observe()?;
        let marks = self.kernel.marks_addresses();
        let steps =
            plan(&self.name, addresses, link.as_ref().map(|link| (link, observed.as_slice())), marks)?;
        let new = steps.first() == Some(&Step::Create);
        for step in steps {
            if let Err(error) = self.take(step) {
                if new && self.index != 0 {
                    // Half a link is of no use to anybody; the error that matters is the first one.
                    let _ = self.kernel.delete_link(self.index);
                }
                return Err(self.classify(error));
            }
        }
        Ok(())
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Deletes the link, unless it has come to carry addresses of somebody else.
    ///
    /// # Errors
    /// [`DummyError::ForeignAddresses`] then; others if the kernel refuses.
    pub fn remove(mut self) -> Result<(), DummyError> {
        let (link, observed) = self.observe()?;
        let Some(link) = link else { return Ok(()) };
        let marks = self.kernel.marks_addresses();
        plan(&self.name, &[], Some((&link, &observed)), marks)?;
        self.kernel.delete_link(link.index).map_err(|error| self.classify(error))
    }

    fn observe(&mut self) -> Result<(Option<LinkUpdate>, Vec<ObservedAddress>), DummyError> {
        let links = self.kernel.links().map_err(|error| self.classify(error))?;
        let link = links.into_iter().find(|link| link.name.as_deref() == Some(self.name.as_str()));
        self.index = link.as_ref().map_or(0, |link| link.index);
        let addresses = match self.index {
            0 => Vec::new(),
            index => self.kernel.addresses(index).map_err(|error| self.classify(error))?,
        };
        Ok((link, addresses))
    }

    fn take(&mut self, step: Step) -> Result<(), KernelError> {
        match step {
            Step::Create => {
                self.kernel.create_dummy(&self.name)?;
                let links = self.kernel.links()?;
                let link = links.iter().find(|link| link.name.as_deref() == Some(self.name.as_str()));
                self.index = link.map(|link| link.index).ok_or(KernelError::NoAnswer)?;
                Ok(())
            }
            Step::SetUp => self.kernel.set_link_up(self.index),
            Step::Add(ip) => self.kernel.put_permanent(self.index, ip),
            Step::Delete(ip) => {
                let prefix_len = full_prefix(ip);
                self.kernel.apply(&AddressStep::DeleteAddress { index: self.index, ip, prefix_len })
            }
        }
    }

    fn classify(&self, error: KernelError) -> DummyError {
        match error.refused() {
            Some(Errno::EOPNOTSUPP) => DummyError::Unsupported,
            Some(Errno::EPERM | Errno::EACCES) => DummyError::Permission,
            _ => DummyError::Kernel { name: self.name.clone(), error },
        }
    }
}

fn is_link_name(name: &str) -> bool {
    let good = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '\0');
    !name.is_empty() && name.len() <= NAME_MAX && !matches!(name, "." | "..") && name.chars().all(good)
}

/// From what is to what should be, or why not. Pure.
fn plan(
    name: &str,
    wanted: &[IpAddr],
    observed: Option<(&LinkUpdate, &[ObservedAddress])>,
    kernel_marks: bool,
) -> Result<Vec<Step>, DummyError> {
    let wanted: BTreeSet<IpAddr> = wanted.iter().copied().collect();
    let Some((link, addresses)) = observed else {
        let add = wanted.into_iter().map(Step::Add);
        return Ok([Step::Create, Step::SetUp].into_iter().chain(add).collect());
    };
    if link.kind.as_deref() != Some("dummy") {
        return Err(DummyError::OtherKind { name: name.to_owned(), kind: link.kind.clone() });
    }
    let whole = |seen: &ObservedAddress| seen.prefix_len == full_prefix(seen.ip);
    let (fine, rest): (Vec<_>, Vec<_>) = addresses
        .iter()
        .filter(|seen| !is_the_kernels(seen))
        .partition(|seen| whole(seen) && wanted.contains(&seen.ip));
    let (obsolete, foreign): (Vec<_>, Vec<_>) =
        rest.into_iter().partition(|seen| is_ours(seen, kernel_marks));
    if !foreign.is_empty() {
        let addresses = foreign.iter().map(|seen| seen.ip).collect();
        return Err(DummyError::ForeignAddresses { name: name.to_owned(), addresses });
    }
    let mut steps: Vec<Step> = obsolete.iter().map(|seen| Step::Delete(seen.ip)).collect();
    if link.flags & link_flag::UP == 0 {
        steps.push(Step::SetUp);
    }
    let missing = wanted.into_iter().filter(|ip| !fine.iter().any(|seen| seen.ip == *ip));
    steps.extend(missing.map(Step::Add));
    Ok(steps)
}

/// Every link that is up has a link-local IPv6 address.
fn is_the_kernels(seen: &ObservedAddress) -> bool {
    matches!(seen.ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) && seen.prefix_len == 64
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PROTOCOL;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(kind: Option<&str>, flags: u32) -> LinkUpdate {
        LinkUpdate { index: 9, flags, kind: kind.map(str::to_owned), ..LinkUpdate::default() }
    }

    fn address(text: &str, protocol: Option<u8>) -> ObservedAddress {
        let (addr, len) = text.split_once('/').unwrap();
        let prefix_len = len.parse().unwrap();
        ObservedAddress { index: 9, ip: ip(addr), prefix_len, scope: 0, flags: 0x80, protocol, valid: None }
    }

    #[test]
    fn a_new_link_is_up_before_it_has_addresses() {
        let steps = plan("dummyvip0", &[ip("10.0.0.100"), ip("fd00::100")], None, true).unwrap();
        let expected = [Step::Create, Step::SetUp, Step::Add(ip("10.0.0.100")), Step::Add(ip("fd00::100"))];
        assert_eq!(steps, expected);
    }

    #[test]
    fn an_own_link_is_brought_to_what_is_wanted_and_then_left() {
        let down = link(Some("dummy"), 0x82);
        let there = [
            address("10.0.0.7/32", Some(PROTOCOL)),
            address("10.0.0.100/32", None),
            address("fe80::1/64", Some(3)),
        ];
        let wanted = [ip("10.0.0.100"), ip("10.0.0.101")];
        let steps = plan("dummyvip0", &wanted, Some((&down, &there)), true).unwrap();
        assert_eq!(steps, [Step::Delete(ip("10.0.0.7")), Step::SetUp, Step::Add(ip("10.0.0.101"))]);
        let up = link(Some("dummy"), 0x83);
        let there = [address("10.0.0.100/32", Some(PROTOCOL)), address("10.0.0.101/32", Some(PROTOCOL))];
        assert_eq!(plan("dummyvip0", &wanted, Some((&up, &there)), true).unwrap(), []);
    }

    #[test]
    fn a_link_of_somebody_else_is_refused() {
        let bridge = link(Some("bridge"), 0x83);
        let error = plan("dummyvip0", &[], Some((&bridge, &[])), true).unwrap_err();
        assert!(matches!(error, DummyError::OtherKind { kind: Some(kind), .. } if kind == "bridge"));
        assert!(matches!(
            plan("eth0", &[], Some((&link(None, 0x83), &[])), true),
            Err(DummyError::OtherKind { .. })
        ));

        let dummy = link(Some("dummy"), 0x83);
        for foreign in ["192.0.2.1/24", "192.0.2.1/32", "10.0.0.100/24", "fe80::1/128"] {
            let there = [address(foreign, None)];
            let error = plan("dummyvip0", &[ip("10.0.0.100")], Some((&dummy, &there)), true).unwrap_err();
            assert!(matches!(error, DummyError::ForeignAddresses { .. }), "{foreign}");
        }
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", "a/b", "a b", "..", "sixteen-letters-", "a:b"] {
            assert!(matches!(DummyLink::ensure(bad, &[]), Err(DummyError::Name(_))), "{bad}");
        }
        assert!(is_link_name("dummyvip0"));
    }
}
