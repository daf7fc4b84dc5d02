//! Processes under measurement: started here, stopped by process id, measured by the kernel's counters.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::Result;

/// Descriptors that a process needs besides those of its pairs: the proxy keeps 1,024 for everything but sessions, and has
/// pipes.
const SPARE_DESCRIPTORS: u64 = 2560;

/// A child process. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        Process(child)
    }

    /// Starts this program again in another role. Its first line is the address that it listens on, and it ends with
    /// its input, so that it does not outlive this process.
    pub(crate) fn in_role(role: &str, args: &[String]) -> Result<(Self, SocketAddr)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let mut line = String::new();
        if let Some(output) = process.0.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let listening = line.trim().parse().map_err(|_| format!("{role} did not start"))?;
        Ok((process, listening))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Processor time of all its threads so far in seconds, to a hundredth.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        // The second field is a name in parentheses and may contain any byte; utime and stime are the 14th and 15th.
        let (_, fields) = stat.rsplit_once(") ").ok_or("unexpected stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<std::result::Result<_, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.ok_or("no clock ticks")?;
        Ok(ticks as f64 / per_second as f64)
    }

    /// The proportional set size in bytes: private memory, and a share of the memory in common with other processes.
    pub(crate) fn memory(&self) -> Result<f64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0.id()))?;
        let pss =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("unexpected smaps_rollup")?;
        let kilobytes: f64 = pss.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Raises the limit of descriptors for this process and its children. Returns the number of pairs that a proxy can then
/// have, at most `wanted`.
pub(crate) fn allow_descriptors(pairs: usize) -> Result<usize> {
    let wanted = 2 * pairs as u64 + SPARE_DESCRIPTORS;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(pairs);
    }
    // Only root may raise the hard limit.
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return Ok(pairs);
    }
    let limit = hard.min(wanted);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    Ok(usize::try_from(limit.saturating_sub(SPARE_DESCRIPTORS) / 2)?)
}
