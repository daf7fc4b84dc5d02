//! The few nfnetlink messages that show a change of the table, encoded and decoded by hand.
//!
//! Source: `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`. Integers of the netlink
//! headers are in host order, those inside nftables attributes in network order.

use std::hash::{DefaultHasher, Hash, Hasher};

/// `struct nlmsghdr`: u32 length, u16 type, u16 flags, u32 sequence, u32 port.
const HEADER: usize = 16;
/// `struct nfgenmsg`: u8 family, u8 version, be16 resource.
const GENMSG: usize = 4;
/// `struct nlattr`: u16 length with this header, u16 type.
const ATTRIBUTE: usize = 4;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Types below are control messages (`NLMSG_MIN_TYPE`).
const NLMSG_MIN_TYPE: u16 = 0x10;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are flags in an attribute's type.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

const NFPROTO_INET: u8 = 1;
const SUBSYSTEM_NFTABLES: u16 = 10 << 8;
/// `NFT_MSG_NEWSETELEM`, which answers [`Query::Elements`].
const NEW_SET_ELEMENTS: u16 = SUBSYSTEM_NFTABLES | 12;

const GEN_ID: u16 = 1;
const SET_ELEM_LIST_ELEMENTS: u16 = 3;

/// A request to the kernel. Every attribute below is number 1 (table) or the number given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Query<'a> {
    /// `NFT_MSG_GETGEN`: the number of the namespace's current ruleset.
    Generation,
    /// `NFT_MSG_GETTABLE`
    Table(&'a str),
    /// `NFT_MSG_GETCHAIN`: (table, chain), name is attribute 3.
    Chain(&'a str, &'a str),
    /// `NFT_MSG_GETRULE`, all of a table.
    Rules(&'a str),
    /// `NFT_MSG_GETSET`: (table, set), name is attribute 2.
    Set(&'a str, &'a str),
    /// `NFT_MSG_GETSETELEM`, all of a set: name is attribute 2.
    Elements(&'a str, &'a str),
}

impl<'a> Query<'a> {
    fn message_type(self) -> u16 {
        let message = match self {
            Self::Table(_) => 1,
            Self::Chain(..) => 4,
            Self::Rules(_) => 7,
            Self::Set(..) => 10,
            Self::Elements(..) => 13,
            Self::Generation => 16,
        };
        SUBSYSTEM_NFTABLES | message
    }

    /// Returns whether the reply is a list closed by `NLMSG_DONE` rather than one message.
    pub(super) fn is_dump(self) -> bool {
        matches!(self, Self::Rules(_) | Self::Elements(..))
    }

    fn attributes(self) -> [Option<(u16, &'a str)>; 2] {
        match self {
            Self::Generation => [None, None],
            Self::Table(table) | Self::Rules(table) => [Some((1, table)), None],
            Self::Chain(table, chain) => [Some((1, table)), Some((3, chain))],
            Self::Set(table, set) | Self::Elements(table, set) => [Some((1, table)), Some((2, set))],
        }
    }

    /// Encodes the request.
    pub(super) fn encode(self, sequence: u32) -> Vec<u8> {
        let flags = if self.is_dump() { NLM_F_REQUEST | NLM_F_DUMP } else { NLM_F_REQUEST };
        let mut out = vec![0; HEADER];
        out[4..6].copy_from_slice(&self.message_type().to_ne_bytes());
        out[6..8].copy_from_slice(&flags.to_ne_bytes());
        out[8..12].copy_from_slice(&sequence.to_ne_bytes());
        out.extend([NFPROTO_INET, 0, 0, 0]);
        for (kind, name) in self.attributes().into_iter().flatten() {
            // Names are at most NAME_MAX bytes, so this cannot saturate.
            let length = u16::try_from(ATTRIBUTE + name.len() + 1).unwrap_or(u16::MAX);
            out.extend(length.to_ne_bytes());
            out.extend(kind.to_ne_bytes());
            out.extend(name.as_bytes());
            out.push(0);
            out.resize(align(out.len()), 0);
        }
        let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&length.to_ne_bytes());
        out
    }
}

/// A malformed netlink datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A message or attribute is longer than its container, or shorter than its header.
    #[error("a message or attribute claims {claimed} bytes where {available} are left")]
    Length {
        /// The length in its header.
        claimed: usize,
        /// The bytes available.
        available: usize,
    },
    /// A reply lacks the requested attribute.
    #[error("attribute {0} is missing or malformed")]
    Attribute(u16),
}

