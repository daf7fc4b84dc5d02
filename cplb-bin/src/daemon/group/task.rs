//! One channel: its socket, its core, and its board.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use vrrp::channel::{
    Answer, Channel, ChannelConfig, ChannelSocket, Event, MAX_DATAGRAM, MAX_PEERS, Report, Timing,
};

use crate::daemon::sender::EventSender;
use crate::history::WallTime;

use super::link::{LinkKey, Local};
use super::{Board, GroupEvent, Order, PeerState};

/// The most peers that no list has, where neighbours are heard: a half of those that there is room for.
const MAX_UNLISTED: usize = MAX_PEERS / 2;

/// The wait after the socket could not be opened.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the owner drops its end.
pub(super) async fn run(
    key: LinkKey,
    local: watch::Receiver<Local>,
    orders: UnboundedReceiver<Order>,
    board: Arc<Mutex<Board>>,
    events: EventSender<GroupEvent>,
) {
    let first = local.borrow().clone();
    let channel = Channel::new(config(&first), seed(), first.report.clone(), Instant::now());
    let retry_at = Instant::now();
    let (socket, asked, strangers, own, error) = (None, BTreeMap::new(), 0, 0, None);
    let mut task = Task { key, channel, socket, retry_at, asked, board, events, strangers, own, error };
    task.run(local, orders).await;
}

/// Unpredictable numbers: of the process's hash seeds, which are random.
fn seed() -> [u64; 2] {
    use std::hash::{BuildHasher as _, RandomState};
    [RandomState::new().hash_one(0), RandomState::new().hash_one(1)]
}

fn config(local: &Local) -> ChannelConfig {
    // Each report goes to every peer of a unicast group: with more of them it goes less often, so that a node at rest
    // sends at most two datagrams a second.
    let share = u32::try_from(local.peers.len().div_ceil(2)).unwrap_or(u32::MAX).max(1);
    let timing = Timing::default();
    let timing =
        Timing { interval: timing.interval * share, lost_after: timing.lost_after * share, ..timing };
    ChannelConfig { keys: local.keys.clone(), timing }
}

struct Task {
    key: LinkKey,
    channel: Channel,
    socket: Option<ChannelSocket>,
    /// The time at which to open the socket again.
    retry_at: Instant,
    /// The owner's tokens of the requests that are not answered yet.
    asked: BTreeMap<u64, u64>,
    board: Arc<Mutex<Board>>,
    events: EventSender<GroupEvent>,
    strangers: u64,
    own: u64,
    error: Option<String>,
}

