//! Which clients are admitted: limits on open connections, and descriptors kept back for everything but sessions.
//!
//! The kernel gives out the lowest free descriptor number. So a process whose sessions hold no number above a ceiling
//! always has the numbers above it for heartbeats, health checks, status readers and reloads, whatever else is open.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit};

use crate::event::Refusal;
use crate::service::LiveService;

/// Descriptors of a session: the client's and the backend's.
const PER_SESSION: u64 = 2;
/// One descriptor in so many is kept back, at most [`KEPT_MAX`].
const KEPT_SHARE: u64 = 4;
const KEPT_MAX: u64 = 1024;
/// Descriptors that the rest of the process opens after the balancer's start and keeps: sockets of the election, netlink,
/// listeners. Only the default limit depends on this estimate; the ceiling holds in any case.
const OTHERS: u64 = 32;

/// Open connections that sessions may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of all services.
    pub total: usize,
    /// Of the service, at most `total`.
    pub service: usize,
    /// Of one client address to the service.
    pub client: Option<usize>,
}

/// Open connections before the one that asks to be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub total: usize,
    pub service: usize,
    pub client: usize,
}

impl Limits {
    /// The effective limits of a service that is configured with these.
    pub(crate) fn new(total: usize, service: Option<usize>, client: Option<usize>) -> Self {
        Limits { total, service: service.map_or(total, |service| service.min(total)), client }
    }

    /// Decides about one more connection. The limit that concerns the fewest is named, because it says most.
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
    /// Sessions hold no number from here on.
    ceiling: RawFd,
    /// Sessions that fit below it.
    pub sessions: usize,
}

impl Descriptors {
    /// For this process, with so many pipes of the relay.
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

    /// Whether a descriptor with this number is one of those that sessions leave to the rest of the process.
    pub(crate) fn is_kept_back(&self, descriptor: RawFd) -> bool {
        descriptor >= self.ceiling
    }
}

/// Open connections of one service.
#[derive(Debug)]
pub(crate) struct Open {
    /// Those of all services.
    total: Arc<AtomicUsize>,
    service: AtomicUsize,
    /// By client, of those that were admitted under a limit for clients.
    clients: Mutex<HashMap<IpAddr, usize>>,
}

impl Open {
    pub(crate) fn new(total: Arc<AtomicUsize>) -> Self {
        Open { total, service: AtomicUsize::new(0), clients: Mutex::default() }
    }

