//! `cplb run`: builds the parts from the configuration, wires them, supervises them, and takes them down in order.
//!
//! Threads: this one (signals, status, nftables, the serving verdict), `vrrp` (the election), `vip-keeper` (the
//! addresses), and the load balancer's workers and health checks. The election and the keeper talk to each other
//! through [`link::Link`] without this thread.

mod blueprint;
#[cfg(test)]
mod blueprint_tests;
mod direct;
mod election;
mod events;
mod exclusion;
mod fitness;
mod found;
mod ipvs;
mod link;
mod mismatches;
mod names;
mod preflight;
mod prepare;
mod problems;
mod refusals;
mod reload;
mod report;
mod reverse_path;
mod serving;
mod signals;
mod state_dir;
#[cfg(test)]
mod storm_tests;
mod supervise;
mod table;
mod verdict;
mod vrf;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cplb_config::Config;
use lb_proxy::{LoadBalancer, ReconfigureError, StartError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cli::RunArgs;
use crate::exit::{Failure, Kind};
use crate::lock::{self, NamespaceLock};
use crate::logging::{self, ANSWER};
use crate::status::server::{BindError, StatusSocket};

use direct::Ipvs;
use election::Election;
use found::Clusters;
use link::Event;
use mismatches::Mismatches;
use names::{Answers, Names, Resolver};
use prepare::Prepared;
use problems::{Cause, Problems};
use refusals::Refusals;
use reload::Reloads;
use signals::Signals;
use table::{Delivered, TableKeeper};
use verdict::Verdict;

#[cfg(test)]
pub(crate) use table::Mode;
pub(crate) use vrf::accepts as accepts_vrfs;

/// Everything that runs.
pub(crate) struct Daemon {
    pub(crate) args: RunArgs,
    pub(crate) config: Config,
    pub(crate) started: Instant,
    pub(crate) names: Names,
    pub(crate) clusters: Clusters,
    pub(crate) resolver: Resolver,
    pub(crate) balancer: Option<Arc<LoadBalancer>>,
    pub(crate) table: Arc<TableKeeper>,
    /// The delivery of connections, as it was logged.
    pub(crate) delivered: BTreeMap<SocketAddr, Delivered>,
    pub(crate) election: Option<Election>,
    pub(crate) ipvs: Ipvs,
    pub(crate) verdict: Verdict,
    pub(crate) socket: StatusSocket,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) sender: UnboundedSender<Event>,
    /// What keeps this node from doing its whole job, by cause.
    pub(crate) problems: Problems,
    pub(crate) refusals: Refusals,
    pub(crate) reloads: Reloads,
    /// Counts the configurations that were put into effect.
    pub(crate) generation: u64,
    /// Whether the virtual IPs are being handed over for good.
    pub(crate) stopping: bool,
    /// How often the kernel had dropped news when that was last looked at.
    pub(crate) overruns: u64,
    /// Keeps other daemons from this network namespace; absent while a stranger has its name.
    lock: Option<NamespaceLock>,
    state_dir: state_dir::Watch,
    pub(crate) mismatches: Mismatches,
}

/// Runs until a signal ends it.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    logging::init(args.log_format);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::System, format_args!("cannot start the event loop: {error}")))?;
    let result = runtime.block_on(async {
        // Before anything is made that a signal would leave behind.
        let mut signals = Signals::new()
            .map_err(|error| Failure::new(Kind::System, format_args!("cannot catch signals: {error}")))?;
        let slow = || tracing::warn!("{}", prepare::slow(args));
        let prepared = tokio::select! {
            prepared = prepare::read(args.clone(), slow) => prepared?,
            () = signals.stop() => return Ok(()),
        };
        let daemon = Daemon::start(args.clone(), prepared, &mut signals).await?;
        daemon.supervise(&mut signals).await
    });
    // A dead name server, file system or a stuck keeper may occupy a thread of its pool.
    runtime.shutdown_background();
    result
}

