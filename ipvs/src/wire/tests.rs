//! Any value survives, no bytes do harm, and the bytes are those of `ipvsadm` and the kernel.

use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::model::*;
use crate::testing::strategies::{replies, requests};

fn encoded(encode: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn any_request_survives(request in requests()) {
        let bytes = encoded(|buffer| request.encode(buffer));
        prop_assert_eq!(bytes.len() % 4, 0);
        let again = Request::decode(request.command(), &bytes).unwrap();
        prop_assert_eq!(&again, &request);
        prop_assert_eq!(encoded(|buffer| again.encode(buffer)), bytes);
    }

    #[test]
    fn any_reply_survives_with_what_is_unknown_in_it(reply in replies()) {
        let bytes = encoded(|buffer| reply.encode(buffer));
        prop_assert_eq!(bytes.len() % 4, 0);
        let again = Reply::decode(reply.command(), &bytes).unwrap();
        prop_assert_eq!(&again, &reply);
        prop_assert_eq!(encoded(|buffer| again.encode(buffer)), bytes);
    }

    #[test]
    fn decode_terminates_on_arbitrary_input(command in 0_u8..20, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(Command(command), &bytes);
        let _ = Reply::decode(Command(command), &bytes);
    }

    #[test]
    fn decode_survives_changed_bytes(reply in replies(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encoded(|buffer| reply.encode(buffer));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(reply) = Reply::decode(reply.command(), &bytes) {
            let again = encoded(|buffer| reply.encode(buffer));
            prop_assert_eq!(Reply::decode(reply.command(), &again), Ok(reply));
        }
    }

    #[test]
    fn trailing_bytes_are_refused(reply in replies(), garbage in prop::collection::vec(any::<u8>(), 1..4)) {
        let mut bytes = encoded(|buffer| reply.encode(buffer));
        let length = garbage.len();
        bytes.extend(garbage);
        prop_assert_eq!(Reply::decode(reply.command(), &bytes), Err(DecodeError::Trailing { length }));
    }
}

/// The messages of a direction, after a command of `ipvsadm` or all.
fn golden(command: &str, direction: &str) -> Vec<Vec<u8>> {
    let parts = include_str!("golden.txt").split("$ ipvsadm ").skip(1);
    let parts = parts.filter(|part| command.is_empty() || part.lines().next() == Some(command));
    let lines = parts.flat_map(str::lines).filter_map(|line| line.strip_prefix(direction));
    lines.map(unhex).collect()
}

/// With the generic-netlink header.
fn whole(command: Command, encode: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![command.0, FAMILY_VERSION, 0, 0];
    encode(&mut bytes);
    bytes
}

/// The typed request of a command of `ipvsadm` that sends one.
fn request_of(command: &str) -> (Request, Vec<u8>) {
    let [bytes] = golden(command, "> ").try_into().expect("one message");
    (Request::decode(Command(bytes[0]), &bytes[4..]).unwrap(), bytes)
}

#[test]
#[cfg(target_endian = "little")]
fn our_requests_are_those_of_ipvsadm() {
    let tcp = ServiceKey::tcp([10, 0, 0, 100].into(), 6443);
    let dns = ServiceKey::udp("fd00::100".parse().unwrap(), 53);
    let sip = ServiceKey::udp([10, 0, 0, 1].into(), 5060);
    let mark = ServiceKey::fwmark(AddressFamily::V6, NonZeroU32::new(7).unwrap());
    let interface = InterfaceName::new("dummy0").unwrap();
    let persistent = Service::new(tcp, SchedulerName::WLC).persistent(Seconds(360));
    let mut backup = SyncDaemon::new(SyncState::BACKUP, interface, 9);
    (backup.max_length, backup.port, backup.ttl) = (Some(1000), Some(9000), Some(3));
    backup.group = Some("ff02::99".parse().unwrap());
    let sync = "--mcast-group ff02::99 --mcast-port 9000 --mcast-ttl 3";
    let expected = [
        (
            "-A -t 10.0.0.100:6443 -s wlc -p 360 -M 255.255.255.0",
            Request::NewService(persistent.with_netmask(Netmask::v4_prefix(24).unwrap()).unwrap()),
        ),
        (
            "-A -f 7 -6 -s sh -b sh-fallback,sh-port",
            Request::NewService(
                Service::new(mark, SchedulerName::SH)
                    .with_flags(ServiceFlags::SH_FALLBACK | ServiceFlags::SH_PORT),
            ),
        ),
        (
            "-A -u [fd00::100]:53 -s rr -o",
            Request::NewService(Service::new(dns, SchedulerName::RR).with_flags(ServiceFlags::ONE_PACKET)),
        ),
        (
            "-A -u 10.0.0.1:5060 -s rr -p 5 --pe sip",
            Request::NewService(
                Service::new(sip, SchedulerName::RR).persistent(Seconds(5)).with_engine(EngineName::SIP),
            ),
        ),
        ("-E -t 10.0.0.100:6443 -s rr", Request::SetService(Service::new(tcp, SchedulerName::RR))),
        ("-Z", Request::Zero(None)),
        (
            "--set 7200 0 30",
            Request::SetConfig(TimeoutChange {
                tcp: Some(Seconds(7200)),
                tcp_fin: Some(Seconds(0)),
                udp: Some(Seconds(30)),
            }),
        ),
        ("-L --timeout", Request::GetConfig),
        (
            "--start-daemon master --mcast-interface dummy0 --syncid 7",
            Request::NewDaemon(SyncDaemon::new(SyncState::MASTER, interface, 7)),
        ),
        (
            &format!("--start-daemon backup --mcast-interface dummy0 --syncid 9 --sync-maxlen 1000 {sync}"),
            Request::NewDaemon(backup),
        ),
        ("-L --daemon", Request::DumpDaemons),
        ("-C", Request::Flush),
    ];
    for (command, expected) in expected {
        let (request, bytes) = request_of(command);
        assert_eq!(request, expected, "{command}");
        assert_eq!(whole(expected.command(), |buffer| expected.encode(buffer)), bytes, "{command}");
    }
}

/// `ipvsadm` describes the whole service wherever it only has to be found; ours are shorter and say the same.
#[test]
#[cfg(target_endian = "little")]
fn redundant_attributes_of_ipvsadm_are_accepted() {
    let tcp = ServiceKey::tcp([10, 0, 0, 100].into(), 6443);
    let dns = ServiceKey::udp("fd00::100".parse().unwrap(), 53);
    let mark = ServiceKey::fwmark(AddressFamily::V6, NonZeroU32::new(7).unwrap());
    let real = |last| DestinationKey::new([10, 0, 0, last].into(), 6443);
    let gue = Tunnel::gue(6080, TunnelFlags::CHECKSUM);
    let gre = Tunnel::gre(TunnelFlags::NO_CHECKSUM);
    let resolver = DestinationKey::new("fd00::11".parse().unwrap(), 5353);
    let tunnelled = Destination::new(real(12), ForwardMethod::TUNNEL);
    let expected = [
        (
            "-a -t 10.0.0.100:6443 -r 10.0.0.11:6443 -g -w 5 -x 100 -y 50",
            Request::NewDestination(
                tcp,
                Destination::new(real(11), ForwardMethod::DIRECT_ROUTE)
                    .with_weight(Weight(5))
                    .with_thresholds(50, 100),
            ),
        ),
        (
            "-a -t 10.0.0.100:6443 -r 10.0.0.12:6443 -i --tun-type gue --tun-port 6080 --tun-csum",
            Request::NewDestination(tcp, tunnelled.with_tunnel(gue)),
        ),
        (
            "-a -u [fd00::100]:53 -r [fd00::11]:5353 -m",
            Request::NewDestination(dns, Destination::new(resolver, ForwardMethod::MASQUERADE)),
        ),
        (
            "-e -t 10.0.0.100:6443 -r 10.0.0.12:6443 -i --tun-type gre -w 0",
            Request::SetDestination(tcp, tunnelled.with_tunnel(gre).with_weight(Weight::QUIESCED)),
        ),
        ("-d -t 10.0.0.100:6443 -r 10.0.0.12:6443", Request::DeleteDestination(tcp, real(12))),
        ("-Z -t 10.0.0.100:6443", Request::Zero(Some(tcp))),
        ("-D -t 10.0.0.100:6443", Request::DeleteService(tcp)),
        ("-D -f 7 -6", Request::DeleteService(mark)),
        ("--stop-daemon master", Request::DeleteDaemon(SyncState::MASTER)),
    ];
    for (command, expected) in expected {
        let (request, bytes) = request_of(command);
        assert_eq!(request, expected, "{command}");
        let ours = whole(expected.command(), |buffer| expected.encode(buffer));
        // The destination, which comes last, is the same byte for byte.
        if let Request::NewDestination(..) | Request::SetDestination(..) = expected {
            let length = bytes.len() - usize::from(u16::from_ne_bytes([bytes[4], bytes[5]])) - 4;
            assert!(ours.ends_with(&bytes[bytes.len() - length..]), "{command}");
        }
        assert!(ours.len() < bytes.len());
    }
}

#[test]
#[cfg(target_endian = "little")]
fn replies_of_the_kernel_survive_byte_for_byte() {
    let replies = golden("", "< ");
    assert!(replies.len() >= 10);
    for bytes in replies {
        let reply = Reply::decode(Command(bytes[0]), &bytes[4..]).unwrap();
        assert_eq!(whole(reply.command(), |buffer| reply.encode(buffer)), bytes);
    }
    let info = unhex("0e010000 08000100 01020100 08000200 00100000");
    let reply = Reply::decode(Command(info[0]), &info[4..]).unwrap();
    assert_eq!(reply.content, ReplyContent::Info(Info::new(Version(0x01_02_01), 4096)));
    assert_eq!(whole(reply.command(), |buffer| reply.encode(buffer)), info);
}

#[test]
#[cfg(target_endian = "little")]
fn kernel_replies_decode_to_the_configuration() {
    let replies = golden("-L -n", "< ");
    let mut listed: Vec<String> = replies
        .iter()
        .map(|bytes| match Reply::decode(Command(bytes[0]), &bytes[4..]).unwrap().content {
            ReplyContent::Service(ServiceEntry { service, stats32, stats64, .. }) => {
                assert_eq!((stats32, stats64), (Some(Stats32::default()), Some(Stats::default())));
                let (flags, timeout, mask) = (service.flags.0, service.timeout, service.netmask());
                format!("{} {} {flags:#x} {timeout} {mask}", service.key(), service.scheduler)
            }
            ReplyContent::Destination(DestinationEntry { destination: real, stats64, .. }) => {
                assert_eq!(stats64, Some(Stats::default()));
                let thresholds = (real.lower_threshold, real.upper_threshold);
                format!("{} {} {} {thresholds:?} {}", real.key, real.method, real.weight, real.tunnel.kind.0)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    listed.sort();
    let expected = [
        "10.0.0.11:6443 Route 5 (50, 100) 0",
        "10.0.0.12:6443 Tunnel 0 (0, 0) 2",
        "TCP 10.0.0.100:6443 wlc 0x3 360 s 255.255.255.0",
        "UDP 10.0.0.1:5060 rr 0x3 5 s 255.255.255.255",
        "UDP [fd00::100]:53 rr 0x6 0 s /128",
        "[fd00::11]:5353 Masq 1 (0, 0) 0",
        "fwmark 7 (IPv6) sh 0x1a 0 s /128",
    ];
    assert_eq!(listed, expected);
}

#[test]
fn attributes_that_old_kernels_omit_are_optional() {
    // A service by firewall mark with a scheduler, nothing else.
    let list = [
        attribute(1, &2_u16.to_ne_bytes()),
        attribute(5, &7_u32.to_ne_bytes()),
        attribute(6, b"rr\0"),
        attribute(10, &attribute(1, &3_u32.to_ne_bytes())),
    ];
    let reply = Reply::decode(Command::NEW_SERVICE, &attribute(1, &list.concat())).unwrap();
    let ReplyContent::Service(entry) = reply.content else { panic!("{reply:?}") };
    assert_eq!(entry.service.key().to_string(), "fwmark 7 (IPv4)");
    assert_eq!(entry.service.netmask().to_string(), "255.255.255.255");
    assert_eq!((entry.stats().connections, entry.stats().incoming_packets), (3, 0));

    // A destination without its family.
    for (address, expected) in [
        ("0a000001000000000000000000000000", "10.0.0.1:80"),
        ("fd000000000000000000000000000001", "[fd00::1]:80"),
    ] {
        let list = [attribute(1, &unhex(address)), attribute(2, &80_u16.to_be_bytes())];
        let reply = Reply::decode(Command::NEW_DEST, &attribute(2, &list.concat())).unwrap();
        let ReplyContent::Destination(entry) = reply.content else { panic!("{reply:?}") };
        assert_eq!(entry.destination.key.to_string(), expected);
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let refused = |kind, list: &[u8]| Reply::decode(kind, list).unwrap_err().to_string();
    assert_eq!(refused(Command::NEW_SERVICE, &[]), "service: missing");
    assert_eq!(
        refused(Command::NEW_SERVICE, &[9, 0, 1, 0, 0]),
        "an attribute of 9 bytes where 5 bytes are left"
    );
    assert_eq!(
        refused(Command::NEW_SERVICE, &[3, 0, 1, 0, 0]),
        "an attribute of 3 bytes where 5 bytes are left"
    );
    assert_eq!(refused(Command::FLUSH, &[]), "unexpected command 17");
    let family = attribute(1, &attribute(1, &1_u16.to_ne_bytes()));
    assert_eq!(refused(Command::NEW_SERVICE, &family), "unknown address family 1");
    let short = attribute(1, &attribute(5, &[1, 2]));
    assert_eq!(refused(Command::NEW_SERVICE, &short), "fwmark: 2 bytes instead of 4");
    let long = attribute(1, &attribute(6, b"a-name-that-is-too-long\0"));
    assert_eq!(refused(Command::NEW_SERVICE, &long), "scheduler: not a name");
    let much: Vec<u8> = (0..9).flat_map(|_| attribute(999, &[0; 1000])).collect();
    assert_eq!(refused(Command::NEW_SERVICE, &much), "more than 8192 bytes of unknown attributes");
}

/// One attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}
