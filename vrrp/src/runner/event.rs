//! The events that the runner reports to its owner.

use std::fmt;
use std::io;
use std::net::IpAddr;

use super::InstanceId;
use super::followed::ActiveChange;
use super::status::PastTransition;
use crate::router::{Discard, Warning};

/// Something the owner of the runner may want to log or act on.
///
/// Events that a peer could cause with every packet come once per minute and reason; `suppressed` is then the number of
/// like events in between.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunnerEvent {
    /// A router changed its state.
    Transition {
        /// The router.
        id: InstanceId,
        /// The change, with its time.
        past: PastTransition,
    },
    /// A Backup follows another Active than before. At most ten changes a minute are reported.
    ActiveChanged {
        /// The router that is Backup.
        id: InstanceId,
        /// The change.
        change: ActiveChange,
        /// The number of changes that were suppressed since the last one.
        suppressed: u64,
    },
    /// A router reports a problem to the operator.
    Warning {
        /// The router.
        id: InstanceId,
        /// The problem.
        warning: Warning,
        /// The number of like events that were suppressed since the last one.
        suppressed: u64,
    },
    /// A router discarded an advertisement.
    Discarded {
        /// The router.
        id: InstanceId,
        /// The reason.
        reason: Discard,
        /// The source of the advertisement.
        source: IpAddr,
        /// The number of like events that were suppressed since the last one.
        suppressed: u64,
    },
    /// The thread runs, but a loaded machine may delay it.
    RealtimeUnavailable {
        /// The refused call, and the privilege that it needs.
        why: String,
    },
    /// Sockets of an interface could not be opened, or a packet could not be sent or read. It is tried again.
    SocketError {
        /// The interface.
        interface: String,
        /// The operation that failed.
        operation: SocketOperation,
        /// The error of the operating system.
        error: io::Error,
        /// The number of like events that were suppressed since the last one.
        suppressed: u64,
    },
}

/// An operation of the runner on its sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SocketOperation {
    /// Opening the sockets of an interface; tried again after a second.
    Open,
    /// Sending an advertisement; the next one is due after the interval.
    Advertise,
    /// Sending a gratuitous ARP or neighbour advertisement; more follow.
    Announce,
    /// Reading advertisements.
    Receive,
    /// Reading other nodes' announcements.
    Watch,
}

impl fmt::Display for SocketOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opening sockets",
            Self::Advertise => "sending an advertisement",
            Self::Announce => "announcing the virtual addresses",
            Self::Receive => "receiving advertisements",
            Self::Watch => "watching for announcements",
        })
    }
}
