//! Backends given by name, with a slow or silent name server.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use testbed::{Lan, Line, Signal};

use crate::support::{Cluster, Plan, TIMEOUT};

use super::fixture::{Replaced, names, reload_one};

/// Longest duration of a status query while a name server does not answer; the machine may be busy.
const STATUS_TIMEOUT: Duration = Duration::from_millis(1500);

pub(crate) fn silent_name_server() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let nodes = cluster.lan.controllers();
    let directory = cluster.state_dir(0).with_file_name("etc");
    fs::create_dir_all(&directory).expect("a directory");
    let hosts = directory.join("hosts");
    fs::write(&hosts, format!("{} api.cluster.test\n", nodes[2].v4())).expect("a file");
    let _hosts = Replaced::new("/etc/hosts", &hosts);
    let _resolver = name_server(&cluster, None);
    let plan = |names: &str| {
        Plan::v3("100ms")
            .spec(format!("backends: {{static: [\"{}\", api.cluster.test{names}]}}", nodes[1].v4()))
    };
    let (few, many) = (plan(""), plan(", a.cluster.test, b.cluster.test, c.cluster.test, d.cluster.test"));
    cluster.plan = few;
    cluster.start_daemon(0);
    cluster.wait_until_settled();
    let before = names(&cluster, 0);
    cluster.check(before.len() == 3, || format!("{before:?}"));

    fs::write(&hosts, "").expect("a file");
    fs::write(cluster.config_file(0), many.render(&cluster.lan)).expect("a file");
    let mark = cluster.daemon(0).log().len();
    cluster.signal(0, Signal::SIGHUP);
    let asked = Instant::now();
    // Five names, each of which takes longer than a round; one after the other they would take 10 s.
    let reloaded = |line: &Line| line.text.contains("the configuration is reloaded");
    while cluster.daemon(0).log().wait_for(mark, Duration::ZERO, reloaded).is_none() {
        let started = Instant::now();
        let status = cluster.status(0);
        cluster
            .check(started.elapsed() < STATUS_TIMEOUT, || format!("the status took {:?}", started.elapsed()));
        cluster.check(status["serving"]["serving"] == true, || format!("{status}"));
        cluster.check(asked.elapsed() < Duration::from_secs(6), || "the reload takes too long".to_owned());
    }
    cluster.check(names(&cluster, 0) == before, || format!("{:?} is not {before:?}", names(&cluster, 0)));
    let shown = cluster.degraded(0);
    cluster.check(shown.contains("a.cluster.test cannot be resolved"), || shown.clone());
    cluster.check(cluster.owners() == [0], || "the node lost the VIP".to_owned());
    let stopped = cluster.signal(0, Signal::SIGTERM);
    let status = cluster.wait_until_ended(0);
    cluster.check(status.success(), || format!("the daemon ended with {status}"));
    cluster.check(stopped.elapsed() < Duration::from_secs(4), || format!("it took {:?}", stopped.elapsed()));
}

/// Replaces the system's name server by one that answers every question with this address after this delay, or never.
fn name_server(cluster: &Cluster, answer: Option<(Ipv4Addr, Duration)>) -> Replaced {
    let directory = cluster.state_dir(0).with_file_name("etc");
    fs::create_dir_all(&directory).expect("a directory");
    let resolv = directory.join("resolv.conf");
    let client = cluster.client().v4();
    fs::write(&resolv, format!("nameserver {client}\noptions timeout:10\n")).expect("a file");
    let replaced = Replaced::new("/etc/resolv.conf", &resolv);
    let server = cluster.client().run(|| UdpSocket::bind((client, 53))).expect("a name server");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            let Some((address, delay)) = answer else { continue };
            let (query, server) = (buffer[..len].to_vec(), server.try_clone().expect("a socket"));
            thread::spawn(move || {
                thread::sleep(delay);
                let _ = server.send_to(&dns_answer(&query, address), from);
            });
        }
    });
    replaced
}

/// Builds the answer (RFC 1035 §4): the question again, and one A record if an A record was requested.
fn dns_answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let name = query[12..].iter().position(|&byte| byte == 0).expect("a name ends");
    let question = &query[12..12 + name + 5];
    let is_a = question[name + 2] == 1;
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

/// Delay of the answer, as the system's resolver takes for each name if its first name server is dead.
const SLOW: Duration = Duration::from_secs(3);

pub(crate) fn slow_name_server() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let target = cluster.node(1).v4();
    let _resolver = name_server(&cluster, Some((target, SLOW)));
    cluster.plan = Plan::v3("100ms").spec("backends: {static: [slow.cluster.test]}");
    cluster.start_daemon(0);
    cluster.wait("the late answer is used", || {
        names(&cluster, 0).iter().any(|name| name.contains(&target.to_string()))
    });
    cluster.wait_until_settled();
}

pub(crate) fn wrong_file_after_a_good_one() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("1s"));
    let _resolver = name_server(&cluster, None);
    cluster.start_daemon(0);
    let known = cluster.node(1).v4();
    let good = Plan::v3("1s").spec(format!("backends: {{static: [\"{known}\", x.cluster.test]}}"));
    let mark = cluster.daemon(0).log().len();
    fs::write(cluster.config_file(0), good.render(&cluster.lan)).expect("a file");
    cluster.signal(0, Signal::SIGHUP);
    // The reload of the valid file waits for its names for 2 s.
    let asked =
        cluster.daemon(0).log().wait_for_line_after(mark, "the configuration file is read again", TIMEOUT);
    cluster.check(asked.is_ok(), || format!("{asked:?}"));
    reload_one(&cluster, 0, "spec: [\n", "is not reloaded");
    let read = cluster.daemon(0).log().wait_for_line_after(mark, "is reloaded", TIMEOUT);
    cluster.check(read.is_ok(), || format!("{read:?}"));
    let shown = cluster.degraded(0);
    cluster.check(shown.contains("is not reloaded"), || shown.clone());
}
