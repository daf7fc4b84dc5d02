//! The resource usage of a process, according to the kernel.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use testbed::Process;

/// Measures the processor time of a process from its creation on.
pub(crate) struct Meter<'a> {
    process: &'a Process,
    since: Instant,
    total: Duration,
    threads: Vec<(u32, String, Duration)>,
}

/// The result of a [`Meter`].
#[derive(Debug)]
pub(crate) struct Usage {
    /// The share of one processor, all threads together.
    pub(crate) share: f64,
    /// Processor time by thread, for analysis.
    pub(crate) threads: Vec<(String, Duration)>,
}

impl<'a> Meter<'a> {
    pub(crate) fn start(process: &'a Process) -> Self {
        Self { process, since: Instant::now(), total: processor_time(process), threads: by_thread(process) }
    }

    pub(crate) fn read(&self) -> Usage {
        let (used, span) = (processor_time(self.process) - self.total, self.since.elapsed());
        let before = |id: u32| self.threads.iter().find(|(known, ..)| *known == id).map(|(.., used)| *used);
        let threads = by_thread(self.process);
        let threads =
            threads.into_iter().map(|(id, name, used)| (name, used - before(id).unwrap_or_default()));
        Usage { share: used.as_secs_f64() / span.as_secs_f64(), threads: threads.collect() }
    }
}

/// User and system time of all threads, also of those that have ended; in nanoseconds, whereas `utime` and `stime`
/// count ticks of 10 ms.
fn processor_time(process: &Process) -> Duration {
    let pid = Pid::from_raw(process.pid().cast_signed());
    let clock = clock_getcpuclockid(pid).expect("the process runs");
    clock_gettime(clock).expect("its clock is readable").into()
}

fn by_thread(process: &Process) -> Vec<(u32, String, Duration)> {
    let threads = process.threads().into_iter();
    threads
        .filter_map(|(id, name)| {
            let stat = fs::read_to_string(format!("/proc/{}/task/{id}/schedstat", process.pid())).ok()?;
            let used = stat.split(' ').next()?.parse().ok()?;
            Some((id, name, Duration::from_nanos(used)))
        })
        .collect()
}

/// Resident memory of the process, in bytes.
pub(crate) fn resident(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("every process has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes");
    kib * 1024
}
