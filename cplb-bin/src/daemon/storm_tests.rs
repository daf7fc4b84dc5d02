//! The limit of log lines, for every line that a client, a peer, a backend or a flapping link can cause 1,000 times a
//! second.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use lb_proxy::{Event as Balancer, Failure, Refusal, Shortage};
use netlink_vip::{
    GroupId, InterfaceState, KeeperEvent, KernelError, Release, Removal, ResyncCause, Warning,
};
use vrrp::router::{Discard, Reason, StateName, Transition};
use vrrp::runner::{InstanceId, PastTransition, RunnerEvent, SocketOperation};

use super::event_log;
use super::instance_log::InstanceFields;
use super::problems::Problems;
use super::serving::Fitness;
use crate::logging::testing::storm;

const SECONDS: u32 = 30;
/// The limit for each kind and subject: ten lines, then two in each period of ten seconds, and the last one.
const MAX_LINES: usize = 10 + 2 * 2 + 1;

const ID: InstanceId = InstanceId(51);
const GROUP: GroupId = GroupId(51);

/// Checks the limit where each call of `event` logs one line of so many `kinds`; `last` is in the last line written.
fn expect_limit(name: &str, kinds: usize, last: &str, mut event: impl FnMut(u32, &mut Problems)) {
    let mut problems = Problems::default();
    let written = storm(SECONDS, |number| event(number, &mut problems));
    let count = written.lines.len();
    assert!(count <= MAX_LINES * kinds, "{name}: {count} lines: {:#?}", written.lines);
    assert_eq!(
        count as u64 + written.suppressed,
        u64::from(SECONDS) * 1_000,
        "{name}: each line is written or counted"
    );
    let end = written.lines.last().unwrap();
    assert!(end.contains(last), "{name}: the last line does not show the last state: {end}");
}

fn instance(id: InstanceId) -> InstanceFields {
    InstanceFields { vip: ip().to_string(), interface: "eth0".to_owned(), vrid: id.0 }
}

fn ip() -> IpAddr {
    IpAddr::from([10, 0, 0, 100])
}

fn backend() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 11], 6443))
}

#[test]
fn lines_of_the_election_are_limited() {
    expect_limit("transitions", 1, "to=backup", |number, problems| {
        let (from, to) = match number % 2 {
            0 => (StateName::Backup, StateName::Active),
            _ => (StateName::Active, StateName::Backup),
        };
        let transition = Transition { from, to, reason: Reason::InterfaceUp, after: Duration::ZERO };
        let past = PastTransition::new(SystemTime::UNIX_EPOCH, transition);
        event_log::log_election(&RunnerEvent::Transition { id: ID, past }, instance, problems);
    });
    expect_limit("another address list", 1, "0.0.117.47", |number, problems| {
        let warning =
            vrrp::router::Warning::AddressListMismatch { source: IpAddr::from(number.to_be_bytes()) };
        event_log::log_election(&RunnerEvent::Warning { id: ID, warning, suppressed: 0 }, instance, problems);
    });
    expect_limit("discarded, from spoofed sources", 1, "discarded", |number, problems| {
        let (reason, source) = (Discard::ALL[0], IpAddr::from(number.to_be_bytes()));
        event_log::log_election(
            &RunnerEvent::Discarded { id: ID, reason, source, suppressed: 0 },
            instance,
            problems,
        );
    });
    expect_limit("socket errors", 1, "eth0", |_, problems| {
        let (operation, error) = (SocketOperation::Advertise, std::io::ErrorKind::NetworkDown.into());
        let interface = "eth0".to_owned();
        event_log::log_election(
            &RunnerEvent::SocketError { interface, operation, error, suppressed: 0 },
            instance,
            problems,
        );
    });
}

