//! The envelope of a message: magic number, version, signatures.
//!
//! | bytes | field |
//! |---|---|
//! | 0–3 | `cplb` |
//! | 4 | version, 1 |
//! | 5 | number of signatures |
//! | 6–7 | length of the payload, big endian |
//! | 8– | the payload |
//! | then | for each signature the identifier of its key and 16 bytes of HMAC-SHA-256 |
//!
//! The digest covers a text that no advertisement begins with, the source address and the payload.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ::hmac::Mac as _;
use thiserror::Error;

use super::Discard;
use crate::hmac::{Key, KeyId};

/// The UDP port of the channel.
pub const PORT: u16 = 10112;

/// The longest datagram, which fits the smallest MTU of IPv6 (RFC 8200 §5) with its headers.
pub const MAX_DATAGRAM: usize = 1280 - 40 - 8;

const MAGIC: [u8; 4] = *b"cplb";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 8;
const DIGEST_LEN: usize = 16;
const SIGNATURE_LEN: usize = 1 + DIGEST_LEN;
const CONTEXT: &[u8; 16] = b"cplb channel v1\0";

/// The room for a payload with the most keys.
pub(super) const MAX_PAYLOAD: usize =
    MAX_DATAGRAM - HEADER_LEN - SIGNATURE_LEN * crate::hmac::HmacConfig::MAX_KEYS;

/// The reason why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MessageError {
    /// It does not begin with the magic number.
    #[error("no message of the channel")]
    Magic,
    /// Another version of the channel.
    #[error("version {0}")]
    Version(u8),
    /// Its length differs from what its header announces, or it is longer than [`MAX_DATAGRAM`].
    #[error("wrong length")]
    Length,
    /// A field is out of range or ends early.
    #[error("malformed field")]
    Field,
}

/// The payload with its envelope, signed with each key.
pub(super) fn seal(keys: &BTreeMap<KeyId, Key>, payload: &[u8], source: IpAddr) -> Vec<u8> {
    let count = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len() + SIGNATURE_LEN * keys.len());
    bytes.extend(MAGIC);
    bytes.extend([VERSION, count]);
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    for (id, key) in keys {
        bytes.push(id.get());
        bytes.extend(&mac(key, payload, source).finalize().into_bytes()[..DIGEST_LEN]);
    }
    bytes
}

/// Takes the payload out of its envelope, and verifies it if there are keys.
pub(super) fn open<'a>(
    keys: &BTreeMap<KeyId, Key>,
    bytes: &'a [u8],
    source: IpAddr,
) -> Result<&'a [u8], Discard> {
    let (payload, signatures) = split(bytes)?;
    if keys.is_empty() {
        return Ok(payload);
    }
    if signatures.is_empty() {
        return Err(Discard::Unsigned);
    }
    // Each key once: a forger may repeat an identifier.
    let signature = |id: KeyId| signatures.iter().find(|signature| signature[0] == id.get());
    let mut known = keys.iter().filter_map(|(id, key)| Some((key, signature(*id)?))).peekable();
    if known.peek().is_none() {
        return Err(Discard::UnknownKey);
    }
    let is_right = |(key, [_, digest @ ..]): (&Key, &[u8; SIGNATURE_LEN])| {
        mac(key, payload, source).verify_truncated_left(digest).is_ok()
    };
    if known.any(is_right) { Ok(payload) } else { Err(Discard::Digest) }
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[[u8; SIGNATURE_LEN]]), MessageError> {
    let Some(([m0, m1, m2, m3, version, count, high, low], rest)) = bytes.split_first_chunk::<HEADER_LEN>()
    else {
        return Err(MessageError::Length);
    };
    if [*m0, *m1, *m2, *m3] != MAGIC {
        return Err(MessageError::Magic);
    }
    if *version != VERSION {
        return Err(MessageError::Version(*version));
    }
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if bytes.len() > MAX_DATAGRAM || usize::from(*count) > crate::hmac::HmacConfig::MAX_KEYS {
        return Err(MessageError::Length);
    }
    let (payload, rest) = rest.split_at_checked(len).ok_or(MessageError::Length)?;
    let (signatures, rest) = rest.as_chunks::<SIGNATURE_LEN>();
    if !rest.is_empty() || signatures.len() != usize::from(*count) {
        return Err(MessageError::Length);
    }
    Ok((payload, signatures))
}

fn mac(key: &Key, payload: &[u8], source: IpAddr) -> ::hmac::Hmac<sha2::Sha256> {
    let mut mac = key.mac();
    mac.update(CONTEXT);
    match source {
        IpAddr::V4(source) => mac.update(&source.octets()),
        IpAddr::V6(source) => mac.update(&source.octets()),
    }
    mac.update(payload);
    mac
}

/// Reads fields from the front of bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], MessageError> {
        let (field, rest) = self.0.split_at_checked(len).ok_or(MessageError::Field)?;
        self.0 = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(MessageError::Field)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, MessageError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, MessageError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, MessageError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, MessageError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A text behind its length in one byte.
    pub(super) fn text(&mut self) -> Result<String, MessageError> {
        let len = self.u8()?;
        let bytes = self.bytes(len.into())?;
        String::from_utf8(bytes.to_vec()).map_err(|_| MessageError::Field)
    }

    /// An address, which is all that is left.
    pub(super) fn address(&mut self) -> Result<IpAddr, MessageError> {
        match self.0.len() {
            4 => self.array().map(<[u8; 4]>::into),
            _ => self.array().map(<[u8; 16]>::into),
        }
    }

    /// An address behind its length in one byte.
    pub(super) fn short_address(&mut self) -> Result<IpAddr, MessageError> {
        let len = self.u8()?;
        Reader(self.bytes(len.into())?).address()
    }

    pub(super) fn end(&self) -> Result<(), MessageError> {
        if self.0.is_empty() { Ok(()) } else { Err(MessageError::Field) }
    }
}

/// Appends a text behind its length in one byte, cut at a character after at most `most` bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, most: u8) {
    let end = (0..=text.len().min(most.into())).rev().find(|end| text.is_char_boundary(*end));
    let text = &text[..end.unwrap_or_default()];
    out.push(u8::try_from(text.len()).unwrap_or(most));
    out.extend(text.as_bytes());
}
