//! Three nodes with their views, a channel that delivers at once, and an election that does as it is told.

mod refusals;

use proptest::prelude::*;
use vrrp::MacAddr;
use vrrp::channel::{InstanceReport, Outcome, Report};
use vrrp::router::{MoveSide, PlannedMove};
use vrrp::runner::Interface;

use super::progress::{RECENT, taken_from};
use super::*;
use crate::daemon::group::PeerState;

const ID: InstanceId = InstanceId(51);
const DOWN: Duration = Duration::from_millis(3600);
const KEPT: Duration = Duration::from_millis(36);
const TAKEN: Duration = Duration::from_micros(900);

fn address(node: usize) -> IpAddr {
    [10, 0, 0, 11 + u8::try_from(node).unwrap()].into()
}

fn name(node: usize) -> String {
    format!("node-{}", node + 1)
}

fn link() -> LinkKey {
    let interface = Interface {
        name: "eth0".to_owned(),
        index: 2,
        mac: MacAddr([2; 6]),
        up: true,
        v4: None,
        v6: None,
        prefixes: Vec::new(),
    };
    LinkKey::of(&interface, true)
}

struct Node {
    handovers: Handovers,
    state: StateName,
    serving: Result<(), String>,
    /// It takes part in the channel, and answers.
    speaks: bool,
    successor: Option<IpAddr>,
    last_move: Option<PlannedMove>,
}

struct Bench {
    now: Instant,
    /// The election is over for a while from then on.
    settles: Instant,
    nodes: Vec<Node>,
    names: Vec<String>,
    active: Option<usize>,
    /// The election finds a successor.
    succeeds: bool,
    /// The router that takes over instead of the named one.
    instead: Option<usize>,
    replies: Vec<(Asker, MoveResult)>,
}

impl Bench {
    /// Node 0 is Active.
    fn new(count: usize) -> Self {
        let node = |index| Node {
            handovers: Handovers::default(),
            state: if index == 0 { StateName::Active } else { StateName::Backup },
            serving: Ok(()),
            speaks: true,
            successor: None,
            last_move: None,
        };
        let now = Instant::now();
        Self {
            now,
            settles: now,
            nodes: (0..count).map(node).collect(),
            names: (0..count).map(name).collect(),
            active: Some(0),
            succeeds: true,
            instead: None,
            replies: Vec::new(),
        }
    }

    fn view(&self, own: usize) -> View {
        let peers = (0..self.nodes.len())
            .filter(|other| *other != own && self.nodes[*other].speaks && self.nodes[own].speaks);
        let peer = |other: usize| {
            let node = &self.nodes[other];
            let instance =
                InstanceReport { vrid: 51, state: Some(node.state), priority: 200, group: 7, claim: 0 };
            let report = Report {
                node: self.names[other].clone(),
                serving: Some(node.serving.clone()),
                instances: vec![instance],
                addresses: vec![address(other)],
                ..Report::default()
            };
            PeerState {
                address: address(other),
                report,
                heard: self.now,
                authenticated: true,
                clock_ahead: 0,
            }
        };
        let node = &self.nodes[own];
        let instance = InstanceView {
            id: ID,
            vrid: 51,
            addresses: vec![[10, 0, 0, 100].into()],
            link: Some(link()),
            group: 7,
            state: node.state,
            degraded: node.serving.is_err(),
            own: Some(address(own)),
            active: self.active.filter(|active| *active != own).map(address),
            unicast_peers: Vec::new(),
            down: DOWN,
            last_move: node.last_move,
            settled: self.now >= self.settles,
            holds: node.state == StateName::Active,
        };
        View {
            node: self.names[own].clone(),
            serving: node.serving.clone(),
            instances: vec![instance],
            peers: [(link(), peers.map(peer).collect())].into(),
            controllers: (0..self.nodes.len()).map(address).collect(),
        }
    }

    fn ask(&mut self, node: usize, to: Option<&str>) {
        let view = self.view(node);
        let number = self.replies.len() as u64;
        let outputs = self.nodes[node].handovers.ask(self.now, &view, Asker::Operator(number), ID, to);
        self.carry_out(node, outputs);
    }