impl Task {
    async fn run(&mut self, mut local: watch::Receiver<Local>, mut orders: UnboundedReceiver<Order>) {
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        loop {
            let current = local.borrow_and_update().clone();
            self.channel.reconfigure(config(&current));
            // Peers tell the difference of the clocks by the time in a report, which must be that of sending it.
            let report = Report { clock: WallTime::now().millis(), ..current.report.clone() };
            self.channel.handle_report(Instant::now(), report);
            self.open(&current);
            // A datagram that is discarded changes nothing that has to be shown at once.
            let mut changed = true;
            loop {
                self.send(&current);
                if std::mem::take(&mut changed) {
                    self.report();
                }
                let wake = self.wake(&current);
                tokio::select! {
                    result = local.changed() => {
                        if result.is_err() {
                            self.channel.stop();
                            self.send(&current);
                            return;
                        }
                        break;
                    }
                    Some(order) = orders.recv() => {
                        self.carry_out(order);
                        changed = true;
                    }
                    received = receive(self.socket.as_ref(), &mut buffer) => match received {
                        Ok((len, source)) => changed = self.receive(&current, source, &buffer[..len]),
                        Err(error) => self.fail(&error),
                    },
                    () = tokio::time::sleep_until(wake.into()) => {
                        self.channel.handle_clock(WallTime::now().millis());
                        self.channel.handle_timeout(Instant::now());
                        self.open(&current);
                        changed = true;
                    }
                }
                // A flood of datagrams must not keep the loop of the daemon from its work.
                tokio::task::yield_now().await;
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Request { token, to, request, timeout } => {
                let id = self.channel.request(Instant::now(), to, request, timeout);
                self.asked.insert(id, token);
            }
            Order::Answer { to, id, answer } => self.channel.answer(to, id, &answer),
        }
    }

    fn answered(&mut self, id: u64, answer: Option<Answer>) {
        if let Some(token) = self.asked.remove(&id) {
            let _ = self.events.send(GroupEvent::Answered { token, answer });
        }
    }

    /// The next time at which there is something to do. Without a source nothing can be opened.
    fn wake(&self, local: &Local) -> Instant {
        let timeout = self.channel.poll_timeout();
        if local.source.is_some() && self.socket.is_none() { timeout.min(self.retry_at) } else { timeout }
    }

    /// Opens the socket, if there is none for this interface and source.
    fn open(&mut self, local: &Local) {
        if self.socket.as_ref().map(ChannelSocket::place) != local.source {
            self.socket = None;
        }
        let now = Instant::now();
        let (Some((index, source)), None) = (local.source, &self.socket) else {
            self.error = None;
            return;
        };
        if now < self.retry_at {
            return;
        }
        match ChannelSocket::open(&self.key.interface, index, source) {
            Ok(socket) => (self.socket, self.error) = (Some(socket), None),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.socket = None;
        self.retry_at = Instant::now() + RETRY;
        self.error = Some(error.to_string());
    }

    /// Handles a datagram. Returns whether it was used.
    fn receive(&mut self, local: &Local, source: IpAddr, bytes: &[u8]) -> bool {
        if local.report.addresses.contains(&source) {
            self.own += 1;
            return false;
        }
        if local.keys.is_empty() && (is_stranger(local, source) || self.is_one_too_many(local, source)) {
            self.strangers += 1;
            return false;
        }
        // A report may be the answer.
        self.channel.handle_clock(WallTime::now().millis());
        // The reason of a discard is counted.
        self.channel.handle_datagram(Instant::now(), source, bytes).is_ok()
    }

    /// Returns whether a sender that no list has would take the place of one that is listed.
    fn is_one_too_many(&self, local: &Local, source: IpAddr) -> bool {
        let is_unlisted = |ip: &IpAddr| !local.known.contains(ip) && !local.peers.contains(ip);
        if !local.hears_all || !is_unlisted(&source) {
            return false;
        }
        let others: Vec<IpAddr> = self.channel.peers().map(|peer| peer.address).filter(is_unlisted).collect();
        others.len() >= MAX_UNLISTED && !others.contains(&source)
    }

    /// Sends what is to be sent.
    fn send(&mut self, local: &Local) {
        while let Some(datagram) = self.channel.poll_datagram() {
            let Some(socket) = &self.socket else { continue };
            let bytes = self.channel.seal(&datagram.payload, socket.source());
            let group = [socket.group()];
            let to: &[IpAddr] = match (&datagram.to, local.peers.is_empty()) {
                (Some(peer), _) => std::slice::from_ref(peer),
                (None, true) => &group,
                (None, false) => &local.peers,
            };
            for peer in to {
                // A peer that cannot be reached is missing from the status.
                let _ = socket.send(*peer, &bytes);
            }
        }
    }

    /// Reports what has changed.
    fn report(&mut self) {
        let (mut found, mut is_changed) = (Vec::new(), false);
        while let Some(event) = self.channel.poll_event() {
            match event {
                Event::Found(peer) => found.push(peer),
                Event::Lost(peer) => _ = self.events.send(GroupEvent::Lost { peer }),
                Event::Changed(_) => is_changed = true,
                Event::Requested { from, id, request } => {
                    let link = self.key.clone();
                    let _ = self.events.send(GroupEvent::Requested { link, from, id, request });
                }
                Event::Answered { id, answer, .. } => self.answered(id, Some(answer)),
                Event::Unanswered { id } => self.answered(id, None),
            }
        }
        self.post();
        if is_changed {
            let _ = self.events.send(GroupEvent::Changed);
        }
        for peer in found {
            let view = self.channel.peers().find(|view| view.address == peer);
            let report = view.map(|view| Box::new(view.report.clone()));
            let _ = report.map(|report| self.events.send(GroupEvent::Found { peer, report }));
        }
    }

    fn post(&self) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = i64::try_from(WallTime::now().millis()).unwrap_or(i64::MAX);
        let former = std::mem::take(&mut board.peers);
        board.peers = self
            .channel
            .peers()
            .map(|view| {
                let known = former.iter().find(|peer| peer.address == view.address);
                let ahead = i64::try_from(view.report.clock).unwrap_or(i64::MAX).saturating_sub(clock);
                // Only the moment of arrival tells the difference of the clocks.
                let clock_ahead = match known {
                    Some(peer) if peer.report.clock == view.report.clock => peer.clock_ahead,
                    _ => ahead,
                };
                PeerState {
                    address: view.address,
                    report: view.report.clone(),
                    heard: view.heard,
                    authenticated: view.authenticated,
                    clock_ahead,
                }
            })
            .collect();
        board.discarded.clone_from(self.channel.discarded());
        (board.strangers, board.own) = (self.strangers, self.own);
        board.error.clone_from(&self.error);
        (board.sent, board.received) = self.channel.traffic();
    }
}

/// Returns whether a sender is none of the controllers, as far as their addresses are known: these may be of another network,
/// and IPv6 by multicast comes from link-local ones.
fn is_stranger(local: &Local, source: IpAddr) -> bool {
    let own = local.source.map(|(_, own)| own);
    let is_other = |known: &&IpAddr| Some(**known) != own && known.is_ipv4() == source.is_ipv4();
    let knows_sources =
        own.is_some_and(|own| local.known.contains(&own)) && local.known.iter().any(|known| is_other(&known));
    let listed = local.known.contains(&source);
    !local.hears_all && !listed && (knows_sources || !local.peers.is_empty())
}

async fn receive(socket: Option<&ChannelSocket>, buffer: &mut [u8]) -> io::Result<(usize, IpAddr)> {
    match socket {
        Some(socket) => socket.receive(buffer).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn local(source: &str, peers: &[&str], known: &[&str]) -> Local {
        let parse = |text: &&str| text.parse::<IpAddr>().unwrap();
        Local {
            source: Some((2, source.parse().unwrap())),
            peers: peers.iter().map(parse).collect(),
            keys: BTreeMap::new(),
            known: known.iter().map(parse).collect(),
            hears_all: false,
            report: Report::default(),
        }
    }

    #[test]
    fn senders_are_strangers_only_where_the_controllers_are_known_by_their_sources() {
        let [own, other, third] = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
        let is = |local: &Local, source: &str| is_stranger(local, source.parse().unwrap());
        let known = local(own, &[], &[own, other]);
        assert!(!is(&known, other) && is(&known, third));
        assert!(!is(&local(own, &[], &[]), third), "nothing is known");
        assert!(!is(&local(own, &[], &[own]), third), "no other is known");
        assert!(!is(&local(own, &[], &["192.0.2.12", "192.0.2.13"]), third), "by another network");
        assert!(!is(&local("fe80::11", &[], &[own, other]), "fe80::12"), "of another family");
        assert!(is(&local(own, &[other], &[other]), third), "peers are listed");
    }

    #[test]
    fn nodes_with_many_unicast_peers_send_to_them_less_often() {
        let interval = |peers: &[&str]| config(&local("10.0.0.11", peers, &[])).timing.interval.as_secs();
        assert_eq!(interval(&[]), 1);
        assert_eq!(interval(&["10.0.0.12", "10.0.0.13"]), 1);
        let four = ["10.0.0.12", "10.0.0.13", "10.0.0.14", "10.0.0.15"];
        assert_eq!(interval(&four), 2);
    }
}
