//! Applies the [`Limiter`] to every line of level INFO and above, whoever logs it: a client, a peer, a backend or a
//! flapping link can cause most of them.
//!
//! The kind of a line is the place in the program that logs it, its subject are the fields in [`SUBJECTS`]. Lines at
//! DEBUG and TRACE are written as they come: an operator has asked for each of them.

use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, callsite};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::limiter::{Due, Limiter, Offer};

/// Target of the answers to an operator's command, such as a reload: each of them is written.
pub(crate) const ANSWER: &str = "cplb::answer";

/// Fields that say which thing a line is about. Never one that a packet's sender chooses, such as its address: then each
/// packet could have a subject of its own.
const SUBJECTS: [&str; 12] = [
    "vrid",
    "interface",
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

/// How a line ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Text,
    Json,
}

/// The lines of the process that are held back, and their limits.
pub(super) struct Lines {
    limiter: Mutex<Limiter<callsite::Identifier, String>>,
    shape: Shape,
    clock: fn() -> Instant,
    /// Told when a line is held back whose time [`Lines::next_due`] was not known before.
    held: Box<dyn Fn() + Send + Sync>,
}

impl Lines {
    pub(super) fn new(shape: Shape, clock: fn() -> Instant, held: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { limiter: Mutex::new(Limiter::new()), shape, clock, held }
    }

    /// When held lines are due next.
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

    /// What is to be written now because of this line.
    fn offer(&self, event: &Event<'_>, line: String) -> String {
        let mut subject = Subject(DefaultHasher::new());
        event.record(&mut subject);
        let (kind, now) = (event.metadata().callsite(), (self.clock)());
        let (due, offer) = {
            let mut limiter = self.limiter();
            (limiter.due(now), limiter.offer(kind, subject.0.finish(), line, now))
        };
        let mut text = self.text(due);
        match offer {
            Offer::Write(line) => text.push_str(&line),
            Offer::Held { first: true } => (self.held)(),
            Offer::Held { first: false } => {}
        }
        text
    }

    fn text(&self, due: Vec<Due<String>>) -> String {
        due.into_iter().map(|Due { line, suppressed }| self.shape.with_count(line, suppressed)).collect()
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter<callsite::Identifier, String>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shape {
    /// The line with the number of those like it that were not written.
    fn with_count(self, mut line: String, suppressed: u64) -> String {
        if suppressed == 0 {
            return line;
        }
        let end = match self {
            Shape::Text => "\n",
            Shape::Json => "}\n",
        };
        line.truncate(line.strip_suffix(end).map_or(line.len(), str::len));
        let _ = match self {
            Shape::Text => writeln!(line, " suppressed_lines={suppressed}"),
            Shape::Json => writeln!(line, ",\"suppressed_lines\":{suppressed}}}"),
        };
        line
    }
}

/// Formats like `F`, and lets only those lines through that are to be written now.
pub(super) struct Limited<F> {
    pub(super) format: F,
    pub(super) lines: Arc<Lines>,
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
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

/// The hash of a line's subject.
struct Subject(DefaultHasher);

impl Visit for Subject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if SUBJECTS.contains(&field.name()) {
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
