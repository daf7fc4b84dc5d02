//! Events of the keeper.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::sessions::SessionsError;
use crate::socket::KernelError;
use crate::types::{GroupError, GroupId, Prefix, Release};
use crate::wire::{address_flag, scope};

/// Receives the keeper's events, on the keeper's thread. It must not block: refreshes wait for it.
pub type EventSink = Box<dyn Fn(KeeperEvent) + Send>;

/// An event of the keeper, delivered on the keeper's thread in the order in which things happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeeperEvent {
    /// The interface of a group: sent once at the start and at every change.
    Interface {
        /// The group.
        id: GroupId,
        /// `None` while no interface matches the selector; the group waits for one.
        state: Option<InterfaceState>,
    },
    /// The group's addresses are there, all but those reported as [`KeeperEvent::Refused`]. Sent when they come, and
    /// when missing ones are back; not at each refresh. Now is the time to announce them.
    Installed {
        /// The group.
        id: GroupId,
        /// From the call of `claim` to the kernel's last acknowledgement.
        took: Duration,
    },
    /// This node no longer has the group's addresses (or never had; a release is always answered).
    Removed {
        /// The group.
        id: GroupId,
        /// The reason.
        reason: Removal,
    },
    /// An address was removed by another program while this node held it. The next claim restores it.
    Missing {
        /// The group.
        id: GroupId,
        /// The address.
        ip: IpAddr,
    },
    /// A claim came so late that the kernel may already have removed the addresses, or was carried out so late that
    /// they may have been re-created without permission. They have been given up; the claim has no effect.
    LeaseLost {
        /// The group.
        id: GroupId,
    },
    /// An address cannot be installed. Sent once until the reason changes; tried again under later claims.
    Refused {
        /// The group.
        id: GroupId,
        /// The address.
        ip: IpAddr,
        /// The reason.
        reason: Refusal,
    },
    /// Addresses of the group are on this node without being leased by the keeper: placed by another program or by
    /// hand, on whatever interface. They stay whatever the election says. Sent at every change, with all there are.
    Copies {
        /// The group.
        id: GroupId,
        /// All that there are now.
        copies: Vec<AddressCopy>,
    },
    /// TCP sessions through addresses that went have ended. Sent if there were any.
    SessionsEnded {
        /// The group.
        id: GroupId,
        /// The addresses that went.
        ips: Vec<IpAddr>,
        /// Number of sessions that were reset: their peers were sent a RST.
        reset: usize,
        /// Number of sessions closed without a RST, because the address was gone or no time was left: their peers
        /// learn of it when they send.
        silent: usize,
        /// From the beginning to the end of it.
        took: Duration,
    },
    /// The kernel cannot end the sessions through these addresses, which go in 100 ms at the latest or have gone: the
    /// program that has the sessions should end them now.
    SessionsLeft {
        /// The group.
        id: GroupId,
        /// The addresses.
        ips: Vec<IpAddr>,
    },
    /// Something an operator should know.
    Warning {
        /// The group concerned, if it is one.
        id: Option<GroupId>,
        /// The warning.
        warning: Warning,
    },
    /// Everything was read anew from the kernel.
    Resynced {
        /// The reason.
        cause: ResyncCause,
    },
}

/// An interface as a group sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its hardware address; `None` if it has none of six bytes, then it can carry no VIP.
    pub mac: Option<[u8; 6]>,
    /// The kernel's word for what it is, such as `bridge` or `vlan`; physical devices have none.
    pub kind: Option<String>,
    /// The VRF that it is a member of, by name.
    pub vrf: Option<String>,
    /// Administratively up and with a carrier.
    pub up: bool,
    /// Its addresses but for the virtual ones of all groups, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

impl InterfaceState {
    /// The address to send IPv4 advertisements from: the first primary one that is valid everywhere, else the first
    /// that is not confined to this host. Never a VIP.
    pub fn source_v4(&self) -> Option<Ipv4Addr> {
        let v4 = |address: &InterfaceAddress| match address.ip {
            IpAddr::V4(v4) if address.scope != scope::HOST => Some(v4),
            _ => None,
        };
        let primary = |address: &&InterfaceAddress| {
            address.scope == scope::UNIVERSE && address.flags & address_flag::SECONDARY == 0
        };
        let best = self.addresses.iter().filter(primary).find_map(v4);
        best.or_else(|| self.addresses.iter().find_map(v4))
    }

