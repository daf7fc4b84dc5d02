//! One timerfd for all deadlines.
//!
//! tokio's own timer wheel rounds to milliseconds; a priority step at an interval of 10 ms is 39 µs.

use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::readiness::Watched;

/// A timer that fires once, at a time known to the nanosecond.
pub(super) struct DeadlineTimer {
    readiness: Watched,
    timer: TimerFd,
    armed: Option<Instant>,
}

impl DeadlineTimer {
    /// Must be called within a tokio runtime with I/O enabled.
    pub(super) fn new() -> io::Result<Self> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // A duplicate shares the timer and its readiness; `TimerFd` does not lend its own descriptor for long enough.
        let readiness = Watched::new(timer.as_fd().try_clone_to_owned()?)?;
        Ok(Self { readiness, timer, armed: None })
    }

    /// Lets the timer fire at `deadline` instead of any earlier choice, or never.
    pub(super) fn arm(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<()> {
        if self.armed == deadline {
            return Ok(());
        }
        match deadline {
            None => self.timer.unset()?,
            Some(deadline) => {
                // A zero expiration would disarm the timer.
                let wait = deadline.saturating_duration_since(now).max(Duration::from_nanos(1));
                self.timer
                    .set(Expiration::OneShot(TimeSpec::from_duration(wait)), TimerSetTimeFlags::empty())?;
            }
        }
        self.armed = deadline;
        Ok(())
    }

    /// Ready once the deadline has passed; the timer is then unarmed.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.readiness.poll_readable(cx).is_ready() {
            // Reading fails with EAGAIN if the timer was set anew after it had fired.
            let fired = self.timer.wait().is_ok();
            self.readiness.exhausted();
            if fired {
                self.armed = None;
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
    }

    #[test]
    fn fires_at_the_deadline_and_not_before() {
        run(async {
            let mut timer = DeadlineTimer::new().unwrap();
            let start = Instant::now();
            for micros in [1, 39, 700, 20_000] {
                let deadline = Instant::now() + Duration::from_micros(micros);
                timer.arm(Some(deadline), Instant::now()).unwrap();
                poll_fn(|cx| timer.poll_expired(cx)).await;
                assert!(Instant::now() >= deadline, "fired before {micros} µs were over");
            }
            assert!(start.elapsed() < Duration::from_secs(5));
        });
    }

    #[test]
    fn nothing_is_rounded() {
        run(async {
            let mut timer = DeadlineTimer::new().unwrap();
            let now = Instant::now();
            timer.arm(Some(now + Duration::from_nanos(1_000_000_039)), now).unwrap();
            let interval = timer.timer.get().unwrap();
            let Some(Expiration::OneShot(left)) = interval else { panic!("armed: {interval:?}") };
            let left = Duration::from(left);
            assert!(
                left <= Duration::from_nanos(1_000_000_039) && left > Duration::from_millis(500),
                "{left:?}"
            );
            timer.arm(None, now).unwrap();
            assert!(timer.timer.get().unwrap().is_none());
        });
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        run(async {
            let mut timer = DeadlineTimer::new().unwrap();
            let now = Instant::now();
            timer.arm(now.checked_sub(Duration::from_millis(5)), now).unwrap();
            poll_fn(|cx| timer.poll_expired(cx)).await;
        });
    }

    #[test]
    fn a_new_deadline_replaces_one_that_has_already_fired() {
        run(async {
            let mut timer = DeadlineTimer::new().unwrap();
            let past = Instant::now();
            timer.arm(Some(past), past).unwrap();
            // Let the kernel report the expiration before it is taken back.
            while timer.timer.get().unwrap().is_some() {}
            let deadline = Instant::now() + Duration::from_millis(20);
            timer.arm(Some(deadline), Instant::now()).unwrap();
            poll_fn(|cx| timer.poll_expired(cx)).await;
            assert!(Instant::now() >= deadline);
        });
    }
}
