//! Values to bytes.

use bytes::BufMut;

use super::checksum::{PseudoHeader, Sum};
use super::{Addresses, Advertisement, Auth, layout};
use crate::types::{Family, Version};

/// Writes the checksum of version 3 over a whole payload, which may be longer than its message.
pub(crate) fn write_checksum(payload: &mut [u8], pseudo: &PseudoHeader) {
    let Some(field) = payload.get_mut(layout::CHECKSUM..layout::HEADER_LEN) else { return };
    field.fill(0);
    let mut sum = Sum::of(payload);
    pseudo.add_to(&mut sum, payload.len());
    payload[layout::CHECKSUM..layout::HEADER_LEN].copy_from_slice(&(!sum.fold()).to_be_bytes());
}

impl Advertisement {
    /// Appends the message to `out`, with the checksum for an IP header with the addresses of `pseudo`.
    ///
    /// The checksum of version 3 covers the pseudo-header for IPv4, too: peers that follow RFC 9568 §5.2.8 to the
    /// letter accept both forms, keepalived and FRR only this one.
    ///
    /// # Panics
    ///
    /// If `out` is of a fixed size and has less room than [`encoded_len`](Self::encoded_len). `Vec` and `BytesMut`
    /// grow.
    pub fn encode(&self, pseudo: &PseudoHeader, out: &mut impl BufMut) {
        let version = self.wire_version();
        let (version_bits, interval) = match version {
            Version::V2 => (0x20, [self.auth_kind(), self.interval.seconds()]),
            Version::V3 => (0x30, self.interval.centiseconds().to_be_bytes()),
        };
        let kind = version_bits | layout::ADVERTISEMENT;
        let mut header =
            [kind, self.vrid.get(), self.priority.0, self.wire_count(), interval[0], interval[1], 0, 0];
        // The checksum stands before most of what it covers. It is summed up first, so that the message is written
        // once, from front to back.
        let checksum = self.checksum(&header, version, pseudo);
        header[layout::CHECKSUM..].copy_from_slice(&checksum.to_be_bytes());
        out.put_slice(&header);
        self.each_address(|octets| out.put_slice(octets));
        if version == Version::V2 {
            out.put_slice(&self.auth_data());
        }
    }

    /// The length of the encoded message in bytes, at most 4088.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let trailer = match self.wire_version() {
            Version::V2 => layout::AUTH_DATA_LEN,
            Version::V3 => 0,
        };
        layout::HEADER_LEN + usize::from(self.wire_count()) * layout::address_len(self.family()) + trailer
    }

    #[inline]
    fn checksum(&self, header: &[u8; layout::HEADER_LEN], version: Version, pseudo: &PseudoHeader) -> u16 {
        let mut sum = Sum::of(header);
        self.each_address(|octets| sum.add(octets));
        match version {
            Version::V2 => sum.add(&self.auth_data()),
            Version::V3 => pseudo.add_to(&mut sum, self.encoded_len()),
        }
        !sum.fold()
    }

    /// Calls `visit` with the octets of every address that is encoded.
    #[inline]
    fn each_address(&self, mut visit: impl FnMut(&[u8])) {
        let count = self.wire_count().into();
        match &self.addresses {
            Addresses::V4(addresses) => {
                addresses.iter().take(count).for_each(|address| visit(&address.octets()));
            }
            Addresses::V6(addresses) => {
                addresses.iter().take(count).for_each(|address| visit(&address.octets()));
            }
        }
    }

    /// The number of addresses that are encoded: the field is one byte long (RFC 9568 §5.2.5).
    fn wire_count(&self) -> u8 {
        u8::try_from(self.addresses.len()).unwrap_or(u8::MAX)
    }

    /// The version of the message: IPv6 exists in version 3 only.
    const fn wire_version(&self) -> Version {
        match self.addresses.family() {
            Family::V4 => self.version,
            Family::V6 => Version::V3,
        }
    }

    const fn auth_kind(&self) -> u8 {
        match self.auth {
            Auth::None => layout::AUTH_NONE,
            Auth::Pass(_) => layout::AUTH_PASS,
            Auth::Other { kind, .. } => kind,
        }
    }

    const fn auth_data(&self) -> [u8; layout::AUTH_DATA_LEN] {
        match self.auth {
            Auth::None => [0; layout::AUTH_DATA_LEN],
            Auth::Pass(pass) => pass.wire(),
            Auth::Other { data, .. } => data,
        }
    }
}
