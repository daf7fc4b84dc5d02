//! One round of questions. All of it waits for the kernel and for servers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use netlink_vip::acceptance::{Acceptance, AcceptanceError, Answer, Egress, EgressLookup, Path, Question};
use netlink_vip::sessions::{self, Listener, SessionsError};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use super::{Local, ProbeTarget, TIMEOUT};
use crate::daemon::ipvs::listening::{self, Listening};

/// An interface, and the address of this node that is asked from.
type Exit = (String, IpAddr);

/// What one round brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Who is in none of both had nothing to say.
    pub(super) answers: Vec<(ProbeTarget, Answer)>,
    pub(super) unasked: Vec<ProbeTarget>,
    pub(super) macs: Vec<(IpAddr, [u8; 6])>,
    /// By which interface servers elsewhere are reached.
    pub(super) egress_interfaces: Vec<(IpAddr, String)>,
    /// The addresses of this node; `None` where they could not be read.
    pub(super) local: Option<Local>,
    pub(super) failures: BTreeSet<String>,
}

impl Round {
    /// Nobody could be asked.
    pub(super) fn failed(asks: impl IntoIterator<Item = ProbeTarget>, why: String) -> Self {
        Self { unasked: asks.into_iter().collect(), failures: BTreeSet::from([why]), ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        self.unasked.extend(other.unasked);
        self.macs.extend(other.macs);
        self.egress_interfaces.extend(other.egress_interfaces);
        self.failures.extend(other.failures);
    }
}

/// The sockets to ask with.
#[derive(Default)]
pub(super) struct Sockets {
    open: BTreeMap<Exit, Acceptance>,
    /// The kernel cannot list sockets. It looks for a module each time that it is asked, so it is not asked again.
    cannot_list: bool,
}

impl Sockets {
    /// Asks everybody and waits, for [`TIMEOUT`] at most.
    pub(super) fn round(&mut self, asks: &BTreeSet<ProbeTarget>) -> Round {
        let mut round = Round::default();
        match addresses() {
            Ok(local) => round.local = Some(local),
            Err(error) => {
                round.failures.insert(format!("this node's addresses: {error}"));
            }
        }
        if asks.is_empty() {
            self.open.clear();
            return round;
        }
        let sorted = match EgressLookup::open() {
            Ok(mut ways) => sort(asks, |server| ways.to(server)),
            Err(error) => Sorted::nobody(asks, &error),
        };
        round.add(sorted.lost);
        if !sorted.here.is_empty() {
            let listeners =
                if self.cannot_list { Err(SessionsError::Unsupported) } else { sessions::listeners() };
            self.cannot_list = matches!(listeners, Err(SessionsError::Unsupported));
            round.add(ask_here(&sorted.here, listeners));
        }
        round.add(self.ask_outside(&sorted.exits));
        round
    }

    /// Closes the sockets elsewhere: the kernel waits for all processors before a packet socket is gone.
    pub(super) fn close(self) {
        if !self.open.is_empty() {
            drop(tokio::task::spawn_blocking(move || drop(self)));
        }
    }

    fn ask_outside(&mut self, exits: &BTreeMap<Exit, Vec<ProbeTarget>>) -> Round {
        let mut open = std::mem::take(&mut self.open);
        let jobs = exits.iter().map(|(exit, asks)| (exit, asks, open.remove(exit))).collect();
        let done = at_once(jobs, |(exit, asks, acceptance)| ask(exit, asks, acceptance));
        let mut round = Round::default();
        for ((exit, asks), done) in exits.iter().zip(done) {
            round.egress_interfaces.extend(asks.iter().map(|ask| (ask.server, exit.0.clone())));
            let failed = |why: &str| {
                let why = format!("from {} on {}: {why}", exit.1, exit.0);
                Round::failed(asks.iter().copied(), why)
            };
            round.add(match done {
                Some(Ok((acceptance, heard))) => {
                    self.open.insert(exit.clone(), acceptance);
                    heard
                }
                Some(Err(error)) => failed(&error.to_string()),
                None => failed("there is no thread to ask on, or it panicked"),
            });
        }
        round
    }
}

/// Whom to ask where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sorted {
    here: Vec<ProbeTarget>,
    exits: BTreeMap<Exit, Vec<ProbeTarget>>,
    lost: Round,
}

