//! Netlink attributes: length, number, value, padding to four bytes.

use super::DecodeError;

/// Bytes of length and number.
const HEADER: usize = 4;
/// Bits of the number that are flags, not number.
const FLAGS: u16 = 0xc000;
/// Says that the value consists of attributes.
const NESTED: u16 = 0x8000;

/// An attribute that this crate does not know, as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    kind: u16,
    value: Vec<u8>,
}

impl Attribute {
    /// Its number, with its flags.
    #[must_use]
    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

/// Attributes that this crate does not know, in the order received. They are kept, so that a message can be passed on
/// whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes(Vec<Attribute>);

impl Attributes {
    /// The most bytes that are kept at one place of a message. The kernel's messages are smaller than 32 KiB; with
    /// this limit everything decoded fits into a message again.
    pub const MOST: usize = 8192;

    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The attributes.
    pub fn iter(&self) -> impl Iterator<Item = &Attribute> {
        self.0.iter()
    }

    /// Adds one.
    ///
    /// # Errors
    /// [`DecodeError::TooManyUnknown`] if they would take more than [`Attributes::MOST`] bytes.
    pub fn push(&mut self, kind: u16, value: &[u8]) -> Result<(), DecodeError> {
        let size = |length: usize| (HEADER + length).next_multiple_of(4);
        let have: usize = self.0.iter().map(|attribute| size(attribute.value.len())).sum();
        if have + size(value.len()) > Self::MOST {
            return Err(DecodeError::TooManyUnknown);
        }
        self.0.push(Attribute { kind, value: value.to_vec() });
        Ok(())
    }
}

/// An attribute while it is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw<'a> {
    /// Number and flags.
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
}

impl Raw<'_> {
    /// The number.
    pub(super) const fn number(&self) -> u16 {
        self.kind & !FLAGS
    }
}

/// Splits a list into its attributes. The padding of the last one may be missing; after a broken one nothing can be
/// told apart any more, so the iterator yields one error and ends.
pub(super) fn attributes(mut list: &[u8]) -> impl Iterator<Item = Result<Raw<'_>, DecodeError>> {
    std::iter::from_fn(move || {
        if list.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut list);
        let Some((&[l0, l1, k0, k1], _)) = rest.split_first_chunk::<HEADER>() else {
            return Some(Err(DecodeError::Trailing { length: rest.len() }));
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([k0, k1]);
        let Some(value) = rest.get(HEADER..length) else {
            return Some(Err(DecodeError::AttributeLength { length, left: rest.len() }));
        };
        list = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Raw { kind, value }))
    })
}

/// Writes attributes. What would not fit into a list of 64 KiB cannot be made of the model's types.
pub(super) struct Writer<'a> {
    buffer: &'a mut Vec<u8>,
    nested_flag: u16,
}

impl<'a> Writer<'a> {
    /// Writes requests, as libnl does: lists say that they are lists.
    pub(super) const fn of_request(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer, nested_flag: NESTED }
    }

    /// Writes replies, as the kernel does: lists do not say that they are lists.
    pub(super) const fn of_reply(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer, nested_flag: 0 }
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(HEADER + value.len()) else { return };
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
    }

    pub(super) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(super) fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub(super) fn u16_be(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A text with the NUL that ends it.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let mut value = [0; 16];
        if let Some(room) = value.get_mut(..text.len()) {
            room.copy_from_slice(text.as_bytes());
        }
        self.bytes(kind, value.get(..=text.len()).unwrap_or(&value));
    }

    pub(super) fn others(&mut self, others: &Attributes) {
        for attribute in others.iter() {
            self.bytes(attribute.kind, &attribute.value);
        }
    }

    /// A list.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer<'_>)) {
        let start = self.buffer.len();
        self.u16(kind | self.nested_flag, 0);
        self.buffer.truncate(start + HEADER);
        fill(&mut Writer { buffer: self.buffer, nested_flag: self.nested_flag });
        let Ok(length) = u16::try_from(self.buffer.len() - start) else {
            self.buffer.truncate(start);
            return;
        };
        if let Some(field) = self.buffer.get_mut(start..start + 2) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }
}
