//! The log lines and problems that follow from events.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use netlink_vip::wire::address_flag;
use netlink_vip::{GroupId, InterfaceState, KeeperEvent, KernelError, ResyncCause, Warning};
use vrrp::router::{Discard, Reason, StateName, Transition, Warning as ElectionWarning};
use vrrp::runner::{InstanceId, PastTransition, RunnerEvent};

use super::*;
use crate::daemon::instance_log::InstanceFields;
use crate::daemon::problems::Problems;
use crate::logging::testing::storm;

fn instance(id: InstanceId) -> InstanceFields {
    InstanceFields { vrid: id.0, ..InstanceFields::default() }
}

fn keeper(event: &KeeperEvent, problems: &mut Problems) {
    log_keeper(event, instance, |_| String::new(), problems);
}

/// The lines that one call of `event` logs.
fn logged(event: impl FnOnce(&mut Problems)) -> Vec<String> {
    let mut event = Some(event);
    let mut problems = Problems::default();
    storm(1, |_| event.take().into_iter().for_each(|event| event(&mut problems))).lines
}

#[test]
fn lines_about_an_instance_name_it_and_its_peer() {
    let named = |id: InstanceId| InstanceFields {
        vip: "10.0.0.100".to_owned(),
        interface: "eth0".to_owned(),
        vrid: id.0,
    };
    let (id, peer) = (InstanceId(51), IpAddr::from([10, 0, 0, 12]));
    let transition = Transition {
        from: StateName::Backup,
        to: StateName::Active,
        reason: Reason::ActiveSilent { source: Some(peer) },
        after: Duration::ZERO,
    };
    for event in [
        RunnerEvent::Transition { id, past: PastTransition::new(SystemTime::UNIX_EPOCH, transition) },
        RunnerEvent::Warning { id, warning: ElectionWarning::Contended { source: peer }, suppressed: 0 },
        RunnerEvent::Discarded { id, reason: Discard::Checksum, source: peer, suppressed: 0 },
    ] {
        let lines = logged(|problems| log_election(&event, named, problems));
        let fields = " vip=10.0.0.100 interface=eth0 vrid=51 ";
        assert!(
            lines.len() == 1 && lines[0].contains(fields) && lines[0].contains(" peer=10.0.0.12 "),
            "{lines:?}"
        );
    }
    let id = GroupId(51);
    for event in [
        KeeperEvent::Installed { id, took: Duration::ZERO },
        KeeperEvent::Missing { id, ip: peer },
        KeeperEvent::LeaseLost { id },
        KeeperEvent::Interface { id, state: None },
    ] {
        let lines = logged(|problems| log_keeper(&event, named, |_| "eth0".to_owned(), problems));
        let fields = " vip=10.0.0.100 interface=eth0 vrid=51";
        assert!(lines.len() == 1 && lines[0].contains(fields), "{lines:?}");
    }
}

#[test]
fn a_netlink_overrun_is_a_problem_until_a_round_without_one() {
    let mut problems = Problems::default();
    for _ in 0..2 {
        keeper(&KeeperEvent::Resynced { cause: ResyncCause::Overrun }, &mut problems);
    }
    let texts = problems.texts();
    assert!(texts.len() == 1 && texts[0].contains("netlink overrun"), "{texts:?}");
    keeper(&KeeperEvent::Resynced { cause: ResyncCause::Retry }, &mut problems);
    assert_eq!(problems.texts(), texts);
    log_overrun_end(2, &mut problems);
    assert!(problems.texts().is_empty());
}

#[test]
fn contention_for_an_address_or_a_vrid_fades_when_it_is_not_reported_again() {
    let mut problems = Problems::default();
    let source = IpAddr::from([10, 0, 0, 66]);
    let addresses = vrrp::Addresses::V4((1..=6).map(|host| [10, 0, 0, 200 + host].into()).collect());
    let warnings = [
        ElectionWarning::OtherGroup { source, addresses },
        ElectionWarning::Stranger { source, priority: vrrp::WirePriority(150) },
        ElectionWarning::AnnouncedElsewhere { ip: source, mac: vrrp::MacAddr([2; 6]) },
        ElectionWarning::Contended { source },
        ElectionWarning::AddressListMismatch { source },
    ];
    for warning in warnings {
        let event = RunnerEvent::Warning { id: InstanceId(51), warning, suppressed: 0 };
        log_election(&event, instance, &mut problems);
    }
    let id = InstanceId(51);
    for reason in [Discard::Password, Discard::Checksum] {
        log_election(&RunnerEvent::Discarded { id, reason, source, suppressed: 0 }, instance, &mut problems);
    }
    let texts = problems.texts();
    assert_eq!(texts.len(), 5, "{texts:?}");
    assert!(texts[0].contains("10.0.0.201, 10.0.0.202, 10.0.0.203, 10.0.0.204 and 2 more"), "{texts:?}");
    assert!(texts.iter().all(|text| text.starts_with("virtual router 51: ")), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("another authPass")), "{texts:?}");
    problems.fade(Instant::now() + Duration::from_secs(120));
    assert!(problems.texts().is_empty());
}

#[test]
fn unreadable_kernel_tables_are_a_problem_until_the_next_resync() {
    let mut problems = Problems::default();
    let warning = Warning::Unobserved(KernelError::NoAnswer);
    keeper(&KeeperEvent::Warning { id: None, warning }, &mut problems);
    assert!(problems.texts()[0].contains("cannot read the kernel's tables"), "{:?}", problems.texts());
    keeper(&KeeperEvent::Resynced { cause: ResyncCause::Retry }, &mut problems);
    assert!(problems.texts().is_empty());
}

#[test]
fn a_missing_link_local_address_is_a_problem_only_for_ipv6_multicast() {
    let address = |ip: &str, flags| netlink_vip::InterfaceAddress {
        ip: ip.parse().unwrap(),
        prefix_len: 64,
        scope: 0,
        flags,
    };
    let event = |up, addresses: &[netlink_vip::InterfaceAddress]| {
        let (name, addresses) = ("eth0".to_owned(), addresses.to_vec());
        let state =
            InterfaceState { name, index: 2, mac: Some([2; 6]), up, addresses, kind: None, vrf: None };
        KeeperEvent::Interface { id: GroupId(51), state: Some(state) }
    };
    let mut problems = Problems::default();
    let global = address("fd00::1", 0);
    log_link_local(&event(true, &[global]), instance, |_| false, &mut problems);
    log_link_local(&event(false, &[global]), instance, |_| true, &mut problems);
    assert!(problems.texts().is_empty(), "{:?}", problems.texts());
    for unusable in [global, address("fe80::1", address_flag::DADFAILED)] {
        log_link_local(&event(true, &[unusable]), instance, |_| true, &mut problems);
        let text =
            "virtual router 51: eth0 has no IPv6 link-local address, so IPv6 advertisements cannot be sent";
        assert_eq!(problems.texts(), [text]);
    }
    log_link_local(
        &event(true, &[address("fe80::1", address_flag::TENTATIVE)]),
        instance,
        |_| true,
        &mut problems,
    );
    assert!(problems.texts().is_empty(), "a tentative address becomes usable");
}