impl Sorted {
    fn nobody(asks: &BTreeSet<ProbeTarget>, why: &AcceptanceError) -> Self {
        Self { lost: Round::failed(asks.iter().copied(), why.to_string()), ..Self::default() }
    }
}

/// Looks up each server once, however often it is asked.
fn sort(
    asks: &BTreeSet<ProbeTarget>,
    mut way: impl FnMut(IpAddr) -> Result<Egress, AcceptanceError>,
) -> Sorted {
    let mut by_server: BTreeMap<IpAddr, Vec<ProbeTarget>> = BTreeMap::new();
    for ask in asks {
        by_server.entry(ask.server).or_default().push(*ask);
    }
    let mut sorted = Sorted::default();
    for (server, asks) in by_server {
        match way(server) {
            Ok(Egress::Here) => sorted.here.extend(asks),
            Ok(Egress::Through { interface, source }) => {
                sorted.exits.entry((interface, source)).or_default().extend(asks);
            }
            Err(error) => sorted.lost.add(Round::failed(asks, error.to_string())),
        }
    }
    sorted
}

/// What the servers on this node do. Of one that listens nowhere nothing is said: it has no connections to refuse.
fn ask_here(asks: &[ProbeTarget], listeners: Result<Vec<Listener>, SessionsError>) -> Round {
    let asks = asks.iter().copied();
    match listeners {
        Ok(listeners) => {
            let answer = |ask: ProbeTarget| Some((ask, local_answer(listening::judge(ask.vip, &listeners)?)));
            Round { answers: asks.filter_map(answer).collect(), ..Round::default() }
        }
        // That is how this kernel is, not what went wrong.
        Err(SessionsError::Unsupported) => Round { unasked: asks.collect(), ..Round::default() },
        Err(error) => Round::failed(asks, error.to_string()),
    }
}

fn local_answer(listening: Listening) -> Answer {
    match listening {
        Listening::Reachable => Answer::Accepts,
        Listening::Elsewhere => Answer::Refuses,
    }
}

