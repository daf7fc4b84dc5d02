//! The same table, once by our client and once by `ipvsadm`.

use std::num::NonZeroU32;
use std::process::Command;

use ipvs::{
    AddressFamily, Client, Destination, EngineName, ForwardMethod, InterfaceName, Netmask, SchedulerName,
    Seconds, Service, ServiceFlags, ServiceKey, SyncDaemon, SyncState, TimeoutChange, Timeouts, Tunnel,
    TunnelFlags, Weight,
};
use testbed::Tool;

use crate::fixture::{address, destination, ipvsadm, run, tcp, with_client};

const MASQUERADE: ForwardMethod = ForwardMethod::MASQUERADE;
const ROUTE: ForwardMethod = ForwardMethod::DIRECT_ROUTE;
const TUNNEL: ForwardMethod = ForwardMethod::TUNNEL;

fn service(key: ServiceKey, scheduler: SchedulerName) -> Service {
    Service::new(key, scheduler)
}

fn fwmark(family: AddressFamily, mark: u32) -> ServiceKey {
    ServiceKey::fwmark(family, NonZeroU32::new(mark).expect("not 0"))
}

/// A table with everything that `ipvsadm` can configure, in the order in which it lists it with `--sort`.
pub(crate) fn table() -> Vec<(Service, Vec<Destination>)> {
    let schedulers = [
        SchedulerName::RR,
        SchedulerName::WRR,
        SchedulerName::LC,
        SchedulerName::LBLC,
        SchedulerName::LBLCR,
        SchedulerName::DH,
        SchedulerName::SH,
        SchedulerName::MH,
        SchedulerName::SED,
        SchedulerName::NQ,
        SchedulerName::FO,
        SchedulerName::OVF,
    ];
    let ports = 8001_u16..;
    let mut table: Vec<_> = schedulers
        .into_iter()
        .zip(ports)
        .map(|(scheduler, port)| (service(tcp("10.0.0.100", port), scheduler), Vec::new()))
        .collect();
    let methods = vec![
        destination("10.0.0.1", 443, ForwardMethod::LOCAL),
        destination("10.0.0.11", 6443, MASQUERADE).with_weight(Weight(0)),
        destination("10.0.0.12", 443, ROUTE).with_weight(Weight(65535)).with_thresholds(50, 100),
        destination("10.0.0.13", 443, TUNNEL),
        destination("10.0.0.14", 443, TUNNEL).with_tunnel(Tunnel::gue(6080, TunnelFlags::NO_CHECKSUM)),
        destination("10.0.0.15", 443, TUNNEL).with_tunnel(Tunnel::gue(6081, TunnelFlags::CHECKSUM)),
        destination("10.0.0.16", 443, TUNNEL).with_tunnel(Tunnel::gue(6082, TunnelFlags::REMOTE_CHECKSUM)),
        destination("10.0.0.17", 443, TUNNEL).with_tunnel(Tunnel::gre(TunnelFlags::NO_CHECKSUM)),
        destination("10.0.0.18", 443, TUNNEL).with_tunnel(Tunnel::gre(TunnelFlags::CHECKSUM)),
        destination("fd00::19", 443, TUNNEL).with_weight(Weight(3)),
    ];
    table.push((service(tcp("10.0.0.101", 443), SchedulerName::WLC), methods));
    let persistent = service(tcp("10.0.0.102", 0), SchedulerName::RR).persistent(Seconds(360));
    let per_subnet = persistent.with_netmask(Netmask::v4_prefix(20).expect("a length")).expect("IPv4");
    table.push((per_subnet, Vec::new()));
    table.push((
        service(tcp("fd00::100", 6443), SchedulerName::SH)
            .persistent(Seconds(7))
            .with_netmask(Netmask::v6_prefix(64).expect("a length"))
            .expect("IPv6")
            .with_flags(ServiceFlags::SH_FALLBACK | ServiceFlags::SH_PORT),
        vec![destination("fd00::11", 6443, ROUTE), destination("fd00::12", 7443, MASQUERADE)],
    ));
    let sip = service(ServiceKey::udp(address("10.0.0.100"), 5060), SchedulerName::RR);
    let sip = sip.persistent(Seconds(60)).with_engine(EngineName::SIP);
    table.push((sip.with_flags(ServiceFlags::ONE_PACKET), Vec::new()));
    let dns = service(ServiceKey::udp(address("fd00::100"), 53), SchedulerName::MH);
    let dns = dns.with_flags(ServiceFlags::MH_FALLBACK | ServiceFlags::MH_PORT);
    table.push((dns, vec![destination("fd00::11", 53, ROUTE)]));
    let sctp = service(ServiceKey::sctp(address("10.0.0.100"), 3868), SchedulerName::WRR);
    table.push((sctp, vec![destination("10.0.0.11", 3868, MASQUERADE).with_weight(Weight(7))]));
    let marked = vec![destination("10.0.0.11", 0, ROUTE)];
    table.push((service(fwmark(AddressFamily::V4, 1), SchedulerName::RR), marked));
    let marked =
        service(fwmark(AddressFamily::V6, i32::MAX as u32), SchedulerName::LC).persistent(Seconds(300));
    table.push((marked, vec![destination("fd00::11", 0, TUNNEL)]));
    table
}

