//! A dummy link that carries VIPs on every node, so that each accepts what a director sends it.
//!
//! A node may also hold the same VIP as a lease on a real interface, and then everything that asks where the VIP is
//! (`fib daddr . iif` in nftables) must find the real interface: the kernel takes the first route of the local
//! table, and among equal ones that is the older one, the dummy's. So each IPv4 address has a local route of ours
//! with a worse metric instead of the kernel's: the lease's wins while it lives, the dummy's catches when it ends,
//! by no process's doing. For IPv6 the kernel asks the interface itself.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;
use nix::libc;

use crate::link_name::is_link_name;
use crate::netlink::NetlinkKernel;
use crate::ownership::is_our_permanent;
use crate::repair::Repair;
use crate::select::link_flag;
use crate::sessions::SessionsError;
use crate::socket::KernelError;
use crate::types::full_prefix;
use crate::wire::decode::{LinkUpdate, ObservedAddress, ObservedRoute};
use crate::wire::{PROTOCOL, address_flag};

/// A dummy link of ours.
///
/// Its addresses are permanent, /32 and /128, never a default source, and marked as ours. IPv4 packets to them are
/// taken by this link only where no other interface of the node has the address. They do no harm after a crash,
/// because nothing answers ARP or neighbour solicitations on the link itself; a restart takes it over.
pub struct DummyLink {
    kernel: NetlinkKernel,
    name: String,
    index: u32,
    /// Addresses that are or were wanted. One that was there before us carries no mark.
    known: BTreeSet<IpAddr>,
}

/// Failure to make a dummy link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DummyError {
    /// The name is empty, too long or has characters that the kernel refuses.
    #[error("{0:?} is not a name for a link: 1 to 15 characters, without '/', ':' or blanks")]
    Name(String),
    /// There is a link of that name which is not a dummy.
    #[error("link {name} exists already and is {}: it is left alone. Rename or remove it", kind_text(.kind.as_deref()))]
    OtherKind {
        /// The name.
        name: String,
        /// Its kind; `None` for a physical device.
        kind: Option<String>,
    },
    /// There is a dummy link of that name with addresses that are not ours.
    #[error("link {name} exists already with foreign addresses ({}): it is left alone", list(.addresses))]
    ForeignAddresses {
        /// The name.
        name: String,
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// The kernel has no dummy links.
    #[error("the kernel has no dummy links: load the module `dummy` (CONFIG_DUMMY)")]
    Unsupported,
    /// IPv6 is disabled on the link, which it is from the start where it is disabled by default.
    #[error(
        "IPv6 is disabled on link {name}: set net.ipv6.conf.default.disable_ipv6 and \
         net.ipv6.conf.{name}.disable_ipv6 to 0, or configure no IPv6 address"
    )]
    Ipv6Disabled {
        /// The name.
        name: String,
    },
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
    /// Makes the worse local route.
    AddLocalRoute(Ipv4Addr),
    /// Deletes the kernel's local route, which would go before that of a lease.
    DeleteKernelRoute(Ipv4Addr),
    /// Deletes the worse local route.
    DeleteLocalRoute(Ipv4Addr),
}

/// Report of a change of the addresses.
#[derive(Debug)]
pub(crate) struct DummyReport {
    pub(crate) repairs: Vec<Repair>,
    /// Why sessions on addresses that have gone were not reset.
    pub(crate) unreset: Option<SessionsError>,
}

/// The link as the kernel shows it.
struct Observed {
    link: LinkUpdate,
    addresses: Vec<ObservedAddress>,
    routes: Vec<ObservedRoute>,
}

impl DummyLink {
    /// Makes sure that the dummy link `name` exists, is up, and has exactly `addresses` (and what the kernel gives
    /// every link). An existing link is taken over if it is a dummy whose addresses are wanted or marked as ours.
    /// Sysctls that silence ARP for these addresses belong before this call, see [`crate::RealServer`].
    ///
    /// # Errors
    /// [`DummyError`]; a link that is not ours is not changed.
    pub fn ensure(name: &str, addresses: &[IpAddr]) -> Result<Self, DummyError> {
        let mut link = Self::open(name, [])?;
        link.set_addresses(addresses)?;
        Ok(link)
    }

