//! The cost of the election: a Backup that receives an advertisement, and an Active that sends one.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use vrrp::router::{Command, Delivery, InterfaceEvent, RxMeta, StateName, VipEvent};
use vrrp::{
    Addresses, AdvertInterval, Advertisement, Auth, HOP_LIMIT, Priority, RouterConfig, Version,
    VirtualRouter, Vrid,
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);

fn router(now: Instant) -> VirtualRouter {
    let vrid = Vrid::new(51).expect("in range");
    let priority = Priority::new(200).expect("in range");
    let mut config = RouterConfig::new(vrid, Version::V3, priority, AdvertInterval::DEFAULT);
    config.addresses_v4 = vec![VIP];
    let mut router = VirtualRouter::new(config, now);
    router.handle_command(now, Command::Serving { until: now + Duration::from_secs(1 << 20) });
    router.handle_interface(now, InterfaceEvent::Up { v4: Some(Ipv4Addr::new(10, 9, 0, 1)), v6: None });
    router
}

fn drain(router: &mut VirtualRouter) {
    while let Some(output) = router.poll_output() {
        black_box(output);
    }
}

fn backup_hears(criterion: &mut Criterion) {
    let mut now = Instant::now();
    let mut router = router(now);
    let advertisement = Advertisement {
        version: Version::V3,
        vrid: Vrid::new(51).expect("in range"),
        priority: Priority::new(200).expect("in range").full(),
        interval: AdvertInterval::DEFAULT,
        addresses: Addresses::V4(vec![VIP]),
        auth: Auth::None,
    };
    let source = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
    let meta = RxMeta { source, hop_limit: HOP_LIMIT, delivery: Delivery::Multicast, signed: false };
    criterion.bench_function("router/backup_hears", |bencher| {
        bencher.iter(|| {
            now += Duration::from_millis(1);
            router.handle_advertisement(now, &meta, black_box(&advertisement)).expect("obeyed");
            drain(&mut router);
            black_box(router.poll_timeout())
        });
    });
    assert_eq!(router.state(), StateName::Backup);
}

fn active_advertises(criterion: &mut Criterion) {
    let mut now = Instant::now();
    let mut router = router(now);
    let mut step = || {
        let (at, _) = router.poll_timeout().expect("a router always waits for something");
        now = now.max(at);
        router.handle_timeout(now);
        drain(&mut router);
    };
    for _ in 0..16 {
        step();
    }
    criterion.bench_function("router/active_advertises", |bencher| bencher.iter(&mut step));
    router.handle_vip(now, VipEvent::Installed);
    assert_eq!(router.state(), StateName::Active);
}

criterion_group!(benches, backup_hears, active_advertises);
criterion_main!(benches);
