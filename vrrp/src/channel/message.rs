//! The payload of a message.

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
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// The reason of a refusal, or a remark, at most 255 bytes.
    pub reason: String,
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
            Body::Request { id, request: Request::Handover { vrid, to } } => {
                out.push(REQUEST);
                out.extend(id.to_be_bytes());
                out.extend([HANDOVER, *vrid]);
                put_text(&mut out, to.as_deref().unwrap_or_default(), NAME_MAX);
            }
            Body::Answer { id, answer } => {
                out.push(ANSWER);
                out.extend(id.to_be_bytes());
                out.push(answer.outcome.0);
                put_text(&mut out, &answer.reason, REASON_MAX);
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
                if reader.u8()? != HANDOVER {
                    return Err(MessageError::Field);
                }
                let (vrid, to) = (reader.u8()?, reader.text()?);
                let to = (!to.is_empty()).then_some(to);
                Body::Request { id, request: Request::Handover { vrid, to } }
            }
            ANSWER => {
                let (id, outcome) = (reader.u64()?, Outcome(reader.u8()?));
                Body::Answer { id, answer: Answer { outcome, reason: reader.text()? } }
            }
            STOP => Body::Stop,
            _ => return Err(MessageError::Field),
        };
        reader.end()?;
        Ok(Self { boot, sequence, challenge, echoes, body })
    }
}
