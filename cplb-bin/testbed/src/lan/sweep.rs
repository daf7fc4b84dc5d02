//! Termination of the processes that a LAN's processes left behind.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

use crate::log::Journal;

/// Longest time for killed processes to end.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Kills every process in these network namespaces and waits until all have ended.
pub(super) fn end_processes_in(namespaces: &BTreeSet<u64>, journal: &Journal) {
    let deadline = Instant::now() + TIMEOUT;
    let mut ended = BTreeSet::new();
    loop {
        let left = processes_in(namespaces);
        for &pid in &left {
            let _ = kill(pid, Signal::SIGKILL);
            ended.insert(pid);
        }
        // Orphans become children of this process, the init of the PID namespace. The exit status of a process that
        // belongs to a `Process` is left for it to collect.
        ended.retain(|pid| {
            let owned = journal.owned().contains(&pid.as_raw());
            !owned
                && match waitpid(*pid, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => true,
                    Ok(_) => false,
                    // Its parent, which is being killed as well, has not ended yet.
                    Err(_) => fs::exists(format!("/proc/{pid}")).unwrap_or(false),
                }
        });
        if (left.is_empty() && ended.is_empty()) || Instant::now() > deadline {
            return;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn processes_in(namespaces: &BTreeSet<u64>) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|&pid| pid != getpid())
        .filter(|pid| {
            // An ended process has no namespaces any more.
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|file| namespaces.contains(&file.ino()))
        })
        .collect()
}
