//! The table of the comparison.

use std::collections::HashMap;
use std::fs;
use std::thread::available_parallelism;

use cplb_benches::Sample;

use crate::subject::Kind;
use crate::{Effort, Result};

/// A ratio to HAProxy's best mode below which there is a defect.
const FLOOR: f64 = 0.8;
/// Load of other processes above which figures are rough.
const MAX_OTHER_LOAD: f64 = 0.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Metric {
    Download,
    DownloadCpu,
    Upload,
    UploadCpu,
    Requests,
    RequestCpu,
    Latency,
    Connections,
    ConnectionCpu,
    Memory,
}

impl Metric {
    const ALL: [Metric; 10] = [
        Metric::Download,
        Metric::DownloadCpu,
        Metric::Upload,
        Metric::UploadCpu,
        Metric::Requests,
        Metric::RequestCpu,
        Metric::Latency,
        Metric::Connections,
        Metric::ConnectionCpu,
        Metric::Memory,
    ];

    fn name(self) -> &'static str {
        match self {
            Metric::Download => "download, Gb/s",
            Metric::DownloadCpu => "· CPU s/GB ↓",
            Metric::Upload => "upload, Gb/s",
            Metric::UploadCpu => "· CPU s/GB ↓",
            Metric::Requests => "requests, 1000/s",
            Metric::RequestCpu | Metric::ConnectionCpu => "· CPU µs each ↓",
            Metric::Latency => "· p99, ms ↓",
            Metric::Connections => "connections, 1000/s",
            Metric::Memory => "idle pair, B ↓",
        }
    }

    /// Lower is better.
    fn is_cost(self) -> bool {
        !matches!(self, Metric::Download | Metric::Upload | Metric::Requests | Metric::Connections)
    }

    fn digits(self) -> usize {
        match self {
            Metric::Memory => 0,
            Metric::DownloadCpu | Metric::UploadCpu => 3,
            Metric::Latency => 2,
            _ => 1,
        }
    }
}

/// All figures of all rounds.
#[derive(Debug, Default)]
pub(crate) struct Figures(HashMap<(Metric, Kind), Sample>);

impl Figures {
    pub(crate) fn add(&mut self, metric: Metric, kind: Kind, figure: f64) {
        self.0.entry((metric, kind)).or_default().push(figure);
    }

    pub(crate) fn print(&self, effort: &Effort) {
        let mut header = format!("| {:<19} | {:<19} |", "", "cplb : best HAProxy");
        for kind in Kind::ALL {
            header += &format!(" {:<12} |", kind.name());
        }
        println!("{header}");
        println!("|{}|{}|{}", "-".repeat(21), "-".repeat(21), "--------------|".repeat(Kind::ALL.len()));
        let mut too_low = Vec::new();
        for metric in Metric::ALL {
            let ratio = self.ratio(metric);
            let advantage = ratio.as_ref().map(|(ratio, _)| ratio.median());
            let advantage = advantage.map(|ratio| if metric.is_cost() { 1.0 / ratio } else { ratio });
            if advantage.is_some_and(|advantage| advantage < FLOOR) {
                too_low.push(metric.name());
            }
            self.print_row(metric, ratio);
        }
        if !too_low.is_empty() && effort.rounds > 1 {
            println!("\nBelow {FLOOR} of HAProxy's best mode: {}", too_low.join("; "));
        }
    }

    fn print_row(&self, metric: Metric, ratio: Option<(Sample, Kind)>) {
        let ratio = ratio.map_or(String::new(), |(ratio, _)| {
            let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| ratio.quantile(share));
            format!("{middle:.2} ({low:.2}–{high:.2})")
        });
        let mut row = format!("| {:<19} | {ratio:<19} |", metric.name());
        for kind in Kind::ALL {
            let cell = self.0.get(&(metric, kind)).map_or("–".to_owned(), |sample| {
                let digits = metric.digits();
                format!("{:.digits$} ±{:.0} %", sample.median(), sample.spread() * 100.0)
            });
            row += &format!(" {cell:<12} |");
        }
        println!("{row}");
    }

    /// The ratio of the proxy to the best mode of HAProxy.
    fn ratio(&self, metric: Metric) -> Option<(Sample, Kind)> {
        let own = self.0.get(&(metric, Kind::Proxy))?;
        let peers = Kind::ALL.into_iter().filter(|kind| kind.is_peer());
        let peers = peers.filter_map(|kind| Some((kind, self.0.get(&(metric, kind))?)));
        let better = |a: &Sample, b: &Sample| {
            let order = a.median().total_cmp(&b.median());
            if metric.is_cost() { order.reverse() } else { order }
        };
        let (kind, best) = peers.max_by(|(_, a), (_, b)| better(a, b))?;
        Some((own.over(best), kind))
    }
}

/// The conditions that a figure depends on besides the code.
#[derive(Debug)]
pub(crate) struct Environment {
    haproxy: String,
    kernel: String,
    congestion: String,
    /// The load average of the last minute before the measurements.
    load: f64,
}

impl Environment {
    pub(crate) fn read(haproxy: String, congestion: String) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let release = read("/proc/sys/kernel/osrelease")?;
        let load = read("/proc/loadavg")?;
        Ok(Environment {
            haproxy,
            kernel: release.split('.').take(2).collect::<Vec<_>>().join("."),
            congestion,
            load: load.split(' ').next().unwrap_or_default().parse()?,
        })
    }

    pub(crate) fn print(&self, effort: &Effort) {
        let cores = available_parallelism().map_or(0, usize::from);
        let Environment { haproxy, kernel, congestion, load } = self;
        let Effort { rounds, slice, memory_rounds, idle_pairs } = effort;
        println!("\n{cores} cores, kernel {kernel}, {haproxy}, congestion control {congestion} everywhere.");
        println!(
            "Medians of {rounds} interleaved rounds of {} ms; memory: {memory_rounds} rounds of {idle_pairs} pairs.",
            slice.as_millis()
        );
        println!("±: half the distance of the quartiles. ↓: less is better.");
        println!(
            "cplb : best HAProxy: median of the rounds' ratios to its best mode for the metric (quartiles)."
        );
        if *rounds == 1 {
            println!("One short round: this shows that everything runs, and nothing else.");
        } else if *load > MAX_OTHER_LOAD {
            println!(
                "The machine was busy (load {load}): only the ratios mean something, and less than usual."
            );
        }
        println!();
    }
}
