//! Authentication of advertisements by a trailer with an HMAC (draft-cassen-vrrp-auth-hmac; `auth_hmac` of keepalived
//! 2.4).
//!
//! The trailer of 28 bytes follows the message and is part of the IP packet, but not of the VRRP message: the message's
//! own length and, over IPv4, its checksum leave it out. Integers are big endian.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | type, 1: HMAC-SHA-256-128 |
//! | 1 | identifier of the key, 1 to 255 |
//! | 2–3 | reserved, 0 |
//! | 4–11 | [`Sequence`]: seconds (UTC), 1/65536 s, counter |
//! | 12–27 | the first 16 bytes of the digest |
//!
//! [`Authenticator`] signs and verifies. It does no I/O and reads no clock.
//!
//! A copy of an advertisement is signed with each key of the [`HmacConfig`], all with one sequence, so that a router
//! which lacks the newest key still hears this one while keys are rotated. A receiver that knows several of the keys
//! accepts the first copy.

mod clock;
mod config;
mod senders;
mod sequence;
mod trailer;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use config::{AntiReplay, HmacConfig, HmacConfigError, Key, KeyError, KeyId, Mode};
pub use sequence::Sequence;
use thiserror::Error;
pub use trailer::{TRAILER_LEN, sign, split};

use self::clock::Clock;
use self::senders::{Order, Senders};
use self::trailer::{Trailer, verify_digest};

/// The reason why a message is not authentic: an attack, a wrong key or a wrong clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It has no trailer, and the mode demands one.
    #[error("not signed")]
    Unsigned,
    /// The trailer's type is not HMAC-SHA-256-128, or its reserved field is not 0.
    #[error("unknown type of signature")]
    Kind,
    /// The key is not among those of this router.
    #[error("signed with unknown key {0}")]
    UnknownKey(u8),
    /// The digest is wrong.
    #[error("wrong digest")]
    Digest,
    /// The time of signing differs too much from this router's clock.
    #[error("signed {by:?} {direction} this node's clock")]
    Stale {
        /// The difference.
        by: Duration,
        /// Its direction.
        direction: Direction,
    },
    /// The sender has signed this sequence or a later one before.
    #[error("replayed")]
    Replayed,
}

/// The direction of a clock's difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Earlier than this node's clock.
    Behind,
    /// Later than this node's clock.
    Ahead,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Behind => "behind",
            Self::Ahead => "ahead of",
        })
    }
}

/// The current time by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// By the monotonic clock.
    pub instant: Instant,
    /// By the wall clock: the time since 1970-01-01 00:00 UTC.
    pub wall: Duration,
}

/// A message that may be used, or need not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened<'a> {
    /// The message without its trailer, whose signature is right.
    Signed(&'a [u8]),
    /// The message, which has no signature, as the mode allows.
    Unsigned(&'a [u8]),
    /// The same advertisement was accepted already, signed with another key: the sender is rotating its keys.
    Copy,
}

/// Signs the advertisements of one virtual router and verifies those of others.
///
/// Its time runs with the monotonic clock from the wall clock as it was at the start, so a step of the wall clock
/// changes nothing that its peers see. It accepts what was signed within the window of either clock. An authentic
/// message that fits only the wall clock shows that the others follow that one, and then this one does, too.
#[derive(Debug)]
pub struct Authenticator {
    config: HmacConfig,
    clock: Clock,
    last: Sequence,
    senders: Senders,
}

impl Authenticator {
    /// An authenticator that has neither signed nor accepted anything.
    #[must_use]
    pub fn new(config: HmacConfig, now: Now) -> Self {
        Self { config, clock: Clock::new(now), last: Sequence::default(), senders: Senders::default() }
    }

    /// Takes over another configuration, and keeps what protects against replay.
    pub fn reconfigure(&mut self, config: HmacConfig) {
        self.config = config;
    }

    /// The configuration in use.
    #[must_use]
    pub const fn config(&self) -> &HmacConfig {
        &self.config
    }

    /// The sequence for the next advertisement, greater than all before.
    pub fn next_sequence(&mut self, now: Now) -> Sequence {
        self.last = Sequence::at(self.clock.at(now.instant)).max(self.last.next());
        self.last
    }

    /// The difference between the wall clock and the time that this authenticator signs with: a step of the wall clock
    /// since the start that no other router has confirmed.
    #[must_use]
    pub fn clock_step(&self, now: Now) -> Duration {
        now.wall.abs_diff(self.clock.at(now.instant))
    }

    /// Verifies a packet's payload and splits the trailer off.
    ///
    /// # Errors
    ///
    /// The payload is not to be used, and has changed nothing here.
    pub fn open<'a>(
        &mut self,
        now: Now,
        source: IpAddr,
        payload: &'a [u8],
    ) -> Result<Opened<'a>, VerifyError> {
        let Some((message, trailer)) = split(payload, source) else {
            return match self.config.mode {
                Mode::Enforce => Err(VerifyError::Unsigned),
                // A payload of any other length is for the decoder to refuse.
                Mode::ReceiveOnly | Mode::Permissive => Ok(Opened::Unsigned(payload)),
            };
        };
        let trailer = Trailer::parse(trailer).ok_or(VerifyError::Kind)?;
        let key = self.config.key(trailer.key).ok_or(VerifyError::UnknownKey(trailer.key))?;
        // The cheap checks come first, so that a flood of old messages costs no digest.
        let confirms_wall = self.check_time(now, trailer.sequence)?;
        let memory = self.config.memory();
        let order = self.senders.order(now.instant, memory, source, trailer.sequence);
        if order == Order::Behind {
            return Err(VerifyError::Replayed);
        }
        if !verify_digest(key, source, message, &trailer) {
            return Err(VerifyError::Digest);
        }
        if let Order::Same(accepted) = order {
            return if accepted == trailer.key { Err(VerifyError::Replayed) } else { Ok(Opened::Copy) };
        }
        if confirms_wall {
            self.clock = Clock::new(now);
        }
        self.senders.accept(now.instant, memory, source, trailer.sequence, trailer.key);
        Ok(Opened::Signed(message))
    }

    /// Returns whether the time of signing fits the wall clock only.
    fn check_time(&self, now: Now, sequence: Sequence) -> Result<bool, VerifyError> {
        if self.config.anti_replay == AntiReplay::Monotonic {
            return Ok(false);
        }
        let signed = sequence.time();
        let by = |clock: Duration| signed.abs_diff(clock);
        if by(self.clock.at(now.instant)) <= self.config.window {
            return Ok(false);
        }
        if by(now.wall) <= self.config.window {
            return Ok(true);
        }
        let direction = if signed < now.wall { Direction::Behind } else { Direction::Ahead };
        Err(VerifyError::Stale { by: by(now.wall), direction })
    }
}
