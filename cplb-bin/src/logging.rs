//! Log lines on standard error, text or JSON, filtered by `CPLB_LOG` (default `info`).
//!
//! A reader may stop reading: a thread of its own writes, so that a full pipe stalls nothing, and lines that find no room
//! are counted. A storm of lines is written in part ([`lines`]): the same thread writes the rest of it in time.

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
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::LogFormat;

pub(crate) use lines::ANSWER;
use lines::{Limited, Lines, Shape};

/// Lines that wait for a slow reader, some hundred kilobytes.
const ROOM: usize = 2048;
/// The end of the process waits this long for a slow reader.
const PATIENCE: Duration = Duration::from_millis(500);

/// Discovery tells of its failures itself, where the library would repeat them with each try.
const DEFAULT: &str = "info,kube_client=off,kube_runtime=off";

static QUEUE: OnceLock<Queue> = OnceLock::new();

enum Item {
    Line(Vec<u8>),
    /// Answered when everything before it is written, and all lines that were held back.
    Mark(SyncSender<()>),
    /// The next time at which held lines are due has changed.
    Held,
}

/// Takes lines without ever waiting.
#[derive(Clone)]
struct Queue {
    lines: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Write for Queue {
    /// The subscriber writes a line at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Item::Line(line.to_vec())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Installs the process-wide subscriber; a second call is a no-op.
pub(crate) fn init(format: LogFormat) {
    let (shape, ansi) = match format {
        LogFormat::Text => (Shape::Text, io::stderr().is_terminal()),
        LogFormat::Json => (Shape::Json, false),
    };
    let Some((queue, lines)) = start(shape) else { return };
    let filter = EnvFilter::try_from_env("CPLB_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_target(false).log_internal_errors(false);
    let builder = builder.with_writer(move || queue.clone());
    let installed = match shape {
        Shape::Text => {
            let builder = builder.fmt_fields(EscapedFields::default());
            builder.map_event_format(|format| Limited { format: format.with_ansi(ansi), lines }).try_init()
        }
        Shape::Json => {
            let builder = builder.json().flatten_event(true);
            builder.map_event_format(|format| Limited { format: EscapedJson(format), lines }).try_init()
        }
    };
    if installed.is_err() {
        tracing::debug!("a log subscriber was installed before");
    }
}

/// Message and fields as usual, without colours, and escaped: they quote files, certificates, peers and API servers.
#[derive(Default)]
struct EscapedFields(DefaultFields);

impl<'writer> FormatFields<'writer> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut text = String::new();
        self.0.format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&escaped(&text))
    }
}

/// Escapes in lines of JSON those characters that JSON itself lets pass. Outside of strings there are none.
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

/// A JSON document of one line, or with line breaks between its tokens, with unprintable characters in its strings as
/// `\\u` escapes: the same document.
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

/// Waits until the lines so far are written, if somebody reads them.
pub(crate) fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let deadline = Instant::now() + PATIENCE;
    let (mark, written) = sync_channel(1);
    while let Err(TrySendError::Full(_)) = queue.lines.try_send(Item::Mark(mark.clone())) {
        if Instant::now() > deadline {
            return;
        }
        thread::sleep(PATIENCE / 100);
    }
    let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// The queue to the writing thread, and the lines that are held back; `None` if there was one before, or no thread can be
/// started.
fn start(shape: Shape) -> Option<(Queue, Arc<Lines>)> {
    let (queue, items) = queue(ROOM);
    QUEUE.set(queue.clone()).ok()?;
    let wake = queue.lines.clone();
    // If it finds no room the thread is awake, and looks by itself.
    let held = Box::new(move || drop(wake.try_send(Item::Held)));
    let lines = Arc::new(Lines::new(shape, Instant::now, held));
    let lost = Arc::clone(&queue.lost);
    // Without the lock of the standard library's handle, which a stuck write would keep from everybody else.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    let held = Arc::clone(&lines);
    let body = move || write_all(&items, &held, &lost, out);
    thread::Builder::new().name("log".into()).spawn(body).ok()?;
    Some((queue, lines))
}

fn queue(room: usize) -> (Queue, Receiver<Item>) {
    let (lines, items) = sync_channel(room);
    (Queue { lines, lost: Arc::default() }, items)
}

fn write_all(items: &Receiver<Item>, held: &Lines, lost: &AtomicU64, mut out: impl Write) {
    // There is no other place to report to that it cannot be written.
    let mut write = |text: &[u8]| drop(out.write_all(text));
    loop {
        match next(items, held) {
            Ok(Item::Line(line)) => write(&line),
            Ok(Item::Mark(written)) => {
                write(held.drain().as_bytes());
                let _ = written.try_send(());
            }
            Ok(Item::Held) | Err(RecvTimeoutError::Timeout) => write(held.due().as_bytes()),
            Err(RecvTimeoutError::Disconnected) => return write(held.drain().as_bytes()),
        }
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => tracing::warn!(lines, "log lines are lost: nobody read them in time"),
        }
    }
}

/// The next item, or nothing when held lines are due.
fn next(items: &Receiver<Item>, held: &Lines) -> Result<Item, RecvTimeoutError> {
    match held.next_due() {
        None => items.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(due) => items.recv_timeout(due.saturating_duration_since(Instant::now())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\nb\r\u{1b}[2J\u{9b}\u{202e}c\u{2028}\u{e0041}\"\\";

    /// The bytes that a subscriber writes for an event with hostile text in message, field and debug output.
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
        let lost = Arc::clone(&queue.lost);
        drop(queue);
        let held = Lines::new(Shape::Text, Instant::now, Box::new(|| ()));
        let mut written = Vec::new();
        write_all(&items, &held, &lost, &mut written);
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
    fn json_lines_carry_the_text_as_it_was() {
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json)).unwrap();
        assert_eq!((&line["name"], &line["shown"]), (&HOSTILE.into(), &HOSTILE.into()));
        assert_eq!(line["message"], format!("said: {HOSTILE}"));
    }

    #[test]
    fn a_full_queue_loses_lines_and_counts_them() {
        let (mut queue, items) = queue(2);
        for line in ["one", "two", "three", "four"] {
            assert_eq!(queue.write(line.as_bytes()).unwrap(), line.len());
        }
        let lost = Arc::clone(&queue.lost);
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        drop(queue);
        let mut written = Vec::new();
        let lines = Lines::new(Shape::Text, Instant::now, Box::new(|| {}));
        write_all(&items, &lines, &lost, &mut written);
        assert_eq!((written.as_slice(), lost.load(Ordering::Relaxed)), (&b"onetwo"[..], 0));
    }
}
