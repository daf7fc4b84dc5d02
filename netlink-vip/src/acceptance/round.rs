//! One round of questions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::packet::{Kind, Reply, Segment};
use super::socket::Route;
use super::{Acceptance, AcceptanceError, Answer, Path, Question};

/// Distance of the sequence numbers of two questions.
const SEQUENCE_STEP: u32 = 1 << 12;
/// Number of times each question is asked while no answer comes.
const TRIES: u32 = 3;
/// Interval of questions to the kernel for link-layer addresses.
const NEIGHBOUR_INTERVAL: Duration = Duration::from_millis(20);

/// The servers that have been asked, and their answers.
pub(super) struct Round<'a> {
    acceptance: &'a mut Acceptance,
    mac: [u8; 6],
    asked: Asked,
    answers: HashMap<Question, Answer>,
    /// Link-layer addresses of servers.
    neighbours: HashMap<IpAddr, [u8; 6]>,
}

/// The questions of a round, by their sequence numbers. These alone tell answers apart: all servers answer in the name
/// of the virtual address.
struct Asked {
    local: SocketAddr,
    by_number: BTreeMap<u32, Question>,
}

impl Asked {
    /// The question that a reply answers, with its number.
    fn answered(&self, reply: &Reply) -> Option<(u32, Question)> {
        let number = reply.acknowledged.wrapping_sub(1);
        let question = self.by_number.get(&number)?;
        let is_answer = reply.to == self.local && reply.from == question.virtual_address;
        is_answer.then_some((number, *question))
    }
}

/// Reading the kernel's link-layer addresses, or also making it find out those that it does not know for sure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NeighbourLookup {
    Read,
    Probe,
}

impl<'a> Round<'a> {
    pub(super) fn new(
        acceptance: &'a mut Acceptance,
        mac: [u8; 6],
        local: SocketAddr,
        questions: &[Question],
    ) -> Self {
        let mut by_number = BTreeMap::new();
        for question in questions.iter().copied().collect::<BTreeSet<_>>() {
            acceptance.sequence = acceptance.sequence.wrapping_add(SEQUENCE_STEP);
            by_number.insert(acceptance.sequence, question);
        }
        let asked = Asked { local, by_number };
        Self { acceptance, mac, asked, answers: HashMap::new(), neighbours: HashMap::new() }
    }

    /// Asks, and waits for at most `timeout`.
    pub(super) fn run(mut self, timeout: Duration) -> Result<HashMap<Question, Answer>, AcceptanceError> {
        let start = Instant::now();
        let end = start + timeout;
        let try_at = |number: u32| start + timeout * number / TRIES;
        self.refuse_routed()?;
        self.find_neighbours(NeighbourLookup::Probe)?;
        let mut read_at = start + NEIGHBOUR_INTERVAL;
        let mut unsent = HashSet::new();
        let mut tries = 0;
        while self.open().next().is_some() {
            let now = Instant::now();
            if now >= end {
                break;
            }
            if tries < TRIES && now >= try_at(tries) {
                unsent.extend(self.open());
                tries += 1;
            }
            if !unsent.is_empty() && now >= read_at {
                self.find_neighbours(NeighbourLookup::Read)?;
                read_at = now + NEIGHBOUR_INTERVAL;
            }
            self.send_questions(&mut unsent)?;
            let mut wake_at = if tries < TRIES { try_at(tries) } else { end };
            if !unsent.is_empty() {
                wake_at = wake_at.min(read_at);
            }
            match self.acceptance.receiver.receive(wake_at) {
                Ok(reply) => reply.into_iter().for_each(|reply| self.handle_reply(&reply)),
                Err(error) => return Err(self.failure("receiving answers", error)),
            }
        }
        self.finish();
        Ok(self.answers)
    }

    /// The numbers of those that have not been answered.
    fn open(&self) -> impl Iterator<Item = u32> {
        let open = |(_, question): &(&u32, &Question)| !self.answers.contains_key(*question);
        self.asked.by_number.iter().filter(open).map(|(&number, _)| number)
    }

    /// Answers for the servers that no frame of this interface reaches.
    fn refuse_routed(&mut self) -> Result<(), AcceptanceError> {
        for server in self.direct_servers() {
            let on_link = self.acceptance.kernel.is_on_link(server, self.acceptance.index);
            if !on_link.map_err(Acceptance::refused)? {
                let there = self.asked.by_number.values();
                let there = there.filter(|question| is_direct(question) && question.server == server);
                self.answers.extend(there.map(|&question| (question, Answer::NotOnLink)));
            }
        }
        Ok(())
    }

    /// The servers that a frame is for and that have not answered.
    fn direct_servers(&self) -> BTreeSet<IpAddr> {
        let open = self.open().filter_map(|number| self.asked.by_number.get(&number));
        open.filter(|question| is_direct(question)).map(|question| question.server).collect()
    }

