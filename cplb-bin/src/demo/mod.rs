//! `cplb demo`: a failover to watch, on one machine and without privileges.

mod cluster;
mod printer;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use testbed::{Entered, Probe, Signal};

use crate::exit::{Failure, Kind};

use cluster::Cluster;
use printer::Printer;

/// The longest time for the first election: Active_Down_Interval at k0s's settings is 3.2 s.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time for a failover, after which the demonstration fails.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which no failback may happen after the killed daemon is started again.
const FAILBACK_WATCH: Duration = Duration::from_secs(4);
/// TLS connections that show the distribution over the backends.
const REQUESTS: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Number of controllers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// Print plain lines, without colours or drawings
    #[arg(long)]
    plain: bool,
}

/// Runs the demonstration. Must be called before the process has a second thread: it enters namespaces.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    match testbed::enter() {
        Ok(Entered::Inside) => demonstrate(args).map(|()| ExitCode::SUCCESS),
        Ok(Entered::Finished(code)) => Ok(code),
        Err(error) => Err(Failure::new(Kind::Permission, error)),
    }
}

fn demonstrate(args: &DemoArgs) -> Result<(), Failure> {
    let out = Printer::new(args.plain);
    out.title(&format!(
        "A control plane of {} controllers, one address, no external load balancer",
        args.nodes
    ));
    let mut cluster = Cluster::build(args.nodes).map_err(|error| failure(&error))?;
    let result = run_steps(&out, &mut cluster);
    if result.is_err() {
        out.block(&cluster.report());
    }
    drop(cluster);
    result.map_err(|error| failure(&error))?;
    out.title("Cleaned up: daemons, namespaces and addresses are gone");
    Ok(())
}

fn failure(error: &testbed::Error) -> Failure {
    let kind = match error {
        testbed::Error::MissingTool(_) => Kind::Unavailable,
        testbed::Error::Namespace { .. } | testbed::Error::Netlink { .. } => Kind::System,
        _ => Kind::Internal,
    };
    Failure::new(kind, format_args!("the demonstration failed: {error}"))
}

fn run_steps(out: &Printer, cluster: &mut Cluster) -> Result<(), testbed::Error> {
    describe(out, cluster)?;
    let active = elect(out, cluster)?;
    spread(out, cluster)?;
    let successor = crash(out, cluster, active)?;
    bring_back(out, cluster, active, successor)?;
    hand_over(out, cluster, successor)
}

/// Prints the nodes and the configuration.
fn describe(out: &Printer, cluster: &Cluster) -> Result<(), testbed::Error> {
    for node in cluster.lan.controllers() {
        out.line(&format!(
            "{} {} runs cplb and an API server with a certificate of its own",
            node.name(),
            node.v4()
        ));
    }
    let client = cluster.client();
    out.line(&format!("{} {} knows one address: {}", client.name(), client.v4(), cluster.vip()));
    out.block(&cluster.configuration());
    Ok(())
}

/// Waits for the first Active and prints its name.
fn elect(out: &Printer, cluster: &Cluster) -> Result<usize, testbed::Error> {
    out.step("The daemons start and elect");
    let started = Instant::now();
    let active = cluster.wait_for_owner(None, ELECTION_TIMEOUT)?;
    out.result(&format!(
        "{} is Active and holds {} after {:.1} s",
        cluster.name(active),
        cluster.vip(),
        started.elapsed().as_secs_f64()
    ));
    cluster.wait_until_served(ELECTION_TIMEOUT)?;
    out.line(&cluster.active_reason(active));
    Ok(active)
}

/// Shows that requests reach every backend.
fn spread(out: &Printer, cluster: &Cluster) -> Result<(), testbed::Error> {
    out.step(&format!("{REQUESTS} TLS connections from the client to {}", cluster.address()));
    let counts = cluster.count_certificates(REQUESTS)?;
    for (name, count) in &counts {
        out.bar(name, *count, REQUESTS);
    }
    out.result(&format!(
        "{0} different certificates answered at one address, so {0} API servers took connections",
        counts.len()
    ));
    Ok(())
}

/// Kills the Active and measures the client's blackout. Returns the successor.
fn crash(out: &Printer, cluster: &mut Cluster, active: usize) -> Result<usize, testbed::Error> {
    out.step(&format!("kill -9 cplb on {}, while the client connects every 2 ms", cluster.name(active)));
    let probe = Probe::to(cluster.address()).start(cluster.client())?;
    probe.wait_until_stable(Duration::from_millis(300), ELECTION_TIMEOUT)?;
    let killed = cluster.signal(active, Signal::SIGKILL)?;
    let successor = cluster.wait_for_owner(Some(active), FAILOVER_TIMEOUT)?;
    probe.wait_for_success(killed + Duration::from_millis(200), FAILOVER_TIMEOUT)?;
    probe.wait_until_stable(Duration::from_millis(500), FAILOVER_TIMEOUT)?;
    let blackout = probe.stop().blackout_since(killed).duration();
    out.result(&format!(
        "{} took over; the client's blackout was {:.2} s (3 advertisement intervals and the skew make 3.2 s)",
        cluster.name(successor),
        blackout.as_secs_f64()
    ));
    cluster.wait_until_vip_left(active, FAILOVER_TIMEOUT)?;
    out.line(&format!(
        "the kernel itself took {} off {}: nothing ran there to remove it",
        cluster.vip(),
        cluster.name(active)
    ));
    Ok(successor)
}

/// Starts the killed daemon again and shows that there is no failback.
fn bring_back(
    out: &Printer,
    cluster: &mut Cluster,
    returned: usize,
    active: usize,
) -> Result<(), testbed::Error> {
    out.step(&format!("cplb starts again on {}", cluster.name(returned)));
    cluster.start_daemon(returned)?;
    let deadline = Instant::now() + FAILBACK_WATCH;
    while Instant::now() < deadline {
        let owners = cluster.owners();
        if owners != [active] {
            let names: Vec<_> = owners.iter().map(|&index| cluster.name(index)).collect();
            return Err(testbed::Error::Misuse(format!(
                "expected {} alone to hold the VIP, found {names:?}",
                cluster.name(active)
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    out.result(&format!("{} stays Active: no failback, no second blackout", cluster.name(active)));
    Ok(())
}

/// Stops the Active by SIGTERM and measures the client's longest wait.
fn hand_over(out: &Printer, cluster: &mut Cluster, active: usize) -> Result<(), testbed::Error> {
    out.step(&format!("a planned stop (SIGTERM) of {}", cluster.name(active)));
    let probe = Probe::to(cluster.address()).start(cluster.client())?;
    probe.wait_until_stable(Duration::from_millis(300), ELECTION_TIMEOUT)?;
    let stopped = cluster.signal(active, Signal::SIGTERM)?;
    let successor = cluster.wait_for_owner(Some(active), FAILOVER_TIMEOUT)?;
    cluster.wait_until_ended(active, FAILOVER_TIMEOUT)?;
    probe.wait_until_stable(Duration::from_millis(500), FAILOVER_TIMEOUT)?;
    let blackout = probe.stop().blackout_since(stopped).duration();
    out.result(&format!(
        "{} took over; the client's longest wait for a connection was {} ms",
        cluster.name(successor),
        blackout.as_millis()
    ));
    Ok(())
}
