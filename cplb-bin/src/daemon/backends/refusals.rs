//! The report of addresses that may not be backends: each is logged once, and a service without any backend is a problem.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use cplb_config::{Origin, Unfit};

use crate::daemon::problems::{Cause, Problems};

use super::admission::Refusal;
use super::cluster_state::refused;

/// The refusals that were logged.
#[derive(Debug, Default)]
pub(crate) struct Refusals(BTreeSet<(Unfit, Origin, SocketAddr)>);

/// New refusals of one kind, for the log.
#[derive(Debug, PartialEq, Eq)]
struct NewRefusals {
    origin: Origin,
    servers: Vec<(SocketAddr, Unfit)>,
}

impl Refusals {
    /// Logs the refusals that are new, and raises a problem for each service that is left without a backend.
    pub(crate) fn report(
        &mut self,
        services: &[lb_proxy::Service],
        all: &[Refusal],
        problems: &mut Problems,
    ) {
        for NewRefusals { origin, servers } in self.update(services, all, problems) {
            let count = servers.len();
            tracing::warn!(source = source_name(origin), count, "backends refused: {}", refused(&servers));
        }
    }

    /// Returns the refusals that are new, and raises a problem for each service that is left without a backend.
    fn update(
        &mut self,
        services: &[lb_proxy::Service],
        all: &[Refusal],
        problems: &mut Problems,
    ) -> Vec<NewRefusals> {
        // Local candidates are guesses, so that a refused one is no mistake of the operator.
        let reported = |refusal: &&Refusal| refusal.origin != Origin::LocalCandidate;
        let now: BTreeSet<_> =
            all.iter().filter(reported).map(|it| (it.unfit, it.origin, it.server)).collect();
        let mut new: BTreeMap<(Unfit, Origin), Vec<(SocketAddr, Unfit)>> = BTreeMap::new();
        for (unfit, origin, server) in now.difference(&self.0) {
            new.entry((*unfit, *origin)).or_default().push((*server, *unfit));
        }
        self.0 = now;
        let without: BTreeMap<&str, Vec<(SocketAddr, Unfit)>> = without_backends(services, all);
        problems
            .retain(|cause| !matches!(cause, Cause::Backends(name) if !without.contains_key(name.as_str())));
        for (service, servers) in without {
            let text = format!("{service} has no backend: {}", refused(&servers));
            problems.raise(Cause::Backends(service.to_owned()), text);
        }
        new.into_iter().map(|((_, origin), servers)| NewRefusals { origin, servers }).collect()
    }
}

/// Services without backends for which addresses were refused.
fn without_backends<'a>(
    services: &'a [lb_proxy::Service],
    all: &[Refusal],
) -> BTreeMap<&'a str, Vec<(SocketAddr, Unfit)>> {
    let empty = services.iter().filter(|service| service.backends.is_empty());
    let refusals = |service: &str| {
        let own = all.iter().filter(|refusal| refusal.service == service);
        own.map(|refusal| (refusal.server, refusal.unfit)).collect::<Vec<_>>()
    };
    let found = empty.map(|service| (&*service.name, refusals(&service.name)));
    found.filter(|(_, refused)| !refused.is_empty()).collect()
}

fn source_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Written => "configuration",
        Origin::Resolved => "dns",
        Origin::Discovered => "discovery",
        Origin::LocalCandidate => "node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(service: &str, host: u8, unfit: Unfit) -> Refusal {
        let server = SocketAddr::from(([10, 0, 0, host], 6444));
        Refusal { service: service.to_owned(), server, origin: Origin::Discovered, unfit }
    }

    fn balanced(servers: &[(&str, &[u8])], refusals: Vec<Refusal>) -> (Vec<lb_proxy::Service>, Vec<Refusal>) {
        let backend = |host: &u8| lb_proxy::Backend::new(SocketAddr::from(([10, 0, 0, *host], 6443)));
        let service = |(name, hosts): &(&str, &[u8])| {
            lb_proxy::Service::new(*name, Vec::new(), hosts.iter().map(backend).collect())
        };
        (servers.iter().map(service).collect(), refusals)
    }

    fn update(
        refusals: &mut Refusals,
        (services, all): &(Vec<lb_proxy::Service>, Vec<Refusal>),
        problems: &mut Problems,
    ) -> Vec<NewRefusals> {
        refusals.update(services, all, problems)
    }

    #[test]
    fn a_refusal_is_reported_once_and_is_a_problem_only_without_backends() {
        let (mut refusals, mut problems) = (Refusals::default(), Problems::default());
        let both = || vec![refusal("a", 12, Unfit::Proxy), refusal("b", 12, Unfit::Proxy)];
        let some = balanced(&[("a", &[11]), ("b", &[])], both());
        let new = update(&mut refusals, &some, &mut problems);
        assert_eq!(new.len(), 1, "both services refuse the same server");
        assert_eq!(
            problems.texts(),
            [
                "b has no backend: 10.0.0.12:6444 is where a proxy of this configuration listens, on every node"
            ]
        );
        assert!(update(&mut refusals, &some, &mut problems).is_empty());
        let good = balanced(&[("a", &[11]), ("b", &[11])], both());
        assert!(update(&mut refusals, &good, &mut problems).is_empty());
        assert!(problems.texts().is_empty());
        update(&mut refusals, &balanced(&[("a", &[11]), ("b", &[11])], Vec::new()), &mut problems);
        assert_eq!(
            update(&mut refusals, &good, &mut problems).len(),
            1,
            "a refusal that returns is reported again"
        );
    }

    #[test]
    fn a_service_without_candidates_is_no_problem_of_refusals() {
        let mut problems = Problems::default();
        update(&mut Refusals::default(), &balanced(&[("a", &[])], Vec::new()), &mut problems);
        assert!(problems.texts().is_empty());
    }
}
