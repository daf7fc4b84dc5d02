//! One round of probes. It blocks on the kernel and on servers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use netlink_vip::acceptance::{Acceptance, AcceptanceError, Answer, Egress, EgressLookup, Path, Question};
use netlink_vip::sessions::{self, Listener, SessionsError};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use super::{Local, ProbeTarget, TIMEOUT};
use crate::daemon::ipvs::listening::{self, Listening};

/// The interface and the address of this node that a probe is sent from.
type Origin = (String, IpAddr);

/// The results of one round.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// A target in neither list has no listener.
    pub(super) answers: Vec<(ProbeTarget, Answer)>,
    pub(super) not_probed: Vec<ProbeTarget>,
    pub(super) macs: Vec<(IpAddr, [u8; 6])>,
    /// The interfaces by which servers on other nodes are reached.
    pub(super) egress_interfaces: Vec<(IpAddr, String)>,
    /// The addresses of this node; `None` where they could not be read.
    pub(super) local: Option<Local>,
    pub(super) failures: BTreeSet<String>,
}

impl Round {
    /// A round in which none of the targets could be probed.
    pub(super) fn failed(targets: impl IntoIterator<Item = ProbeTarget>, why: String) -> Self {
        Self { not_probed: targets.into_iter().collect(), failures: BTreeSet::from([why]), ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.not_probed.extend(other.not_probed);
        self.macs.extend(other.macs);
        self.egress_interfaces.extend(other.egress_interfaces);
        self.failures.extend(other.failures);
    }
}

/// The sockets to probe with.
#[derive(Default)]
pub(super) struct Sockets {
    open: BTreeMap<Origin, Acceptance>,
    /// Set if the kernel cannot list sockets. Each request would search for a module, so there is no further one.
    cannot_list: bool,
}

impl Sockets {
    /// Probes all targets. Blocks for [`TIMEOUT`] at most.
    pub(super) fn round(&mut self, targets: &BTreeSet<ProbeTarget>) -> Round {
        let mut round = Round::default();
        match addresses() {
            Ok(local) => round.local = Some(local),
            Err(error) => {
                round.failures.insert(format!("this node's addresses: {error}"));
            }
        }
        if targets.is_empty() {
            self.open.clear();
            return round;
        }
        let routed = match EgressLookup::open() {
            Ok(mut routes) => route(targets, |server| routes.to(server)),
            Err(error) => Routed::none(targets, &error),
        };
        round.add(routed.failed);
        if !routed.local.is_empty() {
            let listeners =
                if self.cannot_list { Err(SessionsError::Unsupported) } else { sessions::listeners() };
            self.cannot_list = matches!(listeners, Err(SessionsError::Unsupported));
            round.add(probe_local(&routed.local, listeners));
        }
        round.add(self.probe_remote(&routed.origins));
        round
    }

    /// Closes the sockets in another thread: the kernel waits for all processors when it closes a packet socket.
    pub(super) fn close(self) {
        if !self.open.is_empty() {
            drop(tokio::task::spawn_blocking(move || drop(self)));
        }
    }

