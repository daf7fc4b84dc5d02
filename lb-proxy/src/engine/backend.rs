//! The state of a backend while the balancer runs: health by its checks, suspicion by its connections, counters.
//!
//! Two sources assess a backend. Its health checks set its *health*, which holds until the next change. Connects of
//! clients raise a *suspicion*, which only makes other backends preferred and expires by itself: then one client at a
//! time tries the backend again, at longer intervals after each failure.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::chooser::{READY, backend_key};
use super::connect_times;
use super::event::Failure;
use super::snapshot::{BackendSnapshot, BackendState};

/// Length of the first suspicion, in milliseconds; doubled with every failed trial up to [`SUSPICION_MAX`].
const SUSPICION_MIN: u64 = 1_000;
const SUSPICION_MAX: u64 = 10_000;
/// Time during which a backend that can no longer be checked is presumed up, in milliseconds.
const PRESUMED_UP_FOR: u64 = 60_000;
/// Share of the normal load at the beginning of a slow start, in thousandths.
const SLOW_START_SHARE: u64 = 100;
/// Limit on concurrent connects to a backend in slow start.
const SLOW_START_CONNECTS: usize = 8;

/// The health of a backend as the balancer acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendHealth {
    Unknown,
    Up,
    /// It was up, and this node could not check it since, for want of descriptors, ports or memory.
    Unchecked,
    /// It shuts down: it gets no new connections, and its sessions continue.
    Terminating,
    /// It accepts no connections any more, but its sessions may continue: nothing listens there, or its certificate is
    /// not accepted.
    Refusing,
    /// It failed: its sessions are reset.
    Down,
}

impl BackendHealth {
    /// Returns whether it gets connections only when no other backend is left.
    pub(crate) fn is_excluded(self) -> bool {
        matches!(self, BackendHealth::Terminating | BackendHealth::Refusing | BackendHealth::Down)
    }

    fn from_u8(value: u8) -> Self {
        match value {
            0 => BackendHealth::Unknown,
            1 => BackendHealth::Up,
            2 => BackendHealth::Unchecked,
            3 => BackendHealth::Terminating,
            4 => BackendHealth::Refusing,
            _ => BackendHealth::Down,
        }
    }
}

/// The order of preference among backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Fully usable.
    Preferred,
    /// Suspect, or in slow start with the limit of connects under way: chosen when no preferred backend is left.
    Fallback,
    /// Down, refusing or terminating: chosen when no other backend is left.
    LastResort,
}

#[derive(Debug)]
struct Detail {
    /// Since when the health has been what it is.
    since: Instant,
    reason: String,
    /// Time of the last change between draining and not draining.
    drain_changed: Option<Instant>,
    is_draining: bool,
    /// Start of the last suspicion.
    suspected: Option<Instant>,
}

/// A backend, shared by all workers and identified by `id`, which is never reused.
#[derive(Debug)]
pub(crate) struct LiveBackend {
    pub id: u32,
    pub addr: SocketAddr,
    pub key: u64,
    pub active: AtomicUsize,
    pub connecting: AtomicUsize,
    pub total: AtomicU64,
    pub failures: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub connect_times: connect_times::Recorder,
    health: AtomicU8,
    /// Time of the last successful connect, or of the loss of the evidence that it is up.
    last_proof: AtomicU64,
    /// Number of times it went down, by which a connect notices that this happened meanwhile.
    downs: AtomicU32,
    /// Start of the slow start; 0 for none.
    back_since: AtomicU64,
    /// End of the suspicion; 0 for none. An expired suspicion stays here until a trial succeeds.
    suspect_until: AtomicU64,
    failed_trials: AtomicU32,
    /// Set if the suspicion came from a refused connect, which means that the process had ended.
    was_refused: AtomicBool,
    /// Time until which no local port is searched for it; see [`super::local_ports`].
    pub ports_searched_until: AtomicU64,
    detail: Mutex<Detail>,
}

