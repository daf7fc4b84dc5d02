//! The outputs of a [`VirtualRouter`](super::VirtualRouter).

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::hmac::Direction;
use crate::packet::{Addresses, Advertisement};
use crate::types::{MacAddr, WirePriority};

/// An action for the caller; actions are to be carried out in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this, to the group or the peers of the family of its addresses.
    Advertise(Advertisement),
    /// This node may hold the virtual addresses for a while; install or refresh them.
    Claim(Claim),
    /// This node gives the virtual addresses up; remove them in the way of [`Release`].
    Release(Release),
    /// Send one gratuitous ARP or unsolicited neighbour advertisement for each virtual address now.
    Announce,
    /// Start or stop to listen for announcements of the virtual addresses by other nodes.
    Watch(Watch),
    /// The state changed.
    Transition(Transition),
    /// A problem to report. It may repeat with every packet, so its log lines need a rate limit.
    Warning(Warning),
}

/// The right to hold the virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The time at which the right ends unless it is renewed.
    pub valid_until: Instant,
}

/// The end of the right to hold the virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Release {
    /// They may stay for a moment, as another router answers already or none is Active yet: reset the sessions that
    /// came through them, within a bound, then remove them.
    Planned,
    /// No packet leaves in their name any more: remove them at once.
    Lost,
}

/// The need for announcements by other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watch {
    /// Report them through `handle_announcement`.
    Start,
    /// Ignore them.
    Stop,
}

/// The name of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateName {
    /// Waiting for the interface and its address (RFC 9568 §6.4.1).
    Init,
    /// Watching the Active (RFC 9568 §6.4.2).
    Backup,
    /// Holding the virtual addresses (RFC 9568 §6.4.3).
    Active,
    /// Was Active, but slept so long that another router may be Active now.
    Listening,
    /// Was Active, and answers until neighbours know the new Active.
    Yielding,
    /// Hands the virtual addresses over.
    Resigning,
    /// Has left the election for good.
    Stopped,
}

impl StateName {
    /// All states.
    pub const ALL: [Self; 7] = [
        Self::Init,
        Self::Backup,
        Self::Active,
        Self::Listening,
        Self::Yielding,
        Self::Resigning,
        Self::Stopped,
    ];

    /// The name in lower case, for metrics and status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Backup => "backup",
            Self::Active => "active",
            Self::Listening => "listening",
            Self::Yielding => "yielding",
            Self::Resigning => "resigning",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The state left.
    pub from: StateName,
    /// The state entered.
    pub to: StateName,
    /// The cause.
    pub reason: Reason,
    /// The time that the state left had lasted.
    pub after: Duration,
}

/// The cause of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The router was made.
    Created,
    /// The interface is up and has an address.
    InterfaceUp,
    /// The interface is down.
    InterfaceDown,
    /// The interface has no address of the deciding family.
    NoSourceAddress,
    /// The Active was not heard for Active_Down_Interval.
    ActiveSilent {
        /// The router that fell silent; `None` if none was heard before.
        source: Option<IpAddr>,
    },
    /// The Active resigned and Skew_Time is over.
    ActiveResigned {
        /// The router that resigned; `None` if it was not heard before.
        source: Option<IpAddr>,
    },
    /// The Active cannot serve and this router can.
    ActiveDegraded {
        /// The router that cannot serve.
        source: Option<IpAddr>,
    },
    /// Only routers of lower priority advertised.
    LowerPriority,
    /// Another Active has the higher priority, or the same and the higher address.
    Outranked {
        /// The source of its advertisement.
        source: IpAddr,
        /// Its priority.
        priority: WirePriority,
    },
    /// A rival advertised for Active_Down_Interval against this router, which therefore is not heard.
    Unheard {
        /// The source of its advertisements.
        source: IpAddr,
    },
    /// The last advertisement was so long ago that another router may have taken over.
    Overslept,
    /// The addresses could not be refreshed in time.
    LeaseLost,
    /// No other router advertised while this one listened.
    NoOtherActive,
    /// Another router advertised while this one listened.
    RivalHeard {
        /// The source of its advertisement.
        source: IpAddr,
    },
    /// The operator or the daemon shuts the router down.
    Shutdown,
    /// The operator moves the addresses.
    HandoverRequested,
    /// The successor announced the addresses.
    SuccessorAnnounced,
    /// The successor advertised a while ago.
    SuccessorAdvertised,
    /// No router took over in time.
    NoSuccessor,
    /// The router has another identity now.
    Reconfigured,
}

