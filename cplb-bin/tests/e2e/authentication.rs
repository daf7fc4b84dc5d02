//! Passwords and signatures with real daemons: their rotation, and messages of hosts without the key.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use testbed::{Keepalived, KeepalivedState, Lan, Probe, Signal, Test, Tool, VrrpInstance};
use vrrp::channel::{Channel, ChannelConfig, Report, Timing};
use vrrp::hmac::{Key, Sequence, sign};

use crate::support::packet::Packet;
use crate::support::{Cluster, Plan, TIMEOUT};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        // 2,000 connections a second take most of a small machine.
        Test::new("rotation_of_passwords_and_keys_moves_nothing", rotation).needs([Tool::Nft]).alone(),
        Test::new("password_is_rotated_in_a_group_with_keepalived", with_keepalived)
            .needs([Tool::Nft, Tool::Keepalived]),
        Test::new("messages_without_the_key_are_counted_by_reason_and_move_nothing", forged)
            .needs([Tool::Nft]),
        Test::new("flood_of_forged_messages_moves_nothing", flood).needs([Tool::Nft]).alone(),
        Test::new("key_file_that_others_can_read_is_refused", public_key_file).needs([Tool::Nft]),
    ]
}

/// Longer than Active_Down_Interval at k0s's settings (3.2 s): a node that no longer hears the Active becomes Active.
const LONGER_THAN_DOWN: Duration = Duration::from_millis(3500);
const KEY: [u8; 32] = *b"the first key of this test group";

/// Writes the key, as a file that only its owner may read.
fn key_file(cluster: &Cluster) -> String {
    let path = cluster.lan.directory().join("vrrp.key");
    fs::write(&path, KEY).expect("the key is written");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("the key is private");
    format!("file:{}", path.display())
}

fn hmac(cluster: &Cluster, ids: &[u8], mode: &str) -> String {
    let key = |id: &u8| match id {
        1 => format!("{{id: 1, key: '{}'}}", key_file(cluster)),
        other => format!("{{id: {other}, key: 'hex:{}'}}", "2b".repeat(32)),
    };
    let keys: Vec<String> = ids.iter().map(key).collect();
    let active = ids.last().expect("a key");
    format!("authHMAC: {{keys: [{}], activeKey: {active}, mode: {mode}}}", keys.join(", "))
}

/// Reloads one daemon with other lines of its instance.
fn reload(cluster: &Cluster, index: usize, lines: &[String]) {
    let plan = Plan { instance: lines.to_vec(), ..cluster.plan.clone() };
    fs::write(cluster.config_file(index), plan.render(&cluster.lan)).expect("the configuration is written");
    let mark = cluster.daemon(index).log().len();
    cluster.signal(index, Signal::SIGHUP);
    let reloaded = cluster.daemon(index).log().wait_for_line_after(mark, "is reloaded", TIMEOUT);
    cluster.check(reloaded.is_ok(), || format!("{reloaded:?}"));
}

fn stays_with(cluster: &Cluster, owner: usize, step: &str) {
    let since = Instant::now();
    cluster.wait("Active_Down_Interval is over", || {
        let owners = cluster.owners();
        cluster.check(owners == [owner], || format!("{step}: {owners:?} have the VIP, not {owner}"));
        since.elapsed() >= LONGER_THAN_DOWN
    });
    for index in (0..cluster.len()).filter(|index| cluster.running(*index).is_some()) {
        let shown = cluster.degraded(index);
        cluster.check(shown == "[]", || format!("{step}: {} says {shown}", cluster.node(index).name()));
    }
}

/// The simulation takes all orders; here each step stays half done for longer than Active_Down_Interval.
fn rotation() {
    let cluster = Cluster::start(Plan::default());
    let owner = cluster.wait_until_settled();
    let takeovers = cluster.takeovers();
    let new = "authPass: Second".to_owned();
    let previous = "authPassPrevious: Example".to_owned();
    let signed = |ids: &[u8], mode| hmac(&cluster, ids, mode);
    let steps = [
        vec![new.clone(), previous],
        vec![new.clone()],
        vec![new.clone(), signed(&[1], "receiveOnly")],
        vec![new, signed(&[1], "permissive")],
        vec![signed(&[1], "enforce")],
        vec![signed(&[1, 2], "enforce")],
        vec![signed(&[2], "enforce")],
    ];
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(1));
    let probes = [(); 2].map(|()| probe.clone().start(cluster.client()).expect("the probe starts"));
    for probe in &probes {
        probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    }
    let since = Instant::now();
    // The owner is the first, the last and in between.
    for (number, lines) in steps.iter().enumerate() {
        let order = [0, 1, 2].map(|place| (owner + number + place * (1 + number % 2)) % 3);
        reload(&cluster, order[0], lines);
        stays_with(&cluster, owner, &format!("step {number}, {} first", order[0]));
        order[1..].iter().for_each(|index| reload(&cluster, *index, lines));
    }
    stays_with(&cluster, owner, "all steps done");
    for probe in probes {
        let (report, took) = (probe.stop(), since.elapsed());
        let count = report.samples().len();
        println!("MEASURED {} connections a second", count as f64 / took.as_secs_f64());
        let failures = report.failures_since(since);
        cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
    }
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
    // The others still hear each other, and nothing but the last key counts.
    cluster.signal(owner, Signal::SIGKILL);
    cluster.wait_for_owner(None);
    cluster.check(cluster.takeovers() == takeovers + 1, || "more than one takeover".to_owned());
}

