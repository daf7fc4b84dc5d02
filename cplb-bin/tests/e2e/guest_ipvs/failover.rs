//! Failover and handover of directors.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use testbed::{AddressChange, AddressWatch, Frame, Lan, Node, Probe, Signal, Thread};

use super::fixture::{ipvsadm, plan, settled, wait_for_servers};
use crate::support::{Cluster, PORT, TIMEOUT, VIP_HOST};

/// The connections in IPVS's table of a node: protocol, client, virtual address and server.
fn connections(cluster: &Cluster, node: usize) -> BTreeSet<Vec<String>> {
    let listing = ipvsadm(cluster, node, &["-Lnc"]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines = listing.lines().map(words).filter(|words| words.first().is_some_and(|word| word == "TCP"));
    lines.map(|words| [&words[..1], &words[3..]].concat()).collect()
}

pub(crate) fn crash() {
    let (cluster, owner) = settled(plan("DR", false, 0));
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    probe.wait_until_stable(Duration::from_millis(200), TIMEOUT).expect("the VIP answers");
    let at = cluster.signal(owner, Signal::SIGKILL);
    let successor = cluster.wait_for_owner(Some(owner));
    cluster.wait("the killed node's lease is over", || !cluster.node(owner).has_address(cluster.vip()));
    probe.wait_for_success(Instant::now(), TIMEOUT).expect("the VIP answers again");
    wait_for_servers(&cluster, successor, 3);
    // Without its daemon the service stays on the dead node; it only receives no packets.
    let before = connections(&cluster, owner);
    cluster.check(!before.is_empty(), || "the killed director never directed".to_owned());
    let since = Instant::now();
    cluster.wait("100 more requests have ended", || {
        probe.report().samples().iter().filter(|sample| sample.started > since).count() >= 100
    });
    let after = connections(&cluster, owner);
    cluster.check(after.is_subset(&before), || {
        format!("the killed director still directs: {:?}", after.difference(&before))
    });
    let report = probe.stop();
    let blackout = report.blackout_since(at).duration();
    eprintln!("blackout {blackout:?}");
    // Three intervals and the skew, and the same again for an emulated machine.
    cluster.check(blackout < Duration::from_secs(2), || format!("blackout of {blackout:?}"));
    let served = report.served_by_since(since);
    cluster.check(served.len() == 3, || format!("the killed director's server is missing: {served:?}"));
}

/// Two instances, each preferred by another node, so that both directors are active at once.
fn two_instances(cluster: &Cluster, node: usize, vips: [Ipv4Addr; 2]) -> String {
    let instances = vips.iter().enumerate().map(|(index, vip)| {
        let priority = 200 - 30 * ((node + 3 - index) % 3);
        format!(
            "  - {{virtualIPs: [{vip}/24], virtualRouterID: {}, version: 3, advertInterval: 500ms, priority: \
             {priority}, preempt: always}}\n",
            51 + index
        )
    });
    let backends: Vec<_> = cluster.lan.controllers().iter().map(|node| node.v4().to_string()).collect();
    format!(
        "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n{}  backends: {{static: \
         [{}]}}\n  virtualServers: [{{ipAddress: {}, persistenceTimeoutSeconds: 0}}, {{ipAddress: {}, \
         persistenceTimeoutSeconds: 0}}]\n",
        instances.collect::<String>(),
        backends.join(", "),
        vips[0],
        vips[1]
    )
}

/// The marks of a node's IPVS services, observed at some time in this range.
#[derive(Debug, Clone)]
struct Sample {
    time: RangeInclusive<Instant>,
    marks: BTreeSet<u32>,
}

/// Samples the IPVS services of a node continuously.
struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Thread<()>,
}

impl Sampler {
    fn on(node: &Node) -> Self {
        let (stop, samples) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<Sample>>>::default());
        let (ended, seen) = (Arc::clone(&stop), Arc::clone(&samples));
        let sample_services = async move {
            let client = ipvs::Client::spawn().expect("there is IPVS");
            while !ended.load(Ordering::Relaxed) {
                let since = Instant::now();
                let services = client.services().await.expect("services are listed");
                let marks = services.iter().filter_map(|entry| match entry.service.key() {
                    ipvs::ServiceKey::Fwmark { mark, .. } => Some(mark.get()),
                    _ => None,
                });
                let sample = Sample { time: since..=Instant::now(), marks: marks.collect() };
                seen.lock().expect("the lock is not poisoned").push(sample);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let thread = node.thread("sampler", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(sample_services);
        });
        Self { stop, samples, thread: thread.expect("the sampler starts") }
    }

