//! Services.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::{BitAnd, BitOr, Not};
use std::time::Duration;

use super::key::{AddressFamily, ServiceKey};
use super::name::{EngineName, SchedulerName};
use super::stats::{Stats, Stats32, widest};
use crate::wire::Attributes;

/// A virtual service as it is configured.
///
/// ```
/// use ipvs::{Netmask, SchedulerName, Seconds, Service, ServiceFlags, ServiceKey};
///
/// let key = ServiceKey::tcp([10, 0, 0, 100].into(), 6443);
/// let service = Service::new(key, SchedulerName::RR).persistent(Seconds(360));
/// assert!(service.flags.contains(ServiceFlags::PERSISTENT));
/// let per_subnet = service.with_netmask(Netmask::v4_prefix(24).unwrap())?;
/// assert_eq!(per_subnet.netmask().to_string(), "255.255.255.0");
/// # Ok::<(), ipvs::NetmaskError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    key: ServiceKey,
    netmask: Netmask,
    /// Scheduler that chooses a destination.
    pub scheduler: SchedulerName,
    /// Flags.
    pub flags: ServiceFlags,
    /// Which flags a command sets; the others stay as they are. The kernel always reports [`ServiceFlags::ALL`].
    pub flags_mask: ServiceFlags,
    /// For how long a client keeps its destination after its last connection ended; of no effect without
    /// [`ServiceFlags::PERSISTENT`].
    pub timeout: Seconds,
    /// Persistence engine that recognises a client beside its address; of use together with persistence.
    pub engine: Option<EngineName>,
}

impl Service {
    /// A service that is not persistent, as `ipvsadm` adds it.
    #[must_use]
    pub const fn new(key: ServiceKey, scheduler: SchedulerName) -> Self {
        Self {
            key,
            netmask: Netmask::full(key.family()),
            scheduler,
            flags: ServiceFlags::NONE,
            flags_mask: ServiceFlags::ALL,
            timeout: Seconds(0),
            engine: None,
        }
    }

    /// Its key.
    #[must_use]
    pub const fn key(&self) -> ServiceKey {
        self.key
    }

    /// The part of a client's address that persistence goes by; of the family of the service.
    #[must_use]
    pub const fn netmask(&self) -> Netmask {
        self.netmask
    }

    /// Returns whether clients keep their destination.
    #[must_use]
    pub const fn is_persistent(&self) -> bool {
        self.flags.contains(ServiceFlags::PERSISTENT)
    }

    /// Clients keep their destination for `timeout` after their last connection. `ipvsadm` and this project use 360 s
    /// unless told otherwise, and accept 1 s to 31 days.
    #[must_use]
    pub fn persistent(mut self, timeout: Seconds) -> Self {
        self.flags = self.flags | ServiceFlags::PERSISTENT;
        self.timeout = timeout;
        self
    }

    /// Persistence goes by the given part of a client's address.
    ///
    /// # Errors
    /// [`NetmaskError`] if the mask is of the other family than the service.
    pub fn with_netmask(mut self, netmask: Netmask) -> Result<Self, NetmaskError> {
        let (service, mask) = (self.key.family(), netmask.family());
        if service != mask {
            return Err(NetmaskError { service, mask });
        }
        self.netmask = netmask;
        Ok(self)
    }

    /// Sets `flags` beside those that are set.
    #[must_use]
    pub fn with_flags(mut self, flags: ServiceFlags) -> Self {
        self.flags = self.flags | flags;
        self
    }

    /// Clients are recognised by a persistence engine.
    #[must_use]
    pub const fn with_engine(mut self, engine: EngineName) -> Self {
        self.engine = Some(engine);
        self
    }
}

/// A mask of the other family than its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an {mask} netmask does not fit an {service} service")]
#[non_exhaustive]
pub struct NetmaskError {
    /// Family of the service.
    pub service: AddressFamily,
    /// Family of the mask.
    pub mask: AddressFamily,
}

/// A number of seconds, the kernel's unit for every timeout of IPVS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seconds(pub u32);

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs(seconds.0.into())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

/// Flags of a service, `IP_VS_SVC_F_*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ServiceFlags(pub u32);

