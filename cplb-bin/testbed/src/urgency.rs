//! Real-time priority for threads that measure.

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// The priority of a thread. Both levels are above all ordinary threads, so that a busy machine does not look like a
/// blackout, and at the low end of the real-time range, so that the daemons under test come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// The thread represents a machine that is not under test.
    Serve = 1,
    /// The thread measures times.
    Measure = 2,
}

/// Requests real-time priority for this thread. An ordinary user does not get it, and measures with more noise.
pub(crate) fn claim(urgency: Urgency) {
    let Ok(priority) = ThreadPriorityValue::try_from(urgency as u8) else { return };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let _ =
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(priority), policy);
}