impl Reason {
    /// The reason as one word in snake case, for metrics and status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::InterfaceUp => "interface_up",
            Self::InterfaceDown => "interface_down",
            Self::NoSourceAddress => "no_source_address",
            Self::ActiveSilent { .. } => "active_silent",
            Self::ActiveResigned { .. } => "active_resigned",
            Self::ActiveDegraded { .. } => "active_degraded",
            Self::LowerPriority => "lower_priority",
            Self::Outranked { .. } => "outranked",
            Self::Unheard { .. } => "unheard",
            Self::Overslept => "overslept",
            Self::LeaseLost => "lease_lost",
            Self::NoOtherActive => "no_other_active",
            Self::RivalHeard { .. } => "rival_heard",
            Self::Shutdown => "shutdown",
            Self::HandoverRequested => "handover_requested",
            Self::SuccessorAnnounced => "successor_announced",
            Self::SuccessorAdvertised => "successor_advertised",
            Self::NoSuccessor => "no_successor",
            Self::Reconfigured => "reconfigured",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("just started"),
            Self::InterfaceUp => f.write_str("the interface is up"),
            Self::InterfaceDown => f.write_str("the interface is down"),
            Self::NoSourceAddress => f.write_str("the interface has no address to advertise from"),
            Self::ActiveSilent { source: Some(source) } => write!(f, "{source} fell silent"),
            Self::ActiveSilent { source: None } => f.write_str("no active router was heard"),
            Self::ActiveResigned { source: Some(source) } => write!(f, "{source} resigned"),
            Self::ActiveResigned { source: None } => f.write_str("the active router resigned"),
            Self::ActiveDegraded { source: Some(source) } => write!(f, "{source} cannot serve"),
            Self::ActiveDegraded { source: None } => f.write_str("the active router cannot serve"),
            Self::LowerPriority => f.write_str("only routers of lower priority advertised"),
            Self::Outranked { source, priority } => write!(f, "{source} is active with priority {priority}"),
            Self::Unheard { source } => {
                write!(f, "{source} stays active and apparently does not hear this router")
            }
            Self::Overslept => f.write_str("the process was suspended for longer than its claim was valid"),
            Self::LeaseLost => f.write_str("the addresses could not be refreshed in time"),
            Self::NoOtherActive => f.write_str("no other router is active"),
            Self::RivalHeard { source } => write!(f, "{source} became active meanwhile"),
            Self::Shutdown => f.write_str("administrative shutdown"),
            Self::HandoverRequested => f.write_str("handover on request"),
            Self::SuccessorAnnounced => f.write_str("the successor announced the addresses"),
            Self::SuccessorAdvertised => f.write_str("the successor advertised"),
            Self::NoSuccessor => f.write_str("no successor took over in time"),
            Self::Reconfigured => f.write_str("the configuration changed"),
        }
    }
}

/// A problem that an operator should know about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Another host advertises from this router's own address.
    Conflict {
        /// The shared address.
        source: IpAddr,
    },
    /// Another group uses the same identifier on this link, for addresses of its own.
    OtherGroup {
        /// The source of its advertisement.
        source: IpAddr,
        /// Its virtual addresses, at least one.
        addresses: Addresses,
    },
    /// A router that is no known controller advertises the identifier and the addresses of this group.
    Stranger {
        /// The source of its advertisement.
        source: IpAddr,
        /// Its priority.
        priority: WirePriority,
    },
    /// Another node announces one of the virtual addresses (gratuitous ARP, unsolicited NA) while this router is Active
    /// and hears no rival.
    AnnouncedElsewhere {
        /// The address.
        ip: IpAddr,
        /// The link-layer address that it is announced at.
        mac: MacAddr,
    },
    /// A peer advertises another list of virtual addresses, which shares some with ours.
    AddressListMismatch {
        /// The peer.
        source: IpAddr,
    },
    /// A version 2 peer has another interval; the longer one counts.
    IntervalMismatch {
        /// The peer.
        source: IpAddr,
        /// Its interval.
        theirs: Duration,
    },
    /// Two routers are Active and the other one does not yield.
    Contended {
        /// The other one.
        source: IpAddr,
    },
    /// A rival goes on to advertise against this router, which gives the addresses up for the hold time.
    Unheard {
        /// The rival.
        source: IpAddr,
    },
    /// Another router is Active for IPv6 while this one is for IPv4; only routers that tie the families prevent it.
    FamilySplit {
        /// The other router.
        source: IpAddr,
    },
    /// The process was stopped or starved.
    Overslept {
        /// The time since the last advertisement was sent, or the delay of a deadline.
        by: Duration,
    },
    /// A signed advertisement is too old or too new: the clocks of the two nodes differ, or it is replayed.
    ClockDiffers {
        /// The source of the advertisement.
        source: IpAddr,
        /// The difference of the time of signing from this node's wall clock.
        by: Duration,
        /// Its direction.
        direction: Direction,
    },
    /// This node's wall clock was set since the router was started, by more than the window. The time of its signatures
    /// follows it slowly.
    ClockStepped {
        /// The difference.
        by: Duration,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { source } => {
                write!(f, "another host advertises from this router's own address {source}")
            }
            Self::OtherGroup { source, addresses } => {
                write!(f, "{source} uses the same identifier for other virtual addresses: ")?;
                write_some(f, addresses)
            }
            Self::Stranger { source, priority } => {
                write!(
                    f,
                    "{source} advertises our virtual addresses with priority {priority}, and is no known controller"
                )
            }
            Self::AnnouncedElsewhere { ip, mac } => {
                write!(f, "{mac} announces {ip}, which this node holds, and is not heard to advertise it")
            }
            Self::AddressListMismatch { source } => {
                write!(f, "{source} advertises another list of virtual addresses under the same identifier")
            }
            Self::IntervalMismatch { source, theirs } => {
                write!(f, "{source} advertises every {theirs:?}, which is not the interval of this router")
            }
            Self::Contended { source } => write!(f, "{source} is active, too, and does not yield"),
            Self::Unheard { source } => {
                write!(
                    f,
                    "{source} does not yield, so our advertisements do not arrive; giving the addresses up"
                )
            }
            Self::FamilySplit { source } => {
                write!(f, "{source} is active for IPv6 while this node is active for IPv4")
            }
            Self::Overslept { by } => write!(f, "this process did not run for {by:?}"),
            Self::ClockDiffers { source, by, direction } => {
                write!(f, "{source} signed an advertisement {by:?} {direction} this node's clock")
            }
            Self::ClockStepped { by } => write!(f, "this node's clock was set by {by:?}"),
        }
    }
}

/// The number of addresses of a list that are named.
const NAMED: usize = 4;

/// The first addresses of a list, and the number of the others.
fn write_some(f: &mut fmt::Formatter<'_>, addresses: &Addresses) -> fmt::Result {
    for (index, address) in addresses.iter().take(NAMED).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{address}")?;
    }
    match addresses.len().saturating_sub(NAMED) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}