impl ServiceFlags {
    /// None.
    pub const NONE: Self = Self(0);
    /// All, also those that have no name yet.
    pub const ALL: Self = Self(u32::MAX);
    /// Clients keep their destination.
    pub const PERSISTENT: Self = Self(0x01);
    /// In the kernel's table. The kernel sets it; it makes no difference in a command.
    pub const HASHED: Self = Self(0x02);
    /// Every packet is scheduled anew (UDP only).
    pub const ONE_PACKET: Self = Self(0x04);
    /// The first flag that belongs to the scheduler.
    pub const SCHEDULER_1: Self = Self(0x08);
    /// The second flag that belongs to the scheduler.
    pub const SCHEDULER_2: Self = Self(0x10);
    /// The third flag that belongs to the scheduler.
    pub const SCHEDULER_3: Self = Self(0x20);
    /// `sh`: another destination if the chosen one has weight 0 or is overloaded.
    pub const SH_FALLBACK: Self = Self::SCHEDULER_1;
    /// `sh`: the source port is hashed, too.
    pub const SH_PORT: Self = Self::SCHEDULER_2;
    /// `mh`: another destination if the chosen one has weight 0 or is overloaded.
    pub const MH_FALLBACK: Self = Self::SCHEDULER_1;
    /// `mh`: the source port is hashed, too.
    pub const MH_PORT: Self = Self::SCHEDULER_2;

    /// Returns whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for ServiceFlags {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for ServiceFlags {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Debug for ServiceFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceFlags({:#x})", self.0)
    }
}

/// The part of a client's address by which persistence recognises it.
///
/// On the wire this is a mask for IPv4 and a prefix length for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Netmask {
    /// A mask of IPv4, usually of leading ones; the kernel takes any.
    V4(Ipv4Addr),
    /// A prefix length of IPv6; the kernel takes 1 to 128.
    V6(u32),
}

impl Netmask {
    /// The mask of a whole address.
    #[must_use]
    pub const fn full(family: AddressFamily) -> Self {
        match family {
            AddressFamily::V4 => Self::V4(Ipv4Addr::BROADCAST),
            AddressFamily::V6 => Self::V6(128),
        }
    }

    /// The IPv4 mask of a prefix length of 0 to 32; `None` for others.
    #[must_use]
    pub fn v4_prefix(length: u8) -> Option<Self> {
        if length > 32 {
            return None;
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        Some(Self::V4(Ipv4Addr::from_bits(mask)))
    }

    /// The IPv6 mask of a prefix length of 1 to 128; `None` for others.
    #[must_use]
    pub fn v6_prefix(length: u8) -> Option<Self> {
        (1..=128).contains(&length).then_some(Self::V6(length.into()))
    }

    /// Its family.
    #[must_use]
    pub const fn family(&self) -> AddressFamily {
        match self {
            Self::V4(_) => AddressFamily::V4,
            Self::V6(_) => AddressFamily::V6,
        }
    }

    /// Its length, if it is one of leading ones.
    #[must_use]
    pub fn prefix_length(&self) -> Option<u32> {
        match *self {
            Self::V4(mask) => {
                let bits = mask.to_bits();
                (bits.leading_ones() == bits.count_ones()).then_some(bits.count_ones())
            }
            Self::V6(length) => Some(length),
        }
    }
}

impl fmt::Display for Netmask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(mask) => mask.fmt(f),
            Self::V6(length) => write!(f, "/{length}"),
        }
    }
}

/// A service as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceEntry {
    /// Its configuration.
    pub service: Service,
    /// Statistics in the form of old kernels.
    pub stats32: Option<Stats32>,
    /// Statistics (Linux 4.1).
    pub stats64: Option<Stats>,
    /// Attributes that this crate does not know.
    pub other: Attributes,
}

impl ServiceEntry {
    /// A service without statistics.
    #[must_use]
    pub const fn new(service: Service) -> Self {
        Self { service, stats32: None, stats64: None, other: Attributes::new() }
    }

    /// The statistics, in the wider of the forms that the kernel sent.
    #[must_use]
    pub fn stats(&self) -> Stats {
        widest(self.stats64.as_ref(), self.stats32.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netmask_is_of_the_family_of_its_service() {
        let service = Service::new(ServiceKey::tcp([10, 0, 0, 1].into(), 80), SchedulerName::RR);
        assert_eq!(service.netmask().to_string(), "255.255.255.255");
        let wrong = service.with_netmask(Netmask::V6(64)).unwrap_err();
        assert_eq!(wrong.to_string(), "an IPv6 netmask does not fit an IPv4 service");
    }

    #[test]
    fn masks_and_prefix_lengths_convert() {
        assert_eq!(Netmask::v4_prefix(0), Some(Netmask::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(Netmask::v4_prefix(32), Some(Netmask::full(AddressFamily::V4)));
        assert_eq!(Netmask::v4_prefix(33), None);
        assert_eq!(Netmask::v6_prefix(0), None);
        assert_eq!(Netmask::v6_prefix(128), Some(Netmask::full(AddressFamily::V6)));
        assert_eq!(Netmask::v4_prefix(20).and_then(|mask| mask.prefix_length()), Some(20));
        assert_eq!(Netmask::V4([255, 0, 255, 0].into()).prefix_length(), None);
    }
}
