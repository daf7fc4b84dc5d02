//! A snapshot for people and for metrics.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::event::{AddressCopy, InterfaceState, Refusal, Removal};
use crate::types::{GroupId, LeaseTime};

/// State of the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Status {
    /// Its groups, by id.
    pub groups: Vec<GroupStatus>,
    /// `true` if its thread has real-time priority.
    pub realtime: bool,
    /// Totals since its start.
    pub counters: Counters,
}

/// State of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    /// The group.
    pub id: GroupId,
    /// The selector of its interface, in words.
    pub selector: String,
    /// Its interface; `None` while it waits for one.
    pub interface: Option<InterfaceState>,
    /// Presence of its addresses on this node.
    pub state: GroupState,
    /// Its addresses.
    pub addresses: Vec<AddressStatus>,
    /// Where else on this node its addresses are, or as what, in the order of interfaces.
    pub copies: Vec<AddressCopy>,
    /// The lease.
    pub lease: LeaseTime,
    /// Why it last lost or gave up its addresses.
    pub last_removal: Option<Removal>,
}

/// Presence of a group's addresses on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupState {
    /// No interface matches the selector.
    WaitingForInterface,
    /// The interface is down or has no carrier.
    InterfaceDown,
    /// There is no claim.
    Vacant,
    /// There is no claim any more, and the addresses are still here until their sessions are reset.
    Departing,
    /// The addresses are here.
    Held {
        /// When the kernel last acknowledged a refresh.
        refreshed: Instant,
        /// Until when the claim holds.
        claimed_until: Instant,
    },
    /// The lease ran out without a claim.
    Lapsed,
}

/// State of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressStatus {
    /// The address.
    pub ip: IpAddr,
    /// Where it stands.
    pub state: AddressState,
}

/// Where one address of a group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressState {
    /// Not here.
    Absent,
    /// Here.
    Present,
    /// It was here, and was removed by another program.
    Missing,
    /// It cannot be installed.
    Refused(Refusal),
}

/// Totals since the keeper's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Times a group's addresses were added or missing ones restored.
    pub installs: u64,
    /// Refreshes of held groups.
    pub refreshes: u64,
    /// Claims that came soon enough after a refresh not to need another.
    pub claims_fresh: u64,
    /// Claims that were over or overtaken when they were handled.
    pub claims_stale: u64,
    /// Claims for a group whose interface is absent or down.
    pub claims_without_interface: u64,
    /// Addresses removed by another program while held.
    pub missing: u64,
    /// Leases lost.
    pub leases_lost: u64,
    /// Leases that lapsed or expired.
    pub leases_lapsed: u64,
    /// Sessions that ended with a RST to their peers before an address went.
    pub sessions_reset: u64,
    /// Sessions that were closed without one, because the address was gone.
    pub sessions_silent: u64,
    /// Times the kernel dropped events.
    pub overruns: u64,
    /// Events that could not be read.
    pub unreadable: u64,
    /// Times everything was read anew.
    pub resyncs: u64,
    /// Requests that the kernel refused or did not answer.
    pub kernel_errors: u64,
    /// The longest that the kernel took to write an address: it has one lock for the network configuration of all
    /// namespaces.
    pub longest_write: Duration,
}
