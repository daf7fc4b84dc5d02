//! Load is not a failure of the node: clients in excess of its descriptors or ports move no VIP, and are served once
//! capacity is available again.

use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testbed::{Lan, Sessions, Thread};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::serving::Watches;
use crate::support::{Cluster, Plan};

const CLIENTS: usize = 2_000;
/// Longer than a failover takes: 3 × the interval, Skew_Time, and two degraded advertisements before.
const LOAD: Duration = Duration::from_secs(8);
/// Delay after which a refused client retries.
const RETRY: Duration = Duration::from_millis(500);
/// Sessions that must be served when the load is over.
const AFTERWARDS: usize = 30;

/// Idle clients that connect, and the number of refusals.
struct Load {
    stop: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    thread: Option<Thread<()>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let (stop, open, refused) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let clients = Clients {
            target: cluster.address(),
            stop: Arc::clone(&stop),
            open: Arc::clone(&open),
            refused: Arc::clone(&refused),
        };
        let thread = cluster.client().thread("load", move || clients.run()).expect("the clients start");
        Self { stop, open, refused, thread: Some(thread) }
    }

    fn end(mut self) -> (usize, usize) {
        let open = self.open.load(SeqCst);
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the clients end");
        }
        (open, self.refused.load(SeqCst))
    }
}

#[derive(Clone)]
struct Clients {
    target: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Clients {
    fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            let tasks: Vec<_> = (0..CLIENTS).map(|_| tokio::task::spawn_local(self.clone().hold())).collect();
            for task in tasks {
                task.await.expect("a client ends");
            }
        });
    }

    /// Keeps an idle connection open, and retries when it is refused.
    async fn hold(self) {
        while !self.stop.load(SeqCst) {
            let Ok(Ok(mut stream)) = timeout(LOAD, TcpStream::connect(self.target)).await else {
                self.refused.fetch_add(1, SeqCst);
                tokio::time::sleep(RETRY).await;
                continue;
            };
            self.open.fetch_add(1, SeqCst);
            let ended = loop {
                match timeout(RETRY, stream.read(&mut [0])).await {
                    Err(_) if self.stop.load(SeqCst) => return,
                    Err(_) => {}
                    Ok(ended) => break ended,
                }
            };
            self.open.fetch_sub(1, SeqCst);
            assert_eq!(ended.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
            self.refused.fetch_add(1, SeqCst);
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Wraps `cplb run` with a hard limit of descriptors.
fn limited(command: &Command, descriptors: u32) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {descriptors} && exec \"$@\""), "sh"]);
    limited.arg(command.get_program()).args(command.get_args());
    limited
}

/// 2,000 idle clients with 256 descriptors.
pub(crate) fn descriptors() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default());
    for index in 0..cluster.len() {
        let command = limited(&cluster.command(index), 256);
        cluster.launch(index, command);
    }
    check_load(&cluster, "descriptors", "LimitNOFILE");
}

/// 2,000 idle clients with 300 ports towards each of three servers.
pub(crate) fn ports() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::default());
    for node in cluster.lan.controllers() {
        node.set_sysctl("net.ipv4.ip_local_port_range", "32768 33067").expect("the range is set");
    }
    cluster.start_all();
    check_load(&cluster, "ports", "ip_local_port_range");
}

fn check_load(cluster: &Cluster, reason: &str, remedy: &str) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit is known");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the clients have descriptors");
    let owner = cluster.wait_until_settled();
    let watches = Watches::on(cluster);
    let (load, since) = (Load::start(cluster), Instant::now());
    let mut reported = false;
    while since.elapsed() < LOAD {
        let status = cluster.status(owner);
        cluster.check(status["serving"]["serving"] == true, || status.to_string());
        let degraded = status["degraded"].to_string();
        reported |= degraded.contains(remedy) && status["services"][0]["refusals"][reason].as_u64() > Some(0);
        thread::sleep(Duration::from_millis(250));
    }
    cluster.check(reported, || cluster.status(owner).to_string());
    let (open, refused) = load.end();
    let over = Instant::now();
    let sessions = Sessions::open(cluster.client(), cluster.address(), AFTERWARDS);
    let (took, moves) = (over.elapsed(), watches.moves(cluster));
    println!(
        "MEASURED {moves} moves; {open} of {CLIENTS} clients open, {refused} refused by {reason}; {AFTERWARDS} served \
         {took:?} after the load"
    );
    cluster.check(sessions.is_ok(), || format!("{:?}", sessions.as_ref().err()));
    cluster.check(moves == 0 && cluster.owners() == [owner], || format!("{moves} moves"));
    cluster.check(took < Duration::from_secs(2), || format!("served after {took:?}"));
    cluster.check(refused > 0 && open > 0, || format!("{open} open, {refused} refused"));
}
