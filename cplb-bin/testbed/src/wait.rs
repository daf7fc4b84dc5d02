//! Waiting for a condition instead of sleeping.

use std::{
    thread,
    time::{Duration, Instant},
};

/// A condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("{what}: not within {timeout:?}")]
pub struct TimedOut {
    /// The condition.
    pub what: String,
    /// The time limit.
    pub timeout: Duration,
}

/// Interval between two evaluations of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Evaluates `condition` every 2 ms until it holds, and returns the elapsed time.
///
/// # Errors
/// [`TimedOut`] with `what` (the condition in words) after `timeout`.
pub fn wait_until(
    what: impl Into<String>,
    timeout: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration, TimedOut> {
    let start = Instant::now();
    loop {
        // The condition is evaluated once more after a stall of this thread, so that a loaded machine does not turn a
        // condition that holds into a timeout.
        let late = start.elapsed() >= timeout;
        if condition() {
            return Ok(start.elapsed());
        }
        if late {
            return Err(TimedOut { what: what.into(), timeout });
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Like [`wait_until`] for tests.
///
/// # Panics
/// With `what` if the condition does not hold within `timeout`.
#[track_caller]
pub fn eventually(what: impl Into<String>, timeout: Duration, condition: impl FnMut() -> bool) -> Duration {
    match wait_until(what, timeout, condition) {
        Ok(elapsed) => elapsed,
        Err(error) => panic!("{error}"),
    }
}
