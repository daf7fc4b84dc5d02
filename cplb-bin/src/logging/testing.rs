//! Storms of log lines in simulated time.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::limiter::PERIOD;
use super::lines::{Limited, Lines, Shape};

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The time of the test on this thread.
fn now() -> Instant {
    NOW.get().unwrap_or_else(Instant::now)
}

/// The lines that were written of a storm.
pub(crate) struct Written {
    pub(crate) lines: Vec<String>,
    /// Lines that they say were not written.
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

/// Calls `event` 1,000 times in each of so many seconds, with the number of the call, and returns what is logged.
pub(crate) fn storm(seconds: u32, event: impl FnMut(u32)) -> Written {
    written(Shape::Text, seconds, event, |line| {
        line.rsplit_once("suppressed_lines=").map_or(0, |(_, count)| count.parse().unwrap())
    })
}

fn written(
    shape: Shape,
    seconds: u32,
    mut event: impl FnMut(u32),
    suppressed: impl Fn(&String) -> u64,
) -> Written {
    let (mut out, start) = (Out::default(), Instant::now());
    NOW.set(Some(start));
    let lines = Arc::new(Lines::new(shape, now, Box::new(|| {})));
    let (writer, limited) = (out.clone(), Arc::clone(&lines));
    let run = move || {
        for number in 0..seconds * 1_000 {
            NOW.set(Some(start + Duration::from_millis(number.into())));
            event(number);
        }
    };
    let builder = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
    let builder = builder.with_writer(move || writer.clone());
    match shape {
        Shape::Text => {
            let format = |format| Limited { format, lines: limited };
            tracing::subscriber::with_default(builder.map_event_format(format).finish(), run);
        }
        Shape::Json => {
            let format = |format| Limited { format, lines: limited };
            let subscriber = builder.json().flatten_event(true).map_event_format(format).finish();
            tracing::subscriber::with_default(subscriber, run);
        }
    }
    NOW.set(Some(start + Duration::from_secs(seconds.into()) + PERIOD));
    out.write_all(lines.due().as_bytes()).unwrap();
    assert_eq!(lines.next_due(), None, "a period after the last line nothing is held back");
    NOW.set(None);
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let suppressed = lines.iter().map(suppressed).sum();
    Written { lines, suppressed }
}

#[test]
fn lines_stay_json_when_they_count_others() {
    let event = |number| tracing::info!(service = "api", number, "backend up");
    let written = written(Shape::Json, 60, event, |line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["suppressed_lines"].as_u64().unwrap_or(0)
    });
    assert_eq!(written.lines.len() as u64 + written.suppressed, 60_000);
    assert!(written.lines.len() <= 21, "{}", written.lines.len());
    assert!(written.lines.last().unwrap().contains("59999"));
}

#[test]
fn answers_to_an_operator_and_debug_lines_are_not_limited() {
    let answer = |number| tracing::info!(target: super::ANSWER, number, "the configuration is reloaded");
    assert_eq!(storm(1, answer).lines.len(), 1_000);
    let lines = Lines::new(Shape::Text, now, Box::new(|| {}));
    assert_eq!(lines.drain(), "");
}
