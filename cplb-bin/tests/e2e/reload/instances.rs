//! Reloads that add and remove instances and move their addresses.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use testbed::{Lan, Signal};

use crate::support::{Cluster, Plan, TIMEOUT, VIP_HOST, degraded};

use super::fixture::{owners_of, probe, reload_one, second_vip, two_instances};

pub(crate) fn removed_instance() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let (first, second) = (cluster.lan.v4(VIP_HOST), second_vip(&cluster));
    let text = two_instances(&cluster.lan, "1s", [first, second]);
    cluster.start_all();
    cluster.wait_until_settled();
    for index in 0..cluster.len() {
        fs::write(cluster.config_file(index), &text).expect("a file");
        cluster.signal(index, Signal::SIGHUP);
    }
    cluster.wait("one node has the second VIP", || owners_of(&cluster, second).len() == 1);
    let owner = owners_of(&cluster, second)[0];
    let probe = probe(&cluster, second);
    cluster.wait("all nodes can serve", || {
        (0..cluster.len()).all(|index| cluster.status(index)["serving"]["serving"] == true)
    });
    let since = Instant::now();
    cluster.plan = Plan::v3("1s");
    let (mark, text) = (cluster.daemon(owner).log().len(), cluster.plan.render(&cluster.lan));
    fs::write(cluster.config_file(owner), text).expect("a file");
    cluster.signal(owner, Signal::SIGHUP);
    let gone = cluster.daemon(owner).log().wait_for_line_after(mark, "the instance is removed", TIMEOUT);
    cluster.check(gone.is_ok(), || format!("{gone:?}"));
    cluster.wait("another node has the second VIP", || {
        let now = owners_of(&cluster, second);
        now.len() == 1 && now != [owner]
    });
    if let Err(error) = probe.wait_for_success(Instant::now(), TIMEOUT) {
        cluster.fail(&error.to_string());
    }
    let blackout = probe.stop().blackout_since(since).duration();
    // After a crash it would be more than 3 s, after a handover it is some milliseconds; the machine may be busy.
    cluster.check(blackout < Duration::from_secs(1), || format!("the blackout was {blackout:?}"));
    eprintln!("blackout of the removed instance's address: {blackout:?}");
    cluster.check(cluster.status(owner)["instances"].as_array().map(Vec::len) == Some(1), || {
        cluster.status(owner).to_string()
    });
    // Also the lines before the reload that added the instance was committed, and after the one that removed it.
    for index in 0..cluster.len() {
        let log = cluster.daemon(index).log().text();
        let unnamed: Vec<&str> = log.lines().filter(|line| line.contains(" vip= ")).collect();
        cluster.check(unnamed.is_empty(), || format!("lines without the virtual IP: {unnamed:?}"));
        let names = format!("interface up vip={second} ");
        cluster.check(log.contains(&names), || format!("no line of {second} on {index}"));
    }
}

pub(crate) fn moved_addresses() {
    let cluster = Cluster::start(Plan::v3("100ms"));
    let (first, second) = (cluster.lan.v4(VIP_HOST), second_vip(&cluster));
    let reload = |text: &str| {
        for index in 0..cluster.len() {
            fs::write(cluster.config_file(index), text).expect("a file");
            let mark = cluster.daemon(index).log().len();
            cluster.signal(index, Signal::SIGHUP);
            let read = cluster.daemon(index).log().wait_for_line_after(mark, "is reloaded", TIMEOUT);
            cluster.check(read.is_ok(), || format!("{read:?}"));
        }
    };
    let wait_for_owner_of = |vrid: u64, vip: Ipv4Addr| {
        cluster.wait(&format!("instance {vrid} is the only owner of {vip}"), || {
            let active: Vec<_> = (0..cluster.len())
                .filter(|&index| {
                    let status = cluster.status(index);
                    status["instances"].as_array().into_iter().flatten().any(|instance| {
                        instance["virtualRouterID"] == vrid
                            && instance["state"] == "active"
                            && instance["virtualIPs"].to_string().contains(&vip.to_string())
                    })
                })
                .collect();
            active.len() == 1 && owners_of(&cluster, vip) == active
        });
        drop(probe(&cluster, vip));
    };
    reload(&two_instances(&cluster.lan, "100ms", [first, second]));
    wait_for_owner_of(51, first);
    wait_for_owner_of(52, second);
    reload(&two_instances(&cluster.lan, "100ms", [second, first]));
    wait_for_owner_of(51, second);
    wait_for_owner_of(52, first);
    // Instance 52 is removed, and its address moves to instance 51.
    let text = two_instances(&cluster.lan, "100ms", [second, first]);
    let merged: String = text
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| {
            line.replace(&format!("[\"{second}/24\"]"), &format!("[\"{second}/24\", \"{first}/24\"]")) + "\n"
        })
        .collect();
    assert!(merged.contains(&format!("{first}/24")));
    reload(&merged);
    wait_for_owner_of(51, second);
    wait_for_owner_of(51, first);
    // Instances that were reloaded at different moments were different groups meanwhile, so that an address may have had
    // two holders under different identifiers. Both are reported for a while.
    for index in 0..cluster.len() {
        let reported = degraded(&cluster.status(index));
        let expected = |text: &String| {
            text.contains("uses the same identifier for other virtual addresses")
                || text.contains("which this node holds, and is not heard to advertise it")
        };
        cluster.check(reported.iter().all(expected), || format!("{reported:?}"));
    }
}

