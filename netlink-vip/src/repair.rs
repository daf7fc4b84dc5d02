//! Repairs of a node's links.

use std::fmt;
use std::net::IpAddr;

use crate::sysctl::SysctlKey;

/// One thing that was not as it should be, and now is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// A sysctl was set.
    Sysctl {
        /// The one concerned.
        key: SysctlKey,
        /// The value that was found.
        found: String,
        /// Its value.
        value: String,
    },
    /// A link was created.
    Created {
        /// Its name.
        link: String,
    },
    /// A link of ours that is no longer wanted, or was made otherwise, was deleted.
    Deleted {
        /// Its name.
        link: String,
    },
    /// A link was set up.
    SetUp {
        /// Its name.
        link: String,
    },
    /// An address was added, or one that was there got the flags and the mark that it should have.
    Added {
        /// The link.
        link: String,
        /// The address.
        ip: IpAddr,
    },
    /// An address that is no longer wanted was removed.
    Removed {
        /// The link.
        link: String,
        /// The address.
        ip: IpAddr,
    },
    /// The local route of an address, or its order, was put right.
    Route {
        /// The link.
        link: String,
        /// The address.
        ip: IpAddr,
    },
    /// The largest packet of a link was set.
    Mtu {
        /// The link.
        link: String,
        /// In bytes.
        mtu: u32,
    },
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl { key, found, value } => write!(f, "set {key} from {found} to {value}"),
            Self::Created { link } => write!(f, "created link {link}"),
            Self::Deleted { link } => write!(f, "deleted link {link}"),
            Self::SetUp { link } => write!(f, "set link {link} up"),
            Self::Added { link, ip } => write!(f, "put {ip} on {link}"),
            Self::Removed { link, ip } => write!(f, "removed {ip} from {link}"),
            Self::Route { link, ip } => write!(f, "put the local route of {ip} on {link} right"),
            Self::Mtu { link, mtu } => write!(f, "set the MTU of {link} to {mtu}"),
        }
    }
}
