//! The resources that this process uses, by the kernel's own count.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

/// Resource usage of the process; a figure that cannot be read is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ProcessUsage {
    /// User and system time.
    pub(super) processor: Option<Duration>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_descriptors: Option<u64>,
    pub(super) max_descriptors: Option<u64>,
}

impl ProcessUsage {
    pub(super) fn read() -> Self {
        let processor = getrusage(UsageWho::RUSAGE_SELF).ok().map(|usage| {
            let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
            Duration::from_micros(u64::try_from(micros).unwrap_or_default())
        });
        Self {
            processor,
            resident_bytes: resident(),
            // The directory itself is open while it is read.
            open_descriptors: fs::read_dir("/proc/self/fd").ok().map(|found| found.count() as u64 - 1),
            max_descriptors: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        }
    }
}

fn resident() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(pages * u64::try_from(size).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_figures_of_this_process_are_known() {
        let usage = ProcessUsage::read();
        assert!(usage.processor.is_some());
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1_000_000), "{usage:?}");
        let (open, max) = (usage.open_descriptors.unwrap(), usage.max_descriptors.unwrap());
        assert!(open >= 3 && open <= max, "{usage:?}");
    }
}
