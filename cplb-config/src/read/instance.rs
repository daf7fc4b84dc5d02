//! `vrrpInstances`.

use std::net::IpAddr;
use std::time::Duration;

use netlink_vip::{AddressLabel, InterfaceSelector, VipAddress};
use vrrp::router::Preempt;
use vrrp::{AdvertInterval, IntervalError, Priority, Version, Vrid};

use crate::model::Instance;
use crate::walk::{Field, Finding, Table};

use super::authentication::{Auth, authentication};
use super::network::{Families, interface, virtual_ip};
use super::unicast::{UnicastDraft, unicast};
use super::{Dialect, Placed, finish};

const FIRST_VRID: u32 = 51;
const PRIORITY: u8 = 200;
const LOWEST_PRIORITY: u8 = 50;
const HIGHEST_PRIORITY: u8 = 254;
/// The most instances k0s takes, and the number of VRIDs.
const MOST_INSTANCES: usize = 255;
const PREEMPT: &[(&str, Preempt)] =
    &[("never", Preempt::Never), ("degraded", Preempt::Degraded), ("always", Preempt::Always)];

/// An instance as far as it could be read. VRID and addresses are compared with others even where
/// the rest is wrong.
#[derive(Debug)]
pub(crate) struct InstanceDraft {
    pub(crate) vips: Vec<Placed<VipAddress>>,
    pub(crate) vrid: Option<Placed<Vrid>>,
    /// Set if the VRID is the default, which has no line in the file.
    pub(crate) vrid_is_default: bool,
    pub(crate) unicast_source: Option<Placed<IpAddr>>,
    pub(crate) unicast_peers: Vec<Placed<IpAddr>>,
    /// The place of `unicastPeers`.
    pub(crate) unicast_at: Option<Placed<()>>,
    pub(crate) instance: Option<Instance>,
}

