use std::iter::once;

use proptest::prelude::*;

use super::super::format::Content;
use super::super::store::{ActiveSeen, History, OwnTransition, PeerReport, PeerTransition};
use super::*;

const BASE: u64 = 1_000_000_000;
const NODES: [&str; 3] = ["c1", "c2", "c3"];

fn address(node: usize) -> IpAddr {
    [10, 0, 0, 11 + u8::try_from(node).unwrap()].into()
}

fn at(millis: u64) -> WallTime {
    WallTime::from_millis(BASE + millis)
}

fn shown(terms: &[Term]) -> Vec<String> {
    let end = |term: &Term| term.end.map(|end| end.millis() - BASE);
    let show = |term: &Term| {
        let heard = if term.is_heard { " heard" } else { "" };
        format!("{} {}-{:?}{heard}", term.node, term.begin.millis() - BASE, end(term))
    };
    terms.iter().map(show).collect()
}

/// A transition of a node in a simulated group.
#[derive(Debug, Clone)]
struct Step {
    node: usize,
    time: u64,
    from: &'static str,
    to: &'static str,
    reason: String,
}

fn step(node: usize, time: u64, from: &'static str, to: &'static str) -> Step {
    Step { node, time, from, to, reason: format!("{from} to {to}") }
}

fn own(step: &Step) -> OwnTransition {
    OwnTransition {
        time: at(step.time),
        address: Some(address(step.node)),
        vrid: 51,
        from: step.from,
        to: step.to,
        reason: step.reason.clone(),
        silence_milliseconds: None,
    }
}

/// The report of a node whose clock is ahead by this, of these transitions.
fn report(node: usize, steps: &[Step], ahead: i64) -> PeerReport {
    let transition = |step: &Step| PeerTransition {
        time: WallTime::from_millis(at(step.time).millis().saturating_add_signed(ahead)),
        vrid: 51,
        from: Some(step.from),
        to: step.to,
        reason: step.reason.clone(),
        silence_milliseconds: None,
    };
    PeerReport {
        node: NODES[node].to_owned(),
        addresses: vec![address(node)],
        clock_ahead: ahead,
        transitions: steps.iter().map(transition).collect(),
        is_full: false,
    }
}

fn history_of(node: usize, steps: &[Step], heard: &[(usize, u64)]) -> History {
    let mut history = History::new(NODES[node], Content::default());
    history.start(at(0));
    for (other, time) in heard {
        let reason = "it took over".to_owned();
        history.active_seen(ActiveSeen { time: at(*time), vrid: 51, address: address(*other), reason });
    }
    for other in 0..NODES.len() {
        let of_other: Vec<Step> = steps.iter().filter(|step| step.node == other).cloned().collect();
        if other == node {
            of_other.iter().for_each(|step| history.own(own(step)));
        } else {
            history.peer(&report(other, &of_other, 0), WallTime::from_millis(u64::MAX));
        }
    }
    history
}

#[test]
fn a_handover_and_a_crash_have_terms_with_their_ends() {
    let steps = [
        step(0, 100, "backup", "active"),
        step(0, 5_000, "active", "resigning"),
        step(1, 5_004, "backup", "active"),
        step(0, 5_030, "resigning", "backup"),
        // c2 is killed at 8,000, c3 takes over, c2 is started again.
        step(2, 11_000, "backup", "active"),
        step(1, 20_000, "init", "backup"),
    ];
    let terms = terms(history_of(0, &steps, &[]).entries());
    assert_eq!(shown(&terms), ["c1 100-Some(5030)", "c2 5004-None", "c3 11000-None"]);
    assert_eq!(terms[0].end_reason.as_deref(), Some("active to resigning"));
}

#[test]
fn a_router_that_was_heard_counts_only_where_its_report_is_missing() {
    let steps = [
        step(0, 100, "backup", "active"),
        step(0, 5_000, "active", "backup"),
        step(2, 9_000, "backup", "active"),
    ];
    // c1 was heard when it began and again later; c2 reports nothing; c3 was heard a little early.
    let heard = [(0, 105), (0, 4_000), (1, 5_100), (1, 6_000), (2, 8_990)];
    let terms = terms(history_of(1, &steps, &heard).entries());
    assert_eq!(shown(&terms), ["c1 100-Some(5000)", "10.0.0.12 5100-None heard", "c3 9000-None"]);
}

