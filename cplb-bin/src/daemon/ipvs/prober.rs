//! The prober: probes whether servers accept the packets that a director would forward to them.
//!
//! A health check goes to a server's own address. It does not detect that nothing listens on the virtual address, or that
//! the server lacks the dummy link or the tunnel; a director that forwards to such a server loses a share of all
//! connections. Every node probes, not only the director, so that the next director has results already.

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
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The time that an answer may take.
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);

/// A server that a director may forward to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProbeTarget {
    /// The virtual address and port.
    pub(super) vip: SocketAddr,
    /// The server's own address.
    pub(super) server: IpAddr,
    /// Set if packets are forwarded through a tunnel.
    pub(super) tunnel: bool,
}

/// The state of a server by its probes. A server that was not probed yet has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeResult {
    /// It accepts connections to the virtual address.
    Accepts,
    /// It refuses them, also because its daemon stops.
    Refuses,
    /// It has not answered for several rounds.
    Silent,
    /// This node cannot probe it.
    NotProbed,
    /// It is not on a link of this node, so packets cannot be routed to it directly.
    NotOnLink,
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepts => "accepts connections to the virtual IP",
            Self::NotProbed => "cannot be probed from this node",
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
pub(super) type ProbeResults = BTreeMap<ProbeTarget, ProbeResult>;

/// The addresses of a node, each with the interfaces on which neighbours resolve it: not dummy links and tunnels.
pub(super) type Local = BTreeMap<IpAddr, BTreeSet<String>>;

/// The state of all servers, and of the routes to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    pub(super) results: ProbeResults,
    /// The last known link-layer addresses of servers.
    pub(super) macs: BTreeMap<IpAddr, [u8; 6]>,
    /// The last known interfaces by which servers on other nodes are reached.
    pub(super) egress_interfaces: BTreeMap<IpAddr, String>,
    /// The last known addresses of this node; none before they were read.
    pub(super) local: Local,
    /// The failure of the last round, for the operator. Servers that could not be probed because of it keep their results,
    /// or are [`ProbeResult::NotProbed`].
    pub(super) failure: Option<String>,
}

/// The work of the prober.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ProbePlan {
    pub(super) targets: BTreeSet<ProbeTarget>,
    /// Set if this node's addresses are read even where there is nothing to probe.
    pub(super) reads_addresses: bool,
}

/// The handle of the task, which ends with the last handle.
#[derive(Debug, Clone)]
pub(super) struct ProberHandle(watch::Sender<ProbePlan>);

impl ProberHandle {
    /// Starts the task in the current runtime. It sends each change of its report to `events`.
    pub(super) fn start(events: EventSender<ProbeReport>) -> Self {
        let (sender, plans) = watch::channel(ProbePlan::default());
        tokio::spawn(run(plans, events));
        Self(sender)
    }

    /// Sets the work from now on.
    pub(super) fn probe(&self, plan: ProbePlan) {
        self.0.send_if_modified(|known| {
            let changed = *known != plan;
            *known = plan;
            changed
        });
    }
}

