//! Real-time priority for the calling thread.

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Of 1 to 99: above everything ordinary, below the kernel's own interrupt threads (50).
const PRIORITY: u8 = 10;

/// Gives the calling thread SCHED_RR. A refresh by a thread of normal priority came up to 0.5 s late on a loaded
/// core and 1.9 s beside a busy one of higher priority (measured), which is a whole lease.
///
/// Threads and processes would inherit the policy; the keeper's thread starts none.
pub(crate) fn make_current_thread_realtime() -> Result<(), String> {
    let priority = ThreadPriorityValue::try_from(PRIORITY)?;
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(priority),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin),
    )
    .map_err(|error| match error {
        thread_priority::Error::OS(errno) => nix::errno::Errno::from_raw(errno).desc().to_owned(),
        other => format!("{other:?}"),
    })
}
