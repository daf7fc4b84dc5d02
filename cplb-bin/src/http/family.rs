//! Metric families as values, and their text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

pub(super) type Labels = Vec<(&'static str, String)>;

/// A family of metrics.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Family {
    /// With the unit as its suffix, if it has one, and without `_total`.
    pub(super) name: &'static str,
    /// Without a full stop.
    pub(super) help: &'static str,
    pub(super) samples: Samples,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Samples {
    /// Totals that only grow.
    Counter(Vec<(Labels, u64)>),
    Seconds(Vec<(Labels, f64)>),
    Gauge(Vec<(Labels, f64)>),
    Histogram(Vec<(Labels, Histogram)>),
    /// Facts as labels.
    Info(Labels),
}

/// The distribution of a quantity.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Histogram {
    pub(super) sum: f64,
    /// The number in all classes, and in none of them because it is above all bounds.
    pub(super) count: u64,
    /// The upper bound of each class in ascending order, and the number in the class.
    pub(super) classes: Vec<(f64, u64)>,
}

/// A text format of Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    /// Version 0.0.4, which all readers know.
    Text,
}

impl Format {
    /// The format for a request with this `Accept` header.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// The text of the families that have samples.
pub(super) fn encode(families: Vec<Family>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut encoded = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut encoded, &registry)?,
        Format::Text => prometheus_text::encode(&mut encoded, &registry)?,
    }
    Ok(encoded)
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.iter().filter(|family| !family.is_empty()).try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Family {
    fn is_empty(&self) -> bool {
        match &self.samples {
            Samples::Counter(samples) => samples.is_empty(),
            Samples::Seconds(samples) | Samples::Gauge(samples) => samples.is_empty(),
            Samples::Histogram(samples) => samples.is_empty(),
            Samples::Info(labels) => labels.is_empty(),
        }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, unit) = match self.name.rsplit_once('_') {
            Some((name, "seconds")) => (name, Some(Unit::Seconds)),
            Some((name, "bytes")) => (name, Some(Unit::Bytes)),
            _ => (self.name, None),
        };
        let kind = match &self.samples {
            Samples::Counter(_) | Samples::Seconds(_) => MetricType::Counter,
            Samples::Gauge(_) => MetricType::Gauge,
            Samples::Histogram(_) => MetricType::Histogram,
            Samples::Info(_) => MetricType::Info,
        };
        let mut metric = encoder.encode_descriptor(name, self.help, unit.as_ref(), kind)?;
        let none = None::<&Exemplar<NoLabelSet, f64>>;
        match &self.samples {
            Samples::Counter(samples) => {
                for (labels, value) in samples {
                    metric.encode_family(labels)?.encode_counter(value, none)?;
                }
            }
            Samples::Seconds(samples) => {
                for (labels, value) in samples {
                    metric.encode_family(labels)?.encode_counter(value, none)?;
                }
            }
            Samples::Gauge(samples) => {
                for (labels, value) in samples {
                    metric.encode_family(labels)?.encode_gauge(value)?;
                }
            }
            Samples::Histogram(samples) => {
                for (labels, Histogram { sum, count, classes }) in samples {
                    metric
                        .encode_family(labels)?
                        .encode_histogram::<NoLabelSet>(*sum, *count, classes, None)?;
                }
            }
            Samples::Info(labels) => metric.encode_info(labels)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family> {
        let label = |value: &str| vec![("peer", value.to_owned())];
        vec![
            Family {
                name: "cplb_peer_heard_age_seconds",
                help: "Age",
                samples: Samples::Gauge(vec![(label("a\"b\n"), 0.5)]),
            },
            Family { name: "cplb_moves", help: "Moves", samples: Samples::Counter(vec![(Vec::new(), 3)]) },
            Family { name: "cplb_none", help: "Nothing", samples: Samples::Counter(Vec::new()) },
            Family {
                name: "cplb_wait_seconds",
                help: "Wait",
                samples: Samples::Histogram(vec![(
                    label("x"),
                    Histogram { sum: 2.5, count: 4, classes: vec![(0.5, 1), (1.0, 2)] },
                )]),
            },
            Family {
                name: "cplb_build",
                help: "Build",
                samples: Samples::Info(vec![("version", "1".to_owned())]),
            },
        ]
    }

    #[test]
    fn families_are_encoded_in_both_formats() {
        let text = encode(families(), Format::Text).unwrap();
        let expected = "# HELP cplb_peer_heard_age_seconds Age\n# TYPE cplb_peer_heard_age_seconds gauge\n\
                        cplb_peer_heard_age_seconds{peer=\"a\\\"b\\n\"} 0.5\n# HELP cplb_moves_total Moves\n\
                        # TYPE cplb_moves_total counter\ncplb_moves_total 3\n# HELP cplb_wait_seconds Wait\n\
                        # TYPE cplb_wait_seconds histogram\ncplb_wait_seconds_bucket{peer=\"x\",le=\"0.5\"} 1\n\
                        cplb_wait_seconds_bucket{peer=\"x\",le=\"1\"} 3\n\
                        cplb_wait_seconds_bucket{peer=\"x\",le=\"+Inf\"} 4\ncplb_wait_seconds_sum{peer=\"x\"} 2.5\n\
                        cplb_wait_seconds_count{peer=\"x\"} 4\n# HELP cplb_build_info Build\n\
                        # TYPE cplb_build_info gauge\ncplb_build_info{version=\"1\"} 1\n";
        assert_eq!(text, expected);
        let text = encode(families(), Format::OpenMetrics).unwrap();
        for line in [
            "# UNIT cplb_peer_heard_age_seconds seconds\n",
            "# TYPE cplb_moves counter\n",
            "# TYPE cplb_build info\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.ends_with("# EOF\n") && !text.contains("cplb_none"), "{text}");
    }

    #[test]
    fn the_reader_chooses_the_format() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("*/*"), Format::Text);
    }
}
