//! Gratuitous ARP and neighbour advertisements on the wire, read by ourselves and by others.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use vrrp::router::StateName;

use crate::Test;
use crate::capture::Capture;
use crate::fixture::{Lan, eventually};
use crate::member::{Member, VIP4, VIP6, config};

pub(crate) fn tests() -> Vec<Test> {
    vec![("a_takeover_is_announced_for_every_address", a_takeover_is_announced_for_every_address)]
}

fn a_takeover_is_announced_for_every_address() {
    let lan = Lan::new();
    let (a, observer) = (lan.node(1), lan.node(9));
    let capture = Capture::on(&observer);
    let mut both = config(100, Duration::from_millis(100));
    both.router.addresses_v6 = vec![VIP6];
    let start = Instant::now();
    let member = Member::start(&a, vec![both]);
    member.await_state(StateName::Active, Duration::from_secs(3));
    let mac = a.interface("eth0").expect("eth0").mac;
    for vip in [IpAddr::V4(VIP4), IpAddr::V6(VIP6)] {
        // A burst of five, then one every 500 ms for as long as a predecessor may hold its lease.
        eventually("a burst and repetitions", Duration::from_secs(4), || {
            let announced = capture.announcements(start);
            (announced.iter().filter(|(_, seen)| seen.ip == vip && seen.mac == mac).count() >= 7)
                .then_some(())
        });
    }
    let first = capture.announcements(start)[0].0;
    let entered = member.notes.entered(StateName::Active, start).expect("active");
    assert!(
        first >= entered && first - entered < Duration::from_millis(100),
        "announced {:?} later",
        first - entered
    );
    eventually("they are counted", Duration::from_secs(1), || {
        (member.status().traffic.announced >= 14).then_some(())
    });
    independent_decoders_agree(&capture);
}

fn independent_decoders_agree(capture: &Capture) {
    let file = std::env::temp_dir().join(format!("vrrp-runner-{}.pcap", std::process::id()));
    capture.save(&file);
    let read = |command: &str| {
        let (program, arguments) = command.split_once(' ').expect("arguments");
        // The user of the test may have preferences, or a home that is not readable in a user namespace.
        let mut command = Command::new(program);
        let output = command.args(arguments.split(' ')).arg(&file).env("HOME", "/nonexistent").output();
        let output = output.expect(program);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaint}; install with: apt-get install tcpdump tshark");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // As root it would try to become another user, which does not exist in a user namespace.
    let tcpdump = read("unshare --user --map-user=1000 --map-group=1000 tcpdump -n -v -r");
    let fields = "-Y vrrp -T fields -e vrrp.checksum.status -e _ws.malformed";
    let tshark = read(&format!("tshark -o vrrp.v3_checksum_as_in_v2:FALSE {fields} -r"));
    std::fs::remove_file(&file).expect("removing the capture");
    assert!(tcpdump.contains("Request who-has 10.9.0.100 tell 10.9.0.100"), "{tcpdump}");
    assert!(
        tcpdump.contains("neighbor advertisement") && tcpdump.contains("tgt is fe80::100, Flags [override]"),
        "{tcpdump}"
    );
    assert!(!tcpdump.contains("bad vrrp cksum") && tcpdump.contains("vrid 51"), "{tcpdump}");
    assert!(tshark.lines().count() > 5, "{tshark}");
    assert!(
        tshark.lines().all(|line| line.trim() == "1"),
        "every checksum is good and nothing malformed: {tshark}"
    );
}
