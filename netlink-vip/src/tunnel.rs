//! A tunnel link that unpacks what a director sends this node in another packet (IPVS's forwarding method "tunnel").
//!
//! It only receives: replies go straight to the client. Three things decide whether the kernel lets an unpacked
//! packet in, whose source is a client anywhere:
//!
//! - `rp_filter`, of which the kernel takes the larger one of `all` and the link's: where that is 1 (strict), the
//!   link gets 2 (loose);
//! - for IPv4, that the link has an address: under any `rp_filter`, the kernel drops every packet from elsewhere that
//!   comes in through a link without one. Ours is of 127.0.0.0/8, which is local anyway and is never routed;
//! - for IPv6, that its MTU is not below 1280: there the kernel takes IPv6 off a link.
//!
//! Links carry no mark that is set as they are made. So a link is ours if it is of one of our kinds and has our alias,
//! or, since a crash can come in between, if it is in every detail what we make and was never set up. An alias is
//! kept by the kernel and shows in `ip link`, where it shows an administrator the owner of the link.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use nix::errno::Errno;

use crate::dummy::kind_text;
use crate::link_name::is_link_name;
use crate::netlink::NetlinkKernel;
use crate::repair::Repair;
use crate::rp_filter;
use crate::select::link_flag;
use crate::socket::KernelError;
use crate::sysctl::SysctlError;
use crate::wire::decode::{LinkUpdate, ObservedAddress, TunnelEnds};

/// Says whose link it is.
const ALIAS: &str = "cplb";
/// Address of the tunnel link, without which the kernel drops every unpacked packet.
const ANCHOR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 203);
/// `IPPROTO_IPIP`: IPv4 inside.
const IPV4_INSIDE: u8 = 4;
/// Length of an IPv4 and of an IPv6 header, in bytes.
const HEADER_V4: u32 = 20;
const HEADER_V6: u32 = 40;
/// Below this there is no IPv6 on a link (RFC 8200 §5).
const MTU_MIN_V6: u32 = 1280;
/// Creating a link is followed by a second pass, and deleting it first by a third; the fourth finds nothing to do.
const MAX_PASSES: usize = 4;

/// Configuration of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TunnelConfig {
    /// The name of the link.
    pub name: String,
    /// The node's address to which directors send. An IPv4 one makes an `ipip` link, which unpacks IPv4; an IPv6 one
    /// an `ip6tnl` link, which unpacks IPv4 and IPv6.
    pub local: IpAddr,
}

impl TunnelConfig {
    /// A tunnel with the default name of its family, `cplbtun4` or `cplbtun6`.
    pub fn new(local: IpAddr) -> Self {
        let name = if local.is_ipv4() { "cplbtun4" } else { "cplbtun6" };
        Self { name: name.to_owned(), local }
    }
}

/// A tunnel link of ours.
///
/// It does no harm after a crash; a restart takes it over.
pub struct TunnelLink {
    kernel: NetlinkKernel,
    config: TunnelConfig,
}

/// Failure to make a tunnel link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The name is empty, too long or has characters that the kernel refuses.
    #[error("{0:?} is not a name for a link: 1 to 15 characters, without '/', ':' or blanks")]
    Name(String),
    /// There is a link of that name which is not a tunnel of this kind.
    #[error(
        "link {name} exists already and is {}, not of kind {wanted}: it is left alone. Rename or remove it",
        kind_text(.kind.as_deref())
    )]
    OtherKind {
        /// The name.
        name: String,
        /// Its kind; `None` for a physical device.
        kind: Option<String>,
        /// The expected kind.
        wanted: &'static str,
    },
    /// There is a tunnel of that name which is not ours.
    #[error(
        "tunnel {name} exists already, made by another program: it is left alone. Rename or remove it, or make it \
         over with: ip link set {name} alias {ALIAS}"
    )]
    Foreign {
        /// The name.
        name: String,
    },
    /// Another tunnel takes what is sent to the address.
    #[error("a tunnel of another name, without a remote end, has the address {local} already: remove it")]
    Taken {
        /// The address.
        local: IpAddr,
    },
    /// The kernel has no such tunnels.
    #[error("the kernel has no tunnels of kind {kind}: load the module `{module}`")]
    NoModule {
        /// The kind of link.
        kind: &'static str,
        /// The name of the kernel's module.
        module: &'static str,
    },
    /// CAP_NET_ADMIN is missing.
    #[error("managing links needs CAP_NET_ADMIN")]
    Permission,
    /// A sysctl of the link could not be read or written.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The netlink socket could not be opened.
    #[error("opening a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused something else.
    #[error("tunnel {name}: {error}")]
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
    Delete,
    SetAlias,
    /// From this value of `rp_filter` to loose.
    Loosen(u8),
    Add(IpAddr),
    SetMtu(u32),
    SetUp,
}

