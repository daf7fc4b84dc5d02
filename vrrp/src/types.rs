//! The quantities of VRRP, each with its range.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::time::Duration;

use thiserror::Error;

/// The IP protocol number of VRRP (RFC 9568 §5.1.1.4).
pub const IP_PROTOCOL: u8 = 112;

/// The only TTL or hop limit that a multicast advertisement may arrive with (RFC 9568 §5.1.1.3, §5.1.2.3).
pub const HOP_LIMIT: u8 = 255;

/// The group that IPv4 advertisements are sent to (RFC 9568 §5.1.1.2).
pub const MULTICAST_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// The group that IPv6 advertisements are sent to (RFC 9568 §5.1.2.2).
pub const MULTICAST_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// A number lies outside the range of its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{value} is outside {min}..={max}")]
pub struct OutOfRange {
    /// The refused number.
    pub value: u64,
    /// The smallest number allowed.
    pub min: u64,
    /// The largest number allowed.
    pub max: u64,
}

/// A virtual router identifier, 1 to 255 (RFC 9568 §5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vrid(NonZeroU8);

impl Vrid {
    /// The identifier with this number, unless it is 0.
    #[must_use]
    pub const fn new(vrid: u8) -> Option<Self> {
        match NonZeroU8::new(vrid) {
            Some(vrid) => Some(Self(vrid)),
            None => None,
        }
    }

    /// The identifier as it stands on the wire.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

impl TryFrom<u8> for Vrid {
    type Error = OutOfRange;

    fn try_from(vrid: u8) -> Result<Self, OutOfRange> {
        Self::new(vrid).ok_or(OutOfRange { value: vrid.into(), min: 1, max: 255 })
    }
}

impl fmt::Display for Vrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The priority a router is configured with, 1 to 254 (RFC 9568 §5.2.4).
///
/// A router that cannot serve advertises [`Priority::degraded`] instead. Priorities of at least
/// [`WirePriority::SERVING_MIN`] keep the two apart; a smaller configured priority always looks degraded to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(NonZeroU8);

impl Priority {
    /// The priority with this number.
    ///
    /// # Errors
    ///
    /// 0 means resignation and 255 means owning the address; neither can be configured for a floating address.
    pub const fn new(priority: u8) -> Result<Self, OutOfRange> {
        match NonZeroU8::new(priority) {
            Some(number) if priority < WirePriority::OWNER.0 => Ok(Self(number)),
            _ => Err(OutOfRange { value: priority as u64, min: 1, max: 254 }),
        }
    }

    /// The number, 1 to 254.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }

    /// The priority that the router advertises while it can serve.
    #[must_use]
    pub const fn full(self) -> WirePriority {
        WirePriority(self.get())
    }

    /// The priority that the router advertises while it cannot serve: a fifth of its own, but never 0 (a resignation)
    /// and never a priority that serving routers have (a fifth of 250 would be one).
    #[must_use]
    pub const fn degraded(self) -> WirePriority {
        match self.get() / 5 {
            0 => WirePriority(1),
            fifth if fifth >= WirePriority::SERVING_MIN => WirePriority(WirePriority::SERVING_MIN - 1),
            fifth => WirePriority(fifth),
        }
    }
}

impl TryFrom<u8> for Priority {
    type Error = OutOfRange;

