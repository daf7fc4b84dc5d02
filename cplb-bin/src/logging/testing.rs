//! Bursts of log lines in simulated time.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::limiter::PERIOD;
use super::lines::{LimitedFormat, Lines};
use crate::cli::LogFormat;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The simulated time of the test on this thread.
fn now() -> Instant {
    NOW.get().unwrap_or_else(Instant::now)
}

/// The lines that were written of a burst.
pub(crate) struct Written {
    pub(crate) lines: Vec<String>,
    /// The sum of their `suppressed_lines`.
    pub(crate) suppressed: u64,
}

#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls `event` 1,000 times per second for `seconds`, with the number of the call, and returns the log.
pub(crate) fn storm(seconds: u32, event: impl FnMut(u32)) -> Written {
    written(LogFormat::Text, seconds, event, |line| {
        line.rsplit_once("suppressed_lines=").map_or(0, |(_, count)| count.parse().unwrap())
    })
}

fn written(
    format: LogFormat,
    seconds: u32,
    mut event: impl FnMut(u32),
    suppressed: impl Fn(&String) -> u64,
) -> Written {
    let (mut out, start) = (Out::default(), Instant::now());
    NOW.set(Some(start));
    let lines = Arc::new(Lines::new(format, now, Box::new(|| {})));
    let (writer, limited) = (out.clone(), Arc::clone(&lines));
    let run = move || {
        for number in 0..seconds * 1_000 {
            NOW.set(Some(start + Duration::from_millis(number.into())));
            event(number);
        }
    };
    let builder = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
    let builder = builder.with_max_level(tracing::Level::DEBUG).with_writer(move || writer.clone());
    match format {
        LogFormat::Text => {
            let format = |format| LimitedFormat { format, lines: limited };
            tracing::subscriber::with_default(builder.map_event_format(format).finish(), run);
        }
        LogFormat::Json => {
            let format = |format| LimitedFormat { format, lines: limited };
            let subscriber = builder.json().flatten_event(true).map_event_format(format).finish();
            tracing::subscriber::with_default(subscriber, run);
        }
    }
    NOW.set(Some(start + Duration::from_secs(seconds.into()) + PERIOD));
    out.write_all(lines.due().as_bytes()).unwrap();
    assert_eq!(lines.next_due(), None, "a period after the last line no line is held");
    NOW.set(None);
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let suppressed = lines.iter().map(suppressed).sum();
    Written { lines, suppressed }
}

#[test]
fn json_lines_with_a_count_of_suppressed_lines_are_json() {
    let event = |number| tracing::info!(service = "api", number, "backend up");
    let written = written(LogFormat::Json, 60, event, |line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["suppressed_lines"].as_u64().unwrap_or(0)
    });
    assert_eq!(written.lines.len() as u64 + written.suppressed, 60_000);
    assert!(written.lines.len() <= 21, "{}", written.lines.len());
    assert!(written.lines.last().unwrap().contains("59999"));
}

#[test]
fn results_of_commands_and_debug_lines_are_not_limited() {
    let answer = |number| tracing::info!(target: super::ANSWER, number, "the configuration is reloaded");
    assert_eq!(storm(1, answer).lines.len(), 1_000);
    let debug = |number| tracing::debug!(number, "backend checked");
    assert_eq!(storm(1, debug).lines.len(), 1_000);
}
