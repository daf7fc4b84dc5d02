//! The instances as the bridge knows them, without I/O: the interfaces that are announced to the election, and the plan of
//! a release.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_vip::{InterfaceState, KeeperEvent};
use vrrp::LinkPrefix;
use vrrp::router::{self, Release};
use vrrp::runner::{InstanceId, Interface};

use crate::daemon::ids::instance_of;

/// The longest time for which the main thread may defer a planned release: another router may hold the addresses by then.
const WITHDRAWAL_BOUND: Duration = Duration::from_millis(300);

/// The settings of an instance that the bridge needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InstanceSettings {
    /// Source of unicast advertisements, if configured.
    pub(crate) source: Option<IpAddr>,
    /// Set where IPVS directs the connections to its VIPs.
    pub(crate) is_directed: bool,
    /// Set while the router must not take part, since it knows no peers.
    pub(crate) waits: bool,
}

/// An instance between the election and the keeper.
#[derive(Debug)]
struct InstanceSlot {
    settings: InstanceSettings,
    last_interface: Option<InterfaceState>,
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
    /// Adds an instance, or changes its settings.
    pub(super) fn join(&mut self, id: InstanceId, settings: InstanceSettings) -> Option<Announcement> {
        self.0.entry(id).or_insert(InstanceSlot { settings, last_interface: None }).settings = settings;
        self.announcement(id)
    }

    /// Forgets an instance. Later reports of the keeper about it are ignored.
    pub(super) fn leave(&mut self, id: InstanceId) {
        self.0.remove(&id);
    }

    /// Takes the state of an instance's interface, as the keeper has reported it.
    pub(super) fn set_interface(
        &mut self,
        id: InstanceId,
        state: Option<&InterfaceState>,
    ) -> Option<Announcement> {
        self.0.get_mut(&id)?.last_interface = state.cloned();
        self.announcement(id)
    }

    /// The interface of an instance, also of one that waits.
    pub(super) fn interface(&self, id: InstanceId) -> Option<Interface> {
        self.0.get(&id)?.interface()
    }

    /// The announcement of every instance.
    pub(super) fn announcements(&self) -> impl Iterator<Item = Announcement> {
        self.0.keys().filter_map(|id| self.announcement(*id))
    }

    fn announcement(&self, id: InstanceId) -> Option<Announcement> {
        let slot = self.0.get(&id)?;
        let source = slot.last_interface.as_ref().zip(slot.settings.source);
        let source = source.map(|(state, source)| (source, state.has(source)));
        Some(Announcement { id, interface: slot.interface().filter(|_| !slot.settings.waits), source })
    }
}

