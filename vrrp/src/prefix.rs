//! An address of an interface with the prefix of its link.

use std::net::IpAddr;

/// An address of the instance's interface and the length of the prefix that it puts on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkPrefix {
    /// The interface's own address.
    pub address: IpAddr,
    /// The prefix length in bits, up to 32 for IPv4 and 128 for IPv6; longer ones count as these.
    pub len: u8,
}

impl LinkPrefix {
    /// Returns whether `ip` lies within the prefix, so that it is reached without a router.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let differs = own.to_bits() ^ ip.to_bits();
                differs.leading_zeros() >= u32::from(self.len.min(32))
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let differs = own.to_bits() ^ ip.to_bits();
                differs.leading_zeros() >= u32::from(self.len.min(128))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str, len: u8) -> LinkPrefix {
        LinkPrefix { address: address.parse().unwrap(), len }
    }

    #[test]
    fn a_prefix_contains_what_shares_its_leading_bits() {
        let cases = [
            ("10.0.0.11", 24, "10.0.0.255", true),
            ("10.0.0.11", 24, "10.0.1.0", false),
            ("10.0.0.11", 32, "10.0.0.11", true),
            ("10.0.0.11", 32, "10.0.0.10", false),
            ("10.0.0.11", 0, "192.0.2.1", true),
            ("10.0.0.11", 200, "10.0.0.12", false),
            ("10.0.0.11", 0, "fd00::1", false),
            ("fd00::11", 64, "fd00::ffff:1", true),
            ("fd00::11", 64, "fd00:0:0:1::1", false),
            ("fd00::11", 128, "fd00::10", false),
        ];
        for (own, len, ip, expected) in cases {
            assert_eq!(prefix(own, len).contains(ip.parse().unwrap()), expected, "{own}/{len} and {ip}");
        }
    }
}
