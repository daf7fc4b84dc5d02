//! Values and checks that several rules share.

use std::net::IpAddr;
use std::time::Duration;

use lb_proxy::Balance;

use crate::read::{Given, HealthDraft, Placed, ServiceDraft};
use crate::walk::{Finding, Reporter};

/// The settings that services inherit.
pub(super) struct Common<'a> {
    pub(super) balance: &'a Given<Balance>,
    pub(super) health: &'a HealthDraft,
    /// The longest interval between health checks that the virtual servers take.
    pub(super) longest_interval: Option<Duration>,
}

impl Common<'_> {
    pub(super) fn balance_of(&self, draft: &ServiceDraft) -> Option<Balance> {
        draft.balance.or(self.balance.or(Some(Balance::default())))
    }
}

/// Reports every value that an earlier item of the list has too.
pub(super) fn unique<T: PartialEq + std::fmt::Display>(
    rule: &'static str,
    what: &str,
    values: &[Option<&Placed<T>>],
    out: &Reporter<'_>,
) {
    for (index, placed) in values.iter().enumerate() {
        let Some(placed) = placed else { continue };
        if let Some(first) = values[..index].iter().flatten().find(|other| other.value == placed.value) {
            let message = format!("{what} {} was already given on line {}", placed.value, first.at.line);
            out.error(&placed.path, placed.at, Finding::new(rule, message, "give each service its own"));
        }
    }
}

/// Returns whether the address is one of the sorted virtual IPs, also when written as an IPv4-mapped IPv6 address.
pub(super) fn is_vip(vips: &[IpAddr], ip: IpAddr) -> bool {
    vips.binary_search(&ip.to_canonical()).is_ok()
}
