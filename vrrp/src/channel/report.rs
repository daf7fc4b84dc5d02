//! What a node tells about itself.
//!
//! A report is a list of records: type, length in two bytes, value. Types that a receiver does not know are skipped, so a
//! later version may have more of them.

use std::net::IpAddr;

use super::wire::{MessageError, Reader, put_text};
use crate::router::StateName;

const IDENTITY: u8 = 1;
const ADDRESS: u8 = 2;
const SERVING: u8 = 3;
const INSTANCE: u8 = 4;
const TRANSITION: u8 = 5;
const DEGRADED: u8 = 6;
const UNLISTED: u8 = 7;
const UNANSWERED: u8 = 8;
const HEARD: u8 = 9;

const TEXT_MAX: u8 = 255;
/// The most parts of a report.
pub(super) const MAX_PARTS: u8 = 12;
/// The length of the record of the number of unlisted problems, for which there is always room.
const UNLISTED_LEN: usize = 5;
const MAX_ADDRESSES: usize = 16;
const MAX_HEARD: usize = 16;
const MAX_INSTANCES: usize = 255;
/// The most transitions that are sent.
pub const MAX_TRANSITIONS: usize = 8;
const MAX_DEGRADED: usize = 64;
const MAX_UNANSWERED: usize = 16;

/// A node's report about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The name of the node; 255 bytes are sent at most, as of each text.
    pub node: String,
    /// The version of its software.
    pub version: String,
    /// The time of its start in seconds since 1970-01-01 00:00 UTC, by its own wall clock.
    pub started: u64,
    /// Its wall clock in milliseconds since 1970-01-01 00:00 UTC.
    pub clock: u64,
    /// Its addresses, 16 at most.
    pub addresses: Vec<IpAddr>,
    /// The other controllers that it hears, by the sources of their datagrams, 16 at most. From these, routers that know a
    /// part of the group learn of the rest.
    pub heard: Vec<IpAddr>,
    /// Set if it can serve; else the reason. `None` if it does not know yet.
    pub serving: Option<Result<(), String>>,
    /// Its instances, 255 at most.
    pub instances: Vec<InstanceReport>,
    /// Its last transitions, 8 at most, the newest last.
    pub transitions: Vec<TransitionReport>,
    /// The services of other nodes that do not answer it, 16 at most.
    pub unanswered: Vec<Unanswered>,
    /// Its list of problems, as far as there is room.
    pub degraded: Vec<String>,
    /// The number of problems beyond `degraded`.
    pub unlisted: u16,
}

/// The state of one instance of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceReport {
    /// Its virtual router identifier.
    pub vrid: u8,
    /// Its state; `None` for one that this version does not know.
    pub state: Option<StateName>,
    /// The priority that it advertises, or would advertise.
    pub priority: u8,
    /// A number for its identifier and addresses, by which groups of other clusters are told apart; see [`group_of`].
    pub group: u64,
    /// The time in milliseconds until its claim ends unless it is renewed, at least 1 while it holds the addresses; 0
    /// without a claim.
    pub claim: u32,
}

/// A past transition of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitionReport {
    /// The virtual router identifier of the instance.
    pub vrid: u8,
    /// The time in milliseconds since 1970-01-01 00:00 UTC, by the node's wall clock.
    pub at: u64,
    /// The state left; `None` for one that this version does not know.
    pub from: Option<StateName>,
    /// The state entered; `None` for one that this version does not know.
    pub to: Option<StateName>,
    /// The cause.
    pub reason: String,
    /// The time from the last advertisement of another router to the transition, in milliseconds, if one was heard.
    pub silence: Option<u32>,
}

/// A service that a node does not reach through a virtual IP of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// The number of the instance; see [`group_of`].
    pub group: u64,
    /// The source of the advertisements of the router that has the address.
    pub active: IpAddr,
    /// The virtual IP.
    pub address: IpAddr,
    /// The TCP port of the service.
    pub port: u16,
    /// The failure.
    pub reason: String,
}

