//! `cplb demo`: a failover to watch, on one machine and without privileges.

mod scene;
mod show;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use testbed::{Ground, Probe, Signal};

use crate::exit::{Failure, Kind};

use scene::Scene;
use show::Show;

/// How long the first election may take: Down at k0s's settings is 3.2 s.
const ELECTION: Duration = Duration::from_secs(10);
/// How long a failover may take before the demonstration gives up.
const FAILOVER: Duration = Duration::from_secs(10);
/// How long the returned node is watched for a failback.
const WATCH_FOR_FAILBACK: Duration = Duration::from_secs(4);
/// Requests that show the spread.
const REQUESTS: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Number of controllers to show
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// Print plain lines, without colours or drawings
    #[arg(long)]
    plain: bool,
}

/// Runs the demonstration; must be called before the process has a second thread.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    match testbed::enter() {
        Ok(Ground::Inside) => perform(args).map(|()| ExitCode::SUCCESS),
        Ok(Ground::Finished(code)) => Ok(code),
        Err(error) => Err(Failure::new(Kind::Permission, error)),
    }
}

fn perform(args: &DemoArgs) -> Result<(), Failure> {
    let show = Show::new(args.plain);
    show.title(&format!(
        "A control plane of {} controllers, one address, no external load balancer",
        args.nodes
    ));
    let mut scene = Scene::build(args.nodes).map_err(|error| broken(&error))?;
    let played = play(&show, &mut scene);
    if played.is_err() {
        show.log(&scene.report());
    }
    drop(scene);
    played.map_err(|error| broken(&error))?;
    show.title("Cleaned up: daemons, namespaces and addresses are gone");
    Ok(())
}

fn broken(error: &testbed::Error) -> Failure {
    let kind = match error {
        testbed::Error::MissingTool(_) => Kind::Unavailable,
        testbed::Error::Namespace { .. } | testbed::Error::Netlink { .. } => Kind::System,
        _ => Kind::Internal,
    };
    Failure::new(kind, format_args!("the demonstration failed: {error}"))
}

fn play(show: &Show, scene: &mut Scene) -> Result<(), testbed::Error> {
    introduce(show, scene)?;
    let active = elect(show, scene)?;
    spread(show, scene)?;
    let successor = crash(show, scene, active)?;
    bring_back(show, scene, active, successor)?;
    hand_over(show, scene, successor)
}

fn introduce(show: &Show, scene: &Scene) -> Result<(), testbed::Error> {
    for node in scene.lan.controllers() {
        show.line(&format!(
            "{} {} runs cplb and an API server with a certificate of its own",
            node.name(),
            node.v4()
        ));
    }
    let client = scene.client();
    show.line(&format!("{} {} knows one address: {}", client.name(), client.v4(), scene.vip()));
    show.config(&scene.configuration());
    Ok(())
}

/// Waits for the first Active and names it.
fn elect(show: &Show, scene: &Scene) -> Result<usize, testbed::Error> {
    show.step("The daemons start and elect");
    let started = Instant::now();
    let active = scene.wait_for_owner(None, ELECTION)?;
    show.result(&format!(
        "{} is Active and holds {} after {:.1} s",
        scene.name(active),
        scene.vip(),
        started.elapsed().as_secs_f64()
    ));
    scene.wait_until_served(ELECTION)?;
    show.line(&scene.explain(active));
    Ok(active)
}

/// Shows that requests reach every backend.
fn spread(show: &Show, scene: &Scene) -> Result<(), testbed::Error> {
    show.step(&format!("{REQUESTS} TLS connections from the client to {}", scene.address()));
    let counts = scene.ask_certificates(REQUESTS)?;
    for (name, count) in &counts {
        show.bar(name, *count, REQUESTS);
    }
    show.result(&format!("{} different certificates answered at one address", counts.len()));
    Ok(())
}

/// Kills the Active and measures what the client sees.
fn crash(show: &Show, scene: &mut Scene, active: usize) -> Result<usize, testbed::Error> {
    show.step(&format!("kill -9 cplb on {}, while the client connects every 2 ms", scene.name(active)));
    let probe = Probe::to(scene.address()).start(scene.client())?;
    probe.wait_for_calm(Duration::from_millis(300), ELECTION)?;
    let killed = scene.signal(active, Signal::SIGKILL)?;
    let successor = scene.wait_for_owner(Some(active), FAILOVER)?;
    probe.wait_for_success(killed + Duration::from_millis(200), FAILOVER)?;
    probe.wait_for_calm(Duration::from_millis(500), FAILOVER)?;
    let blackout = probe.stop().blackout_since(killed).duration();
    show.result(&format!(
        "{} took over; the client's blackout was {:.2} s (3 advertisement intervals and the skew make 3.2 s)",
        scene.name(successor),
        blackout.as_secs_f64()
    ));
    scene.wait_until_vip_left(active, FAILOVER)?;
    show.line(&format!(
        "the kernel itself took {} off {}: nothing ran there to remove it",
        scene.vip(),
        scene.name(active)
    ));
    Ok(successor)
}

/// Restarts the killed daemon and shows that nothing fails back.
fn bring_back(show: &Show, scene: &mut Scene, returned: usize, active: usize) -> Result<(), testbed::Error> {
    show.step(&format!("cplb comes back on {}", scene.name(returned)));
    scene.start_daemon(returned)?;
    let deadline = Instant::now() + WATCH_FOR_FAILBACK;
    while Instant::now() < deadline {
        let owners = scene.owners();
        if owners != [active] {
            let names: Vec<_> = owners.iter().map(|&index| scene.name(index)).collect();
            return Err(testbed::Error::Misuse(format!(
                "expected {} alone to hold the VIP, found {names:?}",
                scene.name(active)
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    show.result(&format!("{} stays Active: no failback, no second blackout", scene.name(active)));
    Ok(())
}

/// Stops the Active politely and measures again.
fn hand_over(show: &Show, scene: &mut Scene, active: usize) -> Result<(), testbed::Error> {
    show.step(&format!("a planned stop (SIGTERM) of {}", scene.name(active)));
    let probe = Probe::to(scene.address()).start(scene.client())?;
    probe.wait_for_calm(Duration::from_millis(300), ELECTION)?;
    let stopped = scene.signal(active, Signal::SIGTERM)?;
    let successor = scene.wait_for_owner(Some(active), FAILOVER)?;
    scene.wait_until_ended(active, FAILOVER)?;
    probe.wait_for_calm(Duration::from_millis(500), FAILOVER)?;
    let blackout = probe.stop().blackout_since(stopped).duration();
    show.result(&format!(
        "{} took over; the client's longest wait for a connection was {} ms",
        scene.name(successor),
        blackout.as_millis()
    ));
    Ok(())
}
