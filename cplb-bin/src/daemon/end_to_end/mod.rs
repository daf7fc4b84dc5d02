//! End-to-end checks: does a service answer through a virtual IP, as a client on this node's link reaches it?
//!
//! While another router is Active, a Backup runs the health check of each service through each virtual IP. It finds what no
//! other check sees, such as a firewall that drops the clients' packets and lets VRRP through. A failure is reported, and never
//! moves an address.
//!
//! [`EndToEnd`] does no I/O: the routes and the results of checks go in, the checks that are due come out.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lb_proxy::health::{CheckFailure, Step, Target, check_once};
use vrrp::runner::InstanceId;

/// The time between two checks of a route that answers.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// The time between two checks of one that does not.
const RETRY: Duration = Duration::from_secs(10);
/// The failures in a row after which a route is reported.
const FAILURES: u32 = 3;
/// The time after a change of the Active in which its routes are not checked.
const SETTLING: Duration = Duration::from_secs(3);
/// The time between the first checks of two routes, or less if there are many.
const STEP: Duration = Duration::from_secs(1);
/// The most checks at a time.
const CONCURRENT: usize = 16;
/// The least time limit of a check, in which a lost packet of each step is sent again.
const LIMIT: Duration = Duration::from_secs(3);

/// The way of a client to a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) instance: InstanceId,
    /// The virtual IP and the port of the service.
    pub(crate) endpoint: SocketAddr,
    /// The name of the service.
    pub(crate) service: String,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    /// The virtual IP is local to this node, as on a server behind IPVS: no packet would leave it.
    Local,
    /// This node has no route or no source address for it, which says nothing about clients.
    NoRoute,
    Failed(CheckFailure),
}

/// A check that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) token: u64,
    pub(crate) outcome: Outcome,
}

/// The state of a route.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    /// The source of the Active's advertisements.
    pub(crate) active: IpAddr,
    /// The last result that says something about the route.
    pub(crate) outcome: Option<Outcome>,
    /// The end of the last check.
    pub(crate) checked: Option<Instant>,
    /// Failures in a row.
    pub(crate) failures: u32,
    next: Instant,
    /// The token of the check in progress.
    running: Option<u64>,
}

impl Observed {
    /// The failure, if the route is to be reported.
    pub(crate) fn failure(&self) -> Option<&CheckFailure> {
        match &self.outcome {
            Some(Outcome::Failed(failure)) if self.failures >= FAILURES => Some(failure),
            _ => None,
        }
    }
}

/// The checks of all routes.
#[derive(Debug, Default)]
pub(crate) struct EndToEnd {
    routes: BTreeMap<Route, Observed>,
    tokens: u64,
    running: usize,
    logged: BTreeSet<Route>,
}

impl EndToEnd {
    /// Replaces the routes, each with the source of the Active's advertisements. A route to another Active starts anew.
    pub(crate) fn set(&mut self, now: Instant, wanted: BTreeMap<Route, IpAddr>) {
        self.routes.retain(|route, observed| wanted.get(route) == Some(&observed.active));
        let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX).max(1);
        for (index, (route, active)) in (0..).zip(wanted) {
            let next = now + SETTLING + STEP.min(INTERVAL / count) * index;
            let (outcome, checked, failures, running) = (None, None, 0, None);
            let new = Observed { active, outcome, checked, failures, next, running };
            self.routes.entry(route).or_insert(new);
        }
    }

    /// The next check that is due, and its token.
    pub(crate) fn poll_check(&mut self, now: Instant) -> Option<(u64, Route)> {
        if self.running >= CONCURRENT {
            return None;
        }
        let idle = self.routes.iter_mut().filter(|(_, observed)| observed.running.is_none());
        let (route, observed) = idle.min_by_key(|(_, observed)| observed.next)?;
        if now < observed.next {
            return None;
        }
        (self.tokens, self.running) = (self.tokens + 1, self.running + 1);
        observed.running = Some(self.tokens);
        Some((self.tokens, route.clone()))
    }

    /// Takes a result.
    pub(crate) fn handle_result(&mut self, now: Instant, Checked { token, outcome }: Checked) {
        self.running = self.running.saturating_sub(1);
        let Some(observed) = self.routes.values_mut().find(|observed| observed.running == Some(token)) else {
            return;
        };
        (observed.running, observed.checked) = (None, Some(now));
        match &outcome {
            Outcome::Answered | Outcome::Local | Outcome::NoRoute => observed.failures = 0,
            // This node could not check.
            Outcome::Failed(failure) if !failure.is_evidence() => {
                observed.next = now + RETRY;
                return;
            }
            Outcome::Failed(_) => observed.failures = observed.failures.saturating_add(1),
        }
        observed.next = now + if observed.failures > 0 { RETRY } else { INTERVAL };
        observed.outcome = Some(outcome);
    }

    /// All routes.
    pub(crate) fn routes(&self) -> &BTreeMap<Route, Observed> {
        &self.routes
    }

    /// The routes that are to be reported, with the failure.
    pub(crate) fn failing(&self) -> impl Iterator<Item = (&Route, &Observed, &CheckFailure)> {
        self.routes.iter().filter_map(|(route, observed)| Some((route, observed, observed.failure()?)))
    }

    /// The routes that are to be reported since the last call, and those that no longer are.
    pub(crate) fn changes(&mut self) -> (Vec<Route>, Vec<Route>) {
        let now: BTreeSet<Route> = self.failing().map(|(route, ..)| route.clone()).collect();
        let begun = now.difference(&self.logged).cloned().collect();
        let ended = self.logged.difference(&now).cloned().collect();
        self.logged = now;
        (begun, ended)
    }
}

/// Checks a route once. The settings are those of the service's health check, with more time.
pub(crate) async fn check(target: Target) -> Outcome {
    match source_for(target.key().backend) {
        Ok(source) if source == target.key().backend.ip() => return Outcome::Local,
        Ok(_) => {}
        Err(_) => return Outcome::NoRoute,
    }
    match check_once(&target, 0).await {
        Ok(()) => Outcome::Answered,
        Err(failure) => Outcome::Failed(failure),
    }
}

/// The time limit of a check of a service whose health check has this one.
pub(crate) fn time_limit(of_health_check: Duration) -> Duration {
    of_health_check.max(LIMIT)
}

/// The source that the kernel chooses for packets to an address: the address itself if it is local to this node. Sends
/// nothing.
fn source_for(endpoint: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match endpoint {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(endpoint)?;
    Ok(socket.local_addr()?.ip())
}

/// The failure in a few words, and the likely cause, for an operator.
pub(crate) fn explain(failure: &CheckFailure) -> (String, &'static str) {
    let firewall = "does a firewall drop it?";
    match failure {
        CheckFailure::TimedOut { step, .. } => {
            let cause = match step {
                Step::Connect => firewall,
                _ => "are large packets lost on the way (MTU)?",
            };
            (format!("timeout: {failure}"), cause)
        }
        CheckFailure::Refused | CheckFailure::Unreachable(_) => (failure.to_string(), firewall),
        other => (other.to_string(), "`cplb status` there may say why"),
    }
}