    fn carry_out(&mut self, node: usize, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Ask { token, to, request, .. } => self.deliver(node, to, token, request),
                Output::Answer { to, id, answer, .. } => self.answer(to, id, Some(answer)),
                Output::Succession { successor, .. } => self.nodes[node].successor = Some(successor),
                Output::HandOver(_) => self.elect(node),
                Output::Reply { asker: Asker::Peer { address, id, .. }, result, .. } => {
                    self.answer(address, id, Some(result.answer));
                }
                Output::Reply { asker, result, .. } => self.replies.push((asker, result)),
            }
        }
    }

    /// The request's number is its token.
    fn deliver(&mut self, from: usize, to: IpAddr, token: u64, request: Request) {
        let to = (0..self.nodes.len()).find(|node| address(*node) == to).unwrap();
        if self.nodes[to].speaks {
            let view = self.view(to);
            let outputs =
                self.nodes[to].handovers.requested(self.now, &view, (link(), address(from), token), request);
            self.carry_out(to, outputs);
        }
    }

    fn answer(&mut self, to: IpAddr, token: u64, answer: Option<Answer>) {
        let to = (0..self.nodes.len()).find(|node| address(*node) == to).unwrap();
        let view = self.view(to);
        let outputs = self.nodes[to].handovers.answered(self.now, &view, token, answer);
        self.carry_out(to, outputs);
    }

    /// The Active resigns.
    fn elect(&mut self, node: usize) {
        if self.nodes[node].state != StateName::Active {
            return;
        }
        let resigned = self.now;
        let planned = |side, other, took| Some(PlannedMove { side, other, resigned, took });
        let named = self.nodes[node].successor;
        let next = (0..self.nodes.len()).find(|other| match named {
            _ if self.instead.is_some() => Some(*other) == self.instead,
            Some(named) => address(*other) == named,
            None => *other != node && self.nodes[*other].serving.is_ok(),
        });
        let Some(next) = next.filter(|_| self.succeeds) else {
            self.nodes[node].last_move = planned(MoveSide::From, None, None);
            return;
        };
        self.nodes[node].state = StateName::Backup;
        self.nodes[node].last_move = planned(MoveSide::From, Some(address(next)), Some(KEPT));
        self.nodes[next].state = StateName::Active;
        self.nodes[next].last_move = planned(MoveSide::To, Some(address(node)), Some(TAKEN));
        self.active = Some(next);
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += Duration::from_millis(20);
            for node in 0..self.nodes.len() {
                let view = self.view(node);
                let outputs = self.nodes[node].handovers.tick(self.now, &view);
                self.carry_out(node, outputs);
            }
        }
    }

    /// Asks, waits, and returns the only reply.
    fn result(&mut self, node: usize, to: Option<&str>) -> MoveResult {
        let before = self.replies.len();
        self.ask(node, to);
        self.run(3 * DOWN);
        assert_eq!(self.replies.len(), before + 1);
        assert!(self.nodes.iter().all(|node| node.handovers.is_idle()));
        self.replies.pop().unwrap().1
    }

    #[track_caller]
    fn refused(&mut self, node: usize, to: Option<&str>, why: &str) {
        let active = self.active;
        let result = self.result(node, to);
        assert_eq!(result.answer.outcome, Outcome::REFUSED, "{result:?}");
        assert!(result.answer.reason.contains(why), "{:?} lacks {why:?}", result.answer.reason);
        assert_eq!(self.active, active, "nothing moves");
    }
}

#[test]
fn any_node_can_be_asked_and_any_other_one_named() {
    for asked in 0..3 {
        for target in 1..3 {
            for named in [name(target), address(target).to_string()] {
                let mut bench = Bench::new(3);
                let MoveResult { from, answer } = bench.result(asked, Some(&named));
                assert_eq!((from, &answer.holder), (name(0), &name(target)), "{answer:?}");
                assert_eq!((answer.kept, answer.taken), (Some(KEPT), Some(TAKEN)));
                assert_eq!(bench.active, Some(target));
                assert!(
                    bench.nodes.iter().all(|node| node.successor == Some(address(target))),
                    "all know it"
                );
            }
        }
    }
}