    fn probe_remote(&mut self, origins: &BTreeMap<Origin, Vec<ProbeTarget>>) -> Round {
        let mut open = std::mem::take(&mut self.open);
        let jobs = origins.iter().map(|(origin, targets)| (origin, targets, open.remove(origin))).collect();
        let done = in_parallel(jobs, |(origin, targets, acceptance)| probe(origin, targets, acceptance));
        let mut round = Round::default();
        for ((origin, targets), done) in origins.iter().zip(done) {
            round.egress_interfaces.extend(targets.iter().map(|target| (target.server, origin.0.clone())));
            let failed = |why: &str| {
                let why = format!("from {} on {}: {why}", origin.1, origin.0);
                Round::failed(targets.iter().copied(), why)
            };
            round.add(match done {
                Some(Ok((acceptance, answered))) => {
                    self.open.insert(origin.clone(), acceptance);
                    answered
                }
                Some(Err(error)) => failed(&error.to_string()),
                None => failed("no thread could be started, or it panicked"),
            });
        }
        round
    }
}

/// The targets by the route to their servers.
#[derive(Debug, Default, PartialEq, Eq)]
struct Routed {
    local: Vec<ProbeTarget>,
    origins: BTreeMap<Origin, Vec<ProbeTarget>>,
    failed: Round,
}

impl Routed {
    fn none(targets: &BTreeSet<ProbeTarget>, why: &AcceptanceError) -> Self {
        Self { failed: Round::failed(targets.iter().copied(), why.to_string()), ..Self::default() }
    }
}

/// Looks up the route to each server, once for all its targets.
fn route(
    targets: &BTreeSet<ProbeTarget>,
    mut look_up: impl FnMut(IpAddr) -> Result<Egress, AcceptanceError>,
) -> Routed {
    let mut by_server: BTreeMap<IpAddr, Vec<ProbeTarget>> = BTreeMap::new();
    for target in targets {
        by_server.entry(target.server).or_default().push(*target);
    }
    let mut routed = Routed::default();
    for (server, targets) in by_server {
        match look_up(server) {
            Ok(Egress::Here) => routed.local.extend(targets),
            Ok(Egress::Through { interface, source }) => {
                routed.origins.entry((interface, source)).or_default().extend(targets);
            }
            Err(error) => routed.failed.add(Round::failed(targets, error.to_string())),
        }
    }
    routed
}

/// The answers of servers on this node, from the list of listeners. A server without a listener on the port has none.
fn probe_local(targets: &[ProbeTarget], listeners: Result<Vec<Listener>, SessionsError>) -> Round {
    let targets = targets.iter().copied();
    match listeners {
        Ok(listeners) => {
            let answer = |target: ProbeTarget| {
                Some((target, local_answer(listening::classify(target.vip, &listeners)?)))
            };
            Round { answers: targets.filter_map(answer).collect(), ..Round::default() }
        }
        // A property of this kernel, not a failure.
        Err(SessionsError::Unsupported) => Round { not_probed: targets.collect(), ..Round::default() },
        Err(error) => Round::failed(targets, error.to_string()),
    }
}

fn local_answer(listening: Listening) -> Answer {
    match listening {
        Listening::Reachable => Answer::Accepts,
        Listening::Elsewhere => Answer::Refuses,
    }
}

/// Does all jobs in parallel, each on its own thread; `None` for a job that panicked, or for which no thread could start.
fn in_parallel<J: Send, T: Send>(jobs: Vec<J>, work: impl Fn(J) -> T + Sync) -> Vec<Option<T>> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |job| {
            let thread = std::thread::Builder::new().name("prober".to_owned());
            thread.spawn_scoped(scope, move || work(job)).ok()
        };
        let threads: Vec<_> = jobs.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread?.join().ok()).collect()
    })
}

/// Probes the targets behind an interface. Blocks until all have answered or the time is over.
fn probe(
    origin: &Origin,
    targets: &[ProbeTarget],
    open: Option<Acceptance>,
) -> Result<(Acceptance, Round), AcceptanceError> {
    let mut acceptance = match open {
        Some(open) => open,
        None => Acceptance::open(&origin.0, origin.1)?,
    };
    let questions: Vec<Question> = targets.iter().map(question).collect();
    let answered: HashMap<Question, Answer> = acceptance.ask(&questions, TIMEOUT)?;
    let known = acceptance.neighbours()?;
    let round = Round {
        answers: targets
            .iter()
            .filter_map(|target| Some((*target, *answered.get(&question(target))?)))
            .collect(),
        macs: targets
            .iter()
            .filter_map(|target| Some((target.server, *known.get(&target.server)?)))
            .collect(),
        ..Round::default()
    };
    Ok((acceptance, round))
}

fn question(target: &ProbeTarget) -> Question {
    let path = if target.tunnel { Path::Tunnel } else { Path::Direct };
    Question { virtual_address: target.vip, server: target.server, path }
}