#[test]
fn lines_about_links_and_addresses_are_limited() {
    let keeper = |name, kinds, last, event: &dyn Fn(u32) -> KeeperEvent| {
        expect_limit(name, kinds, last, |number, problems| {
            event_log::log_keeper(&event(number), instance, |_| "eth0".to_owned(), problems);
        });
    };
    let state = |up| InterfaceState {
        name: "eth0".into(),
        index: 2,
        mac: None,
        up,
        addresses: Vec::new(),
        kind: None,
        vrf: None,
    };
    keeper("a flapping link", 2, "interface up", &|number| KeeperEvent::Interface {
        id: GROUP,
        state: Some(state(number % 2 == 1)),
    });
    keeper("a link that appears and disappears", 2, "interface not found", &|number| {
        KeeperEvent::Interface { id: GROUP, state: (number % 2 == 0).then(|| state(true)) }
    });
    keeper("addresses that are installed and removed", 2, "removed", &|number| match number % 2 {
        0 => KeeperEvent::Installed { id: GROUP, took: Duration::ZERO },
        _ => KeeperEvent::Removed { id: GROUP, reason: Removal::Released(Release::Lost) },
    });
    keeper("addresses removed by others", 1, "10.0.0.100", &|_| KeeperEvent::Missing { id: GROUP, ip: ip() });
    keeper("lost leases", 1, "lease", &|_| KeeperEvent::LeaseLost { id: GROUP });
    keeper("warnings", 1, "kernel", &|_| KeeperEvent::Warning {
        id: None,
        warning: Warning::Unobserved(KernelError::NoAnswer),
    });
    expect_limit("addresses that can and cannot be held", 2, "again", |number, problems| {
        let faults = if number % 2 == 0 { vec!["IPv6 is disabled".to_owned()] } else { Vec::new() };
        event_log::log_fitness(&[Fitness { id: ID, faults }], instance, problems);
    });
    expect_limit("overruns that begin and end", 2, "no longer overrun", |number, problems| {
        match number % 2 {
            0 => event_log::log_keeper(
                &KeeperEvent::Resynced { cause: ResyncCause::Overrun },
                instance,
                |_| String::new(),
                problems,
            ),
            _ => event_log::log_overrun_end(1, problems),
        }
    });
}

#[test]
fn lines_of_the_load_balancer_are_limited() {
    let service = || std::sync::Arc::<str>::from("kube-apiserver");
    let balancer = |name, kinds, last, event: &dyn Fn(u32) -> Balancer| {
        expect_limit(name, kinds, last, |number, problems| event_log::log_balancer(&event(number), problems));
    };
    balancer("suspected and trusted again", 2, "trusted", &|number| match number % 2 {
        0 => Balancer::BackendSuspected { service: service(), backend: backend(), reason: Failure::Refused },
        _ => Balancer::BackendTrusted { service: service(), backend: backend() },
    });
    balancer("up and down", 2, "backend up", &|number| match number % 2 {
        0 => Balancer::BackendDown {
            service: service(),
            backend: backend(),
            reason: "connection refused".into(),
            sessions: number as usize,
        },
        _ => Balancer::BackendUp {
            service: service(),
            backend: backend(),
            reason: "up".into(),
            after: Duration::ZERO,
        },
    });
    balancer("terminating", 1, "terminating", &|_| Balancer::BackendTerminating {
        service: service(),
        backend: backend(),
        sessions: 1,
    });
    balancer("forbidden", 1, "backend excluded", &|_| Balancer::BackendForbidden {
        service: service(),
        backend: backend(),
    });
    for (reason, words) in [
        (Refusal::NoBackend, "no backend accepts connections"),
        (Refusal::MaxConnections, "maxConnections"),
        (Refusal::MaxConnectionsPerClient, "maxConnectionsPerClient"),
        (Refusal::Descriptors, "LimitNOFILE"),
    ] {
        balancer("refused", 1, words, &|number| Balancer::ClientsRefused {
            service: service(),
            reason,
            limit: Some(9),
            total: number.into(),
        });
    }
    for (shortage, words) in [
        (Shortage::Descriptors, "LimitNOFILE"),
        (Shortage::HostFiles, "fs.file-max"),
        (Shortage::Ports, "ip_local_port_range"),
        (Shortage::Memory, "tcp_mem"),
    ] {
        balancer("exhausted", 1, words, &|_| Balancer::ResourcesExhausted {
            shortage,
            backend: Some(backend()),
            reason: "no".into(),
        });
    }
}
