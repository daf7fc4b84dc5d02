//! `cplb run`: builds the parts from the configuration, wires them, supervises them, and takes them down in order.
//!
//! Threads: this one (signals, status, nftables, the serving verdict), `vrrp` (the election), `vip-keeper` (the
//! addresses), and the load balancer's workers and health checks. The election and the keeper talk to each other
//! through [`link::Link`] without this thread.

mod blueprint;
mod direct;
mod election;
mod events;
mod found;
mod ipvs;
mod link;
mod names;
mod preflight;
mod problems;
mod reload;
mod report;
mod serving;
mod signals;
mod supervise;
mod table;
mod verdict;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cplb_config::Config;
use lb_proxy::{LoadBalancer, ReconfigureError, StartError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cli::RunArgs;
use crate::exit::{Failure, Kind};
use crate::logging;
use crate::source;
use crate::status::server::{BindError, StatusSocket};

use direct::Ipvs;
use election::Election;
use found::Clusters;
use link::Event;
use names::{Answers, Names, Resolver};
use problems::Problems;
use reload::Reloads;
use signals::Signals;
use table::{Delivered, TableKeeper};
use verdict::Verdict;

pub(crate) use ipvs::excess as excess_virtual_servers;
#[cfg(test)]
pub(crate) use table::Mode;

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
    /// How connections arrive, as it was logged.
    pub(crate) delivered: BTreeMap<SocketAddr, Delivered>,
    pub(crate) election: Option<Election>,
    pub(crate) ipvs: Ipvs,
    pub(crate) verdict: Verdict,
    pub(crate) socket: StatusSocket,
    pub(crate) events: UnboundedReceiver<Event>,
    pub(crate) sender: UnboundedSender<Event>,
    /// What keeps this node from doing its whole job, by cause.
    pub(crate) problems: Problems,
    pub(crate) reloads: Reloads,
    /// Counts the configurations that were put into effect.
    pub(crate) generation: u64,
    /// Whether the virtual IPs are being handed over for good.
    pub(crate) stopping: bool,
    /// How often the kernel had dropped news when that was last looked at.
    pub(crate) overruns: u64,
}

/// Runs until a signal ends it.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    logging::init(args.log_format);
    let mut loaded = source::load(&args.config.config)?;
    for warning in &loaded.warnings {
        tracing::warn!(line = warning.line(), "configuration: {}", warning.message);
    }
    for warning in source::add_backends(&mut loaded, &args.backends) {
        tracing::warn!("{warning}");
    }
    preflight::check(&loaded.config, args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::System, format_args!("cannot start the event loop: {error}")))?;
    let result = runtime.block_on(async {
        // Before anything is made that a signal would leave behind.
        let mut signals = Signals::new()
            .map_err(|error| Failure::new(Kind::System, format_args!("cannot catch signals: {error}")))?;
        let daemon = Daemon::start(args.clone(), loaded.config, &mut signals).await?;
        daemon.supervise(&mut signals).await
    });
    // A dead name server or a stuck keeper may occupy a thread of its pool.
    runtime.shutdown_background();
    result
}

impl Daemon {
    /// Builds everything; what was built is taken down again if a later part fails.
    async fn start(args: RunArgs, config: Config, signals: &mut Signals) -> Result<Self, Failure> {
        let (sender, events) = unbounded_channel();
        let socket = StatusSocket::bind(&args.socket.socket).map_err(socket_failure)?;
        let resolver = Resolver::default();
        let answers = tokio::select! {
            answers = resolver.ask(&config) => answers,
            () = signals.stop() => Answers::default(),
        };
        let mut problems = Problems::default();
        events::names(&answers, &mut problems);
        let mut clusters = Clusters::open(&args.state_dir);
        clusters.follow(&config, &sender);
        let names = Names::default().after(&answers);
        let names = names.with(clusters.servers(&config, &blueprint::fixed(&config, &names)));
        let balancer = start_balancer(&config, &names, &sender)?;
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
            reloads: Reloads::default(),
            generation: 0,
            stopping: false,
            overruns: 0,
        };
        match Election::start(&daemon.config, &daemon.args.state_dir, &daemon.sender) {
            Ok(election) => daemon.election = election,
            Err(failure) => {
                daemon.take_down().await;
                return Err(failure);
            }
        }
        match Ipvs::start(&daemon.config, &daemon.args.state_dir, &daemon.sender) {
            Ok(ipvs) => daemon.ipvs = ipvs,
            Err(failure) => {
                daemon.take_down().await;
                return Err(failure);
            }
        }
        daemon.update_ipvs();
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
                tracing::warn!("left behind: {left}");
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
    names: &Names,
    sender: &UnboundedSender<Event>,
) -> Result<Option<Arc<LoadBalancer>>, Failure> {
    let services = blueprint::services(config, names);
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
