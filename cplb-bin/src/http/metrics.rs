//! The metrics of a node, from its status. `docs/metrics.md` lists them.

mod group;
mod instance;
mod service;

use std::collections::HashMap;

use crate::status::schema::{Channel, Discovery, Interface, Kernel, Status, Table};

use super::family::{Family, Labels, Samples};
use super::process::ProcessUsage;

/// All families, also those without samples now.
pub(super) fn families(status: &Status, process: &ProcessUsage) -> Vec<Family> {
    let mut all = node(status);
    all.extend(of_process(process));
    all.extend(instance::families(&status.instances));
    all.extend(group::families(&status.peers));
    all.extend(channels(&status.channels));
    all.extend(interfaces(&status.interfaces));
    all.extend(kernel(status.kernel.as_ref()));
    all.extend(service::families(&status.services));
    all.extend(service::ipvs(status.ipvs.as_ref()));
    all.extend(discovery(&status.discovery));
    all.extend(table(status.table.as_ref()));
    all
}

/// Samples with the same labels are one: there is a channel for each family of an interface, for example.
pub(super) fn counter(name: &'static str, help: &'static str, samples: Vec<(Labels, u64)>) -> Family {
    let samples = merged(samples, |sum, value| *sum += value);
    Family { name, help, samples: Samples::Counter(samples) }
}

/// Of samples with the same labels the first one counts.
pub(super) fn gauge(name: &'static str, help: &'static str, samples: Vec<(Labels, f64)>) -> Family {
    Family { name, help, samples: Samples::Gauge(merged(samples, |_, _| {})) }
}

fn merged<T>(samples: Vec<(Labels, T)>, merge: impl Fn(&mut T, T)) -> Vec<(Labels, T)> {
    let mut places: HashMap<Labels, usize> = HashMap::new();
    let mut merged: Vec<(Labels, T)> = Vec::new();
    for (labels, value) in samples {
        match places.get(&labels) {
            Some(place) => merge(&mut merged[*place].1, value),
            None => {
                places.insert(labels.clone(), merged.len());
                merged.push((labels, value));
            }
        }
    }
    merged
}