pub(crate) fn read_instances(list: &Field<'_>, dialect: Dialect) -> Vec<InstanceDraft> {
    let auth = match dialect {
        Dialect::K0s => Auth::Required,
        Dialect::Native => Auth::Optional,
    };
    let help = "give one instance several virtualIPs instead";
    let items = list.items_up_to(MOST_INSTANCES, help).unwrap_or_default();
    let draft = |(index, item): (usize, Field<'_>)| read_instance(&item, index, dialect, auth);
    items.into_iter().enumerate().filter_map(draft).collect()
}

fn read_instance(item: &Field<'_>, index: usize, dialect: Dialect, auth: Auth) -> Option<InstanceDraft> {
    let table = item.table()?;
    let (vips, all_read) = virtual_ips(&table);
    let families = Families {
        v4: vips.iter().any(|vip| vip.value.ip().is_ipv4()),
        v6: vips.iter().any(|vip| vip.value.ip().is_ipv6()),
    };
    let interface =
        table.field("interface").map_or(Some(InterfaceSelector::DefaultRoute), |field| interface(&field));
    let (vrid, vrid_is_default) = vrid(&table, index);
    let version = version(&table, dialect, families);
    let advert_interval = advert_interval(&table, dialect, version, families);
    let authentication = authentication(&table, dialect, version, advert_interval, auth);
    let UnicastDraft { source: unicast_source, peers: unicast_peers, at: unicast_at, unicast } =
        unicast(&table, dialect, families);
    let address_label = address_label(&table);
    let (mut priority, mut preempt) = (Priority::new(PRIORITY).ok(), Some(Preempt::Degraded));
    if dialect == Dialect::Native {
        if let Some(field) = table.field("priority") {
            priority = self::priority(&field);
        }
        if let Some(field) = table.field("preempt") {
            preempt = field.choice(PREEMPT);
        }
    }
    finish(table, dialect);
    let virtual_ips: Vec<VipAddress> = vips.iter().map(|vip| vip.value).collect();
    let complete = all_read && !virtual_ips.is_empty();
    let instance = || {
        let authentication = authentication.ok()?;
        Some(Instance {
            virtual_ips,
            interface: interface?,
            vrid: vrid.as_ref()?.value,
            version: version?,
            advert_interval: advert_interval?,
            priority: priority?,
            preempt: preempt?,
            auth_pass: authentication.pass,
            auth_pass_previous: authentication.pass_previous,
            auth_hmac: authentication.hmac,
            unicast: unicast.ok()?,
            address_label: address_label?,
        })
    };
    let instance = if complete { instance() } else { None };
    Some(InstanceDraft { vips, vrid, vrid_is_default, unicast_source, unicast_peers, unicast_at, instance })
}

fn virtual_ips(table: &Table<'_>) -> (Vec<Placed<VipAddress>>, bool) {
    /// An advertisement counts its addresses in one byte (RFC 9568 §5.2.5).
    const MOST: usize = 255;
    let help = "add `virtualIPs:` with at least one address and prefix length, such as `[\"10.0.0.100/24\"]`";
    let Some(field) = table.field("virtualIPs") else {
        table.missing("virtualIPs", help);
        return (Vec::new(), false);
    };
    let Some(items) = field.items_up_to(MOST, "add a second instance for the others") else {
        return (Vec::new(), false);
    };
    if items.is_empty() {
        field.error(Finding::new("required-field", "`virtualIPs` is empty", help));
    }
    let vips: Vec<_> = items.iter().filter_map(virtual_ip).collect();
    let all_read = vips.len() == items.len();
    (vips, all_read)
}

/// Returns the VRID and whether it is the default, 51 + index.
fn vrid(table: &Table<'_>, index: usize) -> (Option<Placed<Vrid>>, bool) {
    let default = FIRST_VRID + u32::try_from(index).unwrap_or(u32::MAX - FIRST_VRID);
    let field = table.field("virtualRouterID");
    if let Some(field) =
        field.and_then(|field| field.unless_zero(format_args!("{default} (51 + the instance's index)")))
    {
        let id = field.integer(1..=u8::MAX);
        let vrid = id.and_then(Vrid::new);
        return (vrid.map(|vrid| Placed::new(vrid, &field)), false);
    }
    let vrid = u8::try_from(default).ok().and_then(Vrid::new);
    let path = format!("{}.virtualRouterID", table.path);
    let at = table.first_key();
    let Some(value) = vrid else {
        let message =
            format!("the default virtualRouterID, 51 + the instance's index, would be {default}: above 255");
        table.out().error(
            &path,
            at,
            Finding::new(
                "vrid-overflow",
                message,
                "give this instance a free `virtualRouterID` from 1 to 255",
            ),
        );
        return (None, true);
    };
    (Some(Placed { value, at, path }), true)
}

/// The version of the IPv4 advertisements; IPv6 has version 3 only (RFC 9568 §1).
fn version(table: &Table<'_>, dialect: Dialect, families: Families) -> Option<Version> {
    let default = if families.v6 && !families.v4 { Version::V3 } else { Version::V2 };
    let Some(field) = (dialect == Dialect::Native).then(|| table.field("version")).flatten() else {
        return Some(default);
    };
    let version = match field.integer(2..=3_u8)? {
        2 => Version::V2,
        _ => Version::V3,
    };
    if version == Version::V2 && families.v6 && !families.v4 {
        let help = "write `version: 3`, or leave it out";
        field.error(Finding::new("version-family", "VRRP version 2 carries IPv4 only", help));
        return None;
    }
    Some(version)
}

fn advert_interval(
    table: &Table<'_>,
    dialect: Dialect,
    version: Option<Version>,
    families: Families,
) -> Option<AdvertInterval> {
    let seconds = table.field("advertIntervalSeconds").and_then(|field| field.unless_zero("1 s"));
    let duration = (dialect == Dialect::Native).then(|| table.field("advertInterval")).flatten();
    let (value, field) = match (seconds, duration) {
        (None, None) => return Some(AdvertInterval::DEFAULT),
        (Some(_), Some(field)) => {
            let help = "keep `advertInterval`";
            field.error(Finding::new("two-intervals", "advertIntervalSeconds is given as well", help));
            return None;
        }
        (Some(field), None) => (Duration::from_secs(field.integer(1..=255_u64)?), field),
        (None, Some(field)) => (field.any_duration()?, field),
    };
    let version = version?;
    let interval = AdvertInterval::new(version, value);
    // An IPv6 advertisement of the same instance is version 3 and has to carry the same interval.
    let refused = interval
        .err()
        .or_else(|| families.v6.then(|| AdvertInterval::new(Version::V3, value).err()).flatten());
    let Some(refused) = refused else {
        return interval.ok();
    };
    let in_seconds = field.path.ends_with("Seconds");
    let (message, help) = match refused {
        IntervalError::V2 => (
            "VRRP version 2 counts whole seconds, up to 255",
            "write whole seconds from `1s` to `255s`, or set `version: 3` on every node for shorter ones",
        ),
        IntervalError::V3 if in_seconds => (
            "VRRP version 3, which IPv6 always has, counts up to 40.95 seconds",
            "write a whole number from 1 to 40",
        ),
        IntervalError::V3 if version == Version::V2 => (
            "the IPv6 advertisements of this instance are version 3, which counts up to 40.95 seconds",
            "write whole seconds from `1s` to `40s`",
        ),
        IntervalError::V3 => (
            "VRRP version 3 counts centiseconds, up to 4095",
            "write a multiple of `10ms` from `10ms` to `40.95s`",
        ),
    };
    field.error(Finding::new("advert-interval", message, help));
    None
}

fn priority(field: &Field<'_>) -> Option<Priority> {
    let value = field.integer(0..=255_u8)?;
    if (LOWEST_PRIORITY..=HIGHEST_PRIORITY).contains(&value) {
        return Priority::new(value).ok();
    }
    let message = match value {
        0 => "priority 0 means that a router resigns".to_owned(),
        255 => "priority 255 is for the owner of an address, and a floating address has none".to_owned(),
        _ => format!("priorities below {LOWEST_PRIORITY} mean that a node cannot serve"),
    };
    let help = format!("write {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}; {PRIORITY} is the default");
    field.error(Finding::new("priority", message, help));
    None
}

/// k0s documents that 0 is the default.
fn address_label(table: &Table<'_>) -> Option<AddressLabel> {
    let Some(field) = table.field("addressLabel").filter(|field| !field.is_zero()) else {
        return Some(AddressLabel::DEFAULT);
    };
    let label = AddressLabel::new(field.integer(1..=u32::MAX)?);
    if label.is_none() {
        let help = "write a number from 1 to 4294967294, or leave it out for 10000";
        field.error(Finding::new("address-label", "the label 0xffffffff is reserved by the kernel", help));
    }
    label
}