impl LiveBackend {
    pub(crate) fn new(id: u32, addr: SocketAddr) -> Self {
        LiveBackend {
            id,
            addr,
            key: backend_key(addr),
            active: AtomicUsize::new(0),
            connecting: AtomicUsize::new(0),
            total: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            connect_times: connect_times::Recorder::default(),
            health: AtomicU8::new(BackendHealth::Unknown as u8),
            last_proof: AtomicU64::new(0),
            downs: AtomicU32::new(0),
            back_since: AtomicU64::new(0),
            suspect_until: AtomicU64::new(0),
            failed_trials: AtomicU32::new(0),
            was_refused: AtomicBool::new(false),
            detail: Mutex::new(Detail {
                since: Instant::now(),
                reason: "not checked yet".to_owned(),
                drain_changed: None,
                is_draining: false,
                suspected: None,
            }),
            ports_searched_until: AtomicU64::new(0),
        }
    }

    pub(crate) fn health(&self) -> BackendHealth {
        BackendHealth::from_u8(self.health.load(Relaxed))
    }

    /// Returns whether it is up, or was up when it could last be checked and that is recent.
    pub(crate) fn is_presumed_up(&self, now: u64) -> bool {
        match self.health() {
            BackendHealth::Up => true,
            BackendHealth::Unchecked => now.saturating_sub(self.last_proof.load(Relaxed)) < PRESUMED_UP_FOR,
            BackendHealth::Unknown
            | BackendHealth::Terminating
            | BackendHealth::Refusing
            | BackendHealth::Down => false,
        }
    }

    /// Returns whether it was never checked, or not for so long that its health is unknown.
    pub(crate) fn is_unchecked(&self, now: u64) -> bool {
        matches!(self.health(), BackendHealth::Unknown | BackendHealth::Unchecked)
            && !self.is_presumed_up(now)
    }

    /// A counter that grows each time the health becomes [`BackendHealth::Down`].
    pub(crate) fn downs(&self) -> u32 {
        self.downs.load(Relaxed)
    }

    /// The share of its normal load that it may get now, in thousandths.
    pub(crate) fn readiness(&self, now: u64, slow_start: Duration) -> u32 {
        let back_since = self.back_since.load(Relaxed);
        let whole = u64::try_from(slow_start.as_millis()).unwrap_or(u64::MAX);
        let passed = now.saturating_sub(back_since);
        if back_since == 0 || passed >= whole {
            return READY;
        }
        let full = u64::from(READY);
        let share = SLOW_START_SHARE + (full - SLOW_START_SHARE) * passed / whole;
        u32::try_from(share.min(full)).unwrap_or(READY)
    }

    pub(crate) fn tier(&self, now: u64, readiness: u32) -> Tier {
        if self.health().is_excluded() {
            return Tier::LastResort;
        }
        let crowded = readiness < READY && self.connecting.load(Relaxed) >= SLOW_START_CONNECTS;
        if crowded || now < self.suspect_until.load(Relaxed) { Tier::Fallback } else { Tier::Preferred }
    }

    /// Records that it was chosen for a client. If its suspicion has expired, this client is the trial, and a new
    /// suspicion keeps the others away until its result is known.
    pub(crate) fn record_choice(&self, now: u64) {
        let until = self.suspect_until.load(Relaxed);
        if until != 0 && now >= until {
            self.extend_suspicion(now);
        }
    }

    /// Records a successful connect. Returns whether that ended a suspicion.
    pub(crate) fn connected(&self, now: u64) -> bool {
        self.last_proof.store(now, Relaxed);
        if self.suspect_until.load(Relaxed) == 0 || self.suspect_until.swap(0, Relaxed) == 0 {
            return false;
        }
        self.failed_trials.store(0, Relaxed);
        if self.was_refused.swap(false, Relaxed) {
            self.back_since.store(now, Relaxed);
        }
        true
    }

    /// Records a failed connect. Returns whether that began a suspicion.
    pub(crate) fn failed(&self, now: u64, failure: Failure) -> bool {
        self.failures.fetch_add(1, Relaxed);
        if failure == Failure::Refused {
            self.was_refused.store(true, Relaxed);
        }
        if self.suspect_until.load(Relaxed) != 0 {
            return false;
        }
        self.extend_suspicion(now);
        self.detail().suspected = Some(Instant::now());
        true
    }

    /// Sets the configured weight; 0 also for a backend that is no longer configured.
    pub(crate) fn set_weight(&self, weight: u32) {
        let (mut detail, is_draining) = (self.detail(), weight == 0);
        if detail.is_draining != is_draining {
            (detail.is_draining, detail.drain_changed) = (is_draining, Some(Instant::now()));
        }
    }

