//! The measurement of a planned move of the addresses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The end of a planned move that a router is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MoveSide {
    /// It had the addresses and resigned.
    From,
    /// It took over from the one that resigned.
    To,
}

/// A planned move of the addresses as one of its two routers measured it.
///
/// The blackout is the time from the end of the old holder's part to the end of the new one's, both from the resignation; it
/// is zero where the new holder was there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedMove {
    /// The end of the move that this router is.
    pub side: MoveSide,
    /// The router at the other end, as far as it is known.
    pub other: Option<IpAddr>,
    /// The time at which the resignation was sent, or received.
    pub resigned: Instant,
    /// The time from the resignation until this router gave the addresses up, or had them; `None` while that is not so.
    pub took: Option<Duration>,
}

impl PlannedMove {
    pub(super) const fn new(side: MoveSide, other: Option<IpAddr>, resigned: Instant) -> Self {
        Self { side, other, resigned, took: None }
    }
}
