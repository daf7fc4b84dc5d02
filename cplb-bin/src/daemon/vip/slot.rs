//! The instances as the bridge knows them, without I/O: what the election is told of their interfaces, and how their
//! addresses are released.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_vip::{InterfaceState, KeeperEvent};
use vrrp::router::{self, Release};
use vrrp::runner::{InstanceId, Interface};
use vrrp::{LinkPrefix, MacAddr};

/// The main thread may keep the addresses of a planned release for so long: meanwhile another router may have them.
const WITHDRAWAL_BOUND: Duration = Duration::from_millis(300);

/// The settings of an instance that the bridge needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InstanceSettings {
    /// Source of unicast advertisements, if configured.
    pub(crate) source: Option<IpAddr>,
    /// Whether IPVS directs what clients send to its VIPs.
    pub(crate) is_directed: bool,
}

/// An instance between the election and the keeper.
#[derive(Debug)]
struct InstanceSlot {
    settings: InstanceSettings,
    last_seen: Option<InterfaceState>,
}

/// The interface of an instance, for the election.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) id: InstanceId,
    pub(super) interface: Option<Interface>,
    /// The configured source of unicast advertisements, and whether the interface has it.
    pub(super) source: Option<(IpAddr, bool)>,
}

/// All instances that the election and the keeper have in common.
#[derive(Debug, Default)]
pub(super) struct InstanceSlots(BTreeMap<InstanceId, InstanceSlot>);

impl InstanceSlots {
    /// Makes an instance known, or changes its settings.
    pub(super) fn join(&mut self, id: InstanceId, settings: InstanceSettings) -> Option<Announcement> {
        self.0.entry(id).or_insert(InstanceSlot { settings, last_seen: None }).settings = settings;
        self.announcement(id)
    }

    /// Forgets an instance. What the keeper still says about it is no news.
    pub(super) fn leave(&mut self, id: InstanceId) {
        self.0.remove(&id);
    }

    /// The keeper has found the interface of an instance in this state, or none.
    pub(super) fn seen(&mut self, id: InstanceId, state: Option<&InterfaceState>) -> Option<Announcement> {
        self.0.get_mut(&id)?.last_seen = state.cloned();
        self.announcement(id)
    }

    /// The interface of every instance.
    pub(super) fn announcements(&self) -> impl Iterator<Item = Announcement> {
        self.0.keys().filter_map(|id| self.announcement(*id))
    }

    fn announcement(&self, id: InstanceId) -> Option<Announcement> {
        let slot = self.0.get(&id)?;
        let source = slot.last_seen.as_ref().zip(slot.settings.source);
        let source = source.map(|(state, source)| (source, state.has(source)));
        Some(Announcement { id, interface: slot.interface(), source })
    }
}

impl InstanceSlot {
    /// The interface as the election knows it.
    fn interface(&self) -> Option<Interface> {
        let state = self.last_seen.as_ref()?;
        // Peers answer to the configured source. Without it a router is deaf and mute, and would become Active beside
        // another; so it waits until the address is there.
        let v4 = match self.settings.source {
            Some(IpAddr::V4(ip)) => state.has(ip.into()).then_some(ip),
            _ => state.source_v4(),
        };
        let v6 = match self.settings.source {
            Some(IpAddr::V6(ip)) => state.has(ip.into()).then_some(ip),
            _ => state.source_v6(),
        };
        Some(Interface {
            name: state.name.clone(),
            index: state.index,
            mac: MacAddr(state.mac?),
            up: state.up,
            v4,
            v6,
            prefixes: state
                .addresses
                .iter()
                .map(|it| LinkPrefix { address: it.ip, len: it.prefix_len })
                .collect(),
        })
    }
}

/// The event of an instance's addresses that the election needs to know at once.
pub(super) fn address_event(event: &KeeperEvent) -> Option<(InstanceId, router::VipEvent)> {
    match event {
        KeeperEvent::Installed { id, .. } => Some((InstanceId(id.0), router::VipEvent::Installed)),
        KeeperEvent::Missing { id, .. } => Some((InstanceId(id.0), router::VipEvent::Missing)),
        KeeperEvent::LeaseLost { id, .. } => Some((InstanceId(id.0), router::VipEvent::LeaseLost)),
        _ => None,
    }
}

/// The way of addresses off this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// The keeper removes them now.
    Now(netlink_vip::Release),
    /// The main thread lets IPVS stop directing, then the keeper removes them: at this time at the latest.
    By(Instant),
}

/// The keeper resets the sessions itself, so that no other thread has to be alive for it. Only IPVS has to stop directing
/// before, which the main thread sees to, if it has the time.
pub(super) fn departure(release: Release, is_directed: bool, now: Instant) -> Departure {
    match release {
        Release::Planned if is_directed => Departure::By(now + WITHDRAWAL_BOUND),
        Release::Planned => Departure::Now(netlink_vip::Release::Planned),
        Release::Lost => Departure::Now(netlink_vip::Release::Lost),
    }
}

