//! A router driven by any events, in any order, at any times: no panic, no deadline in the past, no endless output, and
//! no claim outside of the states that may hold the addresses.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vrrp::router::{Command, Delivery, InterfaceEvent, Output, Preempt, RxMeta, StateName, VipEvent};
use vrrp::{
    Addresses, AdvertInterval, Advertisement, Announcement, Auth, AuthPass, LinkPrefix, MacAddr, Priority,
    RouterConfig, Version, VirtualRouter, Vrid, WirePriority,
};

#[derive(Arbitrary, Debug)]
struct Setup {
    v3: bool,
    dual_stack: bool,
    v6_only: bool,
    priority: u8,
    preempt: u8,
    centiseconds: u16,
    peers: u8,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Up(bool),
    Down,
    Advertisement {
        host: u8,
        priority: u8,
        centiseconds: u16,
        v6: bool,
        v3: bool,
        vrid: bool,
        hop_limit: u8,
        list: u8,
        unicast: bool,
        foreign: bool,
    },
    Announcement,
    Installed,
    Missing,
    LeaseLost,
    Serving(u16),
    NotServing,
    Resign,
    Reconfigure(u8),
    Wait(u16),
    Timeout,
    Sleep(u16),
    Controllers(u8),
    Prefix(u8),
}

const VIP4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x100);
/// Bound of the outputs of a single event.
const MOST_OUTPUTS: usize = 32;

fn config(setup: &Setup) -> Option<RouterConfig> {
    let version = if setup.v3 { Version::V3 } else { Version::V2 };
    let interval = Duration::from_millis(u64::from(setup.centiseconds % 400 + 1) * 10);
    let interval = if setup.v3 || setup.v6_only {
        AdvertInterval::new(Version::V3, interval).ok()?
    } else {
        AdvertInterval::from_seconds(u8::try_from(setup.centiseconds % 5 + 1).ok()?)?
    };
    let mut config =
        RouterConfig::new(Vrid::new(51)?, version, Priority::new(setup.priority).ok()?, interval);
    if !setup.v6_only {
        config.addresses_v4 = vec![VIP4];
    }
    if setup.dual_stack || setup.v6_only {
        config.addresses_v6 = vec![VIP6];
    }
    config.auth = AuthPass::new("Example").ok();
    config.preempt = [Preempt::Never, Preempt::Degraded, Preempt::Always][usize::from(setup.preempt % 3)];
    config.peers = (1..=setup.peers % 4).map(|host| IpAddr::V4(Ipv4Addr::new(10, 9, 0, host))).collect();
    config.lease = RouterConfig::lease_for(config.down_interval());
    Some(config)
}

fn apply(router: &mut VirtualRouter, now: &mut Instant, event: &Event, setup: &Setup) {
    match *event {
        Event::Up(both) => router.handle_interface(
            *now,
            InterfaceEvent::Up {
                v4: both.then_some(Ipv4Addr::new(10, 9, 0, 1)),
                v6: Some(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
            },
        ),
        Event::Down => router.handle_interface(*now, InterfaceEvent::Down),
        Event::Advertisement {
            host,
            priority,
            centiseconds,
            v6,
            v3,
            vrid,
            hop_limit,
            list,
            unicast,
            foreign,
        } => {
            let vip4 = if foreign { Ipv4Addr::new(10, 9, 0, 200) } else { VIP4 };
            let addresses = if v6 {
                Addresses::V6(vec![VIP6; list.into()])
            } else {
                Addresses::V4(vec![vip4; list.into()])
            };
            let Some(vrid) = Vrid::new(if vrid { 51 } else { 52 }) else { return };
            let Some(interval) = AdvertInterval::from_centiseconds(centiseconds & 0xfff) else { return };
            let advertisement = Advertisement {
                version: if v3 { Version::V3 } else { Version::V2 },
                vrid,
                priority: WirePriority(priority),
                interval,
                addresses,
                auth: AuthPass::new("Example").map_or(Auth::None, Auth::Pass),
            };
            let source = if v6 {
                IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host.into()))
            } else {
                IpAddr::V4(Ipv4Addr::new(10, 9, 0, host))
            };
            let hop_limit = if hop_limit < 250 { 255 } else { hop_limit };
            let delivery = if unicast { Delivery::Unicast } else { Delivery::Multicast };
            let meta = RxMeta { source, hop_limit, delivery, signed: false };
            let _ = router.handle_advertisement(*now, &meta, &advertisement);
        }
        Event::Announcement => {
            let announcement = Announcement { mac: MacAddr([2, 0, 0, 0, 0, 9]), ip: IpAddr::V4(VIP4) };
            router.handle_announcement(*now, announcement);
        }
        Event::Controllers(count) => {
            let controllers = (1..=count % 8).map(|host| IpAddr::V4(Ipv4Addr::new(10, 9, 0, host))).collect();
            router.handle_command(*now, Command::Controllers(controllers));
        }
        Event::Prefix(len) => {
            let prefix = LinkPrefix { address: IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1)), len };
            router.handle_link_prefixes(vec![prefix]);
        }
        Event::Installed => router.handle_vip(*now, VipEvent::Installed),
        Event::Missing => router.handle_vip(*now, VipEvent::Missing),
        Event::LeaseLost => router.handle_vip(*now, VipEvent::LeaseLost),
        Event::Serving(ms) => {
            let until = *now + Duration::from_millis(ms.into());
            router.handle_command(*now, Command::Serving { until });
        }
        Event::NotServing => router.handle_command(*now, Command::NotServing),
        Event::Resign => router.handle_command(*now, Command::Resign),
        Event::Reconfigure(priority) => {
            if let Some(config) = config(&Setup { priority, ..*setup }) {
                router.handle_command(*now, Command::Reconfigure(Box::new(config)));
            }
        }
        Event::Wait(ms) => *now += Duration::from_millis(ms.into()),
        Event::Timeout => {
            if let Some((at, _)) = router.poll_timeout() {
                *now = (*now).max(at);
            }
            router.handle_timeout(*now);
        }
        Event::Sleep(ms) => {
            *now += Duration::from_millis(ms.into());
            router.handle_timeout(*now);
        }
    }
}

fuzz_target!(|input: (Setup, Vec<Event>)| {
    let (setup, events) = input;
    let Some(config) = config(&setup) else { return };
    let mut now = Instant::now();
    let mut router = VirtualRouter::new(config, now);
    for event in &events {
        apply(&mut router, &mut now, event, &setup);
        let mut outputs = 0;
        while let Some(output) = router.poll_output() {
            outputs += 1;
            assert!(outputs <= MOST_OUTPUTS, "{event:?} leads to endless output");
            if let Output::Claim(claim) = output {
                assert!(claim.valid_until > now, "a claim that is over");
                assert!(
                    matches!(router.state(), StateName::Active | StateName::Resigning),
                    "{:?}",
                    router.state()
                );
            }
        }
        if matches!(event, Event::Timeout | Event::Sleep(_))
            && let Some((at, name)) = router.poll_timeout()
        {
            assert!(at > now, "{name:?} lies in the past after it was handled");
        }
    }
});
