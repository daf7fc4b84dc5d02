//! Names that the kernel keeps in 16 bytes with a terminating NUL.

use std::fmt;
use std::str::FromStr;

/// Bytes of the longest name, without the NUL.
const LONGEST: usize = 15;

/// Refusal of a text as a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It is empty.
    #[error("a name needs at least one byte")]
    Empty,
    /// It is longer than 15 bytes.
    #[error("{length} bytes are more than the 15 that a name can have")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It contains a NUL, where the kernel would end it.
    #[error("a name cannot contain a NUL byte")]
    Nul,
}

/// A checked name in the place of a string of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    bytes: [u8; LONGEST],
    length: u8,
}

impl Name {
    fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.bytes().any(|byte| byte == 0) {
            return Err(NameError::Nul);
        }
        let too_long = NameError::TooLong { length: text.len() };
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..text.len()).ok_or(too_long)?.copy_from_slice(text.as_bytes());
        let length = u8::try_from(text.len()).map_err(|_| too_long)?;
        Ok(Self { bytes, length })
    }

    /// The names of the kernel's own modules, which are known to fit.
    const fn of_kernel(text: &str) -> Self {
        let source = text.as_bytes();
        let mut bytes = [0; LONGEST];
        let mut at = 0;
        while at < source.len() && at < LONGEST {
            bytes[at] = source[at];
            at += 1;
        }
        Self { bytes, length: at as u8 }
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Name);

        impl $name {
            /// Checks a name of 1 to 15 bytes.
            ///
            /// # Errors
            /// [`NameError`] if it is empty, too long, or contains a NUL.
            pub fn new(name: &str) -> Result<Self, NameError> {
                Name::new(name).map(Self)
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
    };
}

name! {
    /// The name of a scheduler, 1 to 15 bytes. The kernel loads the module `ip_vs_NAME` when it is first used, so that
    /// also names are allowed that this crate does not know.
    SchedulerName
}

name! {
    /// The name of a persistence engine, 1 to 15 bytes. The kernel loads the module `ip_vs_pe_NAME` when it is first
    /// used.
    EngineName
}

name! {
    /// The name of a network interface, 1 to 15 bytes.
    InterfaceName
}

impl SchedulerName {
    /// Round robin.
    pub const RR: Self = Self(Name::of_kernel("rr"));
    /// Weighted round robin.
    pub const WRR: Self = Self(Name::of_kernel("wrr"));
    /// Least connections.
    pub const LC: Self = Self(Name::of_kernel("lc"));
    /// Weighted least connections, `ipvsadm`'s default.
    pub const WLC: Self = Self(Name::of_kernel("wlc"));
    /// Locality-based least connections.
    pub const LBLC: Self = Self(Name::of_kernel("lblc"));
    /// Locality-based least connections with replication.
    pub const LBLCR: Self = Self(Name::of_kernel("lblcr"));
    /// Destination hashing.
    pub const DH: Self = Self(Name::of_kernel("dh"));
    /// Source hashing.
    pub const SH: Self = Self(Name::of_kernel("sh"));
    /// Maglev hashing (Linux 4.18).
    pub const MH: Self = Self(Name::of_kernel("mh"));
    /// Shortest expected delay.
    pub const SED: Self = Self(Name::of_kernel("sed"));
    /// Never queue.
    pub const NQ: Self = Self(Name::of_kernel("nq"));
    /// Weighted failover.
    pub const FO: Self = Self(Name::of_kernel("fo"));
    /// Weighted overflow.
    pub const OVF: Self = Self(Name::of_kernel("ovf"));
    /// Two random choices, weighted (Linux 5.12).
    pub const TWOS: Self = Self(Name::of_kernel("twos"));
    /// No scheduler: the service forwards only connections that it has already.
    pub const NONE: Self = Self(Name::of_kernel("none"));
}

impl EngineName {
    /// SIP, by `Call-ID`.
    pub const SIP: Self = Self(Name::of_kernel("sip"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_can_keep() {
        assert_eq!(SchedulerName::new("wlc"), Ok(SchedulerName::WLC));
        assert_eq!(SchedulerName::WLC.to_string(), "wlc");
        assert_eq!("fifteen-letters".parse::<SchedulerName>().unwrap().as_str(), "fifteen-letters");
        assert_eq!(SchedulerName::new("sixteen-letters!"), Err(NameError::TooLong { length: 16 }));
        assert_eq!(EngineName::new(""), Err(NameError::Empty));
        assert_eq!(InterfaceName::new("a\0b"), Err(NameError::Nul));
        assert_eq!(format!("{:?} {:>4}", EngineName::SIP, SchedulerName::RR), "EngineName(\"sip\")   rr");
    }
}
