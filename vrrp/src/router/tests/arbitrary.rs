//! Arbitrary events in arbitrary order: a router neither panics nor goes back in time.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    Timeout,
    Back,
    Hear { source: u8, priority: u8, interval: u16, v6: bool, meta: u8, addresses: u8 },
    Interface(u8),
    Vip(u8),
    Command(u8, u64),
    Announcement(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let hear = (0u8..5, any::<u8>(), 1u16..=4095, any::<bool>(), any::<u8>(), 0u8..4).prop_map(
        |(source, priority, interval, v6, meta, addresses)| Event::Hear {
            source,
            priority,
            interval,
            v6,
            meta,
            addresses,
        },
    );
    prop_oneof![
        3 => (0u64..5_000_000_000).prop_map(Event::Pass),
        6 => Just(Event::Timeout),
        1 => Just(Event::Back),
        5 => hear,
        1 => any::<u8>().prop_map(Event::Interface),
        2 => any::<u8>().prop_map(Event::Vip),
        2 => (any::<u8>(), any::<u64>()).prop_map(|(kind, number)| Event::Command(kind, number)),
        1 => any::<bool>().prop_map(Event::Announcement),
    ]
}

fn some_config(number: u64) -> RouterConfig {
    let bit = |at: u32| number >> at & 1 == 1;
    let mut config = config();
    config.version = if bit(0) { Version::V2 } else { Version::V3 };
    config.preempt = [Preempt::Never, Preempt::Degraded, Preempt::Always][(number >> 1) as usize % 3];
    config.priority = Priority::new((number >> 8) as u8).unwrap_or(config.priority);
    config.advert_interval =
        AdvertInterval::from_centiseconds((number >> 16) as u16 & 0xfff).unwrap_or(config.advert_interval);
    if bit(30) {
        config.addresses_v6 = vec![VIP_V6];
    }
    if bit(31) {
        config.addresses_v4.clear();
    }
    if bit(32) {
        config.peers.clear();
    }
    if bit(33) {
        (config.lease, config.hold_time) = (Duration::ZERO, Duration::MAX);
    }
    if bit(34) {
        (config.lease, config.takeover_after) = (Duration::MAX, Duration::MAX);
    }
    (config.accept_owner_priority, config.only_peers, config.seed) = (bit(35), bit(36), number);
    config
}

fn happen(bench: &mut Bench, event: &Event) {
    let router = &mut bench.router;
    match *event {
        Event::Pass(nanoseconds) => bench.now += Duration::from_nanos(nanoseconds),
        Event::Timeout => {
            bench.now = router.poll_timeout().map_or(bench.now, |(at, _)| at);
            router.handle_timeout(bench.now);
        }
        // A caller with a wrong clock.
        Event::Back => router.handle_timeout(bench.now - ms(500)),
        Event::Hear { source, priority, interval, v6, meta, addresses } => {
            let source = source + 10;
            let list = match (v6, addresses) {
                (false, 0) => Addresses::V4(vec![OWN; 255]),
                (true, 0) => Addresses::V6(vec![OWN_V6; 255]),
                (false, _) => Addresses::V4(vec![VIP]),
                (true, _) => Addresses::V6(vec![VIP_V6]),
            };
            let message = Advertisement {
                priority: WirePriority(priority),
                interval: AdvertInterval::from_centiseconds(interval).unwrap(),
                version: router.config().version_of(list.family()),
                vrid: router.config().vrid,
                auth: Auth::None,
                addresses: list,
            };
            let v6_source = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, source.into());
            let source = if v6 { v6_source.into() } else { Ipv4Addr::new(10, 9, 0, source).into() };
            let delivery = if meta & 1 == 0 { Delivery::Multicast } else { Delivery::Unicast };
            let _ = router.handle_advertisement(
                bench.now,
                &RxMeta { source, hop_limit: 255, delivery, signed: false },
                &message,
            );
        }
        Event::Interface(kind) => {
            let up = InterfaceEvent::Up {
                v4: (kind & 2 == 0).then_some(if kind & 8 == 0 { OWN } else { LOWER }),
                v6: (kind & 4 == 0).then_some(OWN_V6),
            };
            router.handle_interface(bench.now, if kind & 1 == 0 { up } else { InterfaceEvent::Down });
        }
        Event::Vip(kind) => {
            let event = [VipEvent::Installed, VipEvent::Missing, VipEvent::LeaseLost][kind as usize % 3];
            router.handle_vip(bench.now, event);
        }
        Event::Command(kind, number) => {
            let until = bench.now + Duration::from_nanos(number % 10_000_000_000);
            let command = match kind {
                0..=120 => Command::Serving { until },
                121..=180 => Command::NotServing,
                181..=190 => Command::Resign,
                191..=200 => Command::Controllers([OWN.into(), HIGHER.into()].into()),
                _ => Command::Reconfigure(Box::new(some_config(number))),
            };
            router.handle_command(bench.now, command);
        }
        Event::Announcement(v6) => {
            bench.announced(if v6 { IpAddr::from(VIP_V6) } else { IpAddr::from(VIP) });
        }
    }
}

/// Runs out of deadlines that are due now within a few calls: no timer re-arms itself for the same moment for ever.
fn rests(bench: &mut Bench) -> bool {
    (0..8).any(|_| {
        bench.router.handle_timeout(bench.now);
        bench.router.poll_timeout().is_none_or(|(at, _)| at > bench.now)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_router_survives_anything(number: u64, events in prop::collection::vec(event(), 1..200)) {
        let now = Instant::now();
        let mut bench =
            Bench { router: VirtualRouter::new(some_config(number), now), now };
        bench.up();
        let mut held = false;
        for event in &events {
            let was = bench.router.state();
            happen(&mut bench, event);
            let mut outputs = 0;
            while let Some(output) = bench.router.poll_output() {
                outputs += 1;
                match output {
                    Output::Claim(claim) => {
                        prop_assert!(claim.valid_until > bench.now - Duration::from_secs(5) - ms(500));
                        held = true;
                    }
                    Output::Release(_) => held = false,
                    _ => {}
                }
            }
            prop_assert!(outputs < 200, "{outputs} outputs after {event:?} as {was}");
            let state = bench.router.state();
            let entitled = matches!(state, StateName::Active | StateName::Yielding | StateName::Resigning);
            prop_assert_eq!(held, entitled, "claims and state disagree after {:?}: {} -> {}", event, was, state);
            if let Some((at, name)) = bench.router.poll_timeout() {
                prop_assert!(at >= bench.router.clock, "{name:?} is in the past");
            }
            prop_assert!(rests(&mut bench), "timers never rest after {event:?}");
            held = held_after(&mut bench, held);
        }
    }
}

fn held_after(bench: &mut Bench, mut held: bool) -> bool {
    for output in bench.drain() {
        match output {
            Output::Claim(_) => held = true,
            Output::Release(_) => held = false,
            _ => {}
        }
    }
    held
}