impl Daemon {
    /// Builds everything; what was built is taken down again if a later part fails.
    async fn start(args: RunArgs, prepared: Prepared, signals: &mut Signals) -> Result<Self, Failure> {
        let Prepared { config, warnings } = prepared;
        let (sender, events) = unbounded_channel();
        let mut problems = Problems::default();
        problems.raise_all(Cause::Configuration, warnings);
        let lock = match exclusion::is_exclusive(&config) {
            true => lock::acquire_at_start().await.map_err(|error| Failure::from(&error))?.held(),
            false => None,
        };
        let socket = StatusSocket::bind(&args.socket.socket).map_err(socket_failure)?;
        let resolver = Resolver::default();
        let answers = tokio::select! {
            answers = resolver.ask(&config) => answers,
            () = signals.stop() => Answers::default(),
        };
        events::names(&answers, &mut problems);
        let (mut clusters, unreadable) = Clusters::open(&args.state_dir);
        if let Some(why) = unreadable {
            let text = format!("the backends of the last run cannot be read, and are found anew: {why}");
            problems.raise_fading(Cause::Record("backends"), text, Instant::now());
        }
        clusters.follow(&config, &sender);
        let names = Names::default().after(&answers).on_node(found::node_addresses(&config));
        let names = names.with(clusters.servers(&config, &blueprint::fixed(&config, &names)));
        let balancer =
            start_balancer(&config, blueprint::services(&config, &names, std::iter::empty()), &sender)?;
        let table = Arc::new(TableKeeper::default());
        if let Err(failure) =
            table.set(blueprint::table(&config, std::iter::empty(), Self::first_directors(&config))).await
        {
            stop_balancer(balancer);
            return Err(failure);
        }
        let mut daemon = Self {
            args,
            config,
            started: Instant::now(),
            names,
            clusters,
            resolver,
            balancer,
            table,
            delivered: BTreeMap::new(),
            election: None,
            ipvs: Ipvs::default(),
            verdict: Verdict::default(),
            socket,
            events,
            sender,
            problems,
            refusals: Refusals::default(),
            reloads: Reloads::default(),
            generation: 0,
            stopping: false,
            overruns: 0,
            lock,
            state_dir: state_dir::Watch::new(Instant::now()),
            mismatches: Mismatches::default(),
        };
        match Election::start(&daemon.config, &daemon.args.state_dir, &daemon.sender) {
            Ok(election) => {
                daemon.election = election;
                daemon.update_controllers();
            }
            Err(failure) => {
                daemon.take_down().await;
                return Err(failure);
            }
        }
        daemon.ipvs = Ipvs::start(&daemon.config, &daemon.args.state_dir, &daemon.sender);
        daemon.update_ipvs();
        daemon.report_refusals();
        tracing::info!(
            config = %daemon.args.config.config.display(),
            instances = daemon.config.instances.len(),
            services = daemon.config.services.len(),
            "started"
        );
        Ok(daemon)
    }

    /// Removes what is left of ours after the election has ended, or after a start that failed half-way.
    pub(crate) async fn take_down(&mut self) {
        if let Some(election) = self.election.take() {
            election.end().await;
        }
        if let Some(director) = self.ipvs.director.take() {
            for left in director.end().await {
                tracing::warn!(target: ANSWER, "left behind: {left}");
            }
        }
        if let Err(error) = self.table.set(None).await {
            tracing::warn!(%error, "the nftables table is left behind");
        }
        stop_balancer(self.balancer.take());
    }
}

fn start_balancer(
    config: &Config,
    services: Vec<lb_proxy::Service>,
    sender: &UnboundedSender<Event>,
) -> Result<Option<Arc<LoadBalancer>>, Failure> {
    if services.is_empty() {
        return Ok(None);
    }
    let sender = sender.clone();
    let report = Box::new(move |event| {
        let _ = sender.send(Event::Balancer(event));
    });
    match LoadBalancer::start(blueprint::options(config), services, report) {
        Ok(balancer) => Ok(Some(Arc::new(balancer))),
        Err(error) => Err(balancer_failure(&error)),
    }
}

fn stop_balancer(balancer: Option<Arc<LoadBalancer>>) {
    if let Some(balancer) = balancer {
        balancer.stop();
    }
}

fn balancer_failure(error: &StartError) -> Failure {
    let message = format!("the load balancer cannot start: {error}");
    match error {
        StartError::PortInUse { addr } => port_in_use(&message, *addr),
        StartError::Invalid(_) => Failure::new(Kind::Config, error),
        _ => Failure::new(Kind::System, message),
    }
}

fn balancer_refusal(error: &ReconfigureError) -> Failure {
    let message = format!("the load balancer cannot take the services over: {error}");
    match error {
        ReconfigureError::PortInUse { addr } => port_in_use(&message, *addr),
        _ => Failure::new(Kind::System, message),
    }
}

fn port_in_use(message: &str, addr: SocketAddr) -> Failure {
    Failure::new(Kind::Temporary, message).help(format_args!(
        "find who listens with `ss -ltnp 'sport = :{}'` (k0s's own control plane load balancing uses 6444), or choose \
         another userSpaceProxyBindPort",
        addr.port()
    ))
}

fn socket_failure(error: BindError) -> Failure {
    match error {
        BindError::InUse(_) => Failure::new(Kind::Temporary, error)
            .help("stop it, or give this one another --socket and --state-dir"),
        BindError::Io { .. } => {
            Failure::new(Kind::CannotCreate, error).help("name another path with --socket")
        }
    }
}
