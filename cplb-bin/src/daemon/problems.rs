//! What keeps this node from doing its whole job, as `cplb status` shows it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a problem is shown that says nothing when it ends. It is reported once a minute while it lasts.
const FADING: Duration = Duration::from_secs(90);

/// What a problem is about; there is one for each at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// No descriptors or memory for clients, until the load balancer's next good heartbeat.
    Exhausted,
    /// The host's addresses cannot be read, until they can.
    Unobserved,
    /// The kernel dropped news, until none were dropped for a while.
    Overrun,
    /// The election has no real-time priority.
    RealTime,
    /// A thread of the load balancer ended.
    Worker,
    /// IPVS is missing, or not as it should be.
    Ipvs,
    /// Servers behind virtual addresses cannot be asked.
    Asking,
    /// The server on this node does not take connections to a virtual address.
    Acceptance,
    /// The nftables table is not as it should be.
    Table,
    /// The file was not taken over at the last reload.
    Reload,
    /// The load balancer refused its services.
    Services,
    /// The servers of a cluster cannot be discovered, or are not used, by the kubeconfig.
    Discovery(PathBuf),
    /// A backend's name has no address.
    Name(String),
    /// A socket of the election on this interface fails.
    Socket(String),
    /// An instance waits for its interface.
    Interface(u32),
    /// An instance waits for its source address.
    Source(u32),
    /// An instance waits for another daemon to go.
    Lock(u32),
    /// Virtual IPs of an instance cannot be held under leases on this node.
    Unfit(u32),
    /// Virtual IPs of an instance are on other interfaces of this node without a lease.
    Copies(u32),
}

/// What is wrong now.
#[derive(Debug, Default)]
pub(crate) struct Problems(BTreeMap<Cause, Problem>);

#[derive(Debug)]
struct Problem {
    texts: Vec<String>,
    /// When it is forgotten by itself.
    until: Option<Instant>,
}

impl Problems {
    /// Shows `text` until the problem is cleared; returns whether that is new.
    pub(crate) fn raise(&mut self, cause: Cause, text: impl Into<String>) -> bool {
        self.raise_all(cause, vec![text.into()])
    }

    /// The same for several with one cause.
    pub(crate) fn raise_all(&mut self, cause: Cause, texts: Vec<String>) -> bool {
        self.put(cause, texts, None)
    }

    /// Shows `text` until it has not been said again for a while.
    pub(crate) fn raise_fading(&mut self, cause: Cause, text: impl Into<String>, now: Instant) {
        self.put(cause, vec![text.into()], Some(now + FADING));
    }

    /// Forgets a problem; returns whether there was one.
    pub(crate) fn clear(&mut self, cause: &Cause) -> bool {
        self.0.remove(cause).is_some()
    }

    /// Forgets what was not said again.
    pub(crate) fn fade(&mut self, now: Instant) {
        self.0.retain(|_, problem| problem.until.is_none_or(|until| now < until));
    }

    /// Forgets those whose cause is no more.
    pub(crate) fn retain(&mut self, exists: impl Fn(&Cause) -> bool) {
        self.0.retain(|cause, _| exists(cause));
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.values().flat_map(|problem| problem.texts.iter().cloned()).collect()
    }

    fn put(&mut self, cause: Cause, texts: Vec<String>, until: Option<Instant>) -> bool {
        let news = self.0.get(&cause).is_none_or(|known| known.texts != texts);
        self.0.insert(cause, Problem { texts, until });
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_news_once_and_ends_with_what_it_is_about() {
        let mut problems = Problems::default();
        assert!(problems.raise(Cause::Lock(51), "held"));
        assert!(!problems.raise(Cause::Lock(51), "held"));
        assert!(problems.raise(Cause::Lock(51), "held by another"));
        assert!(problems.raise_all(Cause::Ipvs, vec!["no module".into(), "no dummy".into()]));
        assert_eq!(problems.texts(), ["no module", "no dummy", "held by another"]);
        problems.clear(&Cause::Ipvs);
        problems.raise(Cause::Name("a".into()), "no address");
        assert_eq!(problems.texts(), ["no address", "held by another"]);
        problems.retain(|cause| !matches!(cause, Cause::Lock(_)));
        assert_eq!(problems.texts(), ["no address"]);
        assert!(problems.clear(&Cause::Name("a".into())) && !problems.clear(&Cause::Name("a".into())));
    }

    #[test]
    fn what_is_not_said_again_fades() {
        let (mut problems, start) = (Problems::default(), Instant::now());
        problems.raise_fading(Cause::Socket("eth0".into()), "no buffers", start);
        problems.fade(start + FADING / 2);
        problems.raise_fading(Cause::Socket("eth0".into()), "no buffers", start + FADING / 2);
        problems.fade(start + FADING);
        assert_eq!(problems.texts(), ["no buffers"]);
        problems.fade(start + FADING * 2);
        assert!(problems.texts().is_empty());
    }
}