    fn last(&self) -> Option<Sample> {
        self.samples.lock().expect("the lock is not poisoned").last().cloned()
    }

    fn end(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread ran in its node");
        std::mem::take(&mut *self.samples.lock().expect("the lock is not poisoned"))
    }
}

fn launch(cluster: &mut Cluster, node: usize, vips: [Ipv4Addr; 2]) {
    let command = cluster.command(node);
    let text = two_instances(cluster, node, vips);
    std::fs::write(cluster.config_file(node), text).expect("the configuration is written");
    cluster.launch(node, command);
    cluster.wait("the daemon answers", || cluster.try_status(node).is_some());
}

/// The address of each mark, the same on all nodes.
fn marks(cluster: &Cluster) -> BTreeMap<u32, IpAddr> {
    let status = cluster.status(0);
    let all = status["ipvs"]["virtualServers"].as_array().expect("a list");
    let marks = all.iter().map(|it| {
        let mark = it["mark"].as_u64().and_then(|mark| u32::try_from(mark).ok());
        let vip = it["ipAddress"].as_str().and_then(|ip| ip.parse().ok());
        (mark.expect("a mark"), vip.expect("an address"))
    });
    marks.collect()
}

pub(crate) fn two_owners() {
    const ROUNDS: usize = 10;
    let mut cluster = Cluster::build(Lan::builder(), plan("DR", false, 0));
    let vips = [cluster.lan.v4(VIP_HOST), cluster.lan.v4(VIP_HOST - 10)];
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.ip_forward", "1").expect("it exists");
    }
    let capture = cluster.lan.capture().expect("the capture starts");
    let watches: Vec<_> = cluster
        .lan
        .controllers()
        .iter()
        .map(|node| AddressWatch::on(node).expect("the watch starts"))
        .collect();
    for node in 0..cluster.len() {
        launch(&mut cluster, node, vips);
    }
    let owners = |cluster: &Cluster| {
        vips.map(|vip| {
            (0..cluster.len()).filter(|node| cluster.node(*node).has_address(vip)).collect::<Vec<_>>()
        })
    };
    cluster.wait("each instance is on its preferred node", || owners(&cluster) == [vec![0], vec![1]]);
    let probes = vips.map(|vip| {
        let probe = Probe::to(SocketAddr::new(vip.into(), PORT)).every(Duration::from_millis(40));
        let probe = probe.start(cluster.client()).expect("the probe starts");
        probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
        probe
    });
    let marks = marks(&cluster);
    let samplers: Vec<_> = cluster.lan.controllers().iter().map(Sampler::on).collect();
    let mut dead = Vec::new();
    for round in 0..ROUNDS {
        // Each crash moves one instance away, and the restart of the node moves it back.
        let node = round % 2;
        let killed = cluster.signal(node, Signal::SIGKILL);
        cluster.wait("the instance has moved", || owners(&cluster)[node].iter().any(|owner| *owner != node));
        launch(&mut cluster, node, vips);
        let back = Instant::now();
        cluster.wait("the leftover services are removed", || {
            samplers[node].last().is_some_and(|sample| {
                let held = |mark| cluster.node(node).has_address(marks[mark]);
                *sample.time.start() > back && sample.marks.iter().all(held)
            })
        });
        dead.push((node, killed..Instant::now()));
        cluster.wait("the instance has moved back", || owners(&cluster) == [vec![0], vec![1]]);
    }
    for probe in probes {
        probe.wait_until_stable(Duration::from_millis(300), TIMEOUT).expect("the VIP answers");
    }
    let records = AddressRecords { cluster: &cluster, watches };
    let mut seen = BTreeMap::new();
    for (node, sampler) in samplers.into_iter().enumerate() {
        for Sample { time, marks: found } in sampler.end() {
            for mark in found {
                *seen.entry((node, mark)).or_insert(0) += 1;
                let crashed = dead.iter().any(|(died, dead)| *died == node && dead.contains(time.start()));
                cluster.check(crashed || records.had_address(node, marks[&mark], &time), || {
                    format!("node {node} had the service of {} and not the address", marks[&mark])
                });
            }
        }
    }
    cluster.check(seen.len() >= 4, || format!("services were seen {seen:?}"));

    let macs: Vec<_> = cluster.lan.controllers().iter().map(Node::mac).collect();
    let sender = |frame: &Frame| macs.iter().position(|mac| Some(*mac) == frame.source_mac());
    let directed = capture.select(|frame| {
        let to = frame.tcp().map(|segment| segment.destination);
        to.is_some_and(|to| vips.iter().any(|vip| to == SocketAddr::new((*vip).into(), PORT)))
            && sender(frame).is_some()
            // Controllers send packets of their own to the VIP, too.
            && frame.ip_source() == Some(cluster.client().v4().into())
    });
    cluster.check(capture.dropped() == 0, || "the capture is not complete".to_owned());
    let mut hops = BTreeMap::new();
    for frame in &directed {
        *hops.entry(frame.hops()).or_insert(0) += 1;
        let (node, vip) = (
            sender(frame).expect("a controller sent it"),
            frame.ip_destination().expect("it is an IP packet"),
        );
        cluster.check(records.had_address(node, vip, &(frame.at..=frame.at)), || {
            format!("node {node} directed a packet for {vip} that it did not hold: {frame:?}")
        });
    }
    eprintln!("services seen: {seen:?}; packets directed, by hops left: {hops:?}");
    // A client's packets start with a hop limit of 64.
    cluster.check(hops.keys().all(|hops| *hops == Some(63)) && directed.len() > 1000, || {
        format!("packets by hops left: {hops:?}")
    });
}

