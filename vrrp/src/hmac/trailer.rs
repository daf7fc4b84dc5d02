//! The trailer as bytes.

use std::net::IpAddr;

use ::hmac::{Hmac, Mac as _};
use sha2::Sha256;

use super::config::{Key, KeyId};
use super::sequence::Sequence;
use crate::packet::{PseudoHeader, announced_len, write_checksum};
use crate::types::Family;

/// The length of the trailer in bytes.
pub const TRAILER_LEN: usize = 28;

/// The type HMAC-SHA-256-128.
const KIND: u8 = 1;
const DIGEST: usize = 12;
const DIGEST_LEN: usize = TRAILER_LEN - DIGEST;
/// The place of the checksum in the message; the digest covers 0 in its stead, since it differs between destinations.
const CHECKSUM: std::ops::Range<usize> = 6..8;

/// The fields of a trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) key: u8,
    pub(super) sequence: Sequence,
    pub(super) digest: [u8; DIGEST_LEN],
}

impl Trailer {
    /// The fields, unless the type is another one.
    pub(super) fn parse(bytes: &[u8; TRAILER_LEN]) -> Option<Self> {
        let [KIND, key, 0, 0, rest @ ..] = bytes else { return None };
        let (sequence, digest) = rest.split_first_chunk::<8>()?;
        let digest = *digest.first_chunk()?;
        Some(Self { key: *key, sequence: Sequence(u64::from_be_bytes(*sequence)), digest })
    }
}

/// Splits a payload that is exactly a trailer longer than its header announces. `source` tells the family.
#[must_use]
pub fn split(payload: &[u8], source: IpAddr) -> Option<(&[u8], &[u8; TRAILER_LEN])> {
    let announced = announced_len(payload, Family::of(source))?;
    let (message, trailer) = payload.split_last_chunk::<TRAILER_LEN>()?;
    (message.len() == announced).then_some((message, trailer))
}

/// The trailer for a message that leaves from `source`.
#[must_use]
pub fn sign(key: &Key, id: KeyId, sequence: Sequence, source: IpAddr, message: &[u8]) -> [u8; TRAILER_LEN] {
    let mut trailer = [0; TRAILER_LEN];
    trailer[0] = KIND;
    trailer[1] = id.get();
    trailer[4..DIGEST].copy_from_slice(&sequence.0.to_be_bytes());
    let digest = digest(key, source, message, id.get(), sequence).finalize().into_bytes();
    trailer[DIGEST..].copy_from_slice(&digest[..DIGEST_LEN]);
    trailer
}

/// Appends a trailer to the first `len` bytes of a payload, which are the message, in place of a former one. Over IPv6
/// the checksum covers the trailer, too; the digest covers neither.
pub fn append(payload: &mut Vec<u8>, len: usize, trailer: &[u8; TRAILER_LEN], pseudo: &PseudoHeader) {
    payload.truncate(len);
    payload.extend_from_slice(trailer);
    if pseudo.family() == Family::V6 {
        write_checksum(payload, pseudo);
    }
}

/// Compares the digest in constant time.
pub(super) fn verify_digest(key: &Key, source: IpAddr, message: &[u8], trailer: &Trailer) -> bool {
    digest(key, source, message, trailer.key, trailer.sequence).verify_truncated_left(&trailer.digest).is_ok()
}

fn digest(key: &Key, source: IpAddr, message: &[u8], id: u8, sequence: Sequence) -> Hmac<Sha256> {
    let mut mac = key.mac();
    let mut address = [0; 16];
    let family = match source {
        IpAddr::V4(source) => {
            address[..4].copy_from_slice(&source.octets());
            4
        }
        IpAddr::V6(source) => {
            address = source.octets();
            6
        }
    };
    let version = message.first().map_or(0, |first| first >> 4);
    let vrid = message.get(1).copied().unwrap_or_default();
    mac.update(&[family, version, vrid, 0]);
    mac.update(&address);
    let (before, after) = message.split_at(CHECKSUM.start.min(message.len()));
    mac.update(before);
    mac.update(&[0; 2]);
    mac.update(after.get(CHECKSUM.len()..).unwrap_or_default());
    mac.update(&[KIND, id, 0, 0]);
    mac.update(&sequence.0.to_be_bytes());
    mac.update(&[0; DIGEST_LEN]);
    mac
}