/// 1 for what is true.
pub(super) fn flag(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

/// Labels with another one.
pub(super) fn with(labels: &Labels, name: &'static str, value: impl Into<String>) -> Labels {
    let mut labels = labels.clone();
    labels.push((name, value.into()));
    labels
}

fn single<T>(value: T) -> Vec<(Labels, T)> {
    vec![(Labels::new(), value)]
}

fn optional<T>(value: Option<T>) -> Vec<(Labels, T)> {
    value.map(single).unwrap_or_default()
}

fn node(status: &Status) -> Vec<Family> {
    let causes = status.degraded_causes.iter();
    vec![
        Family {
            name: "cplb_build",
            help: "Version of the daemon",
            samples: Samples::Info(vec![("version", status.version.clone())]),
        },
        gauge("cplb_uptime_seconds", "Time since the daemon started", single(status.uptime_seconds)),
        gauge(
            "cplb_serving",
            "1 if this node can serve clients that reach it through a virtual IP",
            single(flag(status.serving.serving)),
        ),
        gauge(
            "cplb_real_time",
            "1 if the election runs at real-time priority",
            single(flag(status.real_time)),
        ),
        gauge(
            "cplb_degraded",
            "Entries in degraded by cause; no sample without entries",
            causes.map(|(cause, count)| (vec![("cause", cause.clone())], *count as f64)).collect(),
        ),
    ]
}

fn of_process(usage: &ProcessUsage) -> Vec<Family> {
    let number = |value: Option<u64>| optional(value.map(|value| value as f64));
    vec![
        Family {
            name: "process_cpu_seconds",
            help: "User and system time of the daemon",
            samples: Samples::Seconds(optional(usage.processor.map(|time| time.as_secs_f64()))),
        },
        gauge("process_resident_memory_bytes", "Resident memory of the daemon", number(usage.resident_bytes)),
        gauge("process_open_fds", "Open descriptors of the daemon", number(usage.open_descriptors)),
        gauge(
            "process_max_fds",
            "The limit of open descriptors (LimitNOFILE)",
            number(usage.max_descriptors),
        ),
    ]
}

fn channels(channels: &[Channel]) -> Vec<Family> {
    let of = |channel: &Channel| -> Labels { vec![("interface", channel.interface.clone())] };
    let discarded = channels.iter().flat_map(|channel| {
        let labels = of(channel);
        channel.discarded.iter().map(move |(reason, count)| (with(&labels, "reason", reason), *count))
    });
    vec![
        counter(
            "cplb_channel_messages_sent",
            "Messages of the group channel that were sent",
            channels.iter().map(|channel| (of(channel), channel.messages_sent)).collect(),
        ),
        counter(
            "cplb_channel_messages_received",
            "Messages of the group channel that were received",
            channels.iter().map(|channel| (of(channel), channel.messages_received)).collect(),
        ),
        counter(
            "cplb_channel_datagrams_discarded",
            "Datagrams of the group channel that were not used, by reason",
            discarded.collect(),
        ),
    ]
}

fn interfaces(interfaces: &[Interface]) -> Vec<Family> {
    let of = |interface: &Interface| -> Labels { vec![("interface", interface.name.clone())] };
    let foreign = interfaces.iter().flat_map(|interface| {
        let labels = of(interface);
        interface.foreign.iter().map(move |(vrid, count)| (with(&labels, "vrid", vrid.to_string()), *count))
    });
    vec![
        counter(
            "cplb_vrrp_packets_received",
            "VRRP packets that arrived on the interface, of all virtual routers",
            interfaces.iter().map(|interface| (of(interface), interface.received)).collect(),
        ),
        counter(
            "cplb_vrrp_packets_malformed",
            "VRRP packets that are too short for an identifier",
            interfaces.iter().map(|interface| (of(interface), interface.malformed)).collect(),
        ),
        counter(
            "cplb_vrrp_packets_foreign",
            "VRRP packets of virtual routers that have no instance on the interface",
            foreign.collect(),
        ),
    ]
}

fn kernel(kernel: Option<&Kernel>) -> Vec<Family> {
    let count = |of: fn(&Kernel) -> u64| optional(kernel.map(of));
    vec![
        counter(
            "cplb_netlink_overruns",
            "Times that the kernel dropped netlink events that were not read in time",
            count(|kernel| kernel.overruns),
        ),
        counter(
            "cplb_netlink_resyncs",
            "Complete reads of all links and addresses",
            count(|kernel| kernel.resyncs),
        ),
        counter(
            "cplb_netlink_errors",
            "Netlink requests that the kernel refused or did not answer",
            count(|kernel| kernel.errors),
        ),
        counter(
            "cplb_virtual_ips_removed_by_others",
            "Virtual IPs that another process removed while this node held them",
            count(|kernel| kernel.missing),
        ),
    ]
}

fn discovery(clusters: &[Discovery]) -> Vec<Family> {
    let of = |cluster: &Discovery| -> Labels { vec![("kubeconfig", cluster.kubeconfig.clone())] };
    vec![
        gauge(
            "cplb_discovery_servers",
            "API servers that were discovered",
            clusters.iter().map(|cluster| (of(cluster), cluster.servers.len() as f64)).collect(),
        ),
        gauge(
            "cplb_discovery_following",
            "1 if the Kubernetes API is followed now",
            clusters
                .iter()
                .map(|cluster| (of(cluster), flag(cluster.error.is_none() && cluster.waiting.is_none())))
                .collect(),
        ),
    ]
}

fn table(table: Option<&Table>) -> Vec<Family> {
    vec![
        gauge(
            "cplb_nftables_table_present",
            "1 if the nftables table was in place at the last check",
            optional(table.map(|table| flag(table.present))),
        ),
        counter(
            "cplb_nftables_table_restored",
            "Times that the table was restored after another program had removed or changed it",
            optional(table.map(|table| table.restored)),
        ),
    ]
}

#[cfg(test)]
mod tests;