/// A number for an instance: the same on all its routers, and another one in other groups (FNV-1a).
#[must_use]
pub fn group_of(vrid: u8, addresses: impl IntoIterator<Item = IpAddr>) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let octets = addresses.into_iter().flat_map(|address| match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    });
    std::iter::once(vrid)
        .chain(octets)
        .fold(BASIS, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(PRIME))
}

/// By their code on the wire.
const STATES: [StateName; 7] = [
    StateName::Init,
    StateName::Backup,
    StateName::Active,
    StateName::Listening,
    StateName::Yielding,
    StateName::Resigning,
    StateName::Stopped,
];
const UNKNOWN_STATE: u8 = u8::MAX;
const UNKNOWN_SILENCE: u32 = u32::MAX;

fn state_code(state: Option<StateName>) -> u8 {
    let index = STATES.iter().position(|known| Some(*known) == state);
    index.and_then(|index| u8::try_from(index).ok()).unwrap_or(UNKNOWN_STATE)
}

fn state_of(code: u8) -> Option<StateName> {
    STATES.get(usize::from(code)).copied()
}

impl Report {
    /// Returns whether it tells something else than another one, but for what changes all the time.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let lasting = |report: &Self| {
            let mut report = report.clone();
            report.clock = 0;
            report.instances.iter_mut().for_each(|instance| instance.claim = 0);
            report
        };
        lasting(self) != lasting(other)
    }

    /// The records in as many parts as they need, each with `room` bytes at most.
    pub(super) fn to_parts(&self, room: usize) -> Vec<Vec<u8>> {
        let room = room.saturating_sub(UNLISTED_LEN);
        let mut parts = vec![Vec::new()];
        let mut add = |kind: u8, value: &[u8]| {
            let record_len = 3 + value.len();
            let last = parts.last().map_or(0, Vec::len);
            if last + record_len > room {
                if parts.len() >= MAX_PARTS.into() {
                    return false;
                }
                parts.push(Vec::new());
            }
            if let Some(part) = parts.last_mut() {
                part.push(kind);
                part.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
                part.extend(value);
            }
            true
        };
        add(IDENTITY, &self.identity());
        let addresses = self.addresses.iter().take(MAX_ADDRESSES).map(|address| (ADDRESS, address));
        let heard = self.heard.iter().take(MAX_HEARD).map(|address| (HEARD, address));
        for (kind, address) in addresses.chain(heard) {
            match address {
                IpAddr::V4(ip) => add(kind, &ip.octets()),
                IpAddr::V6(ip) => add(kind, &ip.octets()),
            };
        }
        if let Some(serving) = &self.serving {
            let mut value = vec![u8::from(serving.is_ok())];
            put_text(&mut value, serving.as_ref().err().map_or("", String::as_str), TEXT_MAX);
            add(SERVING, &value);
        }
        for instance in self.instances.iter().take(MAX_INSTANCES) {
            let mut value = vec![instance.vrid, state_code(instance.state), instance.priority];
            value.extend(instance.claim.to_be_bytes());
            value.extend(instance.group.to_be_bytes());
            add(INSTANCE, &value);
        }
        let first = self.transitions.len().saturating_sub(MAX_TRANSITIONS);
        for transition in &self.transitions[first..] {
            let mut value = vec![transition.vrid, state_code(transition.from), state_code(transition.to)];
            value.extend(transition.at.to_be_bytes());
            value.extend(transition.silence.unwrap_or(UNKNOWN_SILENCE).to_be_bytes());
            put_text(&mut value, &transition.reason, TEXT_MAX);
            add(TRANSITION, &value);
        }
        for unanswered in self.unanswered.iter().take(MAX_UNANSWERED) {
            let mut value = Vec::new();
            value.extend(unanswered.group.to_be_bytes());
            value.extend(unanswered.port.to_be_bytes());
            for address in [unanswered.active, unanswered.address] {
                match address {
                    IpAddr::V4(ip) => value.extend([&[4], &ip.octets()[..]].concat()),
                    IpAddr::V6(ip) => value.extend([&[16], &ip.octets()[..]].concat()),
                }
            }
            put_text(&mut value, &unanswered.reason, TEXT_MAX);
            add(UNANSWERED, &value);
        }
        let mut unlisted = self.unlisted;
        for (index, problem) in self.degraded.iter().enumerate() {
            if index >= MAX_DEGRADED {
                unlisted = unlisted.saturating_add(1);
                continue;
            }
            let mut value = Vec::new();
            put_text(&mut value, problem, TEXT_MAX);
            if !add(DEGRADED, &value) {
                unlisted = unlisted.saturating_add(1);
            }
        }
        if unlisted > 0
            && let Some(part) = parts.last_mut()
        {
            part.extend([UNLISTED, 0, 2]);
            part.extend(unlisted.to_be_bytes());
        }
        parts
    }

    fn identity(&self) -> Vec<u8> {
        let mut value = Vec::new();
        value.extend(self.started.to_be_bytes());
        value.extend(self.clock.to_be_bytes());
        put_text(&mut value, &self.node, TEXT_MAX);
        put_text(&mut value, &self.version, TEXT_MAX);
        value
    }

    /// Reads the records of all parts.
    pub(super) fn decode(records: &[u8]) -> Result<Self, MessageError> {
        let mut report = Self::default();
        let mut reader = Reader(records);
        while !reader.0.is_empty() {
            let (kind, len) = (reader.u8()?, reader.u16()?);
            report.add(kind, Reader(reader.bytes(len.into())?))?;
        }
        Ok(report)
    }

    /// A known record may be longer than this version knows; there may not be more of them than it sends.
    fn add(&mut self, kind: u8, mut value: Reader<'_>) -> Result<(), MessageError> {
        let is_full = match kind {
            ADDRESS => self.addresses.len() >= MAX_ADDRESSES,
            HEARD => self.heard.len() >= MAX_HEARD,
            INSTANCE => self.instances.len() >= MAX_INSTANCES,
            TRANSITION => self.transitions.len() >= MAX_TRANSITIONS,
            DEGRADED => self.degraded.len() >= MAX_DEGRADED,
            UNANSWERED => self.unanswered.len() >= MAX_UNANSWERED,
            _ => false,
        };
        if is_full {
            return Err(MessageError::Field);
        }
        match kind {
            IDENTITY => {
                (self.started, self.clock) = (value.u64()?, value.u64()?);
                (self.node, self.version) = (value.text()?, value.text()?);
            }
            ADDRESS => {
                self.addresses.push(value.address()?);
            }
            HEARD => self.heard.push(value.address()?),
            SERVING => {
                let (serves, why) = (value.u8()?, value.text()?);
                self.serving = Some(if serves == 1 { Ok(()) } else { Err(why) });
            }
            INSTANCE => {
                let (vrid, state, priority) = (value.u8()?, state_of(value.u8()?), value.u8()?);
                let (claim, group) = (value.u32()?, value.u64()?);
                self.instances.push(InstanceReport { vrid, state, priority, group, claim });
            }
            TRANSITION => {
                let (vrid, from, to) = (value.u8()?, state_of(value.u8()?), state_of(value.u8()?));
                let (at, silence) = (value.u64()?, value.u32()?);
                let silence = (silence != UNKNOWN_SILENCE).then_some(silence);
                self.transitions.push(TransitionReport {
                    vrid,
                    at,
                    from,
                    to,
                    reason: value.text()?,
                    silence,
                });
            }
            DEGRADED => self.degraded.push(value.text()?),
            UNANSWERED => {
                let (group, port) = (value.u64()?, value.u16()?);
                let (active, address) = (value.short_address()?, value.short_address()?);
                self.unanswered.push(Unanswered { group, active, address, port, reason: value.text()? });
            }
            UNLISTED => self.unlisted = value.u16()?,
            _ => {}
        }
        Ok(())
    }
}