    /// For a link that may not exist yet. On one that does, the addresses in `known` are ours even without a mark.
    pub(crate) fn open(name: &str, known: impl IntoIterator<Item = IpAddr>) -> Result<Self, DummyError> {
        if !is_link_name(name) {
            return Err(DummyError::Name(name.to_owned()));
        }
        let kernel = NetlinkKernel::open().map_err(DummyError::Socket)?;
        Ok(Self { kernel, name: name.to_owned(), index: 0, known: known.into_iter().collect() })
    }

    /// Changes the addresses, and repairs whatever else is not as it should be: call it again now and then, and
    /// when the link changed, because the kernel makes its own local routes anew when a link comes up. A call that
    /// finds nothing changes nothing. The addresses stay local throughout.
    ///
    /// TCP sessions on addresses that go and that no other link of the node has are reset first, if the kernel can do
    /// that ([`crate::sessions`]): afterwards their clients would wait for answers in vain.
    ///
    /// # Errors
    /// As [`DummyLink::ensure`].
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<Vec<Repair>, DummyError> {
        self.reconcile(addresses).map(|report| report.repairs)
    }

    /// As [`DummyLink::set_addresses`].
    pub(crate) fn reconcile(&mut self, addresses: &[IpAddr]) -> Result<DummyReport, DummyError> {
        let seen = self.observe()?;
        let marks = self.kernel.marks_addresses();
        let steps = plan(&self.name, addresses, seen.as_ref(), &self.known, marks)?;
        self.known.extend(addresses);
        let new = steps.first() == Some(&Step::Create);
        let unreset = self.reset_sessions(&steps);
        for &step in &steps {
            if let Err(error) = self.apply(step) {
                if new && self.index != 0 {
                    // Half a link is of no use; the error that matters is the first one.
                    let _ = self.kernel.delete_link(self.index);
                }
                return Err(self.classify(step, error));
            }
        }
        Ok(DummyReport { repairs: self.repairs(&steps), unreset })
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Deletes the link. One that has come to carry foreign addresses stays, without ours; one that has only
    /// theirs is left alone. Sessions are reset as by [`DummyLink::set_addresses`].
    ///
    /// # Errors
    /// [`DummyError::ForeignAddresses`] then; [`DummyError::OtherKind`] if the link is another one, which is left
    /// alone; others if the kernel refuses.
    pub fn remove(self) -> Result<(), DummyError> {
        self.take_down(&mut None)
    }

    /// As [`DummyLink::remove`]; `unreset` becomes why sessions were not reset.
    pub(crate) fn take_down(mut self, unreset: &mut Option<SessionsError>) -> Result<(), DummyError> {
        let Some(seen) = self.observe()? else { return Ok(()) };
        check_kind(&self.name, &seen.link)?;
        let marks = self.kernel.marks_addresses();
        let (ours, foreign) = split(&seen.addresses, &BTreeSet::new(), &self.known, marks);
        let deletions: Vec<Step> = ours.iter().copied().map(Step::Delete).collect();
        if let Some(why) = self.reset_sessions(&deletions) {
            *unreset = Some(why);
        }
        if foreign.is_empty() {
            return self.kernel.delete_link(seen.link.index).map_err(|error| self.fault(error));
        }
        if ours.is_empty() {
            return Ok(());
        }
        let routes = our_routes(&seen.routes).map(Step::DeleteLocalRoute);
        for step in deletions.into_iter().chain(routes) {
            self.apply(step).map_err(|error| self.classify(step, error))?;
        }
        Err(DummyError::ForeignAddresses { name: self.name, addresses: foreign })
    }

    fn observe(&mut self) -> Result<Option<Observed>, DummyError> {
        let link = self.kernel.link_named(&self.name).map_err(|error| self.fault(error))?;
        self.index = link.as_ref().map_or(0, |link| link.index);
        let Some(link) = link else { return Ok(None) };
        let addresses = self.kernel.addresses(link.index).map_err(|error| self.fault(error))?;
        let routes = self.kernel.local_routes(link.index).map_err(|error| self.fault(error))?;
        Ok(Some(Observed { link, addresses, routes }))
    }

    /// Resets the sessions on addresses that are about to go, but for those that another link has: these go on.
    fn reset_sessions(&mut self, steps: &[Step]) -> Option<SessionsError> {
        let going = steps.iter().filter_map(|step| match step {
            Step::Delete(ip) => Some(*ip),
            _ => None,
        });
        let mut going: Vec<IpAddr> = going.collect();
        if going.is_empty() {
            return None;
        }
        let all = match self.kernel.addresses(0) {
            Ok(all) => all,
            Err(error) => return Some(error.into()),
        };
        going.retain(|&ip| !all.iter().any(|seen| seen.ip == ip && seen.index != self.index));
        if going.is_empty() { None } else { self.kernel.reset_sessions(&going).err() }
    }

    fn apply(&mut self, step: Step) -> Result<(), KernelError> {
        match step {
            Step::Create => {
                self.kernel.create_dummy(&self.name)?;
                let link = self.kernel.link_named(&self.name)?;
                self.index = link.map(|link| link.index).ok_or(KernelError::NoAnswer)?;
                Ok(())
            }
            Step::SetUp => self.kernel.set_link_up(self.index),
            Step::Add(ip) => self.kernel.put_permanent(self.index, ip),
            Step::Delete(ip) => {
                let prefix_len = full_prefix(ip);
                self.kernel.delete_address(self.index, ip, prefix_len)
            }
            Step::AddLocalRoute(ip) => self.kernel.put_local_route(self.index, ip),
            Step::DeleteKernelRoute(ip) => self.kernel.delete_kernel_route(self.index, ip),
            Step::DeleteLocalRoute(ip) => self.kernel.delete_local_route(self.index, ip),
        }
    }

    /// The routes of a new address are not reported.
    fn repairs(&self, steps: &[Step]) -> Vec<Repair> {
        let link = self.name.clone();
        let new = |ip: Ipv4Addr| {
            let ip = ip.into();
            steps.contains(&Step::Add(ip)) || steps.contains(&Step::Delete(ip))
        };
        let mut repairs = Vec::new();
        for &step in steps {
            let link = link.clone();
            let repair = match step {
                Step::Create => Repair::Created { link },
                Step::SetUp => Repair::SetUp { link },
                Step::Add(ip) => Repair::Added { link, ip },
                Step::Delete(ip) => Repair::Removed { link, ip },
                Step::AddLocalRoute(ip) | Step::DeleteKernelRoute(ip) | Step::DeleteLocalRoute(ip)
                    if new(ip) =>
                {
                    continue;
                }
                Step::AddLocalRoute(ip) | Step::DeleteKernelRoute(ip) | Step::DeleteLocalRoute(ip) => {
                    Repair::Route { link, ip: ip.into() }
                }
            };
            if !repairs.contains(&repair) {
                repairs.push(repair);
            }
        }
        repairs
    }

    fn classify(&self, step: Step, error: KernelError) -> DummyError {
        match (step, error.refused()) {
            (Step::Create, Some(Errno::EOPNOTSUPP)) => DummyError::Unsupported,
            (Step::Add(IpAddr::V6(_)), Some(Errno::EACCES)) => {
                DummyError::Ipv6Disabled { name: self.name.clone() }
            }
            _ => self.fault(error),
        }
    }

    fn fault(&self, error: KernelError) -> DummyError {
        match error.refused() {
            Some(Errno::EPERM | Errno::EACCES) => DummyError::Permission,
            _ => DummyError::Kernel { name: self.name.clone(), error },
        }
    }
}

/// Plans the steps from the observed to the desired state, or the reason why there are none. Pure.
///
/// A route of ours comes before the kernel's goes, so that an address is local at every moment.
fn plan(
    name: &str,
    wanted: &[IpAddr],
    seen: Option<&Observed>,
    known: &BTreeSet<IpAddr>,
    kernel_marks: bool,
) -> Result<Vec<Step>, DummyError> {
    let wanted: BTreeSet<IpAddr> = wanted.iter().copied().collect();
    let Some(Observed { link, addresses, routes }) = seen else {
        let add = wanted.iter().copied().map(Step::Add);
        let routes = wanted
            .iter()
            .copied()
            .filter_map(v4)
            .flat_map(|ip| [Step::AddLocalRoute(ip), Step::DeleteKernelRoute(ip)]);
        return Ok([Step::Create, Step::SetUp].into_iter().chain(add).chain(routes).collect());
    };
    check_kind(name, link)?;
    let (obsolete, foreign) = split(addresses, &wanted, known, kernel_marks);
    if !foreign.is_empty() {
        return Err(DummyError::ForeignAddresses { name: name.to_owned(), addresses: foreign });
    }
    let mut steps: Vec<Step> = obsolete.into_iter().map(Step::Delete).collect();
    steps.extend(
        our_routes(routes).filter(|ip| !wanted.contains(&IpAddr::V4(*ip))).map(Step::DeleteLocalRoute),
    );
    let was_down = link.flags & link_flag::UP == 0;
    if was_down {
        steps.push(Step::SetUp);
    }
    for &ip in &wanted {
        let there = || addresses.iter().filter(|seen| seen.ip == ip);
        if !there().any(|seen| is_complete(seen, kernel_marks)) {
            steps.push(Step::Add(ip));
        }
        let Some(v4) = v4(ip) else { continue };
        // The kernel makes its route when the address comes and when the link does.
        let remade = was_down || there().next().is_none();
        if remade || !our_routes(routes).any(|ours| ours == v4) {
            steps.push(Step::AddLocalRoute(v4));
        }
        let kernels = |route: &ObservedRoute| route.protocol == libc::RTPROT_KERNEL && leads_to(route, v4);
        if remade || routes.iter().any(kernels) {
            steps.push(Step::DeleteKernelRoute(v4));
        }
    }
    Ok(steps)
}

/// The kind of a link, for messages.
pub(crate) fn kind_text(kind: Option<&str>) -> String {
    kind.map_or_else(|| "a device of its own kind".to_owned(), |kind| format!("of kind {kind}"))
}

fn check_kind(name: &str, link: &LinkUpdate) -> Result<(), DummyError> {
    if link.kind.as_deref() == Some("dummy") {
        return Ok(());
    }
    Err(DummyError::OtherKind { name: name.to_owned(), kind: link.kind.clone() })
}

/// The addresses of ours that are not wanted, and the foreign ones.
fn split(
    addresses: &[ObservedAddress],
    wanted: &BTreeSet<IpAddr>,
    known: &BTreeSet<IpAddr>,
    kernel_marks: bool,
) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let is_one_of = |ips: &BTreeSet<IpAddr>, seen: &ObservedAddress| {
        seen.prefix_len == full_prefix(seen.ip) && ips.contains(&seen.ip)
    };
    let rest = addresses.iter().filter(|seen| !is_the_kernels(seen) && !is_one_of(wanted, seen));
    let (ours, foreign): (Vec<_>, Vec<_>) =
        rest.partition(|seen| is_our_permanent(seen, kernel_marks) || is_one_of(known, seen));
    let ips = |of: Vec<&ObservedAddress>| of.into_iter().map(|seen| seen.ip).collect();
    (ips(ours), ips(foreign))
}

/// Returns whether an address is as good as one of ours: without end, and for IPv6 never a default source and marked.
/// The mark of an IPv4 address cannot be changed without deleting it.
fn is_complete(seen: &ObservedAddress, kernel_marks: bool) -> bool {
    let whole = seen.prefix_len == full_prefix(seen.ip) && seen.valid.is_none();
    let marked = !kernel_marks || is_our_permanent(seen, kernel_marks);
    whole && (seen.ip.is_ipv4() || marked && seen.flags & address_flag::DEPRECATED != 0)
}

fn our_routes(routes: &[ObservedRoute]) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let ours = routes.iter().filter(|route| route.protocol == PROTOCOL && route.destination.len() == 32);
    ours.filter_map(|route| v4(route.destination.network()))
}

fn leads_to(route: &ObservedRoute, ip: Ipv4Addr) -> bool {
    route.destination.len() == 32 && route.destination.network() == IpAddr::V4(ip)
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

/// Every link that is up has a link-local IPv6 address.
fn is_the_kernels(seen: &ObservedAddress) -> bool {
    matches!(seen.ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) && seen.prefix_len == 64
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "dummy_tests.rs"]
mod tests;