fn with_keepalived() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default());
    let (len4, _) = cluster.lan.prefix_lengths();
    cluster.start_daemon(0);
    cluster.wait_for_owner(None);
    cluster.start_daemon(1);
    let keepalived = |password: &str| {
        let instance = VrrpInstance::v2(51, [(cluster.vip(), len4)]).password(password).nopreempt();
        let started =
            Keepalived::start(cluster.node(2), std::slice::from_ref(&instance)).expect("keepalived starts");
        started
            .wait_for_state(&instance, KeepalivedState::Backup, TIMEOUT)
            .unwrap_or_else(|error| cluster.fail(&error.to_string()));
        started
    };
    let takeovers = cluster.takeovers();
    let old = keepalived("Example");
    stays_with(&cluster, 0, "before");
    let both = ["authPass: Second".to_owned(), "authPassPrevious: Example".to_owned()];
    reload(&cluster, 0, &both);
    stays_with(&cluster, 0, "the Active has both passwords, the others the former one");
    reload(&cluster, 1, &both);
    old.stop().expect("keepalived stops");
    let _new = keepalived("Second");
    stays_with(&cluster, 0, "keepalived has the new password, cplb both");
    for index in [1, 0] {
        reload(&cluster, index, &both[..1]);
        stays_with(&cluster, 0, "the former password is removed");
    }
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
}

/// A version 3 advertisement of the highest priority for the group's address.
fn message(vip: IpAddr, priority: u8) -> Packet {
    let IpAddr::V4(ip) = vip else { panic!("{vip} is not IPv4") };
    let mut packet = Packet::of(true, &[vip]);
    packet.bytes = vec![0x31, 51, priority, 1, 0, 10, 0, 0];
    packet.bytes.extend(ip.octets());
    packet
}

/// The packet with a signature behind it; the trailer is not covered by the checksum over IPv4.
fn signed(cluster: &Cluster, packet: &Packet, key: &[u8], ago: Duration) -> Packet {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let source = IpAddr::V4(cluster.client().v4());
    let key = Key::new(key).expect("a key");
    let trailer = sign(&key, NonZeroU8::MIN, Sequence::at(now - ago), source, &packet.bytes);
    Packet { trailer: trailer.to_vec(), ..packet.clone() }
}

/// Three controllers that demand signatures, and the one that has the VIP.
fn signing() -> (Cluster, usize) {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let line = hmac(&cluster, &[1], "enforce");
    cluster.plan = cluster.plan.clone().instance(line);
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    (cluster, owner)
}

fn forged() {
    let (cluster, owner) = signing();
    let takeovers = cluster.takeovers();
    let probe = Probe::to(cluster.address()).start(cluster.client()).expect("the probe starts");
    probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    let since = Instant::now();

    let strong = message(cluster.vip(), 254);
    let good = signed(&cluster, &strong, &KEY, Duration::ZERO);
    let with = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet.trailer[at] = value;
        packet
    };
    let mut cut = good.clone();
    cut.trailer.truncate(27);
    let mut flipped = good.clone();
    flipped.bytes[2] ^= 1;
    let cases = [
        ("unsigned", strong.clone()),
        ("unsigned", cut),
        ("signature_type", with(0, 2)),
        ("unknown_key", with(1, 9)),
        ("digest", flipped),
        ("digest", with(27, !good.trailer[27])),
        ("digest", signed(&cluster, &strong, &[7; 32], Duration::ZERO)),
        ("stale", signed(&cluster, &strong, &KEY, Duration::from_secs(60))),
        ("replayed", signed(&cluster, &message(cluster.vip(), 60), &KEY, Duration::ZERO)),
    ];
    const TIMES: u64 = 20;
    let counted = |index: usize, reason: &str| {
        cluster.status(index)["instances"][0]["discarded"][reason].as_u64().unwrap_or_default()
    };
    for (reason, packet) in cases {
        let before: Vec<u64> = (0..3).map(|index| counted(index, reason)).collect();
        packet.send(cluster.client(), TIMES);
        // The first of the replayed ones is authentic.
        let expected = TIMES - u64::from(reason == "replayed");
        for (index, before) in before.into_iter().enumerate() {
            cluster.wait(reason, || counted(index, reason) == before + expected);
        }
    }
    let failures = probe.stop().failures_since(since);
    cluster.check(failures.is_empty(), || format!("new connections failed: {failures:?}"));
    cluster.check(cluster.owners() == [owner], || format!("{:?} have the VIP", cluster.owners()));
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
}

