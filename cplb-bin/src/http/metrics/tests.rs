//! The documentation has the metrics that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::http::family::{Format, encode};
use crate::status::schema::tests::complete;

const DOCS: &str = include_str!("../../../../docs/metrics.md");

/// A status with a sample of every family.
fn filled() -> Status {
    let mut status = complete();
    let counts = |word: &str| BTreeMap::from([(word.to_owned(), 1)]);
    status.degraded_causes = counts("table");
    let instance = &mut status.instances[0];
    (instance.discarded, instance.mismatches) = (counts("hop_limit"), counts("interval"));
    instance.transition_totals = BTreeMap::from([("active".to_owned(), counts("active_silent"))]);
    instance.end_to_end[0].state = "fails".to_owned();
    status.channels[0].discarded = counts("stale");
    status.interfaces[0].foreign = BTreeMap::from([(7, 1)]);
    status.services[0].refusals = counts("no_backend");
    status
}

fn usage() -> ProcessUsage {
    ProcessUsage {
        processor: Some(Duration::from_millis(1500)),
        resident_bytes: Some(1),
        open_descriptors: Some(1),
        max_descriptors: Some(1),
    }
}

/// Name in the text format, type, and labels.
type Row = (String, &'static str, BTreeSet<String>);

fn row(family: &Family) -> Row {
    let (suffix, kind, labels) = match &family.samples {
        Samples::Counter(samples) => ("_total", "counter", samples.first().map(|(labels, _)| labels)),
        Samples::Seconds(samples) => ("_total", "counter", samples.first().map(|(labels, _)| labels)),
        Samples::Gauge(samples) => ("", "gauge", samples.first().map(|(labels, _)| labels)),
        Samples::Histogram(samples) => ("", "histogram", samples.first().map(|(labels, _)| labels)),
        Samples::Info(labels) => ("_info", "gauge", Some(labels)),
    };
    let labels = labels.unwrap_or_else(|| panic!("{} has no sample", family.name));
    (format!("{}{suffix}", family.name), kind, labels.iter().map(|(name, _)| (*name).to_owned()).collect())
}

#[test]
fn the_documentation_has_exactly_the_families_with_their_types_and_labels() {
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let documented: Vec<Row> = DOCS
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.trim_end_matches('`').to_owned();
            let kind = cells.next()?;
            let kind = ["counter", "histogram"].into_iter().find(|known| *known == kind).unwrap_or("gauge");
            Some((name, kind, words(cells.next()?)))
        })
        .collect();
    let existing: Vec<Row> = families(&filled(), &usage()).iter().map(row).collect();
    assert_eq!(documented, existing);
}

#[test]
fn names_follow_the_conventions_and_are_unique() {
    let families = families(&filled(), &usage());
    let names: BTreeSet<&str> = families.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), families.len());
    for Family { name, help, .. } in &families {
        assert!(name.starts_with("cplb_") || name.starts_with("process_"), "{name}");
        assert!(!name.ends_with("_total") && !help.ends_with('.'), "{name}: {help}");
    }
}

/// Prometheus refuses the same sample twice.
#[test]
fn samples_with_the_same_labels_are_merged() {
    let mut status = filled();
    status.channels[0].messages_sent = 3;
    // A channel of the other family, and a peer that is heard on two links.
    status.channels.push(status.channels[0].clone());
    status.peers.push(status.peers[0].clone());
    for family in families(&status, &usage()) {
        let labels: Vec<&Labels> = match &family.samples {
            Samples::Counter(samples) => samples.iter().map(|(labels, _)| labels).collect(),
            Samples::Seconds(samples) | Samples::Gauge(samples) => {
                samples.iter().map(|(labels, _)| labels).collect()
            }
            Samples::Histogram(samples) => samples.iter().map(|(labels, _)| labels).collect(),
            Samples::Info(_) => Vec::new(),
        };
        assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), labels.len(), "{}", family.name);
        if family.name == "cplb_channel_messages_sent" {
            assert!(matches!(&family.samples, Samples::Counter(samples) if samples[0].1 == 6));
        }
    }
}

#[test]
fn the_order_of_virtual_ips_does_not_matter() {
    let label = |order: [&str; 3]| {
        let mut status = filled();
        status.instances[0].virtual_ips = order.map(str::to_owned).to_vec();
        let families = families(&status, &usage());
        let found = families.iter().find(|family| family.name == "cplb_instance_priority").unwrap();
        let Samples::Gauge(samples) = &found.samples else { panic!("{found:?}") };
        samples[0].0[2].1.clone()
    };
    let sorted = "10.0.0.9,10.0.0.100,fd00::100";
    assert_eq!(label(["10.0.0.100/24", "fd00::100/64", "10.0.0.9/24"]), sorted);
    assert_eq!(label(["fd00::100/64", "10.0.0.9/24", "10.0.0.100/24"]), sorted);
}

#[test]
fn a_status_without_parts_is_encoded_in_both_formats() {
    for format in [Format::Text, Format::OpenMetrics] {
        let text = encode(families(&Status::default(), &ProcessUsage::default()), format).unwrap();
        assert!(text.contains("cplb_serving 0.0\n") && !text.contains("cplb_instance"), "{text}");
    }
}

const ALERTS: &str = include_str!("../../../../docs/monitoring/alerts.yml");
const OPERATIONS: &str = include_str!("../../../../docs/operations.md");

/// The words of a text that consist of these characters and begin with a prefix.
fn words<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(move |c| !is_part(c)).filter(move |word| word.starts_with(prefix) && *word != prefix)
}

#[test]
fn alerts_use_metrics_labels_and_causes_that_exist() {
    let rows: Vec<Row> = families(&filled(), &usage()).iter().map(row).collect();
    let names: BTreeSet<&str> = rows.iter().map(|(name, ..)| name.as_str()).collect();
    let expressions = ALERTS.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    for expression in expressions {
        let used: Vec<&str> = words(expression, "cplb_").chain(words(expression, "process_")).collect();
        assert!(!used.is_empty() || expression.contains("up{"), "{expression}");
        assert!(used.iter().all(|name| names.contains(name)), "{expression}");
    }
    let dashboard = include_str!("../../../../docs/monitoring/grafana.json");
    for expression in dashboard.lines().filter_map(|line| line.trim().strip_prefix("\"expr\": ")) {
        let used: Vec<&str> = words(expression, "cplb_").chain(words(expression, "process_")).collect();
        assert!(!used.is_empty() && used.iter().all(|name| names.contains(name)), "{expression}");
    }
    let status = include_str!("../../../../docs/status.md");
    let causes = ALERTS.split("cause=").skip(1).filter_map(|rest| rest.split('"').nth(1));
    for cause in causes.flat_map(|causes| causes.split('|')) {
        assert!(status.contains(&format!("`{cause}`")), "{cause}");
    }
    let labels: BTreeSet<&str> = rows.iter().flat_map(|(.., labels)| labels).map(String::as_str).collect();
    for label in ALERTS.split("$labels.").skip(1).filter_map(|rest| words(rest, "").next()) {
        assert!(label == "instance" || labels.contains(label), "{label}");
    }
}

#[test]
fn every_event_of_the_documentation_has_its_alert_and_every_alert_is_documented() {
    let alerts: BTreeSet<&str> =
        ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let (_, section) = OPERATIONS.split_once("## What happens when").unwrap();
    let (section, _) = section.split_once("\n### ").unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 20);
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(words(cell, "Cplb").count() > 0, "{row}");
    }
    assert_eq!(words(section, "Cplb").collect::<BTreeSet<_>>(), alerts);
}
