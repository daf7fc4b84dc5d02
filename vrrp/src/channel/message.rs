//! The payload of a message.

use std::net::IpAddr;
use std::time::Duration;

use super::wire::{MAX_PAYLOAD, MessageError, Reader, put_text};

/// The most returned challenges in a message.
pub(super) const MAX_ECHOES: usize = 32;

/// The room for the records of a report in a message with this number of returned challenges.
pub(super) const fn report_room(echoes: usize) -> usize {
    MAX_PAYLOAD - (3 * 8 + 1 + echoes * 16 + 1 + 4 + 2)
}

const REPORT: u8 = 1;
const REQUEST: u8 = 2;
const ANSWER: u8 = 3;
const STOP: u8 = 4;
const HANDOVER: u8 = 1;
const SUCCESSION: u8 = 2;
const MOVED: u8 = 3;
/// A duration that is not known.
const UNKNOWN: u32 = u32::MAX;

/// The longest name of a node in bytes (RFC 1123 §2.1).
const NAME_MAX: u8 = 253;
/// The longest reason in bytes.
const REASON_MAX: u8 = 255;

/// Asks a node to act.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Hand the addresses of an instance over.
    Handover {
        /// The identifier of the instance.
        vrid: u8,
        /// The name of the node that is to have them; `None` leaves it to the election.
        to: Option<String>,
    },
    /// Know the next holder of an instance's addresses, which its Active is about to hand over: see
    /// [`Command::Succession`](crate::router::Command::Succession). The successor refuses if it cannot serve.
    Succession {
        /// The identifier of the instance.
        vrid: u8,
        /// The source of the successor's advertisements.
        successor: IpAddr,
        /// The time in milliseconds for which this holds.
        lasts: u32,
    },
    /// Tell how long after the resignation this node had the addresses of an instance.
    Moved {
        /// The identifier of the instance.
        vrid: u8,
    },
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// The reason of a refusal, or a remark, at most 255 bytes.
    pub reason: String,
    /// The name of the node that has the addresses now, at most 253 bytes; empty if it is not known.
    pub holder: String,
    /// The time from the resignation until the old holder gave the addresses up, in microseconds on the wire.
    pub kept: Option<Duration>,
    /// The time from the resignation until the new holder had the addresses, in microseconds on the wire.
    pub taken: Option<Duration>,
}

impl Answer {
    /// A refusal.
    #[must_use]
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::REFUSED, reason: reason.into(), ..Self::accepted() }
    }

    /// An acceptance without anything else.
    #[must_use]
    pub fn accepted() -> Self {
        let (reason, holder) = (String::new(), String::new());
        Self { outcome: Outcome::ACCEPTED, reason, holder, kept: None, taken: None }
    }
}

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcome(pub u8);

impl Outcome {
    /// It is done, or will be.
    pub const ACCEPTED: Self = Self(0);
    /// It is not done, for the reason given.
    pub const REFUSED: Self = Self(1);
}

/// A challenge that is returned to the node that sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) boot: u64,
    pub(super) challenge: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Random for each start of the sender.
    pub(super) boot: u64,
    /// Grows with each message of a boot.
    pub(super) sequence: u64,
    pub(super) challenge: u64,
    pub(super) echoes: Vec<Echo>,
    pub(super) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Body {
    /// A part of a report; all parts of a round together are the report.
    Report {
        round: u32,
        part: u8,
        parts: u8,
        records: Vec<u8>,
    },
    Request {
        id: u64,
        request: Request,
    },
    Answer {
        id: u64,
        answer: Answer,
    },
    /// The sender stops.
    Stop,
}

