//! The ticket of an admitted client: its share in the connection counts of its service.

use std::net::IpAddr;
use std::sync::Arc;

use super::admission::Limits;
use super::event::Refusal;
use super::service::LiveService;

/// The share of an admitted client in the counts of its service; dropping the ticket releases it.
#[derive(Debug)]
pub(crate) struct Ticket {
    service: Arc<LiveService>,
    /// The client, if a limit per client applied. Boxed because every idle watch holds a ticket.
    client: Option<Box<IpAddr>>,
}

impl Ticket {
    /// Admits a client, or returns the reason of the refusal.
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::engine::config::Service;
    use crate::engine::service::Backends;

    fn service(total: &Arc<AtomicUsize>) -> Arc<LiveService> {
        let backends = Backends::new(&Service::new("api", Vec::new(), Vec::new()), Vec::new());
        Arc::new(LiveService::new("api".into(), backends, Arc::clone(total)))
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
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
    fn a_later_client_limit_counts_only_later_connections() {
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