    /// Returns whether `ip` is an address of the interface that packets can be sent from now. Never true of a VIP.
    pub fn has(&self, ip: IpAddr) -> bool {
        let unusable = address_flag::TENTATIVE | address_flag::DADFAILED;
        self.addresses
            .iter()
            .any(|address| address.ip == ip && (ip.is_ipv4() || address.flags & unusable == 0))
    }

    /// The address to send IPv6 advertisements from: a link-local one that is past duplicate address detection
    /// (RFC 9568 §5.1.2.1). Never a VIP.
    pub fn source_v6(&self) -> Option<Ipv6Addr> {
        let unusable = address_flag::TENTATIVE | address_flag::DADFAILED;
        self.addresses.iter().find_map(|address| match address.ip {
            IpAddr::V6(v6) if v6.is_unicast_link_local() && address.flags & unusable == 0 => Some(v6),
            _ => None,
        })
    }
}

/// An address of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Its scope, see [`crate::wire::scope`].
    pub scope: u8,
    /// Its flags, see [`crate::wire::address_flag`].
    pub flags: u32,
}

/// An address of a group that is on this node without being leased by the keeper.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressCopy {
    /// The interface that it is on.
    pub interface: String,
    /// The interface's index.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
}

/// Reason for which a group's addresses went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// Released by its caller.
    Released(Release),
    /// Nine tenths of the lease passed without a refresh, so the keeper removed them.
    Lapsed,
    /// The kernel removed them because the lease was over (the keeper was not running).
    Expired,
    /// A claim came or was carried out too late; [`KeeperEvent::LeaseLost`] follows.
    LeaseLost,
    /// The interface went down or lost its carrier.
    InterfaceDown,
    /// The interface vanished or no longer matches the selector.
    InterfaceGone,
    /// The group was changed so that it has a new place, or removed.
    Reconfigured,
    /// The keeper ends.
    Shutdown,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Released(Release::Planned) => "handed over",
            Self::Released(Release::Lost) => "claim lost",
            Self::Lapsed => "lease not refreshed in time",
            Self::Expired => "lease expired in the kernel",
            Self::LeaseLost => "claim came too late",
            Self::InterfaceDown => "interface down",
            Self::InterfaceGone => "interface gone",
            Self::Reconfigured => "no longer configured",
            Self::Shutdown => "keeper shut down",
        })
    }
}

/// Reason for which an address is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is on the interface already, not placed by us, and so is left alone.
    #[error(
        "it is on the interface already, with prefix length {prefix_len}, placed by another program: \
         remove it there, then it is managed"
    )]
    Foreign {
        /// The prefix length of the existing address.
        prefix_len: u8,
    },
    /// IPv6 is disabled on the interface.
    #[error("IPv6 is disabled on the interface: set net.ipv6.conf.<interface>.disable_ipv6 to 0")]
    Ipv6Disabled,
    /// The kernel refused.
    #[error(transparent)]
    Kernel(KernelError),
}

impl Refusal {
    /// Returns whether the next term would meet it again, so that it is remembered until the interface changes.
    /// Others show by themselves whether they are over, or pass.
    pub(crate) fn outlasts_a_release(&self) -> bool {
        use nix::errno::Errno;
        match self {
            Self::Foreign { .. } | Self::Ipv6Disabled => false,
            Self::Kernel(error) => error.refused().is_some_and(|errno| {
                !matches!(errno, Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::EBUSY)
            }),
        }
    }
}