    fn extend_suspicion(&self, now: u64) {
        let failed_trials = self.failed_trials.fetch_add(1, Relaxed).min(10);
        let length = (SUSPICION_MIN << failed_trials).min(SUSPICION_MAX);
        self.suspect_until.store(now + length, Relaxed);
    }

    /// Sets the health with its reason. If the health changes, returns for how long the previous one held.
    pub(crate) fn record_health(&self, health: BackendHealth, now: u64, reason: &str) -> Option<Duration> {
        let mut detail = self.detail();
        if health == BackendHealth::Unchecked && self.health() != health {
            self.last_proof.store(now, Relaxed);
        }
        let before = BackendHealth::from_u8(self.health.swap(health as u8, Relaxed));
        // The reason can change without the health: "readiness unknown" and "ready" both mean up.
        reason.clone_into(&mut detail.reason);
        if before == health {
            return None;
        }
        match health {
            BackendHealth::Down => {
                self.downs.fetch_add(1, Relaxed);
            }
            BackendHealth::Up => {
                self.suspect_until.store(0, Relaxed);
                self.failed_trials.store(0, Relaxed);
                if before.is_excluded() {
                    self.back_since.store(now, Relaxed);
                }
            }
            BackendHealth::Unknown
            | BackendHealth::Unchecked
            | BackendHealth::Terminating
            | BackendHealth::Refusing => {}
        }
        let held = detail.since.elapsed();
        detail.since = Instant::now();
        Some(held)
    }

    pub(crate) fn snapshot(&self, now: u64, weight: u32, name: Option<String>) -> BackendSnapshot {
        let state = match self.health() {
            _ if weight == 0 => BackendState::Draining,
            BackendHealth::Down | BackendHealth::Refusing => BackendState::Down,
            BackendHealth::Terminating => BackendState::Terminating,
            _ if now < self.suspect_until.load(Relaxed) => BackendState::Suspect,
            BackendHealth::Up => BackendState::Up,
            BackendHealth::Unknown | BackendHealth::Unchecked => BackendState::Unknown,
        };
        let detail = self.detail();
        let since = match state {
            BackendState::Draining => detail.drain_changed.unwrap_or(detail.since),
            BackendState::Suspect => detail.suspected.unwrap_or(detail.since),
            _ => detail.drain_changed.map_or(detail.since, |changed| changed.max(detail.since)),
        };
        BackendSnapshot {
            addr: self.addr,
            name,
            weight,
            state,
            spares_sessions: self.health() != BackendHealth::Down,
            since,
            reason: detail.reason.clone(),
            last_check: None,
            active: self.active.load(Relaxed),
            connecting: self.connecting.load(Relaxed),
            total: self.total.load(Relaxed),
            failures: self.failures.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            connect_times: self.connect_times.snapshot(),
        }
    }

    fn detail(&self) -> MutexGuard<'_, Detail> {
        self.detail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::guard::ConnectGuard;
    use super::*;

    const SLOW_START: Duration = Duration::from_secs(10);

    fn backend() -> LiveBackend {
        LiveBackend::new(1, "192.0.2.1:6443".parse().unwrap())
    }

    fn tier(backend: &LiveBackend, now: u64) -> Tier {
        backend.tier(now, backend.readiness(now, SLOW_START))
    }

    #[test]
    fn simultaneous_failures_count_as_one_failed_trial() {
        let backend = backend();
        assert!(backend.failed(100, Failure::TimedOut));
        for _ in 0..50 {
            assert!(!backend.failed(100, Failure::TimedOut));
        }
        assert_eq!(tier(&backend, 1_099), Tier::Fallback);
        assert_eq!(tier(&backend, 1_100), Tier::Preferred);
    }

    #[test]
    fn suspicion_allows_one_trial_at_a_time_and_grows_after_each() {
        let backend = backend();
        backend.failed(1, Failure::Slow);
        let mut now = 1_001;
        for wait in [2_000, 4_000, 8_000, 10_000, 10_000] {
            assert_eq!(tier(&backend, now), Tier::Preferred);
            backend.record_choice(now);
            assert_eq!(tier(&backend, now), Tier::Fallback, "only one client is the trial");
            backend.failed(now + 1, Failure::Slow);
            assert_eq!(tier(&backend, now + wait - 1), Tier::Fallback);
            now += wait;
        }
        backend.record_choice(now);
        assert!(backend.connected(now));
        assert!(!backend.connected(now));
        assert_eq!(tier(&backend, now), Tier::Preferred);
        assert!(backend.failed(now, Failure::Slow), "a new suspicion");
        assert_eq!(tier(&backend, now + 1_000), Tier::Preferred, "is short again");
    }