async fn run(mut plans: watch::Receiver<ProbePlan>, events: EventSender<ProbeReport>) {
    let mut rounds = tokio::time::interval(PROBE_INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = ProbeState::default();
    let mut sockets = Sockets::default();
    let mut has_panicked = false;
    loop {
        tokio::select! {
            changed = plans.changed() => if changed.is_err() { return },
            _ = rounds.tick() => {}
        }
        let plan = plans.borrow_and_update().clone();
        // Without a plan the addresses count as not read, so that none is left from a former plan.
        let mut round = Round { local: Some(Local::new()), ..Round::default() };
        if plan == ProbePlan::default() {
            std::mem::take(&mut sockets).close();
        } else {
            let targets = plan.targets.clone();
            match run_blocking(sockets, move |sockets: &mut Sockets| sockets.round(&targets)).await {
                Blocking::Done(back, report) => (sockets, round) = (back, report),
                Blocking::Panicked(why) => {
                    if !std::mem::replace(&mut has_panicked, true) {
                        tracing::error!(why, "probe round panicked");
                    }
                    (sockets, round) = (Sockets::default(), Round::failed(plan.targets.iter().copied(), why));
                }
                Blocking::Ended => return,
            }
        }
        if let Some(report) = state.record_round(&plan, round)
            && events.send(report) == Delivery::Closed
        {
            return;
        }
    }
}

/// The result of work on another thread.
#[derive(Debug, PartialEq, Eq)]
enum Blocking<V, T> {
    Done(V, T),
    /// The work panicked with this message, and its value is lost.
    Panicked(String),
    /// The runtime ends.
    Ended,
}

/// Does blocking work on a thread of the pool.
async fn run_blocking<V: Send + 'static, T: Send + 'static>(
    mut with: V,
    work: impl FnOnce(&mut V) -> T + Send + 'static,
) -> Blocking<V, T> {
    let done = tokio::task::spawn_blocking(move || {
        let done = work(&mut with);
        (with, done)
    });
    match done.await {
        Ok((with, done)) => Blocking::Done(with, done),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Blocking::Panicked(format!("the probe panicked: {}", panic_message(panic.as_ref()))),
            Err(_) => Blocking::Ended,
        },
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The results of the rounds so far.
#[derive(Debug, Default)]
struct ProbeState {
    histories: BTreeMap<ProbeTarget, History>,
    report: ProbeReport,
}

impl ProbeState {
    /// Records a round. Returns the report if it has changed.
    fn record_round(&mut self, plan: &ProbePlan, round: Round) -> Option<ProbeReport> {
        self.histories.retain(|target, _| plan.targets.contains(target));
        for (target, answer) in round.answers {
            self.histories.entry(target).or_default().record(answer);
        }
        for target in round.not_probed {
            self.histories.entry(target).or_default().record_inconclusive();
        }
        let mut macs = self.report.macs.clone();
        macs.extend(round.macs);
        macs.retain(|ip, _| plan.targets.iter().any(|target| target.server == *ip));
        let mut egress_interfaces = self.report.egress_interfaces.clone();
        egress_interfaces.extend(round.egress_interfaces);
        egress_interfaces.retain(|ip, _| plan.targets.iter().any(|target| target.server == *ip));
        let results =
            self.histories.iter().filter_map(|(target, it)| Some((*target, it.result()?))).collect();
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

    fn target(server: u8) -> ProbeTarget {
        let vip = SocketAddr::from(([10, 0, 0, 100], 6443));
        ProbeTarget { vip, server: [10, 0, 0, server].into(), tunnel: false }
    }

    fn plan(servers: &[u8]) -> ProbePlan {
        ProbePlan { targets: servers.iter().copied().map(target).collect(), reads_addresses: false }
    }

    fn accepted(servers: &[u8]) -> Round {
        let answers = servers.iter().map(|server| (target(*server), Answer::Accepts)).collect();
        Round { answers, ..Round::default() }
    }

    #[test]
    fn only_a_changed_report_is_sent() {
        let mut state = ProbeState::default();
        let mut record = |servers: &[u8], round| state.record_round(&plan(servers), round);
        let report = record(&[1, 2], accepted(&[1, 2])).unwrap();
        assert_eq!(
            report.results,
            ProbeResults::from([(target(1), ProbeResult::Accepts), (target(2), ProbeResult::Accepts)])
        );
        assert_eq!(record(&[1, 2], accepted(&[1, 2])), None);
        let mac = [2, 0, 0, 0, 0, 1];
        let report =
            record(&[1, 2], Round { macs: vec![(target(1).server, mac)], ..accepted(&[2]) }).unwrap();
        assert_eq!(report.macs, BTreeMap::from([(target(1).server, mac)]));
        // A link-layer address that is not reported again is retained.
        assert_eq!(record(&[1, 2], accepted(&[1, 2])), None);
        let report = record(&[2], accepted(&[2])).unwrap();
        assert_eq!((report.results.len(), report.macs.len()), (1, 0));
    }

    #[test]
    fn unreadable_addresses_leave_the_former_ones_in_the_report() {
        let mut state = ProbeState::default();
        let mut record = |local: Option<&[u8]>| {
            let local =
                local.map(|hosts| hosts.iter().map(|host| (target(*host).server, BTreeSet::new())).collect());
            let report = state.record_round(&ProbePlan::default(), Round { local, ..Round::default() });
            (report.map(|report| report.local.len()), state.report.local.len())
        };
        assert_eq!(record(Some(&[])), (None, 0));
        assert_eq!(record(Some(&[1, 2])), (Some(2), 2));
        assert_eq!(record(Some(&[1, 2])), (None, 2));
        assert_eq!(record(None), (None, 2));
        assert_eq!(record(Some(&[1])), (Some(1), 1));
    }

    #[test]
    fn a_failure_and_its_end_are_each_reported_once() {
        let mut state = ProbeState::default();
        let mut record = |round| state.record_round(&plan(&[1, 2]), round);
        let failed =
            |why: &str| Round { not_probed: vec![target(2)], ..Round::failed([target(1)], why.to_owned()) };
        record(accepted(&[1])).unwrap();
        let mut round = failed("one");
        round.failures.insert("another".to_owned());
        round.not_probed.push(target(1));
        let report = record(round).unwrap();
        assert_eq!(report.failure.as_deref(), Some("another; one"));
        assert_eq!(
            report.results,
            ProbeResults::from([(target(1), ProbeResult::Accepts), (target(2), ProbeResult::NotProbed)])
        );
        assert_eq!(record(failed("one")).unwrap().failure.as_deref(), Some("one"));
        assert_eq!(record(failed("one")), None);
        let report = record(accepted(&[1, 2])).unwrap();
        assert_eq!((report.failure, report.results[&target(2)]), (None, ProbeResult::Accepts));
    }

    #[test]
    fn a_panic_loses_only_its_round() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            assert_eq!(run_blocking(1, |n| *n + 1).await, Blocking::Done(1, 2));
            let panicked = run_blocking(1, |n: &mut i32| assert!(*n == 2, "no two")).await;
            assert_eq!(panicked, Blocking::Panicked("the probe panicked: no two".to_owned()));
            let panicked = run_blocking(1, |n: &mut i32| assert!(*n == 2, "{n} is no two")).await;
            assert_eq!(panicked, Blocking::Panicked("the probe panicked: 1 is no two".to_owned()));
        });
    }

    #[test]
    fn addresses_are_read_without_targets() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (channel, mut reports) = tokio::sync::mpsc::unbounded_channel::<ProbeReport>();
        let report = runtime.block_on(async {
            let prober = ProberHandle::start(EventSender::new(&channel));
            prober.probe(ProbePlan { reads_addresses: true, ..ProbePlan::default() });
            tokio::time::timeout(Duration::from_secs(60), reports.recv()).await
        });
        let Ok(Some(report)) = report else { panic!("no report was sent") };
        assert!(report.local.contains_key(&IpAddr::from([127, 0, 0, 1])));
        assert_eq!((report.results, report.failure), (ProbeResults::new(), None));
    }
}
