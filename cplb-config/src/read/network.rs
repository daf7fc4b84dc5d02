//! Addresses and interfaces.

use std::net::IpAddr;

use netlink_vip::{InterfaceSelector, VipAddress};

use crate::escape::is_unprintable;
use crate::walk::{Field, Finding};

use super::Placed;

/// The address families of an instance.
#[derive(Clone, Copy)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// `address/prefix-length`, as `net.ParseCIDR` takes it, and usable as a virtual IP.
pub(super) fn virtual_ip(field: &Field<'_>) -> Option<Placed<VipAddress>> {
    let text = field.string()?;
    let Some((address, prefix)) = text.split_once('/') else {
        let (message, help) = match text.parse::<IpAddr>() {
            Ok(ip) => (
                "the virtual IP has no prefix length".to_owned(),
                format!(
                    "write `{ip}/{}` with the prefix length of its subnet",
                    if ip.is_ipv4() { 24 } else { 64 }
                ),
            ),
            Err(_) => (format!("`{text}` is no address"), example()),
        };
        field.error(Finding::new("vip-cidr", message, help));
        return None;
    };
    let Ok(ip) = address.parse::<IpAddr>() else {
        field.error(Finding::new("vip-cidr", format!("`{address}` is no IP address"), example()));
        return None;
    };
    let most: u8 = if ip.is_ipv4() { 32 } else { 128 };
    let length = match prefix.parse::<u8>() {
        Ok(length) if prefix.bytes().all(|b| b.is_ascii_digit()) => length,
        _ => {
            let message = format!("`{prefix}` is no prefix length");
            field.error(Finding::new(
                "vip-cidr",
                message,
                format!("write a number from 1 to {most} after the slash"),
            ));
            return None;
        }
    };
    if length == 0 || length > most {
        let message = format!("the prefix length {length} is out of range");
        let help = format!(
            "write the prefix length of its subnet, 1 to {most}, such as `{ip}/{}`",
            if ip.is_ipv4() { 24 } else { 64 }
        );
        field.error(Finding::new("vip-mask", message, help));
        return None;
    }
    let Ok(vip) = VipAddress::new(ip, length) else {
        let help = "give a free unicast address of the controllers' subnet";
        field.error(Finding::new("vip-address", format!("{ip} cannot be a virtual IP"), help));
        return None;
    };
    warn_about_reserved(field, ip, length);
    Some(Placed::new(vip, field))
}

/// The first and the last address of an IPv4 subnet are not for hosts (RFC 1122 §3.2.1.3, RFC 3021 exempts /31).
fn warn_about_reserved(field: &Field<'_>, ip: IpAddr, length: u8) {
    let IpAddr::V4(ip) = ip else { return };
    if length > 30 {
        return;
    }
    let hosts = u32::MAX >> length;
    let what = match ip.to_bits() & hosts {
        0 => "the subnet's own address",
        host if host == hosts => "the subnet's broadcast address",
        _ => return,
    };
    let help = "give a free host address of the subnet, or correct the prefix length";
    field.warn(Finding::new("vip-address", format!("{ip}/{length} is {what}"), help));
}

/// A unicast IP address of a router.
pub(super) fn unicast_address(field: &Field<'_>) -> Option<Placed<IpAddr>> {
    let text = field.string()?;
    let Ok(ip) = text.parse::<IpAddr>() else {
        let help = if text.contains('/') {
            "write the address without a prefix length"
        } else {
            "write an IPv4 or IPv6 address, such as `10.0.0.11`"
        };
        field.error(Finding::new("ip-address", format!("`{text}` is no IP address"), help));
        return None;
    };
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        let help = "write the address of one controller";
        field.error(Finding::new("ip-address", format!("{ip} belongs to no single router"), help));
        return None;
    }
    Some(Placed::new(ip, field))
}

/// A name, a MAC address in one of the forms of Go's `net.ParseMAC`, or the default route if empty.
pub(super) fn interface(field: &Field<'_>) -> Option<InterfaceSelector> {
    /// The longest alternative name, `ALTIFNAMSIZ` less its end.
    const LONGEST: usize = 127;
    let text = field.string()?;
    if text.is_empty() {
        return Some(InterfaceSelector::DefaultRoute);
    }
    if let Some(mac) = parse_mac(&text) {
        return Some(InterfaceSelector::Mac(mac));
    }
    if let Some(finding) = copied_name(&text) {
        field.error(finding);
        return None;
    }
    let unfit = |c: char| c == '/' || c == ':' || c.is_whitespace() || is_unprintable(c);
    if text.len() > LONGEST || text == "." || text == ".." || text.contains(unfit) {
        let help = "write a name such as `eth0`, a MAC address such as `52:54:00:12:34:56`, or leave it out for the \
                    interface of the default route";
        field.error(Finding::new(
            "interface",
            format!("`{text}` is neither an interface name nor a MAC address"),
            help,
        ));
        return None;
    }
    Some(InterfaceSelector::Name(text))
}

/// Text that the kernel would take for a name and that is hardly ever one.
fn copied_name(text: &str) -> Option<Finding> {
    if let Some((name, _)) = text.split_once('@') {
        let message =
            format!("`{text}` is how `ip link` shows the interface `{name}`, with what it stands on");
        return Some(Finding::new("interface", message, format!("write `{name}`")));
    }
    if text.contains(['*', '?', '[', ']']) {
        let message = format!("`{text}` is a pattern, and an interface is given by its name");
        let help = "write the name of one interface or its MAC address, or leave it out for that of the default route";
        return Some(Finding::new("interface", message, help));
    }
    None
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let (separator, digits) = match text.as_bytes().get(2)? {
        b':' => (':', 2),
        b'-' => ('-', 2),
        _ => ('.', 4),
    };
    let groups: Vec<&str> = text.split(separator).collect();
    let hex = |group: &&str| group.len() == digits && group.bytes().all(|b| b.is_ascii_hexdigit());
    if groups.len() * digits != 12 || !groups.iter().all(hex) {
        return None;
    }
    let number = u64::from_str_radix(&groups.concat(), 16).ok()?;
    let [_, _, mac @ ..] = number.to_be_bytes();
    Some(mac)
}

fn example() -> String {
    "write address and prefix length, such as `10.0.0.100/24` or `fd00::100/64`".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_in_every_form_go_reads() {
        let mac = Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        for text in ["52:54:00:12:34:56", "52-54-00-12-34-56", "5254.0012.3456", "52:54:00:12:34:56"] {
            assert_eq!(parse_mac(text), mac, "{text}");
        }
        for text in [
            "eth0",
            "52:54:00:12:34",
            "52:54:00:12:34:5g",
            "52:54:00:12:34:56:78:9a",
            "+2:54:00:12:34:56",
            "é",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }
}
