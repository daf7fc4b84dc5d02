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
pub use trailer::{TRAILER_LEN, append, sign, split};

use self::clock::Clock;
use self::senders::{Order, Senders};
use self::trailer::{Trailer, verify_digest};

/// A larger difference from the wall clock means that a node started without a clock.
const LOST_CLOCK: Duration = Duration::from_secs(86_400);

/// The reason why a message is not authentic: an attack, a wrong key or a wrong clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It has no trailer, and the mode demands one.
    #[error("not signed")]
    Unsigned,
    /// The trailer's type is not HMAC-SHA-256-128, or its reserved field is not 0.
    #[error("unknown type of signature")]
    SignatureType,
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

/// A message whose signature is right, or that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The message without its trailer.
    pub message: &'a [u8],
    /// Its signature; `None` if it has none and the mode allows that.
    pub signature: Option<Verified>,
}

/// A signature that is right. [`Authenticator::accept`] takes it once the message has passed all other checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Set if the same advertisement was accepted already, signed with another key: the sender is rotating its keys.
    pub is_copy: bool,
    source: IpAddr,
    sequence: Sequence,
    key: u8,
    fits: Fits,
}

/// The clock that a time of signing agrees with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fits {
    /// This node's time of signatures, or the time of the group.
    Signatures,
    /// The wall clock only.
    WallOnly,
}

/// Signs the advertisements of one virtual router and verifies those of others.
///
/// # Clocks
///
/// The time of signatures begins with the wall clock, runs with the monotonic clock, and moves towards the wall clock
/// by half of the time that passes. What others sign is accepted within the window of that time, of the wall clock, or
/// of the time of the last message that was accepted. So a step of a clock moves nothing, and nodes whose clocks were wrong
/// when they started come together after they have been set right. An authentic message that fits the wall clock only
/// shows that others follow that one already, and then this router does at once.
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

    /// The trailers for an advertisement that leaves from `source`, one for each key; none if nothing is signed. They
    /// are the same for all destinations.
    pub fn sign(&mut self, now: Now, source: IpAddr, message: &[u8]) -> Vec<[u8; TRAILER_LEN]> {
        if !self.config.signs() {
            return Vec::new();
        }
        let sequence = self.next_sequence(now);
        self.config.keys().map(|(id, key)| sign(key, id, sequence, source, message)).collect()
    }

    /// The difference between the wall clock and the time of signatures.
    #[must_use]
    pub fn clock_step(&self, now: Now) -> Duration {
        now.wall.abs_diff(self.clock.read(now))
    }

    /// Splits the trailer off a packet's payload and verifies it. Nothing changes before [`accept`](Self::accept).
    ///
    /// # Errors
    ///
    /// The payload is not to be used.
    pub fn open<'a>(&self, now: Now, source: IpAddr, payload: &'a [u8]) -> Result<Opened<'a>, VerifyError> {
        let Some((message, trailer)) = split(payload, source) else {
            return match self.config.mode {
                Mode::Enforce => Err(VerifyError::Unsigned),
                // A payload of any other length is for the decoder to refuse.
                Mode::ReceiveOnly | Mode::Permissive => Ok(Opened { message: payload, signature: None }),
            };
        };
        let trailer = Trailer::parse(trailer).ok_or(VerifyError::SignatureType)?;
        let (sequence, id) = (trailer.sequence, trailer.key);
        let key = self.config.key(id).ok_or(VerifyError::UnknownKey(id))?;
        // The cheap checks come first, so that a flood of old messages costs no digest.
        let fits = self.check_time(now, source, sequence)?;
        let order = self
            .senders
            .order(now.instant, source, sequence, id, |latest, silence| self.is_over(now, latest, silence));
        if order == Order::Replayed {
            return Err(VerifyError::Replayed);
        }
        if !verify_digest(key, source, message, &trailer) {
            return Err(VerifyError::Digest);
        }
        let signature = Verified { is_copy: order == Order::Copy, source, sequence, key: id, fits };
        Ok(Opened { message, signature: Some(signature) })
    }

    /// Notes a message that has passed all checks, so that it is not accepted again.
    pub fn accept(&mut self, now: Now, verified: &Verified) {
        if verified.fits == Fits::WallOnly {
            self.follow_wall(now);
        }
        self.senders.accept(now.instant, verified.source, verified.sequence, verified.key);
    }

    /// The sequence for the next advertisement, greater than all before unless the clock had to go back.
    fn next_sequence(&mut self, now: Now) -> Sequence {
        // So far from the wall clock and from all others, the node started without any time at all.
        if self.senders.is_empty() && self.clock_step(now) > LOST_CLOCK {
            self.follow_wall(now);
        }
        self.last = Sequence::at(self.clock.advance(now)).max(self.last.next());
        self.last
    }

    /// Continues with the wall clock. Where that goes back, receivers refuse this router for as long as they remember its
    /// former sequences; going on with those it would be refused until the time has come.
    fn follow_wall(&mut self, now: Now) {
        if now.wall < self.clock.read(now) {
            self.last = Sequence::default();
        }
        self.clock = Clock::new(now);
    }

    /// Returns whether a sender that has been silent since its latest message may begin anew. By time, what it signed
    /// before must be outside the windows of all clocks: recordings are refused as stale then. A sender whose clock was far
    /// ahead may, too, although what it signed for a time to come could be replayed when that comes; the alternative is to
    /// refuse it until then. Without time a longer silence would lock a sender out whose clock stepped back before it was
    /// restarted.
    fn is_over(&self, now: Now, latest: Sequence, silence: Duration) -> bool {
        let window = self.config.window;
        match self.config.anti_replay {
            AntiReplay::Monotonic => silence > window,
            AntiReplay::Time => {
                let clocks =
                    [Some(self.clock.read(now)), Some(now.wall), self.senders.group_time(now.instant)];
                let outside = |clock: Duration| clock.abs_diff(latest.time()) > window;
                silence > 2 * window && clocks.into_iter().flatten().all(outside)
            }
        }
    }

    fn check_time(&self, now: Now, source: IpAddr, sequence: Sequence) -> Result<Fits, VerifyError> {
        if self.config.anti_replay == AntiReplay::Monotonic {
            return Ok(Fits::Signatures);
        }
        let signed = sequence.time();
        let agrees = |clock: Duration| signed.abs_diff(clock) <= self.config.window;
        if agrees(self.clock.read(now)) || self.senders.group_time(now.instant).is_some_and(agrees) {
            return Ok(Fits::Signatures);
        }
        // A wall clock that was set back fits what was signed, and perhaps recorded, when it stood there before.
        if agrees(now.wall) && self.senders.is_newest(source, sequence) {
            return Ok(Fits::WallOnly);
        }
        let direction = if signed < now.wall { Direction::Behind } else { Direction::Ahead };
        Err(VerifyError::Stale { by: signed.abs_diff(now.wall), direction })
    }
}