    /// Counts a connection if the limits allow it. `false` leaves the counts as they were.
    fn enter(&self, limits: &Limits, client: IpAddr) -> Result<Option<Box<IpAddr>>, Refusal> {
        let mut clients = limits.client.map(|_| self.clients());
        let open = Counts {
            // Counted before it is decided, so that no two threads take the same last place.
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

    fn leave(&self, client: Option<&IpAddr>) {
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

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An admitted client's share in the counts of its service; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Ticket {
    service: Arc<LiveService>,
    /// The client, if it was admitted under a limit for clients. Boxed: there is one for each idle watch.
    client: Option<Box<IpAddr>>,
}

impl Ticket {
    /// Admits a client, or says why not.
    pub(crate) fn take(service: &Arc<LiveService>, limits: &Limits, client: IpAddr) -> Result<Self, Refusal> {
        let client = service.open.enter(limits, client.to_canonical())?;
        Ok(Ticket { service: Arc::clone(service), client })
    }

    pub(crate) fn service(&self) -> &Arc<LiveService> {
        &self.service
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.service.open.leave(self.client.as_deref());
    }
}

/// Clients that were refused, by reason, and when an event last said so.
#[derive(Debug, Default)]
pub(crate) struct Refusals([(AtomicU64, AtomicU64); Refusal::ALL.len()]);

impl Refusals {
    /// Counts one; returns how many of this reason there were.
    pub(crate) fn count(&self, reason: Refusal) -> u64 {
        self.0[reason as usize].0.fetch_add(1, Relaxed) + 1
    }

    /// When an event about this reason was last sent; 0 for never.
    pub(crate) fn told(&self, reason: Refusal) -> &AtomicU64 {
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
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Service;
    use crate::service::Backends;

    fn service(total: &Arc<AtomicUsize>) -> Arc<LiveService> {
        let backends = Backends::new(&Service::new("api", Vec::new(), Vec::new()), Vec::new());
        Arc::new(LiveService::new("api".into(), backends, Arc::clone(total)))
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn the_limit_that_concerns_the_fewest_is_named() {
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

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let total = Arc::default();
        let (service, limits) = (service(&total), Limits::new(10, None, Some(1)));
        let _ticket = Ticket::take(&service, &limits, "::ffff:192.0.2.1".parse().unwrap()).unwrap();
        let refused = Ticket::take(&service, &limits, client(1)).unwrap_err();
        assert_eq!(refused, Refusal::MaxConnectionsPerClient);
        assert!(Ticket::take(&service, &limits, client(2)).is_ok());
    }

    #[test]
    fn a_limit_for_clients_that_comes_later_counts_only_later_connections() {
        let total = Arc::default();
        let service = service(&total);
        let unlimited = Limits::new(10, None, None);
        let early = Ticket::take(&service, &unlimited, client(1)).unwrap();
        let limits = Limits::new(10, None, Some(1));
        let late = Ticket::take(&service, &limits, client(1)).unwrap();
        assert!(Ticket::take(&service, &limits, client(1)).is_err());
        drop(early);
        assert!(Ticket::take(&service, &limits, client(1)).is_err());
        drop(late);
        assert!(Ticket::take(&service, &limits, client(1)).is_ok());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive { service: usize, client: u8 },
        Depart(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_usize..2, 0_u8..4).prop_map(|(service, client)| Step::Arrive { service, client }),
            any::<usize>().prop_map(Step::Depart),
        ]
    }

    proptest! {
        #[test]
        fn a_client_is_refused_exactly_when_a_limit_is_reached(
            total in 1_usize..12,
            service_limit in option::of(1_usize..12),
            client_limit in option::of(1_usize..6),
            steps in vec(step(), 0..200),
        ) {
            let all = Arc::<AtomicUsize>::default();
            let services = [service(&all), service(&all)];
            let limits = Limits::new(total, service_limit, client_limit);
            let mut open: Vec<(usize, u8, Ticket)> = Vec::new();
            for step in steps {
                let (number, address) = match step {
                    Step::Arrive { service, client } => (service, client),
                    Step::Depart(index) => {
                        if !open.is_empty() {
                            open.swap_remove(index % open.len());
                        }
                        continue;
                    }
                };
                let of_service = open.iter().filter(|(service, ..)| *service == number).count();
                let of_client =
                    open.iter().filter(|(service, client, _)| (*service, *client) == (number, address)).count();
                let is_reached = open.len() >= total
                    || service_limit.is_some_and(|limit| of_service >= limit)
                    || client_limit.is_some_and(|limit| of_client >= limit);
                match Ticket::take(&services[number], &limits, client(address)) {
                    Ok(ticket) => {
                        prop_assert!(!is_reached);
                        open.push((number, address, ticket));
                    }
                    Err(_) => prop_assert!(is_reached),
                }
            }
            drop(open);
            prop_assert_eq!(all.load(Relaxed), 0);
            prop_assert!(services.iter().all(|service| service.open.clients().is_empty()));
        }
    }

    #[test]
    fn threads_never_exceed_a_limit_together() {
        let (total, most) = (Arc::default(), AtomicUsize::new(0));
        let (service, limits) = (service(&total), Limits::new(8, None, Some(8)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let tickets: Vec<_> =
                            (0..4).filter_map(|_| Ticket::take(&service, &limits, client(1)).ok()).collect();
                        let counted = service.open.clients().get(&client(1)).copied().unwrap_or(0);
                        most.fetch_max(counted, Relaxed);
                        drop(tickets);
                    }
                });
            }
        });
        assert!((1..=8).contains(&most.load(Relaxed)));
        assert_eq!(total.load(Relaxed), 0);
    }
}
