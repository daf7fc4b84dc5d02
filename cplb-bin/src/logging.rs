//! Log lines on standard error, text or JSON, filtered by `CPLB_LOG` (default `info`).
//!
//! A reader may stop reading: a thread of its own writes, so that a full pipe stalls nothing, and lines that find no room
//! are counted. A storm of lines is written in part ([`lines`]): the same thread writes the rest of it in time.

mod limiter;
mod lines;
#[cfg(test)]
pub(crate) mod testing;

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

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
            builder.map_event_format(|format| Limited { format: format.with_ansi(ansi), lines }).try_init()
        }
        Shape::Json => {
            builder.json().flatten_event(true).map_event_format(|format| Limited { format, lines }).try_init()
        }
    };
    if installed.is_err() {
        tracing::debug!("a log subscriber was installed before");
    }
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
