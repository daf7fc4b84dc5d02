//! The group channel: reports between the controllers, beyond VRRP (see [`vrrp::channel`]).
//!
//! Instances with the same interface and family share one channel. Each channel is a task with a socket; the loop gives it
//! this node's report, and reads the peers from its board.

mod contention;
mod link;
mod task;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vrrp::channel::{Answer, Discard, Report, Request};

use crate::daemon::sender::EventSender;

pub(crate) use contention::{Contention, Holder};
pub(crate) use link::{LinkKey, Local, Member};

/// A change of what is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GroupEvent {
    Found {
        peer: IpAddr,
        report: Box<Report>,
    },
    Lost {
        peer: IpAddr,
    },
    /// A peer reports something new.
    Changed,
    /// A peer asks for something; to be answered by [`GroupChannels::answer`].
    Requested {
        link: LinkKey,
        from: IpAddr,
        id: u64,
        request: Request,
    },
    /// The answer to a request of this node; `None` if there was none in time.
    Answered {
        token: u64,
        answer: Option<Answer>,
    },
}

/// Something to send to a peer.
#[derive(Debug)]
enum Order {
    Request { token: u64, to: IpAddr, request: Request, timeout: Duration },
    Answer { to: IpAddr, id: u64, answer: Answer },
}

/// A peer on the board of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerState {
    pub(crate) address: IpAddr,
    pub(crate) report: Report,
    pub(crate) heard: Instant,
    pub(crate) authenticated: bool,
    /// The difference of the peer's wall clock to this node's when its report arrived, in milliseconds; positive if it is
    /// ahead.
    pub(crate) clock_ahead: i64,
}

/// The state of a channel, for the status.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board {
    pub(crate) peers: Vec<PeerState>,
    pub(crate) discarded: BTreeMap<Discard, u64>,
    /// Datagrams of hosts that are no known controllers, where there are no keys.
    pub(crate) strangers: u64,
    /// Datagrams with an address of this node as their source.
    pub(crate) own: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// The reason why the socket does not work.
    pub(crate) error: Option<String>,
}

/// All channels of this node.
#[derive(Debug)]
pub(crate) struct GroupChannels {
    channels: BTreeMap<LinkKey, Running>,
    events: EventSender<GroupEvent>,
}

#[derive(Debug)]
struct Running {
    local: watch::Sender<Local>,
    orders: UnboundedSender<Order>,
    board: Arc<Mutex<Board>>,
    task: JoinHandle<()>,
}

impl GroupChannels {
    pub(crate) fn new(events: EventSender<GroupEvent>) -> Self {
        Self { channels: BTreeMap::new(), events }
    }

    /// Starts, changes and stops channels so that there are these.
    pub(crate) fn set(&mut self, wanted: BTreeMap<LinkKey, Local>) {
        // A task whose sender is dropped says that this node stops, and ends.
        self.channels.retain(|key, running| wanted.contains_key(key) && !running.task.is_finished());
        for (key, local) in wanted {
            if let Some(running) = self.channels.get(&key) {
                running.local.send_if_modified(|former| {
                    let changed = *former != local;
                    *former = local;
                    changed
                });
                continue;
            }
            let (sender, receiver) = watch::channel(local);
            let board = Arc::new(Mutex::new(Board::default()));
            let (orders, taken) = unbounded_channel();
            let run = task::run(key.clone(), receiver, taken, Arc::clone(&board), self.events.clone());
            self.channels.insert(key, Running { local: sender, orders, board, task: tokio::spawn(run) });
        }
    }

    /// The boards of all channels, by interface.
    pub(crate) fn boards(&self) -> Vec<(String, Board)> {
        let board = |running: &Running| running.board.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.channels.iter().map(|(key, running)| (key.interface.clone(), board(running))).collect()
    }

    /// Asks a peer for something. A [`GroupEvent::Answered`] with this token follows, unless the channel ends.
    pub(crate) fn request(
        &self,
        link: &LinkKey,
        token: u64,
        to: IpAddr,
        request: Request,
        timeout: Duration,
    ) {
        self.order(link, Order::Request { token, to, request, timeout });
    }

    /// Answers the request of a peer.
    pub(crate) fn answer(&self, link: &LinkKey, to: IpAddr, id: u64, answer: Answer) {
        self.order(link, Order::Answer { to, id, answer });
    }

    fn order(&self, link: &LinkKey, order: Order) {
        if let Some(running) = self.channels.get(link) {
            // A task that has ended is replaced with the next update.
            let _ = running.orders.send(order);
        }
    }

    /// The peers of each channel.
    pub(crate) fn peers_by_link(&self) -> BTreeMap<LinkKey, Vec<PeerState>> {
        let peers =
            |running: &Running| running.board.lock().unwrap_or_else(PoisonError::into_inner).peers.clone();
        self.channels.iter().map(|(key, running)| (key.clone(), peers(running))).collect()
    }

    /// All peers.
    pub(crate) fn peers(&self) -> Vec<PeerState> {
        self.boards().into_iter().flat_map(|(_, board)| board.peers).collect()
    }
}