/// Output of `ipvsadm --save`: all but thresholds, and local destinations as routed ones.
const SAVED: &str = include_str!("saved.txt");
const GOLDEN: &str = include_str!("../../src/wire/golden.txt");
const LISTED: &str = include_str!("listed.txt");

pub(crate) fn ipvsadm_prints() {
    with_client(async |client| {
        for (service, destinations) in table() {
            client.add_service(&service).await.unwrap_or_else(|error| panic!("{service:?}: {error}"));
            for destination in destinations {
                let added = client.add_destination(&service.key(), &destination).await;
                added.unwrap_or_else(|error| panic!("{destination:?}: {error}"));
            }
        }
        assert_eq!(sorted(&ipvsadm("-S -n")), sorted(SAVED));
        assert_eq!(ipvsadm("-L -n --sort"), LISTED);
        let thresholds = ipvsadm("-L -n --thresholds");
        let limited = thresholds.lines().find(|line| line.contains("10.0.0.12:443"));
        let limited: Vec<_> = limited.expect("it is listed").split_whitespace().skip(2).take(2).collect();
        assert_eq!(limited, ["100", "50"]);
        let counters = ipvsadm("-L -n --stats --exact");
        let zeros =
            counters.lines().skip(3).filter(|line| line.ends_with(" 0        0        0        0        0"));
        assert_eq!(zeros.count(), counters.lines().count() - 3, "{counters}");

        let change = TimeoutChange { tcp: Some(Seconds(7200)), udp: Some(Seconds(30)), tcp_fin: None };
        client.set_timeouts(&change).await.expect("they are set");
        assert_eq!(ipvsadm("-L --timeout"), "Timeout (tcp tcpfin udp): 7200 120 30\n");
        // Daemons do not replicate destinations of another family.
        client.flush().await.expect("all is deleted");
        start_daemons(client).await;
        let expected = "master sync daemon (mcast=dummy0, syncid=7, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n\
            backup sync daemon (mcast=dummy0, syncid=255, maxlen=1024, group=ff02::99, port=9000, ttl=3)\n";
        assert_eq!(ipvsadm("-L --daemon"), expected);
        client.stop_daemon(SyncState::MASTER).await.expect("it stops");
        client.stop_daemon(SyncState::BACKUP).await.expect("it stops");
        assert_eq!(ipvsadm("-L --daemon"), "");
    });
}

fn daemons() -> [SyncDaemon; 2] {
    let interface = InterfaceName::new("dummy0").expect("a name");
    let mut backup = SyncDaemon::new(SyncState::BACKUP, interface, 255);
    backup.max_length = Some(1024);
    backup.group = Some(address("ff02::99"));
    backup.port = Some(9000);
    backup.ttl = Some(3);
    [SyncDaemon::new(SyncState::MASTER, interface, 7), backup]
}

async fn start_daemons(client: &Client) {
    for daemon in daemons() {
        client.start_daemon(&daemon).await.unwrap_or_else(|error| panic!("{daemon:?}: {error}"));
    }
}

fn sorted(rules: &str) -> Vec<&str> {
    let mut rules: Vec<&str> = rules.lines().collect();
    rules.sort_unstable();
    rules
}