#[test]
fn a_router_that_was_killed_is_active_again_if_it_is_heard_after_another_one() {
    let steps = [step(0, 100, "backup", "active"), step(1, 5_000, "backup", "active")];
    let heard = [(0, 110), (0, 9_000)];
    let terms = terms(history_of(2, &steps, &heard).entries());
    assert_eq!(shown(&terms), ["c1 100-None", "c2 5000-None", "c1 9000-None heard"]);
}

#[test]
fn a_start_of_this_node_ends_its_term_at_a_time_that_is_not_known() {
    let mut history = history_of(0, &[step(0, 100, "backup", "active")], &[]);
    history.start(at(9_000));
    history.own(own(&step(0, 9_100, "init", "backup")));
    history.own(own(&step(0, 12_000, "backup", "active")));
    assert_eq!(shown(&terms(history.entries())), ["c1 100-None", "c1 12000-None"]);
}

/// Moves among three routers: the next Active, the way of the move, and its time after the one before.
fn moves() -> impl Strategy<Value = Vec<(usize, u8, u64)>> {
    prop::collection::vec((0..3_usize, 0..3_u8, 2_500..60_000_u64), 1..24)
}

/// The transitions of these moves, and the Actives in their order.
fn played(moves: &[(usize, u8, u64)]) -> (Vec<Step>, Vec<&'static str>) {
    let mut steps = vec![step(0, 10, "backup", "active")];
    let (mut active, mut time, mut order) = (0, 10, vec![NODES[0]]);
    for &(to, way, after) in moves {
        let to = if to == active { (to + 1) % 3 } else { to };
        time += after;
        match way {
            0 => {
                steps.push(step(active, time, "active", "resigning"));
                steps.push(step(to, time + 3, "backup", "active"));
                steps.push(step(active, time + 20, "resigning", "backup"));
            }
            1 => {
                steps.push(step(to, time, "backup", "active"));
                steps.push(step(active, time + 2, "active", "backup"));
            }
            // It is killed, and started again when the other one is Active.
            _ => {
                steps.push(step(to, time, "backup", "active"));
                steps.push(step(active, time + 1_000, "init", "backup"));
            }
        }
        (active, order) = (to, order.into_iter().chain(once(NODES[to])).collect());
    }
    (steps, order)
}

proptest! {
    /// Each node comes to know the same Actives in the same order: whatever the clocks show, in whatever pieces and however
    /// often the others report, whatever was heard meanwhile, and after a restart.
    #[test]
    fn all_nodes_know_the_same_actives_in_the_same_order(
        moves in moves(),
        ahead in prop::array::uniform3(-5_000_000..5_000_000_i64),
        pieces in prop::collection::vec((0..3_usize, 1..9_usize), 0..40),
        restart in 0..40_usize,
    ) {
        let (steps, order) = played(&moves);
        for node in 0..3 {
            // This node's clock is ahead by `ahead[node]`: all that it notes itself is.
            let local = |time: u64| WallTime::from_millis(at(time).millis().saturating_add_signed(ahead[node]));
            let mut history = History::new(NODES[node], Content::default());
            history.start(local(0));
            let of = |other: usize| steps.iter().filter(|step| step.node == other).cloned().collect::<Vec<_>>();
            let told = |other: usize, steps: &[Step]| PeerReport {
                clock_ahead: ahead[other] - ahead[node],
                ..report(other, steps, ahead[other])
            };
            for step in &of(node) {
                history.own(OwnTransition { time: local(step.time), ..own(step) });
            }
            for (index, (other, count)) in pieces.iter().enumerate() {
                let steps = of(*other);
                if *other != node {
                    history.peer(&told(*other, &steps[..steps.len().min(*count)]), WallTime::from_millis(u64::MAX));
                }
                if index == restart {
                    let entries = history.entries().map(|entry| (**entry).clone()).collect();
                    let text = serde_json::to_string(&Content { entries }).unwrap();
                    history = History::new(NODES[node], serde_json::from_str(&text).unwrap());
                }
            }
            for step in steps.iter().filter(|step| step.to == "active" && step.node != node) {
                let (time, address) = (local(step.time + 1), address(step.node));
                history.active_seen(ActiveSeen { time, vrid: 51, address, reason: String::new() });
            }
            (0..3).filter(|other| *other != node).for_each(|other| {
                history.peer(&told(other, &of(other)), WallTime::from_millis(u64::MAX));
            });
            let found: Vec<String> = terms(history.entries()).into_iter().map(|term| term.node).collect();
            prop_assert_eq!(&found, &order, "on {}", NODES[node]);
        }
    }
}