    /// Learns link-layer addresses.
    fn find_neighbours(&mut self, wish: NeighbourLookup) -> Result<(), AcceptanceError> {
        let servers = self.direct_servers();
        if servers.is_empty() {
            return Ok(());
        }
        let Acceptance { kernel, index, source, .. } = &mut *self.acceptance;
        let found = kernel.neighbours(*index, *source).map_err(Acceptance::refused)?;
        for server in servers {
            let neighbour = found.iter().find(|neighbour| neighbour.ip == server);
            if let Some(mac) = neighbour.and_then(|neighbour| neighbour.mac) {
                self.neighbours.insert(server, mac);
            }
            let is_certain =
                neighbour.is_some_and(|neighbour| neighbour.mac.is_some() && !neighbour.is_stale);
            if wish == NeighbourLookup::Probe && !is_certain {
                kernel.probe_neighbour(*index, server).map_err(Acceptance::refused)?;
            }
        }
        Ok(())
    }

    /// Sends the open ones among these whose way is known, and leaves the others.
    fn send_questions(&self, unsent: &mut HashSet<u32>) -> Result<(), AcceptanceError> {
        if unsent.is_empty() {
            return Ok(());
        }
        let open: HashSet<u32> = self.open().collect();
        unsent.retain(|number| open.contains(number));
        let mut result = Ok(());
        unsent.retain(|&number| {
            let Some((question, route)) = self.route_of(number) else { return true };
            let sent = self.send(&question, route, number, Kind::Syn);
            // Where a single packet could not leave, the next try may succeed.
            if let (Err(error), Route::Link(_)) = (sent, route)
                && socket_is_gone(&error)
            {
                result = Err(self.failure("sending questions", error));
            }
            false
        });
        result
    }

    fn route_of(&self, number: u32) -> Option<(Question, Route)> {
        let question = *self.asked.by_number.get(&number)?;
        let route = match question.path {
            Path::Direct => Route::Link(*self.neighbours.get(&question.server)?),
            Path::Tunnel => Route::Tunnel(question.server),
        };
        Some((question, route))
    }

    fn handle_reply(&mut self, reply: &Reply) {
        let Some((number, question)) = self.asked.answered(reply) else { return };
        let answer = if reply.accepts { Answer::Accepts } else { Answer::Refuses };
        self.answers.entry(question).or_insert(answer);
        // Every time, as a question that was repeated can be accepted twice.
        if reply.accepts {
            self.reset_probe(number);
        }
    }

    /// Resets what a question may have opened. If that is lost, the server gives up by itself, after about a minute.
    fn reset_probe(&self, number: u32) {
        if let Some((question, route)) = self.route_of(number) {
            let _ = self.send(&question, route, number.wrapping_add(1), Kind::Rst);
        }
    }

    fn finish(&mut self) {
        for number in self.open().collect::<Vec<_>>() {
            // The answer may be on its way.
            self.reset_probe(number);
            let answer = if self.route_of(number).is_some() { Answer::Silent } else { Answer::Unresolved };
            if let Some(&question) = self.asked.by_number.get(&number) {
                self.answers.insert(question, answer);
            }
        }
    }

    fn send(&self, question: &Question, route: Route, sequence: u32, kind: Kind) -> std::io::Result<()> {
        let segment = Segment { from: self.asked.local, to: question.virtual_address, sequence, kind };
        self.acceptance.sender.send(self.mac, route, &segment)
    }

    fn failure(&self, operation: &'static str, source: std::io::Error) -> AcceptanceError {
        let interface = || self.acceptance.interface.clone();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENETDOWN) => AcceptanceError::Down(interface()),
            Some(Errno::ENXIO | Errno::ENODEV) => AcceptanceError::NoInterface(interface()),
            _ => AcceptanceError::Socket { operation, source },
        }
    }
}

fn is_direct(question: &Question) -> bool {
    question.path == Path::Direct
}

fn socket_is_gone(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_server_that_was_asked_answers() {
        let vip: SocketAddr = ([10, 0, 0, 100], 6443).into();
        let local: SocketAddr = ([10, 0, 0, 1], 40_000).into();
        let question = |server: u8| Question {
            virtual_address: vip,
            server: [10, 0, 0, server].into(),
            path: Path::Direct,
        };
        // The last number there is, and a small one.
        let by_number = [(u32::MAX, question(2)), (4096, question(3))].into();
        let asked = Asked { local, by_number };
        let right = Reply { from: vip, to: local, acknowledged: 0, accepts: true };
        assert_eq!(asked.answered(&right), Some((u32::MAX, question(2))));
        assert_eq!(asked.answered(&Reply { acknowledged: 4097, ..right }), Some((4096, question(3))));
        let other: SocketAddr = ([10, 0, 0, 101], 6443).into();
        for wrong in [
            Reply { acknowledged: 1, ..right },
            Reply { acknowledged: 4096, ..right },
            Reply { from: other, ..right },
            Reply { from: SocketAddr::new(vip.ip(), 6444), ..right },
            Reply { to: other, ..right },
            Reply { to: SocketAddr::new(local.ip(), 40_001), ..right },
        ] {
            assert_eq!(asked.answered(&wrong), None, "{wrong:?}");
        }
    }
}
