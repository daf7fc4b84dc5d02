//! The prober: asks servers whether they accept what a director would send them.
//!
//! A health check goes to a server's own address. It does not see that nothing listens on the virtual one, or that the
//! server's dummy link or tunnel is gone; a director that goes on sending there loses a share of all connections. Every
//! node targets, not only the one that directs, so that the next director knows already.

mod history;
mod round;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::daemon::sender::{Delivery, EventSender};

use history::History;
use round::{Round, Sockets};

/// The time between two probes of a server.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer may take.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(500);

/// A server that a director may forward to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProbeTarget {
    /// The virtual address and port.
    pub(crate) vip: SocketAddr,
    /// Its own address.
    pub(crate) server: IpAddr,
    /// Whether a tunnel leads there.
    pub(crate) tunnel: bool,
}

/// The state of a server by its probes. One that was not probed yet has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeResult {
    /// It accepts connections to the virtual address.
    Accepts,
    /// It refuses them, which it also does while its daemon stops.
    Refuses,
    /// It has not answered for several rounds.
    Silent,
    /// This node has no means to ask it.
    NotProbed,
    /// No link of this node leads to it, and without one packets cannot be routed directly.
    NotOnLink,
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepts => "accepts connections to the virtual IP",
            Self::NotProbed => "cannot be asked from here whether it accepts the virtual IP",
            Self::Refuses => {
                "refuses connections to the virtual IP: its cplb is stopping, or its API server listens on one address \
                 only (let it listen on all, or use lbKind NAT)"
            }
            Self::Silent => {
                "does not answer for the virtual IP: does cplb run there, and do its firewall and the network let \
                 packets of this lbKind through?"
            }
            Self::NotOnLink => {
                "is on no link of this node, so packets cannot be routed to it directly: use lbKind TUN or NAT"
            }
        })
    }
}

/// The states of servers.
pub(crate) type ProbeResults = BTreeMap<ProbeTarget, ProbeResult>;

/// The addresses of a node, each with the interfaces on which neighbours find it: no dummy links, no tunnels.
pub(crate) type Local = BTreeMap<IpAddr, BTreeSet<String>>;

/// The state of all servers, and of the ways to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    pub(crate) results: ProbeResults,
    /// The link-layer addresses of servers, those last known.
    pub(crate) macs: BTreeMap<IpAddr, [u8; 6]>,
    /// The interfaces that lead to servers elsewhere, those last known.
    pub(crate) egress_interfaces: BTreeMap<IpAddr, String>,
    /// All addresses of this node, those last known; none where nobody wants to know.
    pub(crate) local: Local,
    /// What went wrong in the last round, for people. Servers that could not be asked because of it are
    /// [`ProbeResult::NotProbed`], or what they were before.
    pub(crate) failure: Option<String>,
}

/// The work of the prober.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProbePlan {
    pub(crate) targets: BTreeSet<ProbeTarget>,
    /// Whether this node's addresses are read even where there is nothing to probe.
    pub(crate) reads_addresses: bool,
}

/// Talks to the task, which ends with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct ProberHandle(watch::Sender<ProbePlan>);

impl ProberHandle {
    /// Starts the task in the current runtime. It tells `events` what it report, when that changes.
    pub(crate) fn start(events: EventSender<ProbeReport>) -> Self {
        let (sender, wants) = watch::channel(ProbePlan::default());
        tokio::spawn(run(wants, events));
        Self(sender)
    }

    /// Sets the work from now on.
    pub(crate) fn probe(&self, plan: ProbePlan) {
        self.0.send_if_modified(|known| {
            let changed = *known != plan;
            *known = plan;
            changed
        });
    }
}

