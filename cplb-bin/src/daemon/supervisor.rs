//! Tells systemd, or another supervisor with its protocol, about the daemon: that it is ready, what it does, that it stops, and
//! for its watchdog that the event loop and the election run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// The part of the watchdog's time after which it is fed.
const SHARE: u32 = 4;

/// The connection to the supervisor. Without one nothing is sent.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    heartbeat: Heartbeat,
    /// The time between two looks at the election; `None` without a watchdog.
    interval: Option<Duration>,
    next: Option<Instant>,
    /// The status that was sent last.
    status: String,
}

impl Supervisor {
    /// The supervisor that the environment names.
    pub(crate) fn from_environment() -> Self {
        let interval = watchdog_enabled().map(|limit| limit / SHARE);
        Self { interval, ..Self::default() }
    }

    /// The daemon has started, as systemd's `Type=notify` waits for.
    pub(crate) fn ready(&mut self, now: Instant) {
        send(&[NotifyState::Ready]);
        self.next = self.interval.map(|interval| now + interval);
    }

    /// The daemon stops. The watchdog is fed no more.
    pub(crate) fn stopping(&mut self) {
        send(&[NotifyState::Stopping]);
        self.next = None;
    }

    /// Shows a line in `systemctl status`, if it is another one than before.
    pub(crate) fn show(&mut self, status: String) {
        if status != self.status {
            send(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// The time of the next [`Supervisor::tick`].
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Feeds the watchdog if the election has answered, and pings it again. `ping` passes a number to the election's thread, which
    /// stores it; it returns false where there is no election.
    pub(crate) fn tick(&mut self, now: Instant, ping: impl FnOnce(Arc<AtomicU64>, u64) -> bool) {
        let (Some(interval), Some(next)) = (self.interval, self.next) else { return };
        if now < next {
            return;
        }
        self.next = Some(now + interval);
        if self.heartbeat.beats(ping) {
            send(&[NotifyState::Watchdog]);
        }
    }
}

/// The answers of the election's thread.
#[derive(Debug, Default)]
struct Heartbeat {
    answer: Arc<AtomicU64>,
    asked: u64,
}

impl Heartbeat {
    /// Returns whether the last ping was answered, or there is no thread to answer; then it pings again.
    fn beats(&mut self, ping: impl FnOnce(Arc<AtomicU64>, u64) -> bool) -> bool {
        if self.answer.load(Ordering::Relaxed) != self.asked {
            return false;
        }
        if ping(Arc::clone(&self.answer), self.asked + 1) {
            self.asked += 1;
        }
        true
    }
}

fn send(state: &[NotifyState<'_>]) {
    // Without a supervisor nothing is sent. One that does not listen restarts the daemon when it misses the watchdog.
    if let Err(error) = notify(state) {
        tracing::debug!(%error, "the supervisor is not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heart_beats_while_each_ping_is_answered() {
        let mut heartbeat = Heartbeat::default();
        let mut pings = Vec::new();
        assert!(heartbeat.beats(|_, _| false), "there is no election");
        assert!(heartbeat.beats(|answer, number| {
            pings.push((answer, number));
            true
        }));
        assert!(!heartbeat.beats(|_, _| panic!("the ping before is not answered")));
        let (answer, number) = pings.pop().unwrap();
        answer.store(number, Ordering::Relaxed);
        assert!(heartbeat.beats(|_, _| true));
    }

    #[test]
    fn the_watchdog_is_fed_between_the_start_and_the_stop() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut supervisor = Supervisor { interval: Some(second), ..Supervisor::default() };
        assert_eq!(supervisor.poll_timeout(), None);
        supervisor.ready(now);
        assert_eq!(supervisor.poll_timeout(), Some(now + second));
        supervisor.tick(now, |_, _| panic!("it is not time"));
        supervisor.tick(now + second, |_, _| true);
        assert_eq!(supervisor.poll_timeout(), Some(now + 2 * second));
        supervisor.stopping();
        assert_eq!(supervisor.poll_timeout(), None);
    }
}
