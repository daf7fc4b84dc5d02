//! Recorded messages, and senders that are not known.

use super::*;

#[test]
fn former_boots_cannot_be_replayed() {
    let mut net = Net::new(9, 2, &[1]);
    net.run(secs(3));
    let recorded = net.recorded.clone();
    net.restart(0);
    net.run(secs(3));
    net.all_known();
    for _ in 0..3 {
        for (from, bytes) in recorded.iter().filter(|(from, _)| *from == 0) {
            net.fly(*from, 1, bytes.clone());
        }
        net.run(ms(500));
        net.all_known();
    }
    net.restart(0);
    net.run(secs(2));
    net.all_known();
}

/// A request stays fresh for longer than its silent sender is shown.
#[test]
fn requests_of_a_lost_peer_cannot_be_replayed() {
    let mut net = Net::new(11, 2, &[1]);
    net.run(secs(3));
    let now = net.now;
    net.hosts[0].channel.request(now, address(1), Request::Handover { vrid: 51, to: None }, ms(1));
    net.settle();
    net.hosts[0].running = false;
    let recorded: Vec<_> = net.recorded.iter().filter(|(from, _)| *from == 0).cloned().collect();
    let requested = |net: &Net| {
        net.hosts[1].events.iter().filter(|event| matches!(event, Event::Requested { .. })).count()
    };
    for _ in 0..100 {
        for (from, bytes) in &recorded {
            net.fly(*from, 1, bytes.clone());
        }
        net.run(ms(100));
        assert_eq!(requested(&net), 1);
    }
    let found = net.hosts[1].events.iter().filter(|event| matches!(event, Event::Found(_))).count();
    assert_eq!(found, 1, "the lost peer is not found again");
}

#[test]
fn flood_of_new_senders_costs_no_known_peer() {
    let mut net = Net::new(10, 3, &[]);
    net.run(secs(3));
    let mut stranger = Channel::new(config(&[]), [7, 8], Report::default(), net.now);
    stranger.handle_timeout(net.now);
    let payload = stranger.poll_datagram().unwrap().payload;
    for number in 0..250 {
        let source = IpAddr::from([10, 9, 1, number]);
        let bytes = stranger.seal(&payload, source);
        let now = net.now;
        assert_eq!(net.hosts[0].channel.handle_datagram(now, source, &bytes), Err(Discard::NotFresh));
        assert_eq!(net.hosts[0].channel.peers().count(), 2);
    }
    let before = net.hosts[0].channel.traffic().0;
    net.run(secs(3));
    net.all_known();
    assert!(net.hosts[0].channel.traffic().0 - before <= 5, "no storm of answers");
}