async fn run(mut wants: watch::Receiver<ProbePlan>, events: EventSender<ProbeReport>) {
    let mut rounds = tokio::time::interval(PROBE_INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut memory = Memory::default();
    let mut sockets = Sockets::default();
    let mut has_panicked = false;
    loop {
        tokio::select! {
            changed = wants.changed() => if changed.is_err() { return },
            _ = rounds.tick() => {}
        }
        let wanted = wants.borrow_and_update().clone();
        let mut round = Round { local: Some(Local::new()), ..Round::default() };
        if wanted == ProbePlan::default() {
            std::mem::take(&mut sockets).close();
        } else {
            let targets = wanted.targets.clone();
            match aside(sockets, move |sockets: &mut Sockets| sockets.round(&targets)).await {
                Aside::Done(back, report) => (sockets, round) = (back, report),
                Aside::Panicked(why) => {
                    if !std::mem::replace(&mut has_panicked, true) {
                        tracing::error!(why, "a round of questions to real servers panicked");
                    }
                    (sockets, round) =
                        (Sockets::default(), Round::failed(wanted.targets.iter().copied(), why));
                }
                Aside::Ended => return,
            }
        }
        if let Some(report) = memory.take(&wanted, round)
            && events.send(report) == Delivery::Closed
        {
            return;
        }
    }
}

/// How work on another thread went.
#[derive(Debug, PartialEq, Eq)]
enum Aside<V, T> {
    Done(V, T),
    /// What it worked with is lost; what it said.
    Panicked(String),
    /// The runtime ends.
    Ended,
}

/// Does work that waits, on a thread that may.
async fn aside<V: Send + 'static, T: Send + 'static>(
    mut with: V,
    work: impl FnOnce(&mut V) -> T + Send + 'static,
) -> Aside<V, T> {
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&mut with);
        (with, done)
    });
    match done.await {
        Ok((with, done)) => Aside::Done(with, done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Aside::Panicked(format!("asking panicked: {}", words(panic.as_ref()))),
            Err(_) => Aside::Ended,
        },
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

/// What the rounds so far brought.
#[derive(Debug, Default)]
struct Memory {
    histories: BTreeMap<ProbeTarget, History>,
    report: ProbeReport,
}

impl Memory {
    /// What is known after another round; `None` if that is what was known before.
    fn take(&mut self, wanted: &ProbePlan, round: Round) -> Option<ProbeReport> {
        self.histories.retain(|ask, _| wanted.targets.contains(ask));
        for (ask, answer) in round.answers {
            self.histories.entry(ask).or_default().record(answer);
        }
        for ask in round.unasked {
            self.histories.entry(ask).or_default().record_inconclusive();
        }
        let mut macs = self.report.macs.clone();
        macs.extend(round.macs);
        macs.retain(|ip, _| wanted.targets.iter().any(|ask| ask.server == *ip));
        let mut egress_interfaces = self.report.egress_interfaces.clone();
        egress_interfaces.extend(round.egress_interfaces);
        egress_interfaces.retain(|ip, _| wanted.targets.iter().any(|ask| ask.server == *ip));
        let results = self.histories.iter().filter_map(|(ask, it)| Some((*ask, it.result()?))).collect();
        let failures: Vec<String> = round.failures.into_iter().collect();
        let failure = (!failures.is_empty()).then(|| failures.join("; "));
        let local = round.local.filter(|local| *local != self.report.local);
        let is_same = local.is_none()
            && (&results, &macs, &failure) == (&self.report.results, &self.report.macs, &self.report.failure)
            && egress_interfaces == self.report.egress_interfaces;
        let local = local.unwrap_or_else(|| std::mem::take(&mut self.report.local));
        self.report = ProbeReport { results, macs, egress_interfaces, local, failure };
        (!is_same).then(|| self.report.clone())
    }
}

#[cfg(test)]
mod tests {
    use netlink_vip::acceptance::Answer;

    use super::*;

    fn ask(server: u8) -> ProbeTarget {
        let vip = SocketAddr::from(([10, 0, 0, 100], 6443));
        ProbeTarget { vip, server: [10, 0, 0, server].into(), tunnel: false }
    }

    fn wants(servers: &[u8]) -> ProbePlan {
        ProbePlan { targets: servers.iter().copied().map(ask).collect(), reads_addresses: false }
    }

    fn accepted(servers: &[u8]) -> Round {
        let answers = servers.iter().map(|server| (ask(*server), Answer::Accepts)).collect();
        Round { answers, ..Round::default() }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut memory = Memory::default();
        let mut take = |servers: &[u8], round| memory.take(&wants(servers), round);
        let report = take(&[1, 2], accepted(&[1, 2])).unwrap();
        assert_eq!(
            report.results,
            ProbeResults::from([(ask(1), ProbeResult::Accepts), (ask(2), ProbeResult::Accepts)])
        );
        assert_eq!(take(&[1, 2], accepted(&[1, 2])), None);
        let mac = [2, 0, 0, 0, 0, 1];
        let report = take(&[1, 2], Round { macs: vec![(ask(1).server, mac)], ..accepted(&[2]) }).unwrap();
        assert_eq!(report.macs, BTreeMap::from([(ask(1).server, mac)]));
        // What is not told again is still known.
        assert_eq!(take(&[1, 2], accepted(&[1, 2])), None);
        let report = take(&[2], accepted(&[2])).unwrap();
        assert_eq!((report.results.len(), report.macs.len()), (1, 0));
    }

    #[test]
    fn addresses_are_told_when_they_change_and_stay_when_they_cannot_be_read() {
        let mut memory = Memory::default();
        let mut take = |local: Option<&[u8]>| {
            let local =
                local.map(|hosts| hosts.iter().map(|host| (ask(*host).server, BTreeSet::new())).collect());
            let report = memory.take(&ProbePlan::default(), Round { local, ..Round::default() });
            (report.map(|report| report.local.len()), memory.report.local.len())
        };
        assert_eq!(take(Some(&[])), (None, 0));
        assert_eq!(take(Some(&[1, 2])), (Some(2), 2));
        assert_eq!(take(Some(&[1, 2])), (None, 2));
        assert_eq!(take(None), (None, 2));
        assert_eq!(take(Some(&[1])), (Some(1), 1));
    }

    #[test]
    fn a_failure_is_told_once_and_that_it_is_over() {
        let mut memory = Memory::default();
        let mut take = |round| memory.take(&wants(&[1, 2]), round);
        let failed = |why: &str| Round { unasked: vec![ask(2)], ..Round::failed([ask(1)], why.to_owned()) };
        take(accepted(&[1])).unwrap();
        let mut round = failed("one");
        round.failures.insert("another".to_owned());
        round.unasked.push(ask(1));
        let report = take(round).unwrap();
        assert_eq!(report.failure.as_deref(), Some("another; one"));
        assert_eq!(
            report.results,
            ProbeResults::from([(ask(1), ProbeResult::Accepts), (ask(2), ProbeResult::NotProbed)])
        );
        assert_eq!(take(failed("one")).unwrap().failure.as_deref(), Some("one"));
        assert_eq!(take(failed("one")), None);
        let report = take(accepted(&[1, 2])).unwrap();
        assert_eq!((report.failure, report.results[&ask(2)]), (None, ProbeResult::Accepts));
    }

    #[test]
    fn a_panic_loses_a_round_and_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert_eq!(aside(1, |n| *n + 1).await, Aside::Done(1, 2));
            let panicked = aside(1, |n: &mut i32| assert!(*n == 2, "no two")).await;
            assert_eq!(panicked, Aside::Panicked("asking panicked: no two".to_owned()));
            let panicked = aside(1, |n: &mut i32| assert!(*n == 2, "{n} is no two")).await;
            assert_eq!(panicked, Aside::Panicked("asking panicked: 1 is no two".to_owned()));
        });
    }

    #[test]
    fn addresses_are_looked_at_with_nobody_to_ask() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (channel, mut told) = tokio::sync::mpsc::unbounded_channel::<ProbeReport>();
        let report = runtime.block_on(async {
            let prober = ProberHandle::start(EventSender::new(&channel));
            prober.probe(ProbePlan { reads_addresses: true, ..ProbePlan::default() });
            tokio::time::timeout(Duration::from_secs(60), told.recv()).await
        });
        let Ok(Some(report)) = report else { panic!("nothing was report") };
        assert!(report.local.contains_key(&IpAddr::from([127, 0, 0, 1])));
        assert_eq!((report.results, report.failure), (ProbeResults::new(), None));
    }
}