/// One message of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) sequence: u32,
    /// The kernel's list changed while it was read: send the request again.
    pub(super) interrupted: bool,
    pub(super) content: Content<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// `NLMSG_ERROR` with its positive errno; 0 acknowledges.
    Error(i32),
    /// `NLMSG_DONE`: end of a list, with the errno of a list that failed (0 if it did not).
    Done(i32),
    /// An object: its message type and attributes, without the headers that differ from call to call.
    Object { kind: u16, attributes: &'a [u8] },
    /// Any other control message.
    Control,
}

/// Splits a datagram into its messages. Nothing follows the first error.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, WireError>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let result = split_message(datagram);
        datagram = result.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(result.map(|(message, _)| message))
    })
}

fn split_message(datagram: &[u8]) -> Result<(Message<'_>, &[u8]), WireError> {
    let short = WireError::Length { claimed: HEADER, available: datagram.len() };
    let claimed = u32_at(datagram, 0).ok_or(short)? as usize;
    let wrong = WireError::Length { claimed, available: datagram.len() };
    if claimed < HEADER {
        return Err(wrong);
    }
    let message = datagram.get(..claimed).ok_or(wrong)?;
    let rest = datagram.get(align(claimed)..).unwrap_or(&[]);
    let kind = u16_at(message, 4).ok_or(wrong)?;
    let flags = u16_at(message, 6).ok_or(wrong)?;
    let sequence = u32_at(message, 8).ok_or(wrong)?;
    let payload = &message[HEADER..];
    let content = match kind {
        NLMSG_ERROR => Content::Error(errno(payload).ok_or(wrong)?),
        // Kernels without a status in the message mean success.
        NLMSG_DONE => Content::Done(errno(payload).unwrap_or(0)),
        kind if kind < NLMSG_MIN_TYPE => Content::Control,
        kind => Content::Object { kind, attributes: payload.get(GENMSG..).ok_or(wrong)? },
    };
    Ok((Message { sequence, interrupted: flags & NLM_F_DUMP_INTR != 0, content }, rest))
}

/// The kernel sends a negative errno; any other value is passed through as its magnitude.
fn errno(payload: &[u8]) -> Option<i32> {
    u32_at(payload, 0).map(|raw| raw.cast_signed().saturating_abs())
}

/// Splits attributes into (type without flags, value). Nothing follows the first error.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, WireError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let result = split_attribute(bytes);
        bytes = result.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(result.map(|(attribute, _)| attribute))
    })
}

type Attribute<'a> = (u16, &'a [u8]);

fn split_attribute(bytes: &[u8]) -> Result<(Attribute<'_>, &[u8]), WireError> {
    let short = WireError::Length { claimed: ATTRIBUTE, available: bytes.len() };
    let claimed = usize::from(u16_at(bytes, 0).ok_or(short)?);
    let kind = u16_at(bytes, 2).ok_or(short)? & ATTRIBUTE_TYPE_MASK;
    let value = bytes.get(ATTRIBUTE..claimed).ok_or(WireError::Length { claimed, available: bytes.len() })?;
    Ok(((kind, value), bytes.get(align(claimed)..).unwrap_or(&[])))
}

/// `NFTA_GEN_ID` of a `NFT_MSG_NEWGEN`.
pub(super) fn generation(object: &[u8]) -> Result<u32, WireError> {
    for attribute in attributes(object) {
        if let (GEN_ID, value) = attribute? {
            let bytes = value.try_into().map_err(|_| WireError::Attribute(GEN_ID))?;
            return Ok(u32::from_be_bytes(bytes));
        }
    }
    Err(WireError::Attribute(GEN_ID))
}

