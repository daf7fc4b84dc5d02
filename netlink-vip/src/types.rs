//! Configuration of a group of virtual addresses. Values are checked when they are made.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// Names one group of virtual addresses; chosen by the caller, unique within a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

impl From<u32> for GroupId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

impl From<GroupId> for u32 {
    fn from(id: GroupId) -> Self {
        id.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An interface of this network namespace, as an inventory finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundInterface {
    /// Its name.
    pub name: String,
    /// Its other names (`ip link property add … altname`).
    pub alternative_names: Vec<String>,
    /// The VRF that it is a member of.
    pub vrf: Option<String>,
    /// Its addresses with their prefix lengths, in the kernel's order.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Selects the interface of a group. It is evaluated again whenever links or default routes change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSelector {
    /// The interface with this name (or alternative name). A renamed interface no longer matches.
    Name(String),
    /// The interface with this hardware address. Of several, one that is neither a port nor a child is preferred
    /// (a bond before its ports, a device before its VLANs), then the one with the lowest index.
    Mac([u8; 6]),
    /// The interface of the default route with the lowest metric, in the family of the group's first
    /// IPv4 address if it has one (metrics of the two families do not compare), else in the other family.
    /// Interfaces that cannot do ARP (tunnels, point-to-point links) are passed over. Where there is no default route
    /// at all, the one interface whose subnet covers an address of the group, if it is the only one.
    DefaultRoute,
}

impl fmt::Display for InterfaceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Self::DefaultRoute => f.write_str("the default route's interface"),
        }
    }
}

/// A virtual address with the prefix length of its subnet. It is always *installed* as /32 or /128: a leased
/// address with a shorter prefix can take the node's own addresses and routes with it when it expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipAddress {
    ip: IpAddr,
    prefix_len: u8,
}

impl VipAddress {
    /// Checks that `ip` can be assigned to an interface and `prefix_len` is 1–32 (IPv4) or 1–128 (IPv6).
    ///
    /// # Errors
    /// [`AddressError`] says which of the two is wrong.
    pub fn new(ip: IpAddr, prefix_len: u8) -> Result<Self, AddressError> {
        let unusable = match ip {
            IpAddr::V4(v4) => {
                v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast()
            }
            IpAddr::V6(v6) => {
                v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.to_ipv4_mapped().is_some()
            }
        };
        if unusable {
            return Err(AddressError::NotAssignable(ip));
        }
        if prefix_len == 0 || prefix_len > full_prefix(ip) {
            return Err(AddressError::PrefixLength { ip, prefix_len });
        }
        Ok(Self { ip, prefix_len })
    }

    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The prefix length of its subnet, as configured.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Its subnet.
    pub fn subnet(&self) -> Prefix {
        Prefix::new(self.ip, self.prefix_len)
    }
}

impl fmt::Display for VipAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix_len)
    }
}

/// Why a [`VipAddress`] is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Unspecified, loopback, multicast, broadcast or an IPv4-mapped IPv6 address.
    #[error("{0} cannot be a virtual address: it is not assignable to an interface")]
    NotAssignable(IpAddr),
    /// The prefix length does not fit the family.
    #[error("prefix length {prefix_len} of {ip} is out of range: 1 to 32 for IPv4, 1 to 128 for IPv6")]
    PrefixLength {
        /// The address.
        ip: IpAddr,
        /// The length that was given.
        prefix_len: u8,
    },
}

/// A network: an address whose host bits are zero, and a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    network: IpAddr,
    len: u8,
}