pub(crate) fn client_lists() {
    with_client(async |client| {
        let rules = SAVED.replace("-g -w 65535", "-g -w 65535 -x 100 -y 50");
        run(Tool::Ipvsadm, "--restore", &rules);
        let listed = client.services().await.expect("a list");
        assert_eq!(listed.len(), table().len());
        for (mut expected, destinations) in table() {
            let key = expected.key();
            let entry = listed.iter().find(|entry| entry.service.key() == key).expect("it is listed");
            // The kernel sets the flag of a service that is in its table, and no other.
            expected.flags = expected.flags | ServiceFlags::HASHED;
            assert_eq!(entry.service, expected);
            assert!(entry.other.is_empty() && entry.stats32.is_some() && entry.stats64.is_some());
            assert_eq!(client.service(&key).await.as_ref(), Ok(entry));
            let listed = client.destinations(&key).await.expect("a list");
            for entry in &listed {
                assert!(entry.other.is_empty() && entry.stats32.is_some() && entry.stats64.is_some());
            }
            let mut listed: Vec<_> = listed.iter().map(|entry| entry.destination).collect();
            listed.sort_by_key(|destination| destination.key);
            let routed = |mut destination: Destination| {
                if destination.method == ForwardMethod::LOCAL {
                    destination.method = ROUTE;
                }
                destination
            };
            let expected: Vec<_> = destinations.into_iter().map(routed).collect();
            assert_eq!(listed, expected, "{key}");
        }
        ipvsadm("--clear");
        assert_eq!(client.services().await, Ok(Vec::new()));

        ipvsadm("--set 7200 0 30");
        let timeouts = Timeouts { tcp: Seconds(7200), tcp_fin: Seconds(120), udp: Seconds(30) };
        assert_eq!(client.timeouts().await, Ok(timeouts));
        ipvsadm("--start-daemon master --mcast-interface dummy0 --syncid 7");
        let group = "--sync-maxlen 1024 --mcast-group ff02::99 --mcast-port 9000 --mcast-ttl 3";
        ipvsadm(&format!("--start-daemon backup --mcast-interface dummy0 --syncid 255 {group}"));
        let [mut master, backup] = daemons();
        master.max_length = Some(1472);
        master.group = Some(address("224.0.0.81"));
        master.port = Some(8848);
        master.ttl = Some(1);
        assert_eq!(client.daemons().await, Ok(vec![master, backup]));
        let info = client.info().await.expect("information");
        assert_eq!((info.version.to_string().as_str(), info.connection_table_size), ("1.2.1", 4096));
    });
}

/// The bytes of `ipvsadm` and of the kernel are kept with the crate; this tells when they change. The order of a list
/// is chance.
pub(crate) fn same_bytes() {
    with_client(async |_| {
        for part in GOLDEN.split("$ ipvsadm ").skip(1) {
            let mut lines = part.lines();
            let command = lines.next().expect("a command");
            let (mut known, mut said) = (lines.map(str::to_owned).collect::<Vec<_>>(), messages_of(command));
            known.sort();
            said.sort();
            assert_eq!(said, known, "{command}:\n{}", said.join("\n"));
        }
    });
}

/// The bytes sent (`>`) and received (`<`) behind the netlink headers, in hexadecimal; without what `ipvsadm` asks
/// every time: the number of the family and the version.
fn messages_of(command: &str) -> Vec<String> {
    let output = Command::new(Tool::Strace.path().expect("it is installed"))
        .args(["-xx", "-s", "65536", "-e", "trace=sendmsg,recvmsg"])
        .arg(Tool::Ipvsadm.path().expect("it is installed"))
        .args(command.split_whitespace())
        .output()
        .expect("it runs");
    let trace = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{trace}");
    let mut messages = Vec::new();
    for call in trace.lines().filter(|line| !line.contains("MSG_PEEK")) {
        let direction = if call.starts_with("sendmsg") { '>' } else { '<' };
        for message in call.split("nlmsg_len=").skip(1) {
            let of_family = message.contains("nlmsg_type=0x") && !message.contains("nlmsg_type=0x10 ");
            let Some((_, text)) = message.split_once("}, \"").filter(|_| of_family) else { continue };
            let bytes = text.split('"').next().unwrap_or_default().replace("\\x", "");
            if !(bytes.starts_with("0f01") || bytes.starts_with("0e01")) {
                messages.push(format!("{direction} {bytes}"));
            }
        }
    }
    messages
}