/// Warning for an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Warning {
    /// The thread runs at normal priority: on a loaded machine refreshes may come late and the VIP is lost.
    #[error("no real-time priority for the VIP keeper: {why}. Give the service CAP_SYS_NICE or LimitRTPRIO=")]
    RealtimeUnavailable {
        /// The system's reason.
        why: String,
    },
    /// The record of an earlier run could not be read and was put aside.
    #[error("{path}: {why}; put aside, so labels and routes of an earlier run may be left over")]
    RecordUnreadable {
        /// Where it was.
        path: String,
        /// The fault of the record.
        why: String,
    },
    /// The record cannot be written. Addresses are leases and end by themselves.
    #[error("{path}: {why}; routes and address labels would be left over after a crash")]
    Unrecorded {
        /// The file or its directory.
        path: String,
        /// The reason.
        why: String,
    },
    /// Leftovers of an earlier run were removed.
    #[error("removed what an earlier run left behind: {}", list(.addresses, .routes))]
    Reclaimed {
        /// Addresses that were there or had a label.
        addresses: Vec<IpAddr>,
        /// Destinations of prefix routes.
        routes: Vec<Prefix>,
    },
    /// The address has a label already, which is left alone.
    #[error("{ip} has the address label {found} already, set by another program; it stays")]
    ForeignLabel {
        /// The address.
        ip: IpAddr,
        /// Its label.
        found: u32,
    },
    /// A label or route could not be changed.
    #[error("{what}: {error}")]
    Incomplete {
        /// The change that was to be made.
        what: String,
        /// Why it was not.
        error: KernelError,
    },
    /// Sessions through the VIP were not reset.
    #[error("sessions through the VIP are not reset: {0}")]
    Sessions(SessionsError),
    /// The kernel's tables could not be read; it is tried again.
    #[error("cannot read the kernel's tables: {0}; trying again")]
    Unobserved(KernelError),
    /// A group was refused.
    #[error("{0}")]
    Group(GroupError),
}

fn list(addresses: &[IpAddr], routes: &[Prefix]) -> String {
    let addresses = addresses.iter().map(ToString::to_string);
    let routes = routes.iter().map(|prefix| format!("route to {prefix}"));
    addresses.chain(routes).collect::<Vec<_>>().join(", ")
}

/// Why everything was read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResyncCause {
    /// The keeper started.
    Start,
    /// The kernel dropped events because the keeper did not keep up.
    Overrun,
    /// An event could not be read.
    Unreadable,
    /// An earlier reading failed.
    Retry,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str, prefix_len: u8, scope: u8, flags: u32) -> InterfaceAddress {
        InterfaceAddress { ip: ip.parse().unwrap(), prefix_len, scope, flags }
    }

    fn state(addresses: Vec<InterfaceAddress>) -> InterfaceState {
        InterfaceState {
            name: "eth0".into(),
            index: 2,
            mac: Some([2; 6]),
            kind: None,
            vrf: None,
            up: true,
            addresses,
        }
    }

    #[test]
    fn sources_are_the_primary_address_and_a_ready_link_local_one() {
        let state = state(vec![
            address("169.254.0.9", 16, scope::LINK, 0x80),
            address("10.0.0.7", 24, scope::UNIVERSE, 0x81),
            address("10.0.0.5", 24, scope::UNIVERSE, 0x80),
            address("fd00::5", 64, scope::UNIVERSE, 0x80),
            address("fe80::1", 64, scope::LINK, address_flag::TENTATIVE),
            address("fe80::2", 64, scope::LINK, 0x80),
        ]);
        assert_eq!(state.source_v4(), Some([10, 0, 0, 5].into()));
        assert_eq!(state.source_v6(), Some("fe80::2".parse().unwrap()));
        assert!(state.has("fe80::2".parse().unwrap()) && state.has([10, 0, 0, 5].into()));
        assert!(!state.has([10, 0, 0, 77].into()));
    }

    #[test]
    fn a_link_local_address_is_a_source_only_where_there_is_no_other() {
        let local = state(vec![address("169.254.0.9", 16, scope::LINK, 0x80)]);
        assert_eq!(local.source_v4(), Some([169, 254, 0, 9].into()));
        let host = state(vec![address("10.0.0.9", 32, scope::HOST, 0x80)]);
        assert_eq!((host.source_v4(), host.source_v6()), (None, None));
    }
}
