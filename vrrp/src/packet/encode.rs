//! Values to bytes.

use super::checksum::{PseudoHeader, Sum};
use super::{Addresses, Advertisement, Auth, layout};
use crate::types::{Family, Version};

impl Advertisement {
    /// Appends the message to `out`, with the checksum for an IP header with the addresses of `pseudo`.
    ///
    /// The checksum of version 3 covers the pseudo-header for IPv4, too: peers that follow RFC 9568 §5.2.8 to the
    /// letter accept both forms, keepalived and FRR only this one.
    pub fn encode(&self, pseudo: &PseudoHeader, out: &mut Vec<u8>) {
        let start = out.len();
        let version = self.wire_version();
        let count = u8::try_from(self.addresses.len()).unwrap_or(u8::MAX);
        let (version_bits, interval) = match version {
            Version::V2 => (0x20, [self.auth_kind(), self.interval.seconds()]),
            Version::V3 => (0x30, self.interval.centiseconds().to_be_bytes()),
        };
        let kind = version_bits | layout::ADVERTISEMENT;
        out.extend([kind, self.vrid.get(), self.priority.0, count, interval[0], interval[1], 0, 0]);
        match &self.addresses {
            Addresses::V4(addresses) => {
                addresses.iter().take(count.into()).for_each(|address| out.extend(address.octets()));
            }
            Addresses::V6(addresses) => {
                addresses.iter().take(count.into()).for_each(|address| out.extend(address.octets()));
            }
        }
        if version == Version::V2 {
            out.extend(self.auth_data());
        }
        let checksum = checksum_of(&out[start..], version, pseudo);
        out[start + layout::CHECKSUM..start + layout::HEADER_LEN].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Version 2 has no IPv6.
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

fn checksum_of(message: &[u8], version: Version, pseudo: &PseudoHeader) -> u16 {
    let mut sum = Sum::of(message);
    if version == Version::V3 {
        pseudo.add_to(&mut sum, message.len());
    }
    !sum.fold()
}