/// Does all jobs side by side, each on a thread of its own; `None` where one has panicked, or there was no thread.
fn at_once<J: Send, T: Send>(jobs: Vec<J>, work: impl Fn(J) -> T + Sync) -> Vec<Option<T>> {
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

/// Asks everybody behind an interface, and waits.
fn ask(
    exit: &Exit,
    asks: &[ProbeTarget],
    open: Option<Acceptance>,
) -> Result<(Acceptance, Round), AcceptanceError> {
    let mut acceptance = match open {
        Some(open) => open,
        None => Acceptance::open(&exit.0, exit.1)?,
    };
    let questions: Vec<Question> = asks.iter().map(question).collect();
    let heard: HashMap<Question, Answer> = acceptance.ask(&questions, TIMEOUT)?;
    let known = acceptance.neighbours()?;
    let round = Round {
        answers: asks.iter().filter_map(|ask| Some((*ask, *heard.get(&question(ask))?))).collect(),
        macs: asks.iter().filter_map(|ask| Some((ask.server, *known.get(&ask.server)?))).collect(),
        ..Round::default()
    };
    Ok((acceptance, round))
}

fn question(ask: &ProbeTarget) -> Question {
    let path = if ask.tunnel { Path::Tunnel } else { Path::Direct };
    Question { virtual_address: ask.vip, server: ask.server, path }
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

    fn asks(all: &[(u16, u8)]) -> BTreeSet<ProbeTarget> {
        let ask = |(port, server): &(u16, u8)| ProbeTarget {
            vip: SocketAddr::from(([10, 0, 0, 100], *port)),
            server: [10, 0, 0, *server].into(),
            tunnel: false,
        };
        all.iter().map(ask).collect()
    }

    #[test]
    fn each_server_is_looked_up_once_and_asked_through_its_interface() {
        let all = asks(&[(6443, 1), (6443, 2), (6443, 3), (6443, 4), (443, 2), (443, 1)]);
        let mut looked_up = Vec::new();
        let source = IpAddr::from([10, 0, 0, 1]);
        let sorted = sort(&all, |server| {
            looked_up.push(server);
            match server {
                IpAddr::V4(ip) if ip.octets()[3] == 1 => Ok(Egress::Here),
                IpAddr::V4(ip) if ip.octets()[3] == 4 => Err(AcceptanceError::NoRoute(server)),
                IpAddr::V4(ip) => Ok(Egress::Through { interface: format!("eth{}", ip.octets()[3]), source }),
                IpAddr::V6(_) => unreachable!("nobody has asked for it"),
            }
        });
        assert_eq!(looked_up, [1, 2, 3, 4].map(|host| IpAddr::from([10, 0, 0, host])));
        assert_eq!(sorted.here, asks(&[(443, 1), (6443, 1)]).into_iter().collect::<Vec<_>>());
        let exit = |name: &str, there: &[(u16, u8)]| {
            ((name.to_owned(), source), asks(there).into_iter().collect::<Vec<_>>())
        };
        let exits = [exit("eth2", &[(443, 2), (6443, 2)]), exit("eth3", &[(6443, 3)])];
        assert_eq!(sorted.exits, BTreeMap::from(exits));
        assert_eq!(
            sorted.lost,
            Round::failed(asks(&[(6443, 4)]), "no route of this node leads to 10.0.0.4".to_owned())
        );
    }

    #[test]
    fn without_routes_nobody_is_asked() {
        let all = asks(&[(6443, 1), (6443, 2)]);
        let sorted = Sorted::nobody(&all, &AcceptanceError::Permission("CAP_NET_RAW"));
        assert_eq!(sorted.lost.unasked.len(), 2);
        assert_eq!(sorted.lost.failures.len(), 1);
    }

    #[test]
    fn the_servers_of_this_node_share_one_list() {
        let all: Vec<ProbeTarget> = asks(&[(443, 1), (6443, 1), (8443, 1)]).into_iter().collect();
        let listener = |local: &str| Listener { local: local.parse().unwrap(), is_v6_only: false };
        let listeners = vec![listener("10.0.0.1:443"), listener("[::]:6443")];
        let told = ask_here(&all, Ok(listeners));
        let answers = vec![(all[0], Answer::Refuses), (all[1], Answer::Accepts)];
        assert_eq!(told, Round { answers, ..Round::default() });
        let untold = ask_here(&all, Err(SessionsError::Unsupported));
        assert_eq!(untold, Round { unasked: all.clone(), ..Round::default() });
        let failed = ask_here(&all, Err(SessionsError::Permission));
        assert_eq!((failed.unasked, failed.failures.len()), (all, 1));
    }

    #[test]
    fn all_are_asked_side_by_side_and_one_that_panics_costs_the_others_nothing() {
        let (inside, all_inside) = (Mutex::new(0), Condvar::new());
        let done = at_once(vec![1, 2, 3], |job| {
            let mut count = inside.lock().unwrap();
            *count += 1;
            all_inside.notify_all();
            let waited = all_inside.wait_timeout_while(count, Duration::from_secs(60), |count| *count < 3);
            let (count, timeout) = waited.unwrap();
            drop(count);
            assert!(job != 2, "as it should");
            (job, !timeout.timed_out())
        });
        assert_eq!(done, [Some((1, true)), None, Some((3, true))]);
    }

    #[test]
    fn a_round_asks_this_node_and_tells_its_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let vip = SocketAddr::from(([127, 0, 0, 9], listener.local_addr().unwrap().port()));
        let ask = ProbeTarget { vip, server: Ipv4Addr::LOCALHOST.into(), tunnel: false };
        let round = Sockets::default().round(&BTreeSet::from([ask]));
        assert_eq!(round.failures, BTreeSet::new());
        assert_eq!(
            round.local.unwrap()[&ask.server],
            BTreeSet::new(),
            "no neighbour finds it on the loopback"
        );
        assert!(round.answers == [(ask, Answer::Refuses)] || round.unasked == [ask], "{:?}", round.answers);
        let round = Sockets::default().round(&BTreeSet::new());
        assert!(round.local.unwrap().contains_key(&ask.server));
    }

    #[test]
    fn an_interface_that_is_none_costs_its_servers_only() {
        let all: Vec<ProbeTarget> = asks(&[(6443, 2)]).into_iter().collect();
        let exits = BTreeMap::from([(("no-such-link".to_owned(), [10, 0, 0, 1].into()), all.clone())]);
        let round = Sockets::default().ask_outside(&exits);
        assert_eq!(round.unasked, all);
        let failure = round.failures.first().unwrap();
        assert!(failure.starts_with("from 10.0.0.1 on no-such-link: "), "{failure}");
    }
}
