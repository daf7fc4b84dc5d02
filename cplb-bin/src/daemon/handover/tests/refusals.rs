//! Requests that are refused.

use super::*;

#[test]
fn a_refusal_just_after_an_election_does_not_count() {
    let settling = Duration::from_secs(2);
    for asked in [0, 1] {
        let mut bench = Bench::new(3);
        bench.settles = bench.now + settling;
        // Neither has heard of the last change.
        bench.active = None;
        bench.nodes[2].serving = Err("its checks fail".to_owned());
        bench.ask(asked, Some(&name(2)));
        bench.run(settling / 2);
        assert_eq!(bench.replies, []);
        bench.active = Some(0);
        bench.nodes[2].serving = Ok(());
        bench.run(settling / 2);
        assert_eq!(bench.replies.pop().unwrap().1.answer.holder, name(2));
        assert!(bench.nodes[asked].handovers.is_idle());
    }
    let mut bench = Bench::new(3);
    bench.settles = bench.now + settling;
    bench.ask(1, Some("node-9"));
    bench.run(settling * 2);
    assert!(bench.replies.pop().unwrap().1.answer.reason.contains("no controller node-9"));
    bench.run(settling);
    assert_eq!((bench.replies.len(), bench.nodes[1].handovers.is_idle()), (0, true));
}

/// Node 0 is Active and knows of no other node that can serve when its operator asks.
fn early(asked: usize) -> Bench {
    let mut bench = Bench::new(3);
    bench.settles = bench.now + Duration::from_secs(2);
    for node in [1, 2] {
        bench.nodes[node].serving = Err("its checks fail".to_owned());
    }
    bench.ask(asked, None);
    bench.run(Duration::from_millis(100));
    assert_eq!(bench.replies, []);
    for node in [1, 2] {
        bench.nodes[node].serving = Ok(());
    }
    bench
}

/// The move of standby may begin, and end, before the operator's request is made again.
#[test]
fn a_request_that_waits_is_part_of_the_move_of_standby() {
    let mut bench = early(0);
    let view = bench.view(0);
    let outputs = bench.nodes[0].handovers.leave(bench.now, &view);
    bench.carry_out(0, outputs);
    bench.run(3 * DOWN);
    let [(asker, MoveResult { from, answer })] = &bench.replies[..] else { panic!("{:?}", bench.replies) };
    assert_eq!((asker, from, &answer.holder), (&Asker::Operator(0), &name(0), &name(2)));
    assert_eq!((answer.kept, answer.taken), (Some(KEPT), Some(TAKEN)));
    assert_eq!(bench.active, Some(2), "one move");
}

#[test]
fn a_request_that_waits_moves_nothing_from_another_node_than_the_one_it_was_made_for() {
    for asked in [0, 1] {
        let mut bench = early(asked);
        // Another router takes over for another reason.
        bench.nodes[0].state = StateName::Backup;
        bench.nodes[2].state = StateName::Active;
        bench.active = Some(2);
        bench.run(3 * DOWN);
        let (_, MoveResult { from, answer }) = bench.replies.pop().unwrap();
        assert_eq!((from, answer.holder, answer.outcome), (name(0), name(2), Outcome::ACCEPTED));
        assert_eq!(answer.reason, "it took over in the meantime");
        assert_eq!((bench.active, bench.replies.len()), (Some(2), 0));
        assert!(bench.nodes[asked].handovers.is_idle());
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let mut bench = Bench::new(3);
    bench.refused(
        0,
        Some("node-9"),
        "no controller node-9 is known for these virtual IPs; known: node-2 (10.0.0.12), node-3",
    );
    bench.refused(1, Some("10.0.0.99"), "no controller 10.0.0.99");
    bench.nodes[1].serving = Err("its checks fail".to_owned());
    bench.refused(0, Some("node-2"), "node-2 does not take over: its checks fail");
    bench.nodes[2].state = StateName::Init;
    bench.refused(0, Some("node-3"), "node-3 does not take over: it is init");
    bench.refused(
        0,
        None,
        "no other controller can take over: node-2 cannot serve: its checks fail; node-3 is init",
    );
    bench.nodes[2].state = StateName::Backup;
    bench.active = None;
    bench.refused(1, None, "no Active of virtual router 51 is known");
    let mut bench = Bench::new(3);
    bench.names[2] = name(1);
    bench.refused(
        0,
        Some("node-2"),
        "several controllers are named node-2: name an address: 10.0.0.12, 10.0.0.13",
    );
    Bench::new(1).refused(0, None, "no other controller is known");
}

#[test]
fn a_successor_that_stopped_serving_refuses_itself() {
    let mut bench = Bench::new(3);
    // The Active has an old report.
    let mut view = bench.view(0);
    bench.nodes[1].serving = Err("its checks fail".to_owned());
    view.node = name(0);
    let outputs = bench.nodes[0].handovers.ask(bench.now, &view, Asker::Operator(1), ID, Some("node-2"));
    bench.carry_out(0, outputs);
    let (_, moved) = bench.replies.pop().unwrap();
    assert_eq!(moved.answer.reason, "node-2 does not take over: its checks fail");
    assert_eq!(bench.active, Some(0));
}

/// It may know that it is the successor.
#[test]
fn no_other_router_is_asked_after_one_that_does_not_answer() {
    let mut bench = Bench::new(3);
    let view = bench.view(0);
    bench.nodes[2].speaks = false;
    let outputs = bench.nodes[0].handovers.ask(bench.now, &view, Asker::Operator(1), ID, None);
    bench.carry_out(0, outputs);
    bench.run(3 * ANSWER_TIME);
    let answer = &bench.replies[0].1.answer;
    assert!(answer.reason.contains("10.0.0.13 does not take over: it did not answer"), "{answer:?}");
    assert_eq!((bench.active, &bench.nodes[1].successor), (Some(0), &Some(address(2))));
}

#[test]
fn a_node_that_cannot_hold_the_addresses_does_not_take_over() {
    let bench = Bench::new(3);
    let mut view = bench.view(1);
    view.instances[0].degraded = true;
    let request = Request::Succession { vrid: 51, successor: address(1), lasts: 4000 };
    let mut handovers = Handovers::default();
    let outputs = handovers.requested(bench.now, &view, (link(), address(0), 1), request.clone());
    assert!(matches!(&outputs[..], [Output::Answer { answer, .. }] if answer.reason.contains("cannot hold")));
    // Another known controller may be named, an unknown address may not.
    let other = Request::Succession { vrid: 51, successor: address(2), lasts: u32::MAX };
    let outputs = handovers.requested(bench.now, &view, (link(), address(0), 1), other);
    let [Output::Succession { active, successor, until, .. }, _] = outputs[..] else { panic!("{outputs:?}") };
    assert_eq!((active, successor), (address(0), address(2)));
    assert!(until <= bench.now + 2 * ANSWER_TIME + DOWN, "not for as long as the peer likes");
    let stranger = Request::Succession { vrid: 51, successor: address(99), lasts: 4000 };
    let outputs = handovers.requested(bench.now, &view, (link(), address(0), 1), stranger);
    assert!(
        matches!(&outputs[..], [Output::Answer { answer, .. }] if answer.reason.contains("no controller"))
    );
}
