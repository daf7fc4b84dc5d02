//! Admission of clients: limits on open connections, and descriptors reserved for everything but sessions.
//!
//! The kernel assigns the lowest free descriptor number. So a process whose sessions hold no number above a ceiling
//! always has the numbers above it for heartbeats, health checks, status readers and reloads.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use super::event::Refusal;

/// Descriptors of a session: the client's and the backend's.
const PER_SESSION: u64 = 2;
/// Of this many descriptors one is reserved, at most [`KEPT_MAX`] in all.
const KEPT_SHARE: u64 = 4;
const KEPT_MAX: u64 = 1024;
/// Descriptors that the rest of the process opens after the balancer's start and keeps: sockets of the election,
/// netlink, listeners. Only the default limit depends on this estimate; the ceiling always holds.
const OTHERS: u64 = 32;

/// Limits on open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of all services.
    pub total: usize,
    /// Of the service, at most `total`.
    pub service: usize,
    /// Of one client address to the service.
    pub client: Option<usize>,
}

/// Counts of open connections, without the one to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub total: usize,
    pub service: usize,
    pub client: usize,
}

impl Limits {
    /// The effective limits of a service with these configured ones.
    pub(crate) fn new(total: usize, service: Option<usize>, client: Option<usize>) -> Self {
        Limits { total, service: service.map_or(total, |service| service.min(total)), client }
    }

    /// Admits one more connection or names the limit that refuses it: the narrowest, because it is the most specific.
    pub(crate) fn admit(&self, open: Counts) -> Result<(), Refusal> {
        if self.client.is_some_and(|limit| open.client >= limit) {
            return Err(Refusal::MaxConnectionsPerClient);
        }
        if self.service < self.total && open.service >= self.service {
            return Err(Refusal::MaxConnections);
        }
        if open.total >= self.total { Err(Refusal::Descriptors) } else { Ok(()) }
    }
}

/// The descriptors of the process (`RLIMIT_NOFILE`), divided between sessions and everything else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptors {
    /// Sessions hold only descriptors below this number.
    ceiling: RawFd,
    /// Sessions that fit below it.
    pub sessions: usize,
}

impl Descriptors {
    /// The division for this process, with this number of relay pipes.
    pub(crate) fn of_process(pipes: usize) -> Self {
        let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        // A new descriptor has the lowest free number.
        let lowest_free =
            std::fs::File::open("/dev/null").map_or(0, |file| std::os::fd::AsRawFd::as_raw_fd(&file));
        Self::new(soft, u64::try_from(lowest_free).unwrap_or(0), pipes as u64)
    }

    fn new(soft: u64, in_use: u64, pipes: u64) -> Self {
        let ceiling = soft - (soft / KEPT_SHARE).min(KEPT_MAX);
        let taken = in_use + OTHERS + 2 * pipes;
        let sessions = (ceiling.saturating_sub(taken) / PER_SESSION).max(1);
        Descriptors {
            ceiling: RawFd::try_from(ceiling).unwrap_or(RawFd::MAX),
            sessions: usize::try_from(sessions).unwrap_or(usize::MAX),
        }
    }

    /// Returns whether a descriptor with this number is reserved for the rest of the process.
    pub(crate) fn is_kept_back(&self, descriptor: RawFd) -> bool {
        descriptor >= self.ceiling
    }
}

/// Open connections of one service.
#[derive(Debug)]
pub(crate) struct Open {
    /// Open connections of all services.
    total: Arc<AtomicUsize>,
    service: AtomicUsize,
    /// Open connections by client, counted only under a limit per client.
    clients: Mutex<HashMap<IpAddr, usize>>,
}

impl Open {
    pub(crate) fn new(total: Arc<AtomicUsize>) -> Self {
        Open { total, service: AtomicUsize::new(0), clients: Mutex::default() }
    }

    /// Counts a connection if the limits allow it. Returns the client's address if it is counted by client. A refusal
    /// leaves the counts as they were.
    pub(crate) fn enter(&self, limits: &Limits, client: IpAddr) -> Result<Option<Box<IpAddr>>, Refusal> {
        let mut clients = limits.client.map(|_| self.clients());
        let open = Counts {
            // Counted before the decision, so that no two threads take the same last place.
            total: self.total.fetch_add(1, Relaxed),
            service: self.service.fetch_add(1, Relaxed),
            client: clients.as_ref().and_then(|clients| clients.get(&client)).copied().unwrap_or(0),
        };
        if let Err(refusal) = limits.admit(open) {
            drop(clients);
            self.leave(None);
            return Err(refusal);
        }
        Ok(clients.as_mut().map(|clients| {
            *clients.entry(client).or_insert(0) += 1;
            Box::new(client)
        }))
    }

    pub(crate) fn leave(&self, client: Option<&IpAddr>) {
        self.total.fetch_sub(1, Relaxed);
        self.service.fetch_sub(1, Relaxed);
        let Some(client) = client else { return };
        let mut clients = self.clients();
        if let Some(count) = clients.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(client);
            }
        }
    }

    pub(crate) fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts of refused clients by reason, with the time of the last event about each.
#[derive(Debug, Default)]
pub(crate) struct Refusals([(AtomicU64, AtomicU64); Refusal::ALL.len()]);

impl Refusals {
    /// Counts one refusal. Returns the total for its reason.
    pub(crate) fn count(&self, reason: Refusal) -> u64 {
        self.0[reason as usize].0.fetch_add(1, Relaxed) + 1
    }

    /// The time of the last event about this reason; 0 for never.
    pub(crate) fn last_reported(&self, reason: Refusal) -> &AtomicU64 {
        &self.0[reason as usize].1
    }

    /// The reasons that occurred, with their counts.
    pub(crate) fn snapshot(&self) -> Vec<(Refusal, u64)> {
        let counted =
            Refusal::ALL.into_iter().map(|reason| (reason, self.0[reason as usize].0.load(Relaxed)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_limit_is_named() {
        let counts = |total, service, client| Counts { total, service, client };
        let limits = Limits::new(10, Some(5), Some(2));
        assert_eq!(limits.admit(counts(9, 4, 1)), Ok(()));
        assert_eq!(limits.admit(counts(9, 4, 2)), Err(Refusal::MaxConnectionsPerClient));
        assert_eq!(limits.admit(counts(10, 5, 1)), Err(Refusal::MaxConnections));
        assert_eq!(limits.admit(counts(10, 4, 1)), Err(Refusal::Descriptors));
        let beyond = Limits::new(10, Some(1_000), None);
        assert_eq!(beyond.service, 10, "no more than descriptors allow");
        assert_eq!(beyond.admit(counts(10, 10, 10)), Err(Refusal::Descriptors));
    }

    #[test]
    fn sessions_leave_a_quarter_of_the_descriptors_and_at_most_1024_of_them() {
        for (soft, in_use, pipes, kept, sessions) in [
            (256, 20, 32, 64, 38),
            (1024, 20, 128, 256, 230),
            (1 << 20, 30, 1024, 1024, 522_721),
            (3, 20, 1, 0, 1),
        ] {
            let descriptors = Descriptors::new(soft, in_use, pipes);
            assert_eq!(descriptors.sessions, sessions, "{soft}");
            let first_kept = i32::try_from(soft - kept).unwrap();
            assert!(
                !descriptors.is_kept_back(first_kept - 1) && descriptors.is_kept_back(first_kept),
                "{soft}"
            );
        }
    }
}