#[cfg(test)]
mod tests {
    use netlink_vip::{GroupId, InterfaceAddress, Removal};
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn state(host: u8, up: bool) -> InterfaceState {
        let address = InterfaceAddress { ip: [10, 0, 0, host].into(), prefix_len: 24, scope: 0, flags: 0x80 };
        InterfaceState {
            name: "eth0".into(),
            index: 2,
            mac: Some([2; 6]),
            up,
            addresses: vec![address],
            kind: None,
            vrf: None,
        }
    }

    fn settings(host: Option<u8>) -> InstanceSettings {
        InstanceSettings { source: host.map(|host| [10, 0, 0, host].into()), is_directed: false }
    }

    #[test]
    fn without_its_configured_source_an_instance_has_no_address_to_send_from() {
        let mut slots = InstanceSlots::default();
        let id = InstanceId(51);
        slots.join(id, settings(Some(11)));
        let waiting = slots.seen(id, Some(&state(12, true))).unwrap();
        assert_eq!(
            (waiting.interface.unwrap().v4, waiting.source),
            (None, Some(([10, 0, 0, 11].into(), false)))
        );
        let there = slots.seen(id, Some(&state(11, true))).unwrap();
        assert_eq!(there.interface.unwrap().v4, Some([10, 0, 0, 11].into()));
        let any = slots.join(id, settings(None)).unwrap();
        assert_eq!((any.interface.unwrap().v4, any.source), (Some([10, 0, 0, 11].into()), None));
    }

    #[test]
    fn an_interface_that_is_reported_after_its_instance_has_left_is_not_announced() {
        let mut slots = InstanceSlots::default();
        let id = InstanceId(51);
        slots.join(id, settings(None));
        slots.leave(id);
        assert_eq!(slots.seen(id, Some(&state(11, true))), None);
        assert_eq!(slots.join(id, settings(None)).unwrap().interface, None, "it is seen anew");
    }

    #[test]
    fn only_a_planned_release_of_directed_addresses_is_deferred_and_that_has_a_bound() {
        let now = Instant::now();
        assert_eq!(departure(Release::Planned, true, now), Departure::By(now + WITHDRAWAL_BOUND));
        assert_eq!(departure(Release::Planned, false, now), Departure::Now(netlink_vip::Release::Planned));
        for is_directed in [false, true] {
            let lost = departure(Release::Lost, is_directed, now);
            assert_eq!(lost, Departure::Now(netlink_vip::Release::Lost));
        }
    }

    #[test]
    fn the_election_hears_of_addresses_but_not_of_removals_that_it_asked_for() {
        let id = GroupId(51);
        let installed = KeeperEvent::Installed { id, took: Duration::ZERO };
        assert_eq!(address_event(&installed), Some((InstanceId(51), router::VipEvent::Installed)));
        let lost = KeeperEvent::LeaseLost { id };
        assert_eq!(address_event(&lost), Some((InstanceId(51), router::VipEvent::LeaseLost)));
        let reason = Removal::Released(netlink_vip::Release::Planned);
        assert_eq!(address_event(&KeeperEvent::Removed { id, reason }), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Join(u32, Option<u8>),
        Leave(u32),
        Seen(u32, Option<(u8, bool)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_u32, option::of(11..13_u8)).prop_map(|(id, host)| Step::Join(id, host)),
            (0..3_u32).prop_map(Step::Leave),
            (0..3_u32, option::of((11..13_u8, any::<bool>()))).prop_map(|(id, it)| Step::Seen(id, it)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// In any order of facts, and with facts about instances that have left.
        #[test]
        fn the_election_always_has_the_interface_that_was_seen_last(steps in vec(step(), 0..40)) {
            let mut slots = InstanceSlots::default();
            let mut announced: BTreeMap<InstanceId, Announcement> = BTreeMap::new();
            let mut expected: BTreeMap<InstanceId, (Option<u8>, Option<InterfaceState>)> = BTreeMap::new();
            for step in steps {
                let announcement = match step {
                    Step::Join(id, host) => {
                        expected.entry(InstanceId(id)).or_default().0 = host;
                        slots.join(InstanceId(id), settings(host))
                    }
                    Step::Leave(id) => {
                        expected.remove(&InstanceId(id));
                        announced.remove(&InstanceId(id));
                        slots.leave(InstanceId(id));
                        None
                    }
                    Step::Seen(id, found) => {
                        let found = found.map(|(host, up)| state(host, up));
                        if let Some(known) = expected.get_mut(&InstanceId(id)) {
                            known.1.clone_from(&found);
                        }
                        slots.seen(InstanceId(id), found.as_ref())
                    }
                };
                announced.extend(announcement.map(|it| (it.id, it)));
                prop_assert!(announced.keys().eq(expected.keys()));
                for (id, (host, seen)) in &expected {
                    let found = &announced[id];
                    let up = found.interface.as_ref().map(|it| it.up);
                    prop_assert_eq!(up, seen.as_ref().map(|it| it.up));
                    let source = seen.as_ref().zip(settings(*host).source).map(|(it, ip)| (ip, it.has(ip)));
                    prop_assert_eq!(found.source, source);
                }
            }
        }
    }
}
