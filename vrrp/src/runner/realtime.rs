//! Means to keep the thread punctual: real-time scheduling, locked memory, and a guard against endless computation.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, UsageWho, getrlimit, getrusage, setrlimit};
use thread_priority::unix::{
    RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityValue};

/// Above every ordinary process, below the kernel's interrupt threads (50).
const PRIORITY: u8 = 20;

/// The longest time that the thread runs without a sleep before it is made to sleep.
const BUSY: Duration = Duration::from_millis(50);

/// The forced sleep: long enough for other threads to run, and short beside the smallest advertisement interval.
const FORCED_SLEEP: Duration = Duration::from_micros(200);

/// Puts the calling thread under SCHED_RR.
///
/// `runaway` becomes the soft RLIMIT_RTTIME of the process, unless it already has one: a real-time thread that computes
/// that long without ever sleeping gets SIGXCPU, which ends the process and keeps the host usable. The thread starts no
/// other thread and no process, so nothing inherits its policy.
pub(super) fn schedule(runaway: Duration) -> Result<(), String> {
    limit_runaway(runaway)
        .map_err(|errno| format!("limiting real-time computation (RLIMIT_RTTIME): {errno}"))?;
    let priority = ThreadPriorityValue::try_from(PRIORITY).map_err(|error| format!("{error:?}"))?;
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(priority), policy)
        .map_err(|error| match error {
            thread_priority::Error::OS(errno) => {
                format!("SCHED_RR: {} (needs CAP_SYS_NICE or LimitRTPRIO={PRIORITY})", Errno::from_raw(errno))
            }
            other => format!("SCHED_RR: {other:?}"),
        })
}

fn limit_runaway(runaway: Duration) -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_RTTIME)?;
    if soft != RLIM_INFINITY {
        return Ok(());
    }
    let micros = u64::try_from(runaway.as_micros()).unwrap_or(RLIM_INFINITY);
    setrlimit(Resource::RLIMIT_RTTIME, micros.min(hard), hard)
}

/// Locks the memory of the process as it is touched, so that no page of it is ever fetched from a disk again.
///
/// Only where the amount is unlimited, by RLIMIT_MEMLOCK or CAP_IPC_LOCK: otherwise a later allocation would fail.
pub(super) fn lock_memory() -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(refused)?;
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        return lock_all().map_err(refused);
    }
    // Under a limit of 0 the kernel refuses the lock unless the process has CAP_IPC_LOCK.
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard).map_err(refused)?;
    let locked = lock_all().map_err(refused);
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).map_err(refused)?;
    locked
}

fn lock_all() -> Result<(), Errno> {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault)
}

fn refused(errno: Errno) -> String {
    format!("mlockall: {errno} (needs CAP_IPC_LOCK or LimitMEMLOCK=infinity)")
}

/// Keeps a thread that is always busy, for instance in a flood of packets, from starving its core and from being
/// taken for a runaway: the kernel resets RLIMIT_RTTIME's count only when the thread sleeps.
pub(super) struct ForcedSleep {
    checked: Instant,
    sleeps: libc::c_long,
}

impl ForcedSleep {
    pub(super) fn new(now: Instant) -> Self {
        Self { checked: now, sleeps: voluntary_sleeps() }
    }

    /// Sleeps for 200 µs if the thread has not slept for 50 ms. To be called in every iteration of the event loop.
    pub(super) fn sleep_if_busy(&mut self, now: Instant) {
        if now.saturating_duration_since(self.checked) < BUSY {
            return;
        }
        self.checked = now;
        if voluntary_sleeps() == self.sleeps {
            std::thread::sleep(FORCED_SLEEP);
        }
        self.sleeps = voluntary_sleeps();
    }
}

fn voluntary_sleeps() -> libc::c_long {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_made_to_sleep() {
        let mut sleeper = ForcedSleep::new(Instant::now());
        let before = voluntary_sleeps();
        let end = Instant::now() + 4 * BUSY;
        while Instant::now() < end {
            sleeper.sleep_if_busy(Instant::now());
        }
        assert!(voluntary_sleeps() > before);
    }
}
