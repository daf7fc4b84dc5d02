//! Many routers on one interface.

use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use vrrp::Vrid;
use vrrp::router::StateName;
use vrrp::runner::InstanceId;

use crate::Test;
use crate::fixture::{Lan, eventually, is_real_root};
use crate::member::{Member, config};

pub(crate) fn tests() -> Vec<Test> {
    vec![("255_routers_at_100_milliseconds", many_routers)]
}

fn many_routers() {
    const FAST: Duration = Duration::from_millis(100);
    let lan = Lan::new();
    let (a, b) = (lan.node(1), lan.node(2));
    let all = |priority| {
        let instance = move |vrid: u8| {
            let mut instance = config(priority, FAST);
            instance.id = InstanceId(vrid.into());
            instance.router.vrid = Vrid::new(vrid).expect("not 0");
            instance.router.addresses_v4 = vec![[10, 9, 1, vrid].into()];
            instance
        };
        (1..=255).map(instance).collect::<Vec<_>>()
    };
    let members = [Member::start(&a, all(200)), Member::start(&b, all(100))];
    eventually("all are elected", Duration::from_secs(10), || {
        let states =
            |member: &Member<'_>, state| member.handle.status().instances.iter().all(|i| i.state == state);
        (states(&members[0], StateName::Active) && states(&members[1], StateName::Backup)).then_some(())
    });
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
        usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()
    };
    let (start, before) = (Instant::now(), cpu());
    let sent_before: u64 = members[0].handle.status().instances.iter().map(|i| i.traffic.sent).sum();
    std::thread::sleep(Duration::from_secs(10));
    let (status, other) = (members[0].handle.status(), members[1].handle.status());
    let used = cpu() - before;
    let sent = status.instances.iter().map(|i| i.traffic.sent).sum::<u64>() - sent_before;
    let gap = status.instances.iter().map(|i| i.traffic.longest_gap).max().expect("255 of them");
    let late = status.instances.iter().map(|i| i.traffic.latest_advertisement).max().expect("255 of them");
    println!(
        "255 routers: {sent} advertisements in {:?}, {used} ms of CPU for both sides, longest gap {gap:?}, latest {late:?}",
        start.elapsed()
    );
    assert!(other.interfaces[0].foreign.is_empty());
    // Without real-time priority the other bounds depend on the machine's load.
    if is_real_root() {
        assert!(sent > 255 * 95 && sent < 255 * 110, "{sent} advertisements");
        assert!(other.instances.iter().all(|i| i.counters.became_active == 0), "no backup ever took over");
        // Down is more than three intervals: half of what it grants is left for a machine that is shared.
        assert!(gap < 2 * FAST, "longest gap {gap:?}");
        take_over_all(&members, FAST);
    }
}

/// The node with all routers crashes.
fn take_over_all(members: &[Member<'_>; 2], interval: Duration) {
    let crashed = members[0].crash();
    let down = 3 * interval + interval * 156 / 256;
    let spread = interval / 4;
    eventually("all are taken over", Duration::from_secs(5), || {
        members[1].handle.status().instances.iter().all(|i| i.state == StateName::Active).then_some(())
    });
    let last = members[1].handle.status().instances.iter().map(|i| i.since).max().expect("255 of them");
    println!("255 routers: the last was taken over after {:?}, Down is {down:?}", last - crashed);
    assert!(last - crashed < down + spread + Duration::from_millis(150));
}