    fn try_from(priority: u8) -> Result<Self, OutOfRange> {
        Self::new(priority)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A priority as it stands in an advertisement: any octet (RFC 9568 §5.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WirePriority(pub u8);

impl WirePriority {
    /// The sender stops taking part, so that a Backup may take over after its Skew_Time.
    pub const RESIGN: Self = Self(0);
    /// The sender owns the virtual addresses as addresses of its own interface.
    pub const OWNER: Self = Self(255);
    /// The smallest priority that a serving router advertises; anything below means degraded.
    pub const SERVING_MIN: u8 = 50;

    /// Returns whether the sender reports that it cannot serve. A resignation is not a degraded advertisement.
    #[must_use]
    pub const fn is_degraded(self) -> bool {
        self.0 != 0 && self.0 < Self::SERVING_MIN
    }
}

impl fmt::Display for WirePriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The protocol version of an advertisement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// RFC 3768 (with the authentication field of RFC 2338), IPv4 only, whole seconds.
    V2,
    /// RFC 9568 and RFC 5798, IPv4 and IPv6, centiseconds.
    V3,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "2",
            Self::V3 => "3",
        })
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The group that advertisements of this family are sent to.
    #[must_use]
    pub const fn multicast(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(MULTICAST_V4),
            Self::V6 => IpAddr::V6(MULTICAST_V6),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a duration is not an advertisement interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IntervalError {
    /// Version 2 counts whole seconds in one octet.
    #[error("VRRPv2 intervals are whole seconds from 1s to 255s")]
    V2,
    /// Version 3 counts centiseconds in 12 bits.
    #[error("VRRPv3 intervals are multiples of 10ms from 10ms to 40.95s")]
    V3,
}

/// The time between two advertisements.
///
/// Version 2 (RFC 3768 §5.3.7) has whole seconds from 1 s to 255 s; version 3 (RFC 9568 §5.2.7) has steps of 10 ms
/// from 10 ms to 40.95 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdvertInterval(Duration);

impl AdvertInterval {
    /// One second, the default of RFC 9568 §6.1 and of keepalived.
    pub const DEFAULT: Self = Self(Duration::from_secs(1));

    const CENTISECOND: u128 = 10_000_000;
    const MAX_CENTISECONDS: u16 = 4095;

    /// An interval that version `version` can express exactly.
    ///
    /// # Errors
    ///
    /// The duration is 0, too long or no multiple of the version's unit.
    pub fn new(version: Version, interval: Duration) -> Result<Self, IntervalError> {
        match version {
            Version::V2 => {
                let seconds = u8::try_from(interval.as_secs()).ok().filter(|_| interval.subsec_nanos() == 0);
                seconds.and_then(Self::from_seconds).ok_or(IntervalError::V2)
            }
            Version::V3 => {
                let exact = interval.as_nanos().is_multiple_of(Self::CENTISECOND);
                let centiseconds =
                    u16::try_from(interval.as_nanos() / Self::CENTISECOND).ok().filter(|_| exact);
                centiseconds.and_then(Self::from_centiseconds).ok_or(IntervalError::V3)
            }
        }
    }

    /// The interval of a version 2 field, unless it is 0.
    #[must_use]
    pub const fn from_seconds(seconds: u8) -> Option<Self> {
        if seconds == 0 {
            return None;
        }
        Some(Self(Duration::from_secs(seconds as u64)))
    }

    /// The interval of a version 3 field, 1 to 4095.
    #[must_use]
    pub const fn from_centiseconds(centiseconds: u16) -> Option<Self> {
        if centiseconds == 0 || centiseconds > Self::MAX_CENTISECONDS {
            return None;
        }
        Some(Self(Duration::from_millis(centiseconds as u64 * 10)))
    }

    /// The interval as a duration, 10 ms to 255 s.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }

    /// The version 2 field: rounded up to a second, so that a receiver never expires early.
    #[must_use]
    pub fn seconds(self) -> u8 {
        let seconds = self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0);
        u8::try_from(seconds).unwrap_or(u8::MAX)
    }

    /// The version 3 field, at most 4095.
    #[must_use]
    pub fn centiseconds(self) -> u16 {
        let centiseconds = self.0.as_nanos().div_ceil(Self::CENTISECOND);
        u16::try_from(centiseconds).unwrap_or(u16::MAX).min(Self::MAX_CENTISECONDS)
    }

    /// The nearest interval, not shorter than this one where possible, that version `version` can express.
    #[must_use]
    pub fn in_version(self, version: Version) -> Self {
        match version {
            Version::V2 => Self(Duration::from_secs(self.seconds().into())),
            Version::V3 => Self(Duration::from_millis(u64::from(self.centiseconds()) * 10)),
        }
    }
}

impl fmt::Display for AdvertInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Why a text is not a password of VRRPv2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthPassError {
    /// The field of RFC 2338 has 8 octets; an empty password would authenticate no router.
    #[error("a VRRPv2 password has 1 to 8 bytes, not {0}")]
    Length(usize),
    /// NUL pads the field and cannot be part of the password.
    #[error("a VRRPv2 password cannot contain a NUL byte")]
    Nul,
}

/// The plain-text password of VRRPv2 (RFC 2338 §5.3.10): 8 octets, padded with NUL and compared as a whole.
///
/// It keeps misconfigured routers apart and is no protection against an attacker. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthPass([u8; 8]);

impl AuthPass {
    /// The password with this text.
    ///
    /// # Errors
    ///
    /// The text is empty, longer than 8 bytes or contains NUL.
    pub fn new(text: impl AsRef<[u8]>) -> Result<Self, AuthPassError> {
        let text = text.as_ref();
        let mut field = [0; 8];
        let Some(start) = field.get_mut(..text.len()).filter(|start| !start.is_empty()) else {
            return Err(AuthPassError::Length(text.len()));
        };
        if text.contains(&0) {
            return Err(AuthPassError::Nul);
        }
        start.copy_from_slice(text);
        Ok(Self(field))
    }