/// The records of the addresses on the nodes' interfaces.
struct AddressRecords<'a> {
    cluster: &'a Cluster,
    watches: Vec<AddressWatch>,
}

impl AddressRecords<'_> {
    /// Returns whether the node had the address at some moment of this time.
    fn had_address(&self, node: usize, vip: IpAddr, time: &RangeInclusive<Instant>) -> bool {
        // A watch records a change when its thread runs, which on a busy emulated machine took 100 ms. A director that
        // fails to stop continues for seconds.
        const SLACK: Duration = Duration::from_millis(500);
        let eth0 = self.cluster.node(node).run(|| if_nametoindex("eth0").expect("it exists"));
        let mut since = None;
        for event in self.watches[node].events() {
            if event.address.ip != vip || event.address.interface != eth0 {
                continue;
            }
            if event.change == AddressChange::Present {
                since = since.or(Some(event.at));
            } else if since
                .take()
                .is_some_and(|since| since <= *time.end() + SLACK && *time.start() <= event.at + SLACK)
            {
                return true;
            }
        }
        since.is_some_and(|since| since <= *time.end() + SLACK)
    }
}

/// A balanced port besides the API server's.
const FILES: u16 = 8080;

/// Serves each client a slow, endless stream of bytes.
fn serve(node: &Node, stop: &Arc<AtomicBool>) -> Thread<()> {
    let stop = Arc::clone(stop);
    let serve = move || {
        let listener = TcpListener::bind(("0.0.0.0", FILES)).expect("the port is free");
        listener.set_nonblocking(true).expect("the socket option is set");
        let mut clients: Vec<TcpStream> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            while let Ok((client, _)) = listener.accept() {
                client.set_nonblocking(true).expect("the socket option is set");
                clients.push(client);
            }
            clients.retain_mut(|client| match client.write(&[7; 4096]) {
                Err(error) => error.kind() == ErrorKind::WouldBlock,
                Ok(_) => true,
            });
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    node.thread("files", serve).expect("the server starts")
}

/// The progress of a download, and its end.
#[derive(Debug, Default)]
struct Download {
    bytes: usize,
    last: Option<Instant>,
    end: Option<(Instant, ErrorKind)>,
}

fn fetch(node: &Node, from: SocketAddr, stop: &Arc<AtomicBool>) -> (Thread<()>, Arc<Mutex<Download>>) {
    let (download, stop) = (Arc::new(Mutex::new(Download::default())), Arc::clone(stop));
    let seen = Arc::clone(&download);
    let fetch = move || {
        let mut stream = TcpStream::connect(from).expect("the VIP answers");
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("the socket option is set");
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::Relaxed) {
            let read = stream.read(&mut buffer);
            let mut seen = seen.lock().expect("the lock is not poisoned");
            match read {
                Ok(0) => seen.end = Some((Instant::now(), ErrorKind::UnexpectedEof)),
                Ok(count) => (seen.bytes, seen.last) = (seen.bytes + count, Some(Instant::now())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => seen.end = Some((Instant::now(), error.kind())),
            }
            if seen.end.is_some() {
                return;
            }
        }
    };
    (node.thread("download", fetch).expect("the download starts"), download)
}

/// Six downloads through all servers during a handover of the director.
pub(crate) fn download(sync: bool) {
    let services = format!(
        "[{{name: kube-apiserver, port: {PORT}}}, {{name: files, port: {FILES}, healthCheck: {{type: tcp}}}}]"
    );
    let plan = plan("DR", false, 0).spec(format!("ipvsSync: {sync}")).spec(format!("services: {services}"));
    let stop = Arc::new(AtomicBool::new(false));
    let mut cluster = Cluster::build(Lan::builder(), plan);
    let servers: Vec<_> = cluster.lan.controllers().iter().map(|node| serve(node, &stop)).collect();
    cluster.start_all();
    let owner = cluster.wait_until_settled();
    cluster.wait("both services have their servers", || {
        let status = cluster.status(owner);
        let all = status["ipvs"]["virtualServers"].as_array().cloned().unwrap_or_default();
        all.len() == 2
            && all.iter().all(|it| it["servers"].as_array().is_some_and(|servers| servers.len() == 3))
    });
    let from = SocketAddr::new(cluster.vip(), FILES);
    let downloads: Vec<_> = (0..6).map(|_| fetch(cluster.client(), from, &stop)).collect();
    let bytes = || {
        downloads.iter().map(|(_, it)| it.lock().expect("the lock is not poisoned").bytes).collect::<Vec<_>>()
    };
    cluster.wait("each download has 100 kB", || bytes().iter().all(|bytes| *bytes > 100_000));
    if sync {
        cluster.wait("all nodes have the connections of the downloads", || {
            (0..cluster.len()).all(|node| {
                let known = connections(&cluster, node);
                known.iter().filter(|it| it[2].ends_with(&format!(":{FILES}"))).count() == downloads.len()
            })
        });
    }
    let ended = || {
        let ends = downloads.iter().map(|(_, it)| it.lock().expect("the lock is not poisoned").end);
        ends.map(|end| end.map(|(_, how)| how)).collect::<Vec<_>>()
    };
    let go_on = |what: &str| {
        let before = bytes();
        cluster.wait(what, || {
            let progress = bytes().iter().zip(&before).map(|(now, then)| now - then).collect::<Vec<_>>();
            ended().iter().zip(progress).all(|(end, bytes)| end.is_some() || bytes > 500_000)
        });
    };
    if sync {
        // Another node takes the address, and the former owner takes it back: all nodes stay servers.
        let next = (owner + 1) % cluster.len();
        for (taker, priority) in [(next, 240), (owner, 250)] {
            let preferred = cluster.plan.clone().instance(format!("priority: {priority}"));
            let preferred = preferred.instance("preempt: always").render(&cluster.lan);
            std::fs::write(cluster.config_file(taker), preferred).expect("the configuration is written");
            cluster.signal(taker, Signal::SIGHUP);
            let from = if taker == next { owner } else { next };
            let taken = cluster.wait_for_owner(Some(from));
            cluster.check(taken == taker, || format!("node {taken} took it"));
            go_on("all downloads continue");
            cluster.check(ended() == [None; 6], || format!("{:?}", ended()));
            cluster.wait("the new director has the connections", || connections(&cluster, taker).len() >= 6);
        }
    }
    let at = cluster.signal(owner, Signal::SIGTERM);
    cluster.wait_for_owner(Some(owner));
    if sync {
        cluster.wait_until_ended(owner);
        go_on("the downloads from other servers continue");
        // The downloads from the stopping node itself end with its role as a real server.
        let ended: Vec<_> = ended().into_iter().flatten().collect();
        cluster.check(ended == [ErrorKind::ConnectionReset; 2], || format!("{ended:?}"));
    } else {
        // The new director only has connections of its own server, and resets those of all other clients.
        cluster.wait("no download hangs", || {
            downloads.iter().all(|(_, it)| {
                let download = it.lock().expect("the lock is not poisoned");
                let goes_on = |last: Instant| last.elapsed() < Duration::from_millis(100);
                download.end.is_some()
                    || (at.elapsed() > Duration::from_secs(1) && download.last.is_some_and(goes_on))
            })
        });
        cluster.check(at.elapsed() < Duration::from_secs(3), || format!("resets took {:?}", at.elapsed()));
        let ended = ended();
        eprintln!("without sync: {ended:?}");
        cluster.check(ended.iter().flatten().count() >= 4, || format!("{ended:?}"));
        cluster.check(ended.iter().flatten().all(|how| *how == ErrorKind::ConnectionReset), || {
            format!("{ended:?}")
        });
    }
    stop.store(true, Ordering::Relaxed);
    for thread in downloads.into_iter().map(|it| it.0).chain(servers) {
        thread.join().expect("the thread ran in its node");
    }
}
