//! Log lines on standard error, text or JSON, filtered by level and by part.
//!
//! The reader of standard error may stop reading: a thread of its own writes, so that a full pipe blocks no other thread,
//! and lines beyond the capacity of its queue are dropped and counted. A burst of like lines is limited ([`lines`]): the
//! same thread writes the held lines when they are due.

mod limiter;
mod lines;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use cplb_config::{escaped, is_unprintable};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::LogFormat;

pub(crate) use lines::ANSWER;
use lines::{LimitedFormat, Lines};

/// Lines that wait for a slow reader, some hundred kilobytes.
const QUEUE_CAPACITY: usize = 2048;
/// The time for which the end of the process waits for a slow reader.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Without the lines of kube, which repeat each failure at each attempt: discovery logs its failures itself.
pub(crate) const DEFAULT_FILTER: &str = "info,kube_client=off,kube_runtime=off";

static QUEUE: OnceLock<Queue> = OnceLock::new();

enum Item {
    Line(Vec<u8>),
    /// Acknowledged when all lines before it and all held lines are written.
    Flush(SyncSender<()>),
    /// [`Lines::next_due`] has changed.
    NextDue,
}

/// The queue to the writing thread. It never blocks.
#[derive(Clone)]
struct Queue {
    lines: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

impl Write for Queue {
    /// The subscriber writes a line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Item::Line(line.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filter of such a text: levels, and `target=level` for parts, separated by commas. An empty text is the default.
///
/// # Errors
///
/// If it is no filter.
pub(crate) fn filter(text: &str) -> Result<Targets, String> {
    const HELP: &str = "write error, warn, info, debug, trace or off, for parts as in info,vrrp=trace";
    let text = if text.trim().is_empty() { DEFAULT_FILTER } else { text };
    // A lone word that is no level would be a part, and switch all other lines off.
    let is_level = |part: &str| part.contains('=') || part.trim().parse::<LevelFilter>().is_ok();
    if let Some(word) = text.split(',').find(|part| !is_level(part)) {
        return Err(format!("{word} is no level; {HELP}"));
    }
    text.parse().map_err(|error| format!("{error}; {HELP}"))
}

/// The word of operators for the filter of the start.
pub(crate) const DEFAULT_WORD: &str = "default";

/// The variable that Rust programs have in common, where nothing else chooses the lines.
const COMMON_VARIABLE: &str = "RUST_LOG";

/// The filter at the start: the one that was asked for, else that of `RUST_LOG`, else the default; and the reason why `RUST_LOG`
/// is ignored, if it is no filter.
pub(crate) fn initial_filter(wanted: Option<&str>) -> (String, Option<String>) {
    let common = || std::env::var(COMMON_VARIABLE).ok().filter(|text| !text.trim().is_empty());
    match (wanted, common()) {
        (Some(wanted), _) => (wanted.to_owned(), None),
        (None, None) => (DEFAULT_FILTER.to_owned(), None),
        (None, Some(common)) => match filter(&common) {
            Ok(_) => (common, None),
            Err(error) => (DEFAULT_FILTER.to_owned(), Some(format!("{COMMON_VARIABLE} is ignored: {error}"))),
        },
    }
}

type SetFilter = Box<dyn Fn(Targets) -> bool + Send + Sync>;
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Replaces the filter of the running process. Returns whether there is a log.
pub(crate) fn set_filter(filter: Targets) -> bool {
    SET_FILTER.get().is_some_and(|set| set(filter))
}

/// Installs the process-wide subscriber; a second call is a no-op.
pub(crate) fn init(format: LogFormat, filter: Targets) {
    let Some((queue, lines)) = start(format) else { return };
    let builder = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
    let builder = builder.with_target(false).log_internal_errors(false);
    let builder = builder.with_writer(move || queue.clone());
    let installed = match format {
        LogFormat::Text => {
            let ansi = io::stderr().is_terminal();
            let builder = builder.fmt_fields(EscapedFields::default());
            let (filter, handle) = reload::Layer::new(filter);
            let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).is_ok()));
            builder
                .map_event_format(|format| LimitedFormat { format: format.with_ansi(ansi), lines })
                .finish()
                .with(filter)
                .try_init()
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true);
            let (filter, handle) = reload::Layer::new(filter);
            let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).is_ok()));
            builder
                .map_event_format(|format| LimitedFormat { format: EscapedJson(format), lines })
                .finish()
                .with(filter)
                .try_init()
        }
    };
    if installed.is_err() {
        tracing::debug!("a log subscriber is installed already");
    }
}

/// Formats message and fields as by default, without colours, and escapes them: they quote files, certificates, peers and
/// API servers.
#[derive(Default)]
struct EscapedFields(DefaultFields);

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut text = String::new();
        self.0.format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&escaped(&text))
    }
}

/// Escapes unprintable characters in lines of JSON, which permits them in strings. Outside of strings there are none.
struct EscapedJson<F>(F);

impl<S, N, F> FormatEvent<S, N> for EscapedJson<F>
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
        let mut line = String::new();
        self.0.format_event(ctx, Writer::new(&mut line), event)?;
        out.write_str(&escape_json(&line))
    }
}