    /// The password of a received field, which may hold anything.
    #[must_use]
    pub const fn from_wire(field: [u8; 8]) -> Self {
        Self(field)
    }

    /// The field as it stands on the wire.
    #[must_use]
    pub const fn wire(&self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Debug for AuthPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthPass(..)")
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl From<[u8; 6]> for MacAddr {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl From<MacAddr> for [u8; 6] {
    fn from(mac: MacAddr) -> Self {
        mac.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_keep_to_the_unit_of_their_version() {
        let ok =
            |version, ms| AdvertInterval::new(version, Duration::from_millis(ms)).map(AdvertInterval::get);
        assert_eq!(ok(Version::V2, 1000), Ok(Duration::from_secs(1)));
        assert_eq!(ok(Version::V2, 255_000), Ok(Duration::from_secs(255)));
        for ms in [0, 999, 1001, 256_000] {
            assert_eq!(ok(Version::V2, ms), Err(IntervalError::V2), "{ms} ms");
        }
        assert_eq!(ok(Version::V3, 10), Ok(Duration::from_millis(10)));
        assert_eq!(ok(Version::V3, 40_950), Ok(Duration::from_millis(40_950)));
        for ms in [0, 5, 15, 40_960] {
            assert_eq!(ok(Version::V3, ms), Err(IntervalError::V3), "{ms} ms");
        }
    }

    #[test]
    fn an_interval_is_rounded_up_for_another_version() {
        let fast = AdvertInterval::from_centiseconds(150).unwrap();
        assert_eq!(fast.in_version(Version::V2).get(), Duration::from_secs(2));
        let slow = AdvertInterval::from_seconds(255).unwrap();
        assert_eq!(slow.in_version(Version::V3).get(), Duration::from_millis(40_950));
    }

    #[test]
    fn priorities_leave_out_resignation_and_ownership() {
        assert!(Priority::new(0).is_err());
        assert!(Priority::new(255).is_err());
        assert_eq!(Priority::new(200).unwrap().degraded(), WirePriority(40));
        assert_eq!(Priority::new(3).unwrap().degraded(), WirePriority(1));
        for serving in WirePriority::SERVING_MIN..=254 {
            let priority = Priority::new(serving).unwrap();
            assert!(!priority.full().is_degraded());
            assert!(priority.degraded().is_degraded(), "{serving}/5 must differ from a serving priority");
        }
        assert!(!WirePriority::RESIGN.is_degraded());
    }

    #[test]
    fn passwords_are_padded_and_never_shown() {
        assert_eq!(AuthPass::new("abcd").unwrap().wire(), *b"abcd\0\0\0\0");
        assert_eq!(AuthPass::new(""), Err(AuthPassError::Length(0)));
        assert_eq!(AuthPass::new("123456789"), Err(AuthPassError::Length(9)));
        assert_eq!(AuthPass::new("a\0b"), Err(AuthPassError::Nul));
        assert!(!format!("{:?}", AuthPass::new("secret").unwrap()).contains("secret"));
    }
}
