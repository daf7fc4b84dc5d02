//! The problems of this node, which `cplb status` shows as `degraded`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lb_proxy::{Refusal, Shortage};

/// The time for which a problem is shown whose end is not reported. While it lasts, it is reported once a minute.
const FADING: Duration = Duration::from_secs(90);

/// The subject of a problem. Each subject has at most one problem at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The load balancer lacks a resource for connections. Fades.
    Exhausted(Shortage),
    /// A service refuses clients beyond a limit. Fades.
    Limited(String, Refusal),
    /// The host's addresses cannot be read.
    Unobserved,
    /// The kernel dropped netlink events, until a round of maintenance without dropped events.
    Overrun,
    /// The election has no real-time priority.
    RealTime,
    /// A thread of the load balancer ended.
    Worker,
    /// IPVS is unavailable or differs from its desired state.
    Ipvs,
    /// Servers behind virtual addresses cannot be probed.
    Probing,
    /// The server on this node does not accept connections to a virtual address.
    Acceptance,
    /// The nftables table differs from its desired state.
    Table,
    /// No connection is transparent.
    Delivery,
    /// The last reload was refused.
    Reload,
    /// Warnings about the configuration in use.
    Configuration,
    /// Another process holds the lock of the network namespace.
    NamespaceLock,
    /// The state directory cannot be written.
    StateDir,
    /// The status socket cannot be created again.
    StatusSocket,
    /// The control socket cannot be created again.
    ControlSocket,
    /// The status page cannot listen.
    StatusPage,
    /// An operator asked this node to stand by.
    Standby,
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
    /// A warning of the keeper, about an instance or the host.
    Keeper(Option<u32>),
    /// Another router of an instance has another configuration.
    Mismatch(u32),
    /// The load balancer refused a change of its services.
    Services,
    /// The servers of the cluster of this kubeconfig cannot be discovered, or are not used.
    Discovery(PathBuf),
    /// No address that was found for this service may be a backend.
    Backends(String),
    /// A backend's name has no address.
    Name(String),
    /// A socket of the election on this interface fails.
    Socket(String),
    /// Another group uses an instance's VRID.
    OtherGroup(u32),
    /// A router that is no known controller advertises an instance's addresses.
    Stranger(u32),
    /// Another controller reports that it holds an instance's addresses, too.
    Holder(u32),
    /// The group channel on this interface does not work.
    Channel(String),
    /// Another router contends for an instance's addresses, in this respect.
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
    /// An instance waits until it knows a peer.
    Peers(u32),
    /// Virtual IPs of an instance cannot be held under leases on this node.
    Unfit(u32),
    /// Another host than the Active answers for a virtual IP of an instance.
    Owner(u32),
    /// The neighbours' claims on this interface cannot be watched.
    OwnerWatch(String),
    /// Services of an instance's Active do not answer this node.
    EndToEnd(u32),
    /// Services of this node do not answer other controllers through the virtual IPs of an instance.
    Unanswered(u32),
    /// Clients reject the certificates of API servers.
    Certificates,
    /// Virtual IPs of an instance are on other interfaces of this node without a lease.
    Copies(u32),
}

