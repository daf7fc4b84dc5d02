//! Requests and their answers.

use super::*;

#[test]
fn requests_arrive_once_and_are_answered_despite_loss() {
    let mut net = Net::new(5, 2, &[1]);
    net.run(secs(3));
    net.loss_percent = 60;
    net.double_percent = 30;
    let request = Request::Handover { vrid: 51, to: Some("node-1".to_owned()) };
    let now = net.now;
    let id = net.hosts[0].channel.request(now, address(1), request.clone(), secs(20));
    net.run(secs(5));
    let requested = Event::Requested { from: address(0), id, request };
    assert_eq!(net.hosts[1].events.iter().filter(|event| **event == requested).count(), 1);
    let (kept, taken) = (Some(Duration::from_micros(35_100)), None);
    let answer =
        Answer { holder: "node-2".to_owned(), kept, taken, ..Answer::refused("node-1 does not serve") };
    net.hosts[1].channel.answer(address(0), id, &answer);
    net.run(secs(10));
    let answered = Event::Answered { from: address(1), id, answer };
    assert_eq!(net.hosts[0].events.iter().filter(|event| **event == answered).count(), 1);
    assert!(!net.hosts[0].events.contains(&Event::Unanswered { id }));
}

#[test]
fn every_request_arrives_as_it_was_sent() {
    let mut net = Net::new(5, 2, &[1]);
    net.run(secs(3));
    let requests = [
        Request::Handover { vrid: 255, to: None },
        Request::Succession { vrid: 1, successor: [10, 9, 0, 12].into(), lasts: 4000 },
        Request::Succession { vrid: 1, successor: "fe80::12".parse().unwrap(), lasts: u32::MAX },
        Request::Moved { vrid: 51 },
    ];
    for request in requests {
        let now = net.now;
        let id = net.hosts[0].channel.request(now, address(1), request.clone(), secs(20));
        net.run(secs(1));
        assert_eq!(net.hosts[1].events.last(), Some(&Event::Requested { from: address(0), id, request }));
        net.hosts[1].channel.answer(address(0), id, &Answer::accepted());
        net.run(secs(1));
        assert_eq!(
            net.hosts[0].events.last(),
            Some(&Event::Answered { from: address(1), id, answer: Answer::accepted() })
        );
    }
}

#[test]
fn a_peer_cannot_flood_the_owner_with_requests() {
    let mut net = Net::new(5, 2, &[1]);
    net.run(secs(3));
    for _ in 0..80 {
        let now = net.now;
        net.hosts[0].channel.request(now, address(1), Request::Moved { vrid: 51 }, ms(100));
        net.run(ms(10));
    }
    let requested = |net: &Net| {
        net.hosts[1].events.iter().filter(|event| matches!(event, Event::Requested { .. })).count()
    };
    assert_eq!(requested(&net), 16);
    assert!(net.hosts[1].channel.discarded()[&Discard::TooMany] >= 40);
    net.run(secs(1));
    let now = net.now;
    net.hosts[0].channel.request(now, address(1), Request::Moved { vrid: 51 }, ms(100));
    net.run(ms(500));
    assert_eq!(requested(&net), 17);
}

#[test]
fn a_lost_answer_is_repeated_with_the_request() {
    let mut net = Net::new(18, 2, &[1]);
    net.run(secs(3));
    let now = net.now;
    let id = net.hosts[0].channel.request(now, address(1), Request::Moved { vrid: 51 }, secs(5));
    net.run(ms(10));
    net.cut.insert((1, 0));
    net.hosts[1].channel.answer(address(0), id, &Answer::accepted());
    net.run(ms(500));
    net.cut.clear();
    net.run(ms(500));
    let answered = |event: &&Event| matches!(event, Event::Answered { .. });
    assert_eq!(net.hosts[0].events.iter().filter(answered).count(), 1);
}

#[test]
fn only_the_peer_that_was_asked_may_answer() {
    let mut net = Net::new(17, 3, &[1]);
    net.run(secs(3));
    let now = net.now;
    let id = net.hosts[0].channel.request(now, address(1), Request::Moved { vrid: 51 }, secs(5));
    net.hosts[2].channel.answer(address(0), id, &Answer::accepted());
    net.run(secs(1));
    let answered = |event: &Event| matches!(event, Event::Answered { .. });
    assert!(!net.hosts[0].events.iter().any(answered));
    net.hosts[1].channel.answer(address(0), id, &Answer::accepted());
    net.run(ms(100));
    assert_eq!(net.hosts[0].events.iter().filter(|event| answered(event)).count(), 1);
}

#[test]
fn a_peer_that_has_started_again_may_ask_at_once() {
    let mut net = Net::new(15, 2, &[1]);
    net.run(secs(3));
    // In order.
    net.delay = Duration::ZERO;
    net.run(ms(10));
    for _ in 0..2 {
        let now = net.now;
        for _ in 0..16 {
            net.hosts[0].channel.request(now, address(1), Request::Moved { vrid: 51 }, ms(100));
        }
        net.run(ms(20));
        net.restart(0);
        net.run(ms(20));
        net.all_known();
    }
    let asked = net.hosts[1].events.iter().filter(|event| matches!(event, Event::Requested { .. }));
    assert_eq!(asked.count(), 32);
}

#[test]
fn unanswered_requests_end() {
    let mut net = Net::new(6, 2, &[1]);
    net.run(secs(3));
    net.cut = [(0, 1), (1, 0)].into();
    let now = net.now;
    let request = Request::Handover { vrid: 51, to: None };
    let id = net.hosts[0].channel.request(now, address(1), request, secs(2));
    net.run(secs(3));
    assert!(net.hosts[0].events.contains(&Event::Unanswered { id }));
}