#[test]
fn without_a_name_the_best_node_that_can_serve_is_chosen() {
    let mut bench = Bench::new(3);
    bench.nodes[1].serving = Err("its checks fail".to_owned());
    let MoveResult { answer, .. } = bench.result(1, None);
    assert_eq!((answer.outcome, answer.holder), (Outcome::ACCEPTED, name(2)));
    assert_eq!(Bench::new(3).result(1, None).answer.holder, name(2), "the highest address");
    // Its report is old.
    let mut bench = Bench::new(3);
    let view = bench.view(0);
    bench.nodes[2].serving = Err("its checks fail".to_owned());
    bench.nodes[1].speaks = false;
    let outputs = bench.nodes[0].handovers.ask(bench.now, &view, Asker::Operator(1), ID, None);
    bench.carry_out(0, outputs);
    bench.run(2 * ANSWER_TIME);
    let why = &bench.replies[0].1.answer.reason;
    assert!(why.contains("node-3 does not take over: its checks fail; "), "{why}");
    assert!(why.contains("10.0.0.12 does not take over: it is gone"), "{why}");
    assert_eq!(bench.replies[0].1.answer.holder, name(0), "it keeps them");
    assert_eq!(bench.active, Some(0));
}

#[test]
fn a_holder_that_is_named_keeps_them() {
    for asked in [0, 1] {
        let answer = Bench::new(3).result(asked, Some("node-1")).answer;
        assert_eq!((answer.outcome, answer.holder, answer.kept), (Outcome::ACCEPTED, name(0), None));
    }
}

#[test]
fn one_handover_at_a_time() {
    let mut bench = Bench::new(3);
    bench.succeeds = false;
    bench.ask(0, None);
    bench.ask(1, None);
    assert_eq!(bench.replies.len(), 1);
    assert!(bench.replies[0].1.answer.reason.contains("another handover"), "{:?}", bench.replies);
}

#[test]
fn an_active_without_a_successor_goes_on() {
    let mut bench = Bench::new(3);
    bench.succeeds = false;
    bench.refused(2, None, "no router that can serve took over in time");
}

#[test]
fn keepalived_may_succeed_and_cannot_be_asked() {
    let mut bench = Bench::new(3);
    bench.nodes[2].speaks = false;
    let MoveResult { answer, .. } = bench.result(0, Some("10.0.0.13"));
    assert_eq!((answer.outcome, &*answer.holder, answer.taken), (Outcome::ACCEPTED, "10.0.0.13", None));
    assert!(answer.reason.contains("keepalived"), "{}", answer.reason);
    bench.refused(0, None, "10.0.0.13 is Active and takes no requests");
    // The peer that cannot serve would take over before it.
    let mut bench = Bench::new(3);
    bench.nodes[2].speaks = false;
    bench.nodes[1].serving = Err("its checks fail".to_owned());
    bench.refused(0, None, "node-2 cannot serve: its checks fail; 10.0.0.13 may be named with --to");
    // It is the only one that is left.
    let mut bench = Bench::new(2);
    bench.nodes[1].speaks = false;
    assert_eq!(bench.result(0, None).answer.outcome, Outcome::ACCEPTED);
}

