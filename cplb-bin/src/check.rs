//! `cplb check`: validate a configuration and print the effective one.

use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::Path;

use cplb_config::{Diagnostic, Loaded, ObservedInterface, Redact, Theme, json_schema};
use nix::ifaddrs::getifaddrs;

use crate::cli::{BackendArgs, CheckArgs, Print};
use crate::exit::{Failure, Kind};
use crate::{output, source, support};

/// Runs the command.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let loaded = args.config.as_deref().map(|path| check(path, &args.backends)).transpose()?;
    let redact = if args.show_secrets { Redact::Nothing } else { Redact::Passwords };
    let text = match (args.print, loaded) {
        (Print::Effective, Some(loaded)) => {
            loaded.config.to_native_yaml(redact).map_err(|error| Failure::new(Kind::Internal, error))?
        }
        (Print::Schema, _) => serde_json::to_string_pretty(&json_schema())
            .map_err(|error| Failure::new(Kind::Internal, error))?,
        (Print::Effective | Print::None, _) => return Ok(()),
    };
    output::print(&text).map(|_| ())
}

/// Reads the configuration and tells what is found; what is wrong with it is the error.
fn check(path: &Path, backends: &BackendArgs) -> Result<Loaded, Failure> {
    let mut loaded = source::load(path)?;
    for warning in source::add_backends(&mut loaded, backends) {
        output::complain(format_args!("warning: {warning}"));
    }
    let mut findings = std::mem::take(&mut loaded.warnings);
    match observe() {
        Ok(interfaces) => findings.extend(loaded.config.check_interfaces(&interfaces)),
        Err(error) => {
            let text = format_args!("warning: the interfaces of this machine are not compared: {error}");
            output::complain(text);
        }
    }
    findings.extend(loaded.propose_vrids());
    findings.extend(support::concerns(&loaded.config).into_iter().map(Diagnostic::from));
    let report = loaded.document.report(findings).accepted().map_err(|errors| source::refusal(&errors))?;
    if !report.diagnostics.is_empty() {
        let drawn =
            if io::stderr().is_terminal() { report.graphical(Theme::Color, 100) } else { report.plain() };
        output::complain(drawn.trim_end());
    }
    Ok(loaded)
}

/// The interfaces of this machine, as far as they can be read without privileges.
fn observe() -> io::Result<Vec<ObservedInterface>> {
    let default = default_route_interface();
    let mut found: Vec<ObservedInterface> = Vec::new();
    for entry in getifaddrs()? {
        let name = entry.interface_name;
        let position = found.iter().position(|known| known.name == name).unwrap_or_else(|| {
            let default_route = default.as_deref() == Some(name.as_str());
            found.push(ObservedInterface { name, mac: None, default_route, addresses: Vec::new() });
            found.len() - 1
        });
        let interface = &mut found[position];
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            interface.mac = link.addr().filter(|mac| mac != &[0; 6]);
        }
        let netmask = entry.netmask;
        if let Some(v4) = address.as_sockaddr_in() {
            let bits = netmask
                .as_ref()
                .and_then(|mask| mask.as_sockaddr_in())
                .map_or(32, |m| m.ip().to_bits().count_ones());
            interface.addresses.push((IpAddr::V4(v4.ip()), prefix_len(bits)));
        }
        if let Some(v6) = address.as_sockaddr_in6() {
            let bits = netmask
                .as_ref()
                .and_then(|mask| mask.as_sockaddr_in6())
                .map_or(128, |m| m.ip().to_bits().count_ones());
            interface.addresses.push((IpAddr::V6(v6.ip()), prefix_len(bits)));
        }
    }
    Ok(found)
}

fn prefix_len(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

/// The interface of the default route with the lowest metric, IPv4 first.
fn default_route_interface() -> Option<String> {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    default_v4(&v4).or_else(|| default_v6(&v6))
}

/// Columns of `/proc/net/route`: interface, destination, gateway, flags, …, metric (7th), mask (8th).
fn default_v4(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let (&interface, &destination) = (columns.first()?, columns.get(1)?);
        let (&metric, &mask) = (columns.get(6)?, columns.get(7)?);
        (destination == "00000000" && mask == "00000000").then_some((metric.parse::<u32>().ok()?, interface))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface.to_owned())
}

/// Columns of `/proc/net/ipv6_route`: destination, its prefix length, …, metric (6th, hexadecimal), …, interface.
fn default_v6(table: &str) -> Option<String> {
    let routes = table.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let (&length, &metric, &interface) = (columns.get(1)?, columns.get(5)?, columns.get(9)?);
        let metric = u32::from_str_radix(metric, 16).ok()?;
        // The kernel's own "no route" entry sits on the loopback interface.
        (length == "00" && interface != "lo").then_some((metric, interface))
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let v4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  eth1 00000000 010AA8C0 0003 0 0 200 00000000 0 0 0\n\
                  eth0 00000000 0100000A 0003 0 0 100 00000000 0 0 0\n\
                  eth2 0000000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        assert_eq!(default_v4(v4).as_deref(), Some("eth0"));
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 {zero} ffffffff 1 0 200200 lo\n\
             {zero} 00 {zero} 00 {zero} 00000400 1 0 3 eth3\n"
        );
        assert_eq!(default_v6(&v6).as_deref(), Some("eth3"));
        assert_eq!(default_v4("").or_else(|| default_v6("")), None);
    }

    #[test]
    fn the_loopback_interface_is_observed() {
        let found = observe().unwrap();
        assert!(found.iter().any(|interface| interface.name == "lo"), "{found:?}");
    }
}