impl Cause {
    /// The kind of the cause as one word in snake case, for metrics and status.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Exhausted(_) => "exhausted",
            Self::Limited(..) => "limited",
            Self::Unobserved => "unobserved",
            Self::Overrun => "netlink_overrun",
            Self::RealTime => "real_time",
            Self::Worker => "worker",
            Self::Ipvs => "ipvs",
            Self::Probing => "probing",
            Self::Acceptance => "acceptance",
            Self::Table => "table",
            Self::Delivery => "delivery",
            Self::Reload => "reload",
            Self::Configuration => "configuration",
            Self::NamespaceLock => "namespace_lock",
            Self::StateDir => "state_directory",
            Self::StatusSocket => "status_socket",
            Self::ControlSocket => "control_socket",
            Self::StatusPage => "status_page",
            Self::Standby => "standby",
            Self::Record(_) => "record",
            Self::Mark => "mark",
            Self::Congestion => "congestion_control",
            Self::KeeperRealTime => "keeper_real_time",
            Self::Label(_) => "address_label",
            Self::Keeper(_) => "keeper",
            Self::Mismatch(_) => "mismatch",
            Self::Services => "services",
            Self::Discovery(_) => "discovery",
            Self::Backends(_) => "backends",
            Self::Name(_) => "name",
            Self::Socket(_) => "socket",
            Self::OtherGroup(_) => "other_group",
            Self::Stranger(_) => "stranger",
            Self::Holder(_) => "second_holder",
            Self::Channel(_) => "channel",
            Self::Rival(..) => "rival",
            Self::Discarded(..) => "discarded",
            Self::ReversePath(_) => "reverse_path",
            Self::Interface(_) => "interface",
            Self::LinkLocal(_) => "link_local",
            Self::Vrf(_) => "vrf",
            Self::Source(_) => "source_address",
            Self::Peers(_) => "peers",
            Self::Unfit(_) => "unfit",
            Self::Owner(_) => "foreign_owner",
            Self::OwnerWatch(_) => "owner_watch",
            Self::EndToEnd(_) => "end_to_end",
            Self::Unanswered(_) => "unanswered",
            Self::Certificates => "certificates",
            Self::Copies(_) => "address_copies",
        }
    }

    /// The instance with whose removal the problem ends.
    pub(crate) const fn instance(&self) -> Option<u32> {
        match self {
            Self::Label(id)
            | Self::Mismatch(id)
            | Self::OtherGroup(id)
            | Self::Stranger(id)
            | Self::Holder(id)
            | Self::Rival(id, _)
            | Self::Discarded(id, _)
            | Self::ReversePath(id)
            | Self::Interface(id)
            | Self::LinkLocal(id)
            | Self::Vrf(id)
            | Self::Source(id)
            | Self::Peers(id)
            | Self::Unfit(id)
            | Self::Copies(id)
            | Self::EndToEnd(id)
            | Self::Unanswered(id)
            | Self::Owner(id) => Some(*id),
            Self::Keeper(id) => *id,
            Self::Exhausted(_)
            | Self::Limited(..)
            | Self::Channel(_)
            | Self::Certificates
            | Self::OwnerWatch(_)
            | Self::Unobserved
            | Self::Overrun
            | Self::RealTime
            | Self::Worker
            | Self::Ipvs
            | Self::Probing
            | Self::Acceptance
            | Self::Table
            | Self::Delivery
            | Self::Reload
            | Self::Configuration
            | Self::NamespaceLock
            | Self::StateDir
            | Self::StatusSocket
            | Self::ControlSocket
            | Self::StatusPage
            | Self::Standby
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

/// The current problems.
#[derive(Debug, Default)]
pub(crate) struct Problems(BTreeMap<Cause, Problem>);

#[derive(Debug)]
struct Problem {
    texts: Vec<String>,
    /// The time at which the problem is cleared without a report.
    until: Option<Instant>,
}

impl Problems {
    /// Shows `text` until the problem is cleared. Returns whether the text is new.
    pub(crate) fn raise(&mut self, cause: Cause, text: impl Into<String>) -> bool {
        self.raise_all(cause, vec![text.into()])
    }

    /// Shows several texts with one cause; without texts, clears the problem.
    pub(crate) fn raise_all(&mut self, cause: Cause, texts: Vec<String>) -> bool {
        if texts.is_empty() {
            self.clear(&cause);
            return false;
        }
        self.put(cause, texts, None)
    }

    /// Shows `text` until it has not been raised again for [`FADING`].
    pub(crate) fn raise_fading(&mut self, cause: Cause, text: impl Into<String>, now: Instant) {
        self.raise_until(cause, text, now + FADING);
    }

    /// Shows `text` until this time, unless it is raised again before.
    pub(crate) fn raise_until(&mut self, cause: Cause, text: impl Into<String>, until: Instant) {
        self.put(cause, vec![text.into()], Some(until));
    }

    /// The current texts of a cause.
    pub(crate) fn of(&self, cause: &Cause) -> &[String] {
        self.0.get(cause).map_or(&[], |problem| problem.texts.as_slice())
    }

    /// Clears a problem. Returns whether there was one.
    pub(crate) fn clear(&mut self, cause: &Cause) -> bool {
        self.0.remove(cause).is_some()
    }

    /// Clears the problems whose time is over.
    pub(crate) fn fade(&mut self, now: Instant) {
        self.0.retain(|_, problem| problem.until.is_none_or(|until| now < until));
    }

    /// Clears the problems whose cause no longer `exists`.
    pub(crate) fn retain(&mut self, exists: impl Fn(&Cause) -> bool) {
        self.0.retain(|cause, _| exists(cause));
    }

    /// The number of texts by the kind of their cause.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (cause, problem) in &self.0 {
            *counts.entry(cause.as_str()).or_default() += problem.texts.len() as u64;
        }
        counts
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        for text in self.0.values().flat_map(|problem| &problem.texts) {
            // Two causes of one fault may have the same text.
            if !texts.contains(text) {
                texts.push(text.clone());
            }
        }
        texts
    }

    fn put(&mut self, cause: Cause, texts: Vec<String>, until: Option<Instant>) -> bool {
        let is_new = self.0.get(&cause).is_none_or(|known| known.texts != texts);
        self.0.insert(cause, Problem { texts, until });
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_of_cause_has_a_word_of_its_own_that_is_documented() {
        let source = include_str!("problems.rs");
        let (_, source) = source.split_once("fn as_str").unwrap();
        let (source, _) = source.split_once("fn instance").unwrap();
        let words: Vec<&str> =
            source.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(words.len() > 40);
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len(), "{words:?}");
        let docs = include_str!("../../../docs/status.md");
        for word in words {
            assert!(docs.contains(&format!("`{word}`")), "{word}");
        }
    }

    #[test]
    fn texts_are_counted_by_the_kind_of_their_cause() {
        let mut problems = Problems::default();
        problems.raise(Cause::Unfit(51), "a");
        problems.raise(Cause::Unfit(52), "b");
        problems.raise_all(Cause::Configuration, vec!["c".to_owned(), "d".to_owned()]);
        assert_eq!(problems.counts(), [("unfit", 2), ("configuration", 2)].into());
    }

    #[test]
    fn raise_returns_whether_the_text_is_new_and_retain_clears_by_cause() {
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
    fn a_fading_problem_is_cleared_unless_it_is_raised_again() {
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
