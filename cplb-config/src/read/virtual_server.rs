//! `virtualServers`: virtual IPs that IPVS balances.

use std::net::IpAddr;
use std::time::Duration;

use crate::duration;
use crate::model::{LbAlgorithm, LbKind, VirtualServer};
use crate::walk::{Field, Finding};

use super::{Dialect, Placed, finish};

const DELAY_LOOP: Duration = Duration::from_secs(60);
/// As many as one virtual router can have virtual IPs.
const MOST: usize = 255;
const PERSISTENCE_SECONDS: u32 = 360;
/// 31 days.
const LONGEST_PERSISTENCE_SECONDS: u32 = 2_678_400;

/// Reads the list; addresses are returned apart, because they are compared even where the rest is wrong.
pub(super) fn read_virtual_servers(
    list: &Field<'_>,
    dialect: Dialect,
) -> (Vec<VirtualServer>, Vec<Placed<IpAddr>>) {
    let (mut servers, mut addresses) = (Vec::new(), Vec::<Placed<IpAddr>>::new());
    for item in list.items_up_to(MOST, "list the virtual IPs only").unwrap_or_default() {
        let Some(table) = item.table() else { continue };
        let address = match table.field("ipAddress").map(|field| address(&field)) {
            Some(address) => address,
            None => {
                table.missing(
                    "ipAddress",
                    "add `ipAddress:` with the virtual IP to balance, without a prefix length",
                );
                None
            }
        };
        let delay_loop = table.field("delayLoop").map_or(Some(DELAY_LOOP), |field| delay_loop(&field));
        let algorithm = table
            .field("lbAlgo")
            .filter(|field| field.child.text() != Some(""))
            .map_or(Some(LbAlgorithm::RoundRobin), |field| field.choice(LbAlgorithm::WORDS));
        let kind = table
            .field("lbKind")
            .filter(|field| field.child.text() != Some(""))
            .map_or(Some(LbKind::DirectRouting), |field| field.choice(LbKind::WORDS));
        // To k0s zero is the same as absent.
        let least = if dialect == Dialect::Native { 0 } else { 1 };
        let persistence = table
            .field("persistenceTimeoutSeconds")
            .and_then(|field| match dialect {
                Dialect::Native => Some(field),
                Dialect::K0s => field.unless_zero("360 s"),
            })
            .map_or(Some(PERSISTENCE_SECONDS), |field| field.integer(least..=LONGEST_PERSISTENCE_SECONDS));
        finish(table, dialect);

        let Some(address) = address else { continue };
        if let Some(first) = addresses.iter().find(|other| other.value == address.value) {
            let message = format!("{} was already given on line {}", address.value, first.at.line);
            let help = "keep one virtual server for each address";
            item.out.error(
                &address.path,
                address.at,
                Finding::new("duplicate-virtual-server", message, help),
            );
        }
        let ip = address.value;
        addresses.push(address);
        if let (Some(delay_loop), Some(algorithm), Some(kind), Some(persistence)) =
            (delay_loop, algorithm, kind, persistence)
        {
            let persistence_timeout = (persistence > 0).then(|| Duration::from_secs(persistence.into()));
            servers.push(VirtualServer { address: ip, delay_loop, algorithm, kind, persistence_timeout });
        }
    }
    (servers, addresses)
}

fn address(field: &Field<'_>) -> Option<Placed<IpAddr>> {
    let text = field.string()?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(Placed::new(ip.to_canonical(), field));
    }
    let help = match text.split_once('/') {
        Some((address, _)) if address.parse::<IpAddr>().is_ok() => {
            format!("write `{address}`, without the prefix length")
        }
        _ => "write the virtual IP, such as `10.0.0.100`".to_owned(),
    };
    field.error(Finding::new("ip-address", format!("`{text}` is no IP address"), help));
    None
}

/// k0s cuts to microseconds, takes zero for absent and refuses what is not above zero then.
fn delay_loop(field: &Field<'_>) -> Option<Duration> {
    let written = match field.child.text().map(duration::parse) {
        Some(Err(duration::DurationError::Negative)) => Duration::ZERO,
        _ => {
            let written = field.any_duration()?;
            if written.is_zero() {
                return Some(DELAY_LOOP);
            }
            written
        }
    };
    let cut = Duration::from_micros(u64::try_from(written.as_micros()).unwrap_or(u64::MAX));
    if cut.is_zero() {
        let help = "write a duration from `1us` on, such as `1m`";
        field.error(Finding::new("delay-loop", "delayLoop must be above zero", help));
        return None;
    }
    Some(cut)
}
