//! The outputs of a channel.

use std::net::IpAddr;

use super::message::{Answer, Request};

/// Something for the owner of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer is known: its messages are fresh, and signed where there are keys.
    Found(IpAddr),
    /// A peer has been silent for [`Timing::lost_after`](super::Timing::lost_after), or said that it stops.
    Lost(IpAddr),
    /// A peer's report changed.
    Changed(IpAddr),
    /// A peer asks for something; to be answered by [`Channel::answer`](super::Channel::answer). Repetitions of a request are not reported.
    Requested {
        /// The peer.
        from: IpAddr,
        /// The request's number, for the answer.
        id: u64,
        /// The request.
        request: Request,
    },
    /// A peer answered a request of this node.
    Answered {
        /// The peer.
        from: IpAddr,
        /// The number that [`Channel::request`](super::Channel::request) returned.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// No peer answered in time.
    Unanswered {
        /// The number that [`Channel::request`](super::Channel::request) returned.
        id: u64,
    },
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The peer; `None`: to all, by multicast or to each known one.
    pub to: Option<IpAddr>,
    /// The bytes without signatures, which depend on the source address: see [`Channel::seal`](super::Channel::seal).
    pub payload: Vec<u8>,
}