impl Prefix {
    /// The network that contains `ip`; lengths above the family's width are cut to it.
    pub fn new(ip: IpAddr, len: u8) -> Self {
        let len = len.min(full_prefix(ip));
        let network = match ip {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self { network, len }
    }

    /// The network's address.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// The prefix length.
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Returns whether the prefix length is 0, so that every address of the family is inside.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether `ip` lies inside.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.network.is_ipv4() && Self::new(ip, self.len).network == self.network
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

/// 32 or 128: the length with which a VIP is installed.
pub(crate) fn full_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// Lifetime of a VIP in the kernel after its last refresh: whole seconds, 2 to 86 400.
///
/// Below 2 s an ordinary scheduling stall would drop the address; the kernel removes an address between 0.02 s
/// before and 1.02 s after its time (measured on Linux 6.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseTime(u32);

impl LeaseTime {
    /// The shortest lease, 2 s.
    pub const MIN: Self = Self(2);

    /// Takes whole seconds only, because the kernel counts in them.
    ///
    /// # Errors
    /// [`LeaseTimeError`] if `lease` is not a whole number of seconds from 2 to 86 400.
    pub fn new(lease: Duration) -> Result<Self, LeaseTimeError> {
        match u32::try_from(lease.as_secs()) {
            Ok(secs @ 2..=86_400) if lease.subsec_nanos() == 0 => Ok(Self(secs)),
            _ => Err(LeaseTimeError(lease)),
        }
    }

    /// The lease in seconds.
    pub fn as_secs(self) -> u32 {
        self.0
    }

    /// The lease as a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }

    /// Nine tenths of it: from then on a refresh could re-create an address that the kernel has removed.
    pub fn nearly_over(self) -> Duration {
        self.duration() * 9 / 10
    }

    /// A sixth of it. Claims that follow the last refresh faster do not refresh again, so that very short
    /// advertisement intervals cost at most six refreshes in a lease, while no two refreshes lie further apart
    /// than the longer of the advertisement interval and a third of the lease.
    pub fn refresh_spacing(self) -> Duration {
        self.duration() / 6
    }
}

/// A lease outside of [`LeaseTime`]'s range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a lease of {0:?} is out of range: whole seconds from 2 to 86400")]
pub struct LeaseTimeError(Duration);

/// An RFC 6724 address label. `0xffff_ffff` is reserved by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressLabel(u32);

impl AddressLabel {
    /// The label that VIPs get by default: 10000, so that no rule of the default table equals it.
    pub const DEFAULT: Self = Self(10_000);

    /// Refuses the reserved value `0xffff_ffff` with `None`.
    pub fn new(label: u32) -> Option<Self> {
        (label != u32::MAX).then_some(Self(label))
    }

    /// The label's value.
    pub fn value(self) -> u32 {
        self.0
    }
}

/// Virtual addresses that come and go together on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipGroupConfig {
    /// Name of the group.
    pub id: GroupId,
    /// Where the addresses go.
    pub interface: InterfaceSelector,
    /// The addresses, at least one, of both families if wanted.
    pub addresses: Vec<VipAddress>,
    /// RFC 6724 label for the group's IPv6 addresses; `None` sets none.
    pub address_label: Option<AddressLabel>,
    /// Lifetime of the addresses in the kernel after the last refresh.
    pub lease: LeaseTime,
    /// Addresses whose TCP sessions are not reset when this group gives them up, because they stay on this host by
    /// other means, such as the dummy link of a real server.
    pub lasting: BTreeSet<IpAddr>,
}

impl VipGroupConfig {
    /// The addresses, without their prefix lengths.
    pub fn ips(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(VipAddress::ip).collect()
    }

    /// The subnets of the addresses.
    pub fn subnets(&self) -> BTreeSet<Prefix> {
        self.addresses.iter().map(VipAddress::subnet).collect()
    }
}

/// Refusal of a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// A group without an address has nothing to manage.
    #[error("group {0} has no address")]
    Empty(GroupId),
    /// Two groups have the same id.
    #[error("group {0} exists already")]
    DuplicateId(GroupId),
    /// The group is not known.
    #[error("group {0} is unknown")]
    Unknown(GroupId),
    /// An address may belong to one group only, and once.
    #[error("{ip} is in group {first} and again in group {second}")]
    DuplicateAddress {
        /// The address.
        ip: IpAddr,
        /// The group that has it.
        first: GroupId,
        /// The group that repeats it.
        second: GroupId,
    },
}

/// Kind of a release of VIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Sessions through the VIP are reset while it is still there to say so: it goes after them, in 0.1 s to 1 s
    /// depending on their number, and not after its lease is over.
    Planned,
    /// No packet leaves in its name any more, or none may: it goes at once, and sessions are closed after it.
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_that_no_interface_can_have_are_refused() {
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.18",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::12",
            "::ffff:1.2.3.4",
        ] {
            assert_eq!(VipAddress::new(ip(bad), 24), Err(AddressError::NotAssignable(ip(bad))));
        }
        for (addr, len) in [("10.0.0.1", 0), ("10.0.0.1", 33), ("fd00::1", 129)] {
            assert!(matches!(VipAddress::new(ip(addr), len), Err(AddressError::PrefixLength { .. })));
        }
        assert!(VipAddress::new(ip("fd00::1"), 128).is_ok());
    }

    #[test]
    fn prefixes_contain_exactly_their_addresses() {
        let net = Prefix::new(ip("10.1.2.3"), 23);
        assert_eq!(net.to_string(), "10.1.2.0/23");
        assert!(net.contains(ip("10.1.3.255")) && !net.contains(ip("10.1.4.0")) && !net.contains(ip("::1")));
        assert_eq!(Prefix::new(ip("fd00::1:2"), 112).to_string(), "fd00::1:0/112");
        assert!(Prefix::new(ip("1.2.3.4"), 0).contains(ip("255.0.0.1")));
        assert!(Prefix::new(ip("::1"), 0).contains(ip("fd00::")));
    }

    #[test]
    fn leases_are_whole_seconds_from_two() {
        for (lease, good) in
            [(1_000, false), (2_000, true), (2_500, false), (86_400_000, true), (86_401_000, false)]
        {
            assert_eq!(LeaseTime::new(Duration::from_millis(lease)).is_ok(), good, "{lease}");
        }
        assert!(LeaseTime::new(Duration::MAX).is_err());
        assert_eq!(LeaseTime::MIN.nearly_over(), Duration::from_millis(1_800));
    }
}
