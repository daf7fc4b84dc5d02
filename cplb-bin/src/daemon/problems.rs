//! What keeps this node from doing its whole job, as `cplb status` shows it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lb_proxy::{Refusal, Shortage};

/// How long a problem is shown that says nothing when it ends. It is reported once a minute while it lasts.
const FADING: Duration = Duration::from_secs(90);

/// What a problem is about; there is one for each at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The load balancer lacks something for connections, until it has not been said for a while.
    Exhausted(Shortage),
    /// A service refuses clients beyond a limit, until it has not been said for a while.
    Limited(String, Refusal),
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
    /// No connection is transparent.
    Delivery,
    /// The file was not taken over at the last reload.
    Reload,
    /// Warnings about the configuration in use.
    Configuration,
    /// Another process has the name by which daemons exclude each other.
    NamespaceLock,
    /// The state directory cannot be written.
    StateDir,
    /// The status socket cannot be made anew.
    StatusSocket,
    /// A file of an earlier run could not be used.
    Record(&'static str),
    /// The kernel does not let connections to backends be marked.
    Mark,
    /// The kernel does not have the congestion control.
    Congestion,
    /// The keeper of virtual IPs has no real-time priority.
    KeeperRealTime,
    /// A virtual IP has another address label.
    Label(u32),
    /// The keeper could not do everything for an instance.
    Keeper(Option<u32>),
    /// Another router of an instance has another configuration.
    Mismatch(u32),
    /// The load balancer refused its services.
    Services,
    /// The servers of a cluster cannot be discovered, or are not used, by the kubeconfig.
    Discovery(PathBuf),
    /// Every address that was found for this service may not be a backend.
    Backends(String),
    /// A backend's name has no address.
    Name(String),
    /// A socket of the election on this interface fails.
    Socket(String),
    /// Another group uses an instance's VRID.
    OtherGroup(u32),
    /// A router that is no known controller advertises an instance's addresses.
    Stranger(u32),
    /// Another node has an instance's addresses, too, or is in its way.
    Rival(u32, &'static str),
    /// Advertisements for an instance's addresses are discarded, for this reason.
    Discarded(u32, &'static str),
    /// Clients' packets are dropped on an instance's interface.
    ReversePath(u32),
    /// An instance waits for its interface.
    Interface(u32),
    /// The interface of an instance has no IPv6 link-local address to advertise from.
    LinkLocal(u32),
    /// The interface of an instance is in a VRF, where the proxy does not listen.
    Vrf(u32),
    /// An instance waits for its source address.
    Source(u32),
    /// Virtual IPs of an instance cannot be held under leases on this node.
    Unfit(u32),
    /// Virtual IPs of an instance are on other interfaces of this node without a lease.
    Copies(u32),
}

impl Cause {
    /// The instance that the problem ends with.
    pub(crate) const fn instance(&self) -> Option<u32> {
        match self {
            Self::Label(id)
            | Self::Mismatch(id)
            | Self::OtherGroup(id)
            | Self::Stranger(id)
            | Self::Rival(id, _)
            | Self::Discarded(id, _)
            | Self::ReversePath(id)
            | Self::Interface(id)
            | Self::LinkLocal(id)
            | Self::Vrf(id)
            | Self::Source(id)
            | Self::Unfit(id)
            | Self::Copies(id) => Some(*id),
            Self::Keeper(id) => *id,
            Self::Exhausted(_)
            | Self::Limited(..)
            | Self::Unobserved
            | Self::Overrun
            | Self::RealTime
            | Self::Worker
            | Self::Ipvs
            | Self::Asking
            | Self::Acceptance
            | Self::Table
            | Self::Delivery
            | Self::Reload
            | Self::Configuration
            | Self::NamespaceLock
            | Self::StateDir
            | Self::StatusSocket
            | Self::Record(_)
            | Self::Mark
            | Self::Congestion
            | Self::KeeperRealTime
            | Self::Services
            | Self::Discovery(_)
            | Self::Backends(_)
            | Self::Name(_)
            | Self::Socket(_) => None,
        }
    }
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

    /// The same for several with one cause; without any it is cleared.
    pub(crate) fn raise_all(&mut self, cause: Cause, texts: Vec<String>) -> bool {
        if texts.is_empty() {
            self.clear(&cause);
            return false;
        }
        self.put(cause, texts, None)
    }

    /// Shows `text` until it has not been said again for a while.
    pub(crate) fn raise_fading(&mut self, cause: Cause, text: impl Into<String>, now: Instant) {
        self.raise_until(cause, text, now + FADING);
    }

    /// Shows `text` until then, or until it is said again.
    pub(crate) fn raise_until(&mut self, cause: Cause, text: impl Into<String>, until: Instant) {
        self.put(cause, vec![text.into()], Some(until));
    }

    /// The texts that a cause has now.
    pub(crate) fn of(&self, cause: &Cause) -> &[String] {
        self.0.get(cause).map_or(&[], |problem| problem.texts.as_slice())
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
        let mut texts: Vec<String> = Vec::new();
        for text in self.0.values().flat_map(|problem| &problem.texts) {
            // Two causes may come from one fault.
            if !texts.contains(text) {
                texts.push(text.clone());
            }
        }
        texts
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
        assert!(problems.raise(Cause::Unfit(51), "held"));
        assert!(!problems.raise(Cause::Unfit(51), "held"));
        assert!(problems.raise(Cause::Unfit(51), "held by another"));
        assert!(problems.raise_all(Cause::Ipvs, vec!["no module".into(), "no dummy".into()]));
        assert_eq!(problems.texts(), ["no module", "no dummy", "held by another"]);
        problems.clear(&Cause::Ipvs);
        problems.raise(Cause::Name("a".into()), "no address");
        assert_eq!(problems.texts(), ["no address", "held by another"]);
        problems.retain(|cause| !matches!(cause, Cause::Unfit(_)));
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