fn public_key_file() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let line = hmac(&cluster, &[1], "enforce");
    let path = cluster.lan.directory().join("vrrp.key");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("the mode is changed");
    cluster.plan = cluster.plan.clone().instance(line);
    let command = cluster.command(0);
    cluster.launch(0, command);
    let status = cluster.wait_until_ended(0);
    let log = cluster.daemon(0).log().text();
    cluster.check(status.code() == Some(65), || format!("{status}"));
    cluster.check(log.contains("(mode 0640)") && log.contains("chmod 600"), || log.clone());
}

/// The processor time of a thread of a daemon.
fn cpu_time(cluster: &Cluster, index: usize, thread: &str) -> Duration {
    let daemon = cluster.daemon(index);
    let threads = daemon.threads();
    let (id, _) = threads.iter().find(|(_, name)| name == thread).expect("the thread runs");
    let text = fs::read_to_string(format!("/proc/{}/task/{id}/schedstat", daemon.pid())).expect("its times");
    Duration::from_nanos(text.split_whitespace().next().and_then(|time| time.parse().ok()).expect("a number"))
}

/// The largest share of a processor that a thread may take while a host floods it as fast as it can: that of a release is
/// half, and this build is slower.
const MAX_SHARE: f64 = 0.9;

/// Other load makes the sender slower, and the share smaller.
fn flood() {
    const COUNT: u64 = 200_000;
    let (cluster, owner) = signing();
    let takeovers = cluster.takeovers();
    let strong = message(cluster.vip(), 254);
    let wrong_key = signed(&cluster, &strong, &[7; 32], Duration::ZERO);
    let stale = signed(&cluster, &strong, &KEY, Duration::from_secs(60));
    let total = |index: usize| {
        let status = cluster.status(index);
        let counts = status["instances"][0]["discarded"].as_object().cloned().unwrap_or_default();
        counts.values().filter_map(serde_json::Value::as_u64).sum::<u64>()
    };
    let mut worst = 0.0_f64;
    for (name, packet) in [("wrong key", wrong_key), ("stale", stale), ("unsigned", strong)] {
        // To one node, which takes all that the sender can send.
        let packet = Packet { destination: IpAddr::V4(cluster.node(owner).v4()), ..packet };
        let (before, time) = (total(owner), cpu_time(&cluster, owner, "vrrp"));
        let began = Instant::now();
        packet.send(cluster.client(), COUNT);
        let sent = began.elapsed();
        let time = cpu_time(&cluster, owner, "vrrp") - time;
        let handled = total(owner) - before;
        worst = worst.max(report(name, COUNT, sent, handled, time));
        cluster.check(handled > COUNT / 10, || format!("{handled} of {COUNT} arrived"));
    }
    worst = worst.max(channel_flood(&cluster, owner, COUNT));
    cluster.check(worst <= MAX_SHARE, || format!("{worst:.2} of a processor"));
    cluster.check(cluster.owners() == [owner], || format!("{:?} have the VIP", cluster.owners()));
    cluster.check(cluster.takeovers() == takeovers, || "the VIP moved".to_owned());
}

/// The share of a processor.
fn report(name: &str, count: u64, sent: Duration, handled: u64, time: Duration) -> f64 {
    let (rate, share) = (count as f64 / sent.as_secs_f64(), time.as_secs_f64() / sent.as_secs_f64());
    println!(
        "MEASURED {name}: {rate:.0} packets a second, {handled} of {count} handled, {share:.2} of a processor"
    );
    share
}

/// The same for the group channel, which is handled by the main thread.
fn channel_flood(cluster: &Cluster, owner: usize, count: u64) -> f64 {
    let keys = [(NonZeroU8::MIN, Key::new(&[7; 32]).expect("a key"))].into();
    let config = ChannelConfig { keys, timing: Timing::default() };
    let mut sender = Channel::new(config, [1, 2], Report::default(), Instant::now());
    sender.handle_timeout(Instant::now());
    let payload = sender.poll_datagram().expect("a report").payload;
    let bytes = sender.seal(&payload, cluster.client().v4().into());
    let counted = || cluster.status(owner)["channels"][0]["discarded"]["digest"].as_u64().unwrap_or_default();
    let (before, time) = (counted(), cpu_time(cluster, owner, "cplb"));
    let target = cluster.node(owner).v4();
    let began = Instant::now();
    cluster.client().run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.set_ttl(255).expect("a TTL");
        for _ in 0..count {
            // A full buffer loses it.
            let _ = socket.send_to(&bytes, (target, vrrp::channel::PORT));
        }
    });
    let sent = began.elapsed();
    let time = cpu_time(cluster, owner, "cplb") - time;
    // The counters are shown with the next report.
    cluster.wait("the datagrams are counted", || counted() > before + count / 10);
    report("channel", count, sent, counted() - before, time)
}