impl InstanceSlot {
    /// The interface as the election knows it.
    fn interface(&self) -> Option<Interface> {
        let state = self.last_interface.as_ref()?;
        // Peers exchange advertisements with the configured source only. A router that started without it would become
        // Active beside another one, so it waits for the address.
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
            mac: state.mac?.into(),
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

/// The event for the election that follows from an event of the keeper.
pub(super) fn address_event(event: &KeeperEvent) -> Option<(InstanceId, router::VipEvent)> {
    match event {
        KeeperEvent::Installed { id, .. } => Some((instance_of(*id), router::VipEvent::Installed)),
        KeeperEvent::Missing { id, .. } => Some((instance_of(*id), router::VipEvent::Missing)),
        KeeperEvent::LeaseLost { id, .. } => Some((instance_of(*id), router::VipEvent::LeaseLost)),
        _ => None,
    }
}

/// The plan of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReleasePlan {
    /// The keeper removes them now.
    Now(netlink_vip::Release),
    /// The keeper removes them after the main thread has removed the IPVS services, at this time at the latest.
    Deferred(Instant),
}

/// Plans a release. The keeper resets the sessions itself, so that this depends on no other thread. Only the removal of
/// IPVS services comes before, by the main thread, within [`WITHDRAWAL_BOUND`].
pub(super) fn release_plan(release: Release, is_directed: bool, now: Instant) -> ReleasePlan {
    match release {
        Release::Planned if is_directed => ReleasePlan::Deferred(now + WITHDRAWAL_BOUND),
        Release::Planned => ReleasePlan::Now(netlink_vip::Release::Planned),
        Release::Lost => ReleasePlan::Now(netlink_vip::Release::Lost),
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
        InstanceSettings {
            source: host.map(|host| [10, 0, 0, host].into()),
            is_directed: false,
            waits: false,
        }
    }

    #[test]
    fn an_instance_waits_for_its_configured_source_address() {
        let mut slots = InstanceSlots::default();
        let id = InstanceId(51);
        slots.join(id, settings(Some(11)));
        let waiting = slots.set_interface(id, Some(&state(12, true))).unwrap();
        assert_eq!(
            (waiting.interface.unwrap().v4, waiting.source),
            (None, Some(([10, 0, 0, 11].into(), false)))
        );
        let present = slots.set_interface(id, Some(&state(11, true))).unwrap();
        assert_eq!(present.interface.unwrap().v4, Some([10, 0, 0, 11].into()));
        let any = slots.join(id, settings(None)).unwrap();
        assert_eq!((any.interface.unwrap().v4, any.source), (Some([10, 0, 0, 11].into()), None));
    }

    #[test]
    fn an_instance_without_peers_waits_for_them() {
        let mut slots = InstanceSlots::default();
        let id = InstanceId(51);
        slots.join(id, InstanceSettings { waits: true, ..settings(None) });
        assert_eq!(slots.set_interface(id, Some(&state(11, true))).unwrap().interface, None);
        assert!(slots.interface(id).is_some(), "the group channel uses it");
        assert!(slots.join(id, settings(None)).unwrap().interface.is_some());
    }

    #[test]
    fn an_interface_of_a_removed_instance_is_not_announced() {
        let mut slots = InstanceSlots::default();
        let id = InstanceId(51);
        slots.join(id, settings(None));
        slots.leave(id);
        assert_eq!(slots.set_interface(id, Some(&state(11, true))), None);
        assert_eq!(slots.join(id, settings(None)).unwrap().interface, None, "it has to be reported again");
    }

    #[test]
    fn only_a_planned_release_of_directed_addresses_is_deferred() {
        let now = Instant::now();
        assert_eq!(release_plan(Release::Planned, true, now), ReleasePlan::Deferred(now + WITHDRAWAL_BOUND));
        assert_eq!(
            release_plan(Release::Planned, false, now),
            ReleasePlan::Now(netlink_vip::Release::Planned)
        );
        for is_directed in [false, true] {
            let lost = release_plan(Release::Lost, is_directed, now);
            assert_eq!(lost, ReleasePlan::Now(netlink_vip::Release::Lost));
        }
    }

    #[test]
    fn installed_and_lost_addresses_reach_the_election_and_removals_do_not() {
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
        Interface(u32, Option<(u8, bool)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_u32, option::of(11..13_u8)).prop_map(|(id, host)| Step::Join(id, host)),
            (0..3_u32).prop_map(Step::Leave),
            (0..3_u32, option::of((11..13_u8, any::<bool>()))).prop_map(|(id, it)| Step::Interface(id, it)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_last_announcement_has_the_last_reported_interface(steps in vec(step(), 0..40)) {
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
                    Step::Interface(id, found) => {
                        let found = found.map(|(host, up)| state(host, up));
                        if let Some(known) = expected.get_mut(&InstanceId(id)) {
                            known.1.clone_from(&found);
                        }
                        slots.set_interface(InstanceId(id), found.as_ref())
                    }
                };
                announced.extend(announcement.map(|it| (it.id, it)));
                prop_assert!(announced.keys().eq(expected.keys()));
                for (id, (host, state)) in &expected {
                    let found = &announced[id];
                    let up = found.interface.as_ref().map(|it| it.up);
                    prop_assert_eq!(up, state.as_ref().map(|it| it.up));
                    let source = state.as_ref().zip(settings(*host).source).map(|(it, ip)| (ip, it.has(ip)));
                    prop_assert_eq!(found.source, source);
                }
            }
        }
    }
}