pub(crate) fn removed_source() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let (wrong, peer) = (cluster.lan.v4(77), cluster.node(1).v4());
    let unicast = Plan::v3("100ms")
        .instance(format!("unicastSourceIP: {wrong}"))
        .instance(format!("unicastPeers: [\"{peer}\"]"));
    reload_one(&cluster, 0, &unicast.render(&cluster.lan), "is reloaded");
    cluster.wait("the missing source is reported", || cluster.degraded(0).contains("unicastSourceIP"));
    reload_one(&cluster, 0, &Plan::v3("100ms").render(&cluster.lan), "is reloaded");
    cluster.wait("the node is not degraded", || cluster.degraded(0) == "[]");
    cluster.wait_until_settled();
}

pub(crate) fn reload_after_stop() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let second = second_vip(&cluster);
    cluster.start_all();
    let active = cluster.wait_until_settled();
    let text = two_instances(&cluster.lan, "1s", [cluster.lan.v4(VIP_HOST), second]);
    fs::write(cluster.config_file(active), text).expect("a file");
    let asked = cluster.signal(active, Signal::SIGTERM);
    cluster.signal(active, Signal::SIGHUP);
    let status = cluster.wait_until_ended(active);
    cluster.check(status.success(), || format!("the daemon ended with {status}"));
    // A handover to a serving Backup takes 0.3 s; with another instance to wait for it would take its bound, 4.2 s.
    cluster.check(asked.elapsed() < Duration::from_secs(3), || format!("it took {:?}", asked.elapsed()));
    cluster
        .check(!cluster.daemon(active).log().text().contains("is reloaded"), || "it was reloaded".to_owned());
}

pub(crate) fn address_moved_and_back() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let (first, second) = (cluster.lan.v4(VIP_HOST), second_vip(&cluster));
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let two = two_instances(&cluster.lan, "1s", [first, second]);
    reload_one(&cluster, 0, &two, "is reloaded");
    cluster.wait("the node has the second VIP", || owners_of(&cluster, second) == [0]);
    let merged: String = two
        .lines()
        .filter(|line| !line.contains("virtualRouterID: 52"))
        .map(|line| {
            line.replace(&format!("[\"{first}/24\"]"), &format!("[\"{first}/24\", \"{second}/24\"]")) + "\n"
        })
        .collect();
    // Instance 52 is still resigning when it is added again.
    reload_one(&cluster, 0, &merged, "is reloaded");
    reload_one(&cluster, 0, &two, "is reloaded");
    cluster.wait("both instances are active", || {
        let status = cluster.status(0);
        let instances = status["instances"].as_array().cloned().unwrap_or_default();
        instances.len() == 2
            && instances.iter().all(|found| found["state"] == "active" && found["holdsVirtualIPs"] == true)
    });
    drop(probe(&cluster, second));
    cluster.check(cluster.degraded(0) == "[]", || cluster.degraded(0));
}