impl Request {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Handover { vrid, to } => {
                out.extend([HANDOVER, *vrid]);
                put_text(out, to.as_deref().unwrap_or_default(), NAME_MAX);
            }
            Self::Succession { vrid, successor, lasts } => {
                out.extend([SUCCESSION, *vrid]);
                out.extend(lasts.to_be_bytes());
                match successor {
                    IpAddr::V4(successor) => out.extend(successor.octets()),
                    IpAddr::V6(successor) => out.extend(successor.octets()),
                }
            }
            Self::Moved { vrid } => out.extend([MOVED, *vrid]),
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let (kind, vrid) = (reader.u8()?, reader.u8()?);
        match kind {
            HANDOVER => {
                let to = reader.text()?;
                Ok(Self::Handover { vrid, to: (!to.is_empty()).then_some(to) })
            }
            SUCCESSION => {
                let lasts = reader.u32()?;
                Ok(Self::Succession { vrid, successor: reader.address()?, lasts })
            }
            MOVED => Ok(Self::Moved { vrid }),
            _ => Err(MessageError::Field),
        }
    }
}

fn microseconds(duration: Option<Duration>) -> u32 {
    duration.map_or(UNKNOWN, |duration| {
        u32::try_from(duration.as_micros()).unwrap_or(UNKNOWN - 1).min(UNKNOWN - 1)
    })
}

fn duration(microseconds: u32) -> Option<Duration> {
    (microseconds != UNKNOWN).then(|| Duration::from_micros(microseconds.into()))
}

impl Message {
    /// The challenge that is returned to the node with this boot number.
    pub(super) fn echo_of(&self, boot: u64) -> Option<u64> {
        self.echoes.iter().find(|echo| echo.boot == boot).map(|echo| echo.challenge)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [self.boot, self.sequence, self.challenge] {
            out.extend(number.to_be_bytes());
        }
        let echoes = &self.echoes[..self.echoes.len().min(MAX_ECHOES)];
        out.push(u8::try_from(echoes.len()).unwrap_or(u8::MAX));
        for echo in echoes {
            out.extend(echo.boot.to_be_bytes());
            out.extend(echo.challenge.to_be_bytes());
        }
        match &self.body {
            Body::Report { round, part, parts, records } => {
                out.push(REPORT);
                out.extend(round.to_be_bytes());
                out.extend([*part, *parts]);
                out.extend(records);
            }
            Body::Request { id, request } => {
                out.push(REQUEST);
                out.extend(id.to_be_bytes());
                request.encode(&mut out);
            }
            Body::Answer { id, answer } => {
                out.push(ANSWER);
                out.extend(id.to_be_bytes());
                out.push(answer.outcome.0);
                put_text(&mut out, &answer.reason, REASON_MAX);
                put_text(&mut out, &answer.holder, NAME_MAX);
                out.extend(microseconds(answer.kept).to_be_bytes());
                out.extend(microseconds(answer.taken).to_be_bytes());
            }
            Body::Stop => out.push(STOP),
        }
        out
    }

    pub(super) fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader(payload);
        let (boot, sequence, challenge) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let count = usize::from(reader.u8()?);
        if count > MAX_ECHOES {
            return Err(MessageError::Field);
        }
        let mut echoes = Vec::with_capacity(count);
        for _ in 0..count {
            echoes.push(Echo { boot: reader.u64()?, challenge: reader.u64()? });
        }
        let body = match reader.u8()? {
            REPORT => {
                let (round, part, parts) = (reader.u32()?, reader.u8()?, reader.u8()?);
                if part >= parts {
                    return Err(MessageError::Field);
                }
                let records = std::mem::take(&mut reader.0).to_vec();
                Body::Report { round, part, parts, records }
            }
            REQUEST => {
                let id = reader.u64()?;
                Body::Request { id, request: Request::decode(&mut reader)? }
            }
            ANSWER => {
                let (id, outcome) = (reader.u64()?, Outcome(reader.u8()?));
                let (reason, holder) = (reader.text()?, reader.text()?);
                let (kept, taken) = (duration(reader.u32()?), duration(reader.u32()?));
                Body::Answer { id, answer: Answer { outcome, reason, holder, kept, taken } }
            }
            STOP => Body::Stop,
            _ => return Err(MessageError::Field),
        };
        reader.end()?;
        Ok(Self { boot, sequence, challenge, echoes, body })
    }
}