/// The link as the kernel shows it.
struct Observed {
    link: LinkUpdate,
    /// Its own addresses.
    addresses: Vec<ObservedAddress>,
    /// The MTU of the link that has the local address, in bytes; `None` while none has, and for the loopback.
    outer_mtu: Option<u32>,
    /// `rp_filter` of all links, and of this one.
    rp_filter: (u8, u8),
}

impl TunnelLink {
    /// Makes sure that the tunnel exists, is up, and lets in what it unpacks. It need not be possible yet that
    /// packets come: the local address may appear later.
    ///
    /// # Errors
    /// [`TunnelError`]; a link that is not ours is not changed.
    pub fn ensure(config: TunnelConfig) -> Result<Self, TunnelError> {
        let mut link = Self::open(config)?;
        link.reconcile()?;
        Ok(link)
    }

    /// For a link that may not exist yet.
    pub(crate) fn open(config: TunnelConfig) -> Result<Self, TunnelError> {
        if !is_link_name(&config.name) {
            return Err(TunnelError::Name(config.name));
        }
        let kernel = NetlinkKernel::open().map_err(TunnelError::Socket)?;
        Ok(Self { kernel, config })
    }

    /// Repairs whatever is not as it should be; a call that finds nothing changes nothing.
    ///
    /// # Errors
    /// As [`TunnelLink::ensure`].
    pub fn reconcile(&mut self) -> Result<Vec<Repair>, TunnelError> {
        let mut repairs = Vec::new();
        for _ in 0..MAX_PASSES {
            let seen = self.observe()?;
            let index = seen.as_ref().map_or(0, |seen| seen.link.index);
            let steps = plan(&self.config, seen.as_ref())?;
            if steps.is_empty() {
                break;
            }
            for step in steps {
                self.apply(index, step)?;
                repairs.extend(self.repair(step));
            }
        }
        Ok(repairs)
    }

    /// The configuration of the tunnel.
    pub fn config(&self) -> &TunnelConfig {
        &self.config
    }

    /// Deletes the link if it is ours; a foreign one that has taken its name is left alone.
    ///
    /// # Errors
    /// [`TunnelError::Kernel`] if the kernel refuses.
    pub fn remove(mut self) -> Result<(), TunnelError> {
        let Some(seen) = self.observe()? else { return Ok(()) };
        if !is_ours(&self.config, &seen) {
            return Ok(());
        }
        self.kernel.delete_link(seen.link.index).map_err(|error| self.fault(error))
    }

    fn observe(&mut self) -> Result<Option<Observed>, TunnelError> {
        let link = self.kernel.link_named(&self.config.name).map_err(|error| self.fault(error))?;
        let Some(link) = link else { return Ok(None) };
        let mut addresses = self.kernel.addresses(0).map_err(|error| self.fault(error))?;
        let outer = addresses.iter().find(|seen| seen.ip == self.config.local && seen.index != link.index);
        let outer_mtu = match outer.map(|outer| outer.index) {
            Some(index) => {
                let outer = self.kernel.link(index).map_err(|error| self.fault(error))?;
                outer.filter(|outer| outer.flags & link_flag::LOOPBACK == 0).and_then(|outer| outer.mtu)
            }
            None => None,
        };
        addresses.retain(|seen| seen.index == link.index);
        let rp_filter = (rp_filter::read("all")?, rp_filter::read(&self.config.name)?);
        Ok(Some(Observed { link, addresses, outer_mtu, rp_filter }))
    }

    fn apply(&mut self, index: u32, step: Step) -> Result<(), TunnelError> {
        let TunnelConfig { name, local } = &self.config;
        let done = match step {
            Step::Create => self.kernel.create_tunnel(name, *local),
            Step::Delete => self.kernel.delete_link(index),
            Step::SetAlias => self.kernel.set_alias(index, ALIAS),
            Step::Loosen(_) => return Ok(rp_filter::key(name)?.write(rp_filter::LOOSE)?),
            Step::Add(ip) => self.kernel.put_permanent(index, ip),
            Step::SetMtu(mtu) => self.kernel.set_mtu(index, mtu),
            Step::SetUp => self.kernel.set_link_up(index),
        };
        done.map_err(|error| match (step, error.refused()) {
            (Step::Create, Some(Errno::EOPNOTSUPP)) => {
                TunnelError::NoModule { kind: kind_of(*local), module: module_of(*local) }
            }
            (Step::Create, Some(Errno::EEXIST)) => TunnelError::Taken { local: *local },
            _ => self.fault(error),
        })
    }

