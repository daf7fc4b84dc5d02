//! A generic-netlink message with undecoded attributes: what cannot be read must fail the request that it
//! answers, not vanish in the connection.

use std::convert::Infallible;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::GenlFamily;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};

use crate::wire::{Command, DecodeError, FAMILY_NAME, FAMILY_VERSION, Reply, Request, control_family_id};

/// Bytes of a generic-netlink header: command, version, two zeros.
const HEADER: usize = 4;

/// A message of any generic-netlink family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Raw {
    family: u16,
    bytes: Vec<u8>,
}

impl Raw {
    fn new(family: u16, command: u8, version: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(192);
        bytes.extend_from_slice(&[command, version, 0, 0]);
        fill(&mut bytes);
        Self { family, bytes }
    }

    fn command(&self) -> Option<Command> {
        self.bytes.get(..HEADER).and_then(|header| header.first()).copied().map(Command)
    }

    fn body(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Reads it as a reply of the IPVS family.
    pub(super) fn reply(&self) -> Result<Reply, DecodeError> {
        let command = self.command().ok_or(DecodeError::Trailing { length: self.bytes.len() })?;
        Reply::decode(command, self.body())
    }

    /// Reads it as the controller's description of a family, and says the family's number.
    pub(super) fn family_id(&self) -> Option<u16> {
        control_family_id(self.body())
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { family: header.message_type, bytes: payload.to_vec() })
    }
}

/// A request of the IPVS family that is acknowledged. A dump asked for in this way is refused.
pub(super) fn command_message(family: u16, request: &Request) -> NetlinkMessage<Raw> {
    message(raw_request(family, request), NLM_F_ACK)
}

/// A request of the IPVS family for a dump.
pub(super) fn dump_message(family: u16, request: &Request) -> NetlinkMessage<Raw> {
    message(raw_request(family, request), NLM_F_DUMP)
}

fn raw_request(family: u16, request: &Request) -> Raw {
    Raw::new(family, request.command().0, FAMILY_VERSION, |bytes| request.encode(bytes))
}

/// Asks the controller for the number of the family.
pub(super) fn family_message() -> NetlinkMessage<Raw> {
    let control = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY_NAME.to_owned())],
    };
    let raw = Raw::new(control.family_id(), control.command(), control.version(), |bytes| {
        let mut body = vec![0; control.buffer_len()];
        control.emit(&mut body);
        bytes.extend(body);
    });
    message(raw, NLM_F_ACK)
}

fn message(raw: Raw, flags: u16) -> NetlinkMessage<Raw> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(raw));
    message.finalize();
    message
}
