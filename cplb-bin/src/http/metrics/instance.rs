//! The metrics of VRRP instances.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vrrp::router::{Reason, StateName};

use crate::http::family::{Family, Labels};
use crate::status::schema::{EndToEnd, Instance};

use super::{counter, flag, gauge, with};

/// The reasons for which a router becomes Active. They are shown before the first time, so that Prometheus sees that one as an
/// increase.
const TAKEOVERS: [Reason; 7] = [
    Reason::ActiveSilent { source: None },
    Reason::ActiveResigned { source: None },
    Reason::ActiveDegraded { source: None },
    Reason::LowerPriority,
    Reason::NoOtherActive,
    Reason::NoSuccessor,
    Reason::Reconfigured,
];

pub(super) fn families(instances: &[Instance]) -> Vec<Family> {
    let all: Vec<(Labels, &Instance)> =
        instances.iter().map(|instance| (labels(instance), instance)).collect();
    let gauges = |name, help, value: fn(&Instance) -> f64| {
        gauge(name, help, all.iter().map(|(labels, instance)| (labels.clone(), value(instance))).collect())
    };
    let counters = |name, help, value: fn(&Instance) -> u64| {
        counter(name, help, all.iter().map(|(labels, instance)| (labels.clone(), value(instance))).collect())
    };
    let by = |name, help, label: &'static str, counts: fn(&Instance) -> &BTreeMap<String, u64>| {
        let of = |(labels, instance): &(Labels, &Instance)| -> Vec<(Labels, u64)> {
            counts(instance).iter().map(|(word, count)| (with(labels, label, word), *count)).collect()
        };
        counter(name, help, all.iter().flat_map(of).collect())
    };
    let mut families = vec![
        gauge("cplb_instance_state", "1 for the state of the instance, 0 for all others", states(&all)),
        gauges("cplb_instance_state_age_seconds", "Time in this state", |it| it.since_seconds),
        counter(
            "cplb_instance_transitions",
            "Changes of state, by the new state and the reason",
            transitions(&all),
        ),
        gauges(
            "cplb_instance_holds_virtual_ips",
            "1 if the kernel has confirmed each virtual IP on this node",
            |it| flag(it.holds_virtual_ips),
        ),
        gauges("cplb_instance_interface_up", "1 if the interface exists and is up", |it| {
            flag(it.interface_up)
        }),
        gauges("cplb_instance_priority", "The configured priority", |it| it.priority.into()),
        gauges(
            "cplb_instance_advertised_priority",
            "The priority in advertisements: a fifth of it while degraded",
            |it| it.advertised_priority.into(),
        ),
        gauges("cplb_instance_advertisement_interval_seconds", "The interval of advertisements", |it| {
            it.advert_interval_seconds
        }),
        gauges("cplb_instance_lease_seconds", "Length of the lease of the virtual IPs in the kernel", |it| {
            it.lease_seconds
        }),
        gauges("cplb_instance_unfit", "Reasons why this node should not hold the virtual IPs", |it| {
            it.unfit.len() as f64
        }),
        gauges("cplb_instance_address_copies", "Virtual IPs that are on this node without a lease", |it| {
            it.copies.len() as f64
        }),
        gauges(
            "cplb_instance_foreign_owners",
            "Hosts that answer for virtual IPs and are not the Active",
            |it| it.foreign_owners.len() as f64,
        ),
        gauges("cplb_instance_active_known", "1 if this node is Active or hears the Active", |it| {
            flag(it.state == StateName::Active.as_str() || it.active_router.is_some())
        }),
    ];
    families.extend([
        counters(
            "cplb_instance_advertisements_sent",
            "Advertisements sent; with unicast one per peer",
            |it| it.advertisements_sent,
        ),
        counters("cplb_instance_advertisements_received", "Advertisements that could be decoded", |it| {
            it.advertisements_received
        }),
        by(
            "cplb_instance_advertisements_discarded",
            "Advertisements that were discarded, by reason",
            "reason",
            |it| &it.discarded,
        ),
        by(
            "cplb_instance_advertisements_mismatched",
            "Advertisements that show another configuration, by the difference",
            "difference",
            |it| &it.mismatches,
        ),
    ]);
    families.extend(end_to_end(&all));
    families
}

fn labels(instance: &Instance) -> Labels {
    let mut virtual_ips: Vec<&str> =
        instance.virtual_ips.iter().map(|vip| vip.split('/').next().unwrap_or(vip)).collect();
    // The nodes of a group may list them in any order.
    virtual_ips.sort_unstable_by_key(|vip| vip.parse::<IpAddr>().ok());
    vec![
        ("vrid", instance.virtual_router_id.to_string()),
        ("interface", instance.interface.clone()),
        ("virtual_ips", virtual_ips.join(",")),
    ]
}

fn states(all: &[(Labels, &Instance)]) -> Vec<(Labels, f64)> {
    let of = |(labels, instance): &(Labels, &Instance)| {
        StateName::ALL
            .map(|state| (with(labels, "state", state.as_str()), flag(instance.state == state.as_str())))
    };
    all.iter().flat_map(of).collect()
}

fn transitions(all: &[(Labels, &Instance)]) -> Vec<(Labels, u64)> {
    let mut samples = Vec::new();
    for (labels, instance) in all {
        let takeovers = BTreeMap::from(TAKEOVERS.map(|reason| (reason.as_str(), 0)));
        let mut totals = BTreeMap::from([(StateName::Active.as_str(), takeovers)]);
        for (state, reasons) in &instance.transition_totals {
            let counted = reasons.iter().map(|(reason, count)| (reason.as_str(), *count));
            totals.entry(state).or_default().extend(counted);
        }
        for (state, reasons) in totals {
            let to = with(labels, "to", state);
            samples.extend(reasons.into_iter().map(|(reason, count)| (with(&to, "reason", reason), count)));
        }
    }
    samples
}

/// Only routes that are checked have a result.
fn end_to_end(all: &[(Labels, &Instance)]) -> Vec<Family> {
    let of = |(labels, instance): &(Labels, &Instance)| -> Vec<(Labels, f64)> {
        let result = |route: &EndToEnd| match route.state.as_str() {
            "answers" => Some(1.0),
            "fails" => Some(0.0),
            _ => None,
        };
        let sample = |route: &EndToEnd| {
            let labels = with(&with(labels, "service", &route.service), "endpoint", &route.endpoint);
            Some((with(&labels, "active", &route.active), result(route)?))
        };
        instance.end_to_end.iter().filter_map(sample).collect()
    };
    vec![gauge(
        "cplb_end_to_end_up",
        "1 if the service answers this node through the virtual IP of the other router that is Active",
        all.iter().flat_map(of).collect(),
    )]
}