    fn repair(&self, step: Step) -> Option<Repair> {
        let link = self.config.name.clone();
        Some(match step {
            Step::Create => Repair::Created { link },
            Step::Delete => Repair::Deleted { link },
            Step::SetAlias => return None,
            Step::Loosen(found) => {
                let key = rp_filter::key(&link).ok()?;
                Repair::Sysctl { key, found: found.to_string(), value: rp_filter::LOOSE.to_owned() }
            }
            Step::Add(ip) => Repair::Added { link, ip },
            Step::SetMtu(mtu) => Repair::Mtu { link, mtu },
            Step::SetUp => Repair::SetUp { link },
        })
    }

    fn fault(&self, error: KernelError) -> TunnelError {
        match error.refused() {
            Some(Errno::EPERM | Errno::EACCES) => TunnelError::Permission,
            _ => TunnelError::Kernel { name: self.config.name.clone(), error },
        }
    }
}

/// Plans the steps from the observed to the desired state, or the reason why there are none. Pure. A link that has
/// just been made is observed again.
fn plan(config: &TunnelConfig, seen: Option<&Observed>) -> Result<Vec<Step>, TunnelError> {
    let Some(seen) = seen else { return Ok(vec![Step::Create]) };
    let link = &seen.link;
    if !is_ours(config, seen) {
        let (name, wanted) = (config.name.clone(), kind_of(config.local));
        return Err(if link.kind.as_deref() == Some(wanted) {
            TunnelError::Foreign { name }
        } else {
            TunnelError::OtherKind { name, kind: link.kind.clone(), wanted }
        });
    }
    if !is_as_made(config, link) {
        return Ok(vec![Step::Delete, Step::Create]);
    }
    let mut steps = Vec::new();
    if link.alias.as_deref() != Some(ALIAS) {
        steps.push(Step::SetAlias);
    }
    let (all, own) = seen.rp_filter;
    if rp_filter::is_strict(all, own) {
        steps.push(Step::Loosen(own));
    }
    if !seen.addresses.iter().any(|address| address.ip == IpAddr::V4(ANCHOR)) {
        steps.push(Step::Add(ANCHOR.into()));
    }
    if let Some(mtu) = seen.outer_mtu.map(|outer| inner_mtu(config.local, outer))
        && link.mtu != Some(mtu)
    {
        steps.push(Step::SetMtu(mtu));
    }
    if link.flags & link_flag::UP == 0 {
        steps.push(Step::SetUp);
    }
    Ok(steps)
}

/// Returns whether the link may be changed and deleted.
fn is_ours(config: &TunnelConfig, seen: &Observed) -> bool {
    let link = &seen.link;
    match link.alias.as_deref() {
        Some(ALIAS) => matches!(link.kind.as_deref(), Some("ipip" | "ip6tnl")),
        Some(_) => false,
        None => is_as_made(config, link) && link.flags & link_flag::UP == 0 && seen.addresses.is_empty(),
    }
}

fn is_as_made(config: &TunnelConfig, link: &LinkUpdate) -> bool {
    let protocol = if config.local.is_ipv4() { IPV4_INSIDE } else { 0 };
    let ends = TunnelEnds { local: Some(config.local), remote: None, protocol };
    link.kind.as_deref() == Some(kind_of(config.local)) && link.tunnel == Some(ends)
}

/// The largest inner packet that fits into a packet of the outer link, in bytes.
fn inner_mtu(local: IpAddr, outer: u32) -> u32 {
    match local {
        IpAddr::V4(_) => outer.saturating_sub(HEADER_V4),
        IpAddr::V6(_) => outer.saturating_sub(HEADER_V6).max(MTU_MIN_V6),
    }
}

fn kind_of(local: IpAddr) -> &'static str {
    if local.is_ipv4() { "ipip" } else { "ip6tnl" }
}

fn module_of(local: IpAddr) -> &'static str {
    if local.is_ipv4() { "ipip" } else { "ip6_tunnel" }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