/// Returns a digest that is equal for equal objects, and the number of set elements that the object lists.
///
/// A hash set lists its elements in an order that a later rehash may change, so their digests are added; everything
/// else counts in the kernel's order.
pub(super) fn digest(kind: u16, object: &[u8]) -> Result<(u64, usize), WireError> {
    let mut hasher = DefaultHasher::new();
    kind.hash(&mut hasher);
    if kind != NEW_SET_ELEMENTS {
        object.hash(&mut hasher);
        return Ok((hasher.finish(), 0));
    }
    let (mut sum, mut count) = (0u64, 0);
    for attribute in attributes(object) {
        let (SET_ELEM_LIST_ELEMENTS, list) = attribute? else { continue };
        for element in attributes(list) {
            let mut hasher = hasher.clone();
            element?.1.hash(&mut hasher);
            sum = sum.wrapping_add(hasher.finish());
            count += 1;
        }
    }
    Ok((sum, count))
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as the kernel of a little-endian machine sends it.
    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = u32::try_from(HEADER + payload.len()).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(flags.to_ne_bytes());
        out.extend(7u32.to_ne_bytes());
        out.extend(99u32.to_ne_bytes());
        out.extend(payload);
        out.resize(align(out.len()), 0);
        out
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(ATTRIBUTE + value.len()).unwrap().to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(align(out.len()), 0);
        out
    }

    fn element_list(elements: &[&[u8]]) -> Vec<u8> {
        let nested: Vec<u8> = elements.iter().flat_map(|value| attribute(1, value)).collect();
        attribute(SET_ELEM_LIST_ELEMENTS | 0x8000, &nested)
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn requests_encode_to_golden_bytes() {
        let generation = [20, 0, 0, 0, 0x10, 0x0a, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(Query::Generation.encode(5), generation);
        let set = Query::Elements("cplb", "vip4").encode(6);
        assert_eq!(&set[..20], [44, 0, 0, 0, 0x0d, 0x0a, 1, 3, 6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&set[20..], b"\x09\0\x01\0cplb\0\0\0\0\x09\0\x02\0vip4\0\0\0\0");
    }

    #[test]
    fn datagram_splits_into_messages() {
        let mut datagram =
            message(SUBSYSTEM_NFTABLES | 15, 0, &[&[1, 0, 0, 9][..], &attribute(1, &[0, 0, 1, 2])].concat());
        datagram.extend(message(NLMSG_ERROR, 0, &(-2i32).to_ne_bytes()));
        datagram.extend(message(NLMSG_DONE, NLM_F_DUMP_INTR, &0u32.to_ne_bytes()));
        let all: Vec<_> = messages(&datagram).collect::<Result<_, _>>().unwrap();
        let Content::Object { kind, attributes } = all[0].content else { panic!("{all:?}") };
        assert_eq!((kind, generation(attributes)), (SUBSYSTEM_NFTABLES | 15, Ok(258)));
        assert_eq!((all[1].content, all[1].interrupted), (Content::Error(2), false));
        assert_eq!((all[2].content, all[2].interrupted), (Content::Done(0), true));
        assert!(all.iter().all(|message| message.sequence == 7));
    }

    #[test]
    fn a_digest_depends_on_elements_but_not_on_their_order() {
        let digest = |elements: &[&[u8]]| digest(NEW_SET_ELEMENTS, &element_list(elements)).unwrap();
        assert_eq!(digest(&[b"aaaa", b"bbbb"]), digest(&[b"bbbb", b"aaaa"]));
        assert_ne!(digest(&[b"aaaa", b"bbbb"]).0, digest(&[b"aaaa", b"bbbc"]).0);
        assert_ne!(digest(&[b"aaaa"]), digest(&[b"aaaa", b"aaaa"]));
        assert_eq!(digest(&[b"aaaa", b"bbbb"]).1, 2);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let good = message(SUBSYSTEM_NFTABLES | 15, 0, &[1, 0, 0, 0]);
        for end in 1..good.len() {
            assert!(matches!(messages(&good[..end]).next(), Some(Err(WireError::Length { .. }))), "{end}");
        }
        let mut zero = good.clone();
        zero[..4].fill(0);
        assert_eq!(messages(&zero).count(), 1, "a zero length must not loop");
        assert_eq!(generation(&[]), Err(WireError::Attribute(GEN_ID)));
        assert_eq!(generation(&attribute(GEN_ID, &[1])), Err(WireError::Attribute(GEN_ID)));
        assert!(generation(&[3, 0, 1, 0]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in messages(&bytes) {
                let Ok(Message { content: Content::Object { kind, attributes }, .. }) = message else { continue };
                let _ = (generation(attributes), digest(kind, attributes), digest(NEW_SET_ELEMENTS, attributes));
            }
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER + 1);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / ATTRIBUTE + 1);
        }

        #[test]
        fn damaged_replies_never_panic(index in 0usize..64, value: u8) {
            let mut bytes = message(NEW_SET_ELEMENTS, 0, &[&[1, 0, 0, 0][..], &element_list(&[b"aaaa", b"bbbb"])].concat());
            let index = index % bytes.len();
            bytes[index] = value;
            for message in messages(&bytes).flatten() {
                if let Content::Object { kind, attributes } = message.content {
                    let _ = digest(kind, attributes);
                }
            }
        }
    }
}