/// Writes the unprintable characters in the strings of a JSON document as `\\u` escapes; line breaks between its tokens
/// stay. The value of the document is the same.
pub(crate) fn escape_json(document: &str) -> String {
    let mut out = String::with_capacity(document.len());
    for c in document.chars() {
        if c == '\n' || !is_unprintable(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}

/// Waits until the lines so far are written, at most [`FLUSH_TIMEOUT`].
pub(crate) fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let deadline = Instant::now() + FLUSH_TIMEOUT;
    let (done, written) = sync_channel(1);
    while let Err(TrySendError::Full(_)) = queue.lines.try_send(Item::Flush(done.clone())) {
        if Instant::now() > deadline {
            return;
        }
        thread::sleep(FLUSH_TIMEOUT / 100);
    }
    let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// Starts the writing thread. Returns its queue and the held lines, or `None` if it runs already or cannot be started.
fn start(format: LogFormat) -> Option<(Queue, Arc<Lines>)> {
    let (queue, items) = queue(QUEUE_CAPACITY);
    QUEUE.set(queue.clone()).ok()?;
    let wake = queue.lines.clone();
    // With a full queue the thread is awake, and reads `next_due` after the next item.
    let on_held = Box::new(move || drop(wake.try_send(Item::NextDue)));
    let lines = Arc::new(Lines::new(format, Instant::now, on_held));
    let dropped = Arc::clone(&queue.dropped);
    // Not the handle of the standard library: a write that blocks would hold its lock.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    let held = Arc::clone(&lines);
    let body = move || write_all(&items, &held, &dropped, out);
    thread::Builder::new().name("log".into()).spawn(body).ok()?;
    Some((queue, lines))
}

fn queue(capacity: usize) -> (Queue, Receiver<Item>) {
    let (lines, items) = sync_channel(capacity);
    (Queue { lines, dropped: Arc::default() }, items)
}

fn write_all(items: &Receiver<Item>, held: &Lines, dropped: &AtomicU64, mut out: impl Write) {
    // Failures are ignored: there is no other place to report them.
    let mut write = |text: &[u8]| drop(out.write_all(text));
    loop {
        match next(items, held) {
            Ok(Item::Line(line)) => write(&line),
            Ok(Item::Flush(done)) => {
                write(held.drain().as_bytes());
                let _ = done.try_send(());
            }
            Ok(Item::NextDue) | Err(RecvTimeoutError::Timeout) => write(held.due().as_bytes()),
            Err(RecvTimeoutError::Disconnected) => return write(held.drain().as_bytes()),
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => tracing::warn!(lines, "log lines dropped: standard error was not read in time"),
        }
    }
}

/// Receives the next item, with the time at which held lines are due as the timeout.
fn next(items: &Receiver<Item>, held: &Lines) -> Result<Item, RecvTimeoutError> {
    match held.next_due() {
        None => items.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(due) => items.recv_timeout(due.saturating_duration_since(Instant::now())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_filter_has_levels_for_all_and_for_parts() {
        let enabled =
            |text: &str, target: &str, level: Level| filter(text).unwrap().would_enable(target, &level);
        assert!(enabled("debug", "cplb::daemon", Level::DEBUG));
        assert!(enabled("info,vrrp=trace", "vrrp::router", Level::TRACE));
        assert!(!enabled("info,vrrp=trace", "cplb::daemon", Level::DEBUG));
        assert!(enabled(DEFAULT_FILTER, "cplb::daemon", Level::INFO));
        assert!(!enabled(DEFAULT_FILTER, "kube_client::client", Level::ERROR));
        assert!(enabled(" ", "cplb::daemon", Level::INFO), "an environment file may leave it empty");
        for wrong in ["info,vrrp=loud", "loud", "info,vrrp"] {
            assert!(filter(wrong).unwrap_err().contains("write error, warn"), "{wrong}");
        }
    }

    const HOSTILE: &str = "a\nb\r\u{1b}[2J\u{9b}\u{202e}c\u{2028}\u{e0041}\"\\";

    /// The bytes that a subscriber writes for an event with unprintable characters in message, field and debug output.
    fn logged(format: LogFormat) -> String {
        let (queue, items) = queue(8);
        let make = {
            let queue = queue.clone();
            move || queue.clone()
        };
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(make);
        let emit = || tracing::warn!(name = HOSTILE, shown = %HOSTILE, list = ?[HOSTILE], "said: {HOSTILE}");
        match format {
            LogFormat::Text => {
                let subscriber = builder.fmt_fields(EscapedFields::default()).finish();
                tracing::subscriber::with_default(subscriber, emit);
            }
            LogFormat::Json => {
                let builder = builder.json().flatten_event(true);
                let subscriber = builder.map_event_format(EscapedJson).finish();
                tracing::subscriber::with_default(subscriber, emit);
            }
        }
        let dropped = Arc::clone(&queue.dropped);
        drop(queue);
        let held = Lines::new(LogFormat::Text, Instant::now, Box::new(|| ()));
        let mut written = Vec::new();
        write_all(&items, &held, &dropped, &mut written);
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn log_lines_have_no_unprintable_characters_but_their_end() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format);
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.contains(is_unprintable), "{line:?}");
        }
    }

    #[test]
    fn json_lines_parse_to_the_original_text() {
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!((&line["name"], &line["shown"]), (&HOSTILE.into(), &HOSTILE.into()));
        assert_eq!(line["message"], format!("said: {HOSTILE}"));
    }

    #[test]
    fn a_full_queue_drops_and_counts_lines() {
        let (mut queue, items) = queue(2);
        for line in ["one", "two", "three", "four"] {
            assert_eq!(queue.write(line.as_bytes()).unwrap(), line.len());
        }
        let dropped = Arc::clone(&queue.dropped);
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        drop(queue);
        let mut written = Vec::new();
        let lines = Lines::new(LogFormat::Text, Instant::now, Box::new(|| {}));
        write_all(&items, &lines, &dropped, &mut written);
        assert_eq!((written.as_slice(), dropped.load(Ordering::Relaxed)), (&b"onetwo"[..], 0));
    }
}