/// All addresses of this node.
fn addresses() -> nix::Result<Local> {
    let ip = |address: SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip())))
    };
    let mut local = Local::new();
    for interface in getifaddrs()? {
        let Some(ip) = interface.address.and_then(ip) else { continue };
        let names = local.entry(ip).or_default();
        let flags = interface.flags & (InterfaceFlags::IFF_BROADCAST | InterfaceFlags::IFF_NOARP);
        if flags == InterfaceFlags::IFF_BROADCAST {
            names.insert(interface.interface_name);
        }
    }
    Ok(local)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    use super::*;

    fn targets(all: &[(u16, u8)]) -> BTreeSet<ProbeTarget> {
        let target = |(port, server): &(u16, u8)| ProbeTarget {
            vip: SocketAddr::from(([10, 0, 0, 100], *port)),
            server: [10, 0, 0, *server].into(),
            tunnel: false,
        };
        all.iter().map(target).collect()
    }

    #[test]
    fn each_server_is_looked_up_once_and_probed_through_its_interface() {
        let all = targets(&[(6443, 1), (6443, 2), (6443, 3), (6443, 4), (443, 2), (443, 1)]);
        let mut looked_up = Vec::new();
        let source = IpAddr::from([10, 0, 0, 1]);
        let routed = route(&all, |server| {
            looked_up.push(server);
            match server {
                IpAddr::V4(ip) if ip.octets()[3] == 1 => Ok(Egress::Here),
                IpAddr::V4(ip) if ip.octets()[3] == 4 => Err(AcceptanceError::NoRoute(server)),
                IpAddr::V4(ip) => Ok(Egress::Through { interface: format!("eth{}", ip.octets()[3]), source }),
                IpAddr::V6(_) => unreachable!("it is no target"),
            }
        });
        assert_eq!(looked_up, [1, 2, 3, 4].map(|host| IpAddr::from([10, 0, 0, host])));
        assert_eq!(routed.local, targets(&[(443, 1), (6443, 1)]).into_iter().collect::<Vec<_>>());
        let exit = |name: &str, of: &[(u16, u8)]| {
            ((name.to_owned(), source), targets(of).into_iter().collect::<Vec<_>>())
        };
        let origins = [exit("eth2", &[(443, 2), (6443, 2)]), exit("eth3", &[(6443, 3)])];
        assert_eq!(routed.origins, BTreeMap::from(origins));
        assert_eq!(
            routed.failed,
            Round::failed(targets(&[(6443, 4)]), "no route of this node leads to 10.0.0.4".to_owned())
        );
    }

    #[test]
    fn without_routes_no_target_is_probed() {
        let all = targets(&[(6443, 1), (6443, 2)]);
        let routed = Routed::none(&all, &AcceptanceError::Permission("CAP_NET_RAW"));
        assert_eq!(routed.failed.not_probed.len(), 2);
        assert_eq!(routed.failed.failures.len(), 1);
    }

    #[test]
    fn local_servers_are_probed_by_the_list_of_listeners() {
        let all: Vec<ProbeTarget> = targets(&[(443, 1), (6443, 1), (8443, 1)]).into_iter().collect();
        let listener = |local: &str| Listener { local: local.parse().unwrap(), is_v6_only: false };
        let listeners = vec![listener("10.0.0.1:443"), listener("[::]:6443")];
        let probed = probe_local(&all, Ok(listeners));
        let answers = vec![(all[0], Answer::Refuses), (all[1], Answer::Accepts)];
        assert_eq!(probed, Round { answers, ..Round::default() });
        let unsupported = probe_local(&all, Err(SessionsError::Unsupported));
        assert_eq!(unsupported, Round { not_probed: all.clone(), ..Round::default() });
        let failed = probe_local(&all, Err(SessionsError::Permission));
        assert_eq!((failed.not_probed, failed.failures.len()), (all, 1));
    }

    #[test]
    fn jobs_run_in_parallel_and_a_panic_does_not_affect_the_others() {
        let (inside, all_inside) = (Mutex::new(0), Condvar::new());
        let done = in_parallel(vec![1, 2, 3], |job| {
            let mut count = inside.lock().unwrap();
            *count += 1;
            all_inside.notify_all();
            let waited = all_inside.wait_timeout_while(count, Duration::from_secs(60), |count| *count < 3);
            let (count, timeout) = waited.unwrap();
            drop(count);
            assert!(job != 2, "the test panics here");
            (job, !timeout.timed_out())
        });
        assert_eq!(done, [Some((1, true)), None, Some((3, true))]);
    }

    #[test]
    fn a_round_probes_local_servers_and_reads_the_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let vip = SocketAddr::from(([127, 0, 0, 9], listener.local_addr().unwrap().port()));
        let target = ProbeTarget { vip, server: Ipv4Addr::LOCALHOST.into(), tunnel: false };
        let round = Sockets::default().round(&BTreeSet::from([target]));
        assert_eq!(round.failures, BTreeSet::new());
        assert_eq!(
            round.local.unwrap()[&target.server],
            BTreeSet::new(),
            "no neighbour resolves it on the loopback"
        );
        assert!(
            round.answers == [(target, Answer::Refuses)] || round.not_probed == [target],
            "{:?}",
            round.answers
        );
        let round = Sockets::default().round(&BTreeSet::new());
        assert!(round.local.unwrap().contains_key(&target.server));
    }

    #[test]
    fn a_missing_interface_fails_only_its_targets() {
        let all: Vec<ProbeTarget> = targets(&[(6443, 2)]).into_iter().collect();
        let origins = BTreeMap::from([(("no-such-link".to_owned(), [10, 0, 0, 1].into()), all.clone())]);
        let round = Sockets::default().probe_remote(&origins);
        assert_eq!(round.not_probed, all);
        let failure = round.failures.first().unwrap();
        assert!(failure.starts_with("from 10.0.0.1 on no-such-link: "), "{failure}");
    }
}