    #[test]
    fn slow_start_after_down_and_after_a_refusal_only() {
        let backend = backend();
        backend.record_health(BackendHealth::Up, 5, "ok");
        assert_eq!(backend.readiness(6, SLOW_START), READY, "the first health is no recovery");
        backend.record_health(BackendHealth::Down, 10, "timeout");
        assert_eq!(tier(&backend, 10), Tier::LastResort);
        backend.record_health(BackendHealth::Up, 20, "ok");
        assert_eq!(backend.readiness(20, SLOW_START), 100);
        assert_eq!(backend.readiness(5_020, SLOW_START), 550);
        assert_eq!(backend.readiness(10_020, SLOW_START), READY);
        assert_eq!(backend.readiness(20, Duration::ZERO), READY);

        backend.failed(20_000, Failure::Slow);
        backend.connected(21_500);
        assert_eq!(backend.readiness(21_500, SLOW_START), READY);
        backend.failed(22_000, Failure::Refused);
        backend.connected(23_000);
        assert_eq!(backend.readiness(23_000, SLOW_START), 100);
    }

    #[test]
    fn concurrent_connects_to_a_backend_in_slow_start_are_limited() {
        let backend = Arc::new(backend());
        backend.record_health(BackendHealth::Down, 1, "");
        backend.record_health(BackendHealth::Up, 2, "");
        let connects: Vec<_> =
            (0..SLOW_START_CONNECTS).map(|_| ConnectGuard::new(Arc::clone(&backend))).collect();
        assert_eq!(tier(&backend, 3), Tier::Fallback);
        drop(connects);
        assert_eq!(tier(&backend, 3), Tier::Preferred);
    }

    #[test]
    fn the_reason_changes_although_the_health_is_the_same() {
        let backend = backend();
        let reason = || backend.snapshot(9, 1, None).reason;
        backend.record_health(BackendHealth::Up, 1, "up-readiness-unknown");
        let since = backend.snapshot(2, 1, None).since;
        assert!(backend.record_health(BackendHealth::Up, 2, "up").is_none());
        assert_eq!(reason(), "up");
        assert_eq!(backend.snapshot(2, 1, None).since, since, "the health has not changed");
        assert!(backend.record_health(BackendHealth::Down, 3, "connection refused").is_some());
        assert_eq!(reason(), "connection refused");
        backend.record_health(BackendHealth::Up, 4, "up-readiness-unknown");
        assert_eq!(reason(), "up-readiness-unknown");
    }

    #[test]
    fn since_is_the_start_of_the_reported_state() {
        let backend = backend();
        let since = |now, weight| backend.snapshot(now, weight, None).since;
        backend.record_health(BackendHealth::Up, 1, "up");
        let up = since(2, 1);
        let before = Instant::now();
        backend.set_weight(1);
        assert_eq!(since(2, 1), up);
        backend.set_weight(0);
        let draining = since(3, 0);
        assert!(draining >= before, "not since it went up");
        backend.set_weight(0);
        assert_eq!(since(4, 0), draining);
        backend.set_weight(1);
        assert!(since(5, 1) >= draining);
        backend.failed(6, Failure::Refused);
        let snapshot = backend.snapshot(7, 1, None);
        assert!(snapshot.state == BackendState::Suspect && snapshot.since >= draining);
        backend.failed(8, Failure::Refused);
        assert_eq!(since(8, 1), snapshot.since);
    }

    #[test]
    fn a_health_change_ends_suspicion_and_only_changes_are_reported() {
        let backend = backend();
        backend.failed(1, Failure::Refused);
        assert!(backend.record_health(BackendHealth::Up, 2, "ok").is_some());
        assert_eq!(tier(&backend, 2), Tier::Preferred);
        assert!(backend.record_health(BackendHealth::Up, 3, "ok").is_none());
        assert!(backend.record_health(BackendHealth::Down, 4, "connection refused").is_some());
        assert_eq!(backend.downs(), 1);
        let snapshot = backend.snapshot(5, 1, None);
        assert_eq!((snapshot.state, snapshot.reason.as_str()), (BackendState::Down, "connection refused"));
        assert_eq!(backend.snapshot(5, 0, None).state, BackendState::Draining);
    }
}