#[test]
fn only_the_active_names_a_successor() {
    let mut bench = Bench::new(3);
    let request = Request::Succession { vrid: 51, successor: address(1), lasts: 4000 };
    let view = bench.view(1);
    let outputs =
        bench.nodes[1].handovers.requested(bench.now, &view, (link(), address(2), 1), request.clone());
    let [Output::Answer { answer, .. }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(answer.outcome, Outcome::REFUSED);
    // An Active follows no other router.
    let view = bench.view(0);
    let outputs = bench.nodes[0].handovers.requested(bench.now, &view, (link(), address(1), 1), request);
    assert!(matches!(&outputs[..], [Output::Answer { answer, .. }] if answer.outcome == Outcome::REFUSED));
    let other = Request::Moved { vrid: 52 };
    let outputs = bench.nodes[0].handovers.requested(bench.now, &view, (link(), address(1), 1), other);
    assert!(
        matches!(&outputs[..], [Output::Answer { answer, .. }] if answer.reason.contains("no virtual router 52 with the same addresses"))
    );
}

#[test]
fn instances_are_named_by_address_or_identifier() {
    let bench = Bench::new(1);
    let one = bench.view(0).instances.pop().unwrap();
    let two = InstanceView {
        id: InstanceId(52),
        vrid: 52,
        addresses: vec!["fd00::100".parse().unwrap()],
        ..one.clone()
    };
    let same = InstanceView { id: InstanceId(60), addresses: vec![[10, 0, 0, 200].into()], ..one.clone() };
    let both = [one.clone(), two];
    for (named, id) in [("10.0.0.100", 51), ("51", 51), ("52", 52), ("fd00:0::100", 52)] {
        assert_eq!(selected(&both, Some(named)), Ok(InstanceId(id)));
    }
    assert_eq!(selected(&both[..1], None), Ok(ID));
    let why = |instances: &[InstanceView], named| selected(instances, named).unwrap_err();
    assert!(why(&both, None).contains("10.0.0.100 (virtual router 51); fd00::100 (virtual router 52)"));
    assert!(why(&both, Some("10.0.0.9")).contains("no virtual IP"));
    assert!(why(&[one, same], Some("51")).contains("ambiguous"));
    assert!(why(&[], None).contains("no virtual IPs"));
}

proptest! {
    /// Whatever is lost, each request ends with one reply, and nothing is left.
    #[test]
    fn every_request_ends(
        steps in proptest::collection::vec((0..3usize, 0..5u8, 0..3usize, 0..2000u64), 1..20),
    ) {
        let mut bench = Bench::new(3);
        let mut asked = 0;
        for (node, what, other, wait) in steps {
            match what {
                0 => bench.nodes[other].speaks = !bench.nodes[other].speaks,
                1 => bench.succeeds = !bench.succeeds,
                2 => bench.nodes[other].serving = if wait % 2 == 0 { Ok(()) } else { Err("x".to_owned()) },
                _ => {
                    bench.ask(node, Some(&name(other)).filter(|_| wait % 3 > 0).map(String::as_str));
                    asked += 1;
                }
            }
            bench.run(Duration::from_millis(wait));
        }
        bench.run(Duration::from_secs(30));
        prop_assert_eq!(bench.replies.len(), asked);
        prop_assert!(bench.nodes.iter().all(|node| node.handovers.is_idle()));
        let holders = bench.nodes.iter().filter(|node| node.state == StateName::Active).count();
        prop_assert_eq!(holders, 1);
    }
}

#[test]
fn controllers_of_another_network_are_not_taken_for_members_outside_the_channel() {
    let mut view = Bench::new(1).view(0);
    view.controllers = ["192.0.2.11", "192.0.2.12"].map(|text| text.parse().unwrap()).into();
    assert_eq!(view.outside_channel(&view.instances[0]), [].into());
    assert_eq!(choose(&view, &view.instances[0], None), Err("no other controller is known".to_owned()));
    view.instances[0].unicast_peers = vec![address(0), address(1)];
    assert_eq!(view.outside_channel(&view.instances[0]), [address(1)].into());
}

#[test]
fn a_measurement_of_another_move_is_not_told() {
    let mut bench = Bench::new(3);
    bench.result(0, Some("node-2"));
    let instance = |bench: &Bench| bench.view(1).instances.remove(0);
    assert_eq!(taken_from(bench.now, &instance(&bench), address(0)), Some(TAKEN));
    assert_eq!(taken_from(bench.now, &instance(&bench), address(2)), None);
    assert_eq!(taken_from(bench.now + RECENT, &instance(&bench), address(0)), None);
}

#[test]
fn a_node_in_standby_hands_over_as_soon_as_a_peer_can_serve() {
    let mut bench = Bench::new(2);
    bench.nodes[1].serving = Err("its checks fail".to_owned());
    let leave = |bench: &mut Bench| {
        let view = bench.view(0);
        let outputs = bench.nodes[0].handovers.leave(bench.now, &view);
        bench.carry_out(0, outputs);
        bench.run(3 * DOWN);
        view.others_can_serve()
    };
    assert!(!leave(&mut bench));
    assert_eq!(bench.active, Some(0));
    bench.nodes[1].serving = Ok(());
    assert!(leave(&mut bench));
    assert_eq!((bench.active, bench.replies.len()), (Some(1), 1));
    // One that cannot be asked is not waited for each time.
    let mut bench = Bench::new(2);
    bench.nodes[1].speaks = false;
    assert!(leave(&mut bench));
    assert_eq!((bench.active, bench.replies.len()), (Some(0), 0));
}

#[test]
fn another_successor_than_the_named_one_is_said() {
    let mut bench = Bench::new(3);
    bench.instead = Some(2);
    let answer = bench.result(1, Some("node-2")).answer;
    assert_eq!((answer.outcome, answer.holder), (Outcome::ACCEPTED, name(2)));
    assert_eq!(answer.reason, "it took over because node-2 did not");
}
