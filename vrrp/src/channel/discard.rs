//! The reasons for which datagrams are not used.

use thiserror::Error;

use super::wire::MessageError;

/// The reason why a datagram is discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Error)]
#[non_exhaustive]
pub enum Discard {
    /// It is no message of the channel, or a broken one.
    #[error("malformed")]
    Malformed,
    /// Of a version of the channel that this node does not know.
    #[error("another version")]
    Version,
    /// Without a signature, and this node has keys.
    #[error("not signed")]
    Unsigned,
    /// No signature is of a key that this node has.
    #[error("signed with unknown keys")]
    UnknownKey,
    /// A signature is wrong.
    #[error("wrong digest")]
    Digest,
    /// Sent by this node itself.
    #[error("reflected")]
    Reflected,
    /// Its sequence is not greater than those before.
    #[error("replayed")]
    Replayed,
    /// It does not return a challenge of this node: the first message of a sender, or a replay from its former life.
    #[error("not fresh")]
    NotFresh,
    /// There are [`MAX_PEERS`](super::MAX_PEERS) peers already, or this one has sent 16 requests within a second.
    #[error("too many peers or requests")]
    TooMany,
}

impl Discard {
    /// All reasons, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Malformed,
        Self::Version,
        Self::Unsigned,
        Self::UnknownKey,
        Self::Digest,
        Self::Reflected,
        Self::Replayed,
        Self::NotFresh,
        Self::TooMany,
    ];

    /// The reason as one word in snake case, for metrics and status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown_key",
            Self::Digest => "digest",
            Self::Reflected => "reflected",
            Self::Replayed => "replayed",
            Self::NotFresh => "not_fresh",
            Self::TooMany => "too_many",
        }
    }
}

impl From<MessageError> for Discard {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Version(_) => Self::Version,
            _ => Self::Malformed,
        }
    }
}
