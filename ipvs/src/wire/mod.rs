//! Messages to and from the kernel, as values and as bytes. Needs no socket.
//!
//! [`Request`] and [`Reply`] stand for what follows the generic-netlink header (command, version, two zero bytes).
//! Decoding is as tolerant as the kernel's history demands, and no more:
//!
//! - attributes that this crate does not know are kept and encoded again;
//! - what older kernels leave out (statistics or parts of them, tunnels, the family of a destination) may be missing;
//! - bytes that are no attribute are an error.
//!
//! Nothing here panics, whatever the bytes are (fuzzed).

mod attribute;
mod daemon;
mod destination;
mod layout;
mod message;
mod service;
mod stats;
#[cfg(test)]
mod tests;
mod value;

pub use attribute::{Attribute, Attributes};
pub use layout::{FAMILY_NAME, FAMILY_VERSION};
pub use message::{Command, Reply, ReplyContent, Request};

/// The number of a family in the controller's description of it. Only this attribute is looked at, because a decoder of
/// all of them would fail with the next one that a kernel adds.
#[cfg(feature = "client")]
pub(crate) fn control_family_id(body: &[u8]) -> Option<u16> {
    let mut known = attribute::attributes(body).map_while(Result::ok);
    let id = known.find(|attribute| attribute.number() == layout::CONTROL_FAMILY_ID)?;
    value::u16_of("family", id.value).ok()
}

/// Failure to decode a message of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes are left than an attribute's header has.
    #[error("{length} bytes behind the attributes")]
    Trailing {
        /// Number of bytes.
        length: usize,
    },
    /// An attribute that is shorter than its own header, or longer than what is left.
    #[error("an attribute of {length} bytes where {left} bytes are left")]
    AttributeLength {
        /// Its length with its header.
        length: usize,
        /// Number of bytes that are left.
        left: usize,
    },
    /// A value is shorter than its type.
    #[error("{what}: {length} bytes instead of {need}")]
    ShortValue {
        /// The part in question.
        what: &'static str,
        /// Bytes that it has.
        length: usize,
        /// Bytes that it needs.
        need: usize,
    },
    /// A name is empty, too long, or no UTF-8.
    #[error("{what}: not a name")]
    Text {
        /// The part in question.
        what: &'static str,
    },
    /// An attribute without which the message says nothing.
    #[error("{what}: missing")]
    Missing {
        /// The part in question.
        what: &'static str,
    },
    /// An address family that IPVS does not have.
    #[error("unknown address family {number}")]
    UnknownFamily {
        /// Its number.
        number: u16,
    },
    /// More unknown attributes than are kept, see [`Attributes::MOST`].
    #[error("more than {} bytes of unknown attributes", Attributes::MOST)]
    TooManyUnknown,
    /// A command that does not belong to this direction.
    #[error("unexpected command {command}")]
    UnexpectedCommand {
        /// Its number.
        command: u8,
    },
}
