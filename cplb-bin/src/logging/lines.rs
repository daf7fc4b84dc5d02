//! Applies the [`Limiter`] to every line of level INFO and above: a client, a peer, a backend or a flapping link can cause
//! most of them.
//!
//! The kind of a line is its log statement in the program; its subject are the fields in [`SUBJECT_FIELDS`]. Lines at
//! DEBUG and TRACE are not limited: an operator has asked for each of them.

use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, callsite};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::limiter::{Decision, Due, Limiter};
use crate::cli::LogFormat;

/// The target of lines that report the result of an operator's command, such as a reload. They are not limited.
pub(crate) const ANSWER: &str = "cplb::answer";

/// Fields that identify the subject of a line. None of them is chosen by the sender of a packet, as its address is:
/// otherwise each packet could have a subject of its own.
const SUBJECT_FIELDS: [&str; 13] = [
    "vrid",
    "interface",
    "found_on",
    "service",
    "port",
    "backend",
    "ip",
    "vip",
    "server",
    "name",
    "kubeconfig",
    "worker",
    "path",
];

/// The limits of all lines of the process, and the lines that are held.
pub(super) struct Lines {
    limiter: Mutex<Limiter<callsite::Identifier, String>>,
    format: LogFormat,
    clock: fn() -> Instant,
    /// Called when a line is held by which [`Lines::next_due`] may have changed.
    on_held: Box<dyn Fn() + Send + Sync>,
}

impl Lines {
    pub(super) fn new(
        format: LogFormat,
        clock: fn() -> Instant,
        on_held: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self { limiter: Mutex::new(Limiter::new()), format, clock, on_held }
    }

    /// The time at which held lines are due next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.limiter().next_due()
    }

    /// Takes the held lines that are due, as one text.
    pub(super) fn due(&self) -> String {
        let due = self.limiter().due((self.clock)());
        self.text(due)
    }

    /// Takes all held lines, as one text.
    pub(super) fn drain(&self) -> String {
        let all = self.limiter().drain((self.clock)());
        self.text(all)
    }

    /// Limits a line. Returns the text to be written now: held lines that are due, and the line unless it is held.
    fn offer(&self, event: &Event<'_>, line: String) -> String {
        let mut subject = Subject(DefaultHasher::new());
        event.record(&mut subject);
        let (kind, now) = (event.metadata().callsite(), (self.clock)());
        let (due, decision) = {
            let mut limiter = self.limiter();
            (limiter.due(now), limiter.offer(kind, subject.0.finish(), line, now))
        };
        let mut text = self.text(due);
        match decision {
            Decision::Write(line) => text.push_str(&line),
            Decision::Held { first: true } => (self.on_held)(),
            Decision::Held { first: false } => {}
        }
        text
    }

    fn text(&self, due: Vec<Due<String>>) -> String {
        due.into_iter().map(|Due { line, suppressed }| with_count(self.format, line, suppressed)).collect()
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter<callsite::Identifier, String>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds the number of suppressed lines to a line.
fn with_count(format: LogFormat, mut line: String, suppressed: u64) -> String {
    if suppressed == 0 {
        return line;
    }
    let end = match format {
        LogFormat::Text => "\n",
        LogFormat::Json => "}\n",
    };
    line.truncate(line.strip_suffix(end).map_or(line.len(), str::len));
    let _ = match format {
        LogFormat::Text => writeln!(line, " suppressed_lines={suppressed}"),
        LogFormat::Json => writeln!(line, ",\"suppressed_lines\":{suppressed}}}"),
    };
    line
}

/// Formats events by `F`, and limits the lines.
pub(super) struct LimitedFormat<F> {
    pub(super) format: F,
    pub(super) lines: Arc<Lines>,
}

impl<S, N, F> FormatEvent<S, N> for LimitedFormat<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == ANSWER {
            return self.format.format_event(ctx, out, event);
        }
        let mut line = String::new();
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        out.write_str(&self.lines.offer(event, line))
    }
}

/// Hashes the subject of a line.
struct Subject(DefaultHasher);

impl Visit for Subject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if SUBJECT_FIELDS.contains(&field.name()) {
            self.0.write(field.name().as_bytes());
            let _ = write!(self, "{value:?}");
        }
    }
}

impl fmt::Write for Subject {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
