//! `cplb run`: builds the parts from the configuration, wires them, supervises them, and stops them in order.
//!
//! `docs/architecture.md` lists the threads. The election and the keeper of the addresses talk to each other through
//! [`vip`]'s bridge, without the main thread.

mod auto_peers;
mod backends;
mod certificate_report;
mod certificates;
mod desired;
mod drain_requests;
mod drains;
mod end_to_end;
mod end_to_end_report;
mod event;
mod event_log;
mod event_loop;
mod group;
mod group_report;
mod handlers;
mod handover;
mod history_report;
mod host_lock;
mod ids;
#[cfg(test)]
mod imports_tests;
mod instance_log;
mod ipvs;
mod maintenance;
mod mismatches;
mod operators;
mod owner_report;
mod owners;
mod peer_update;
mod prepare;
mod problems;
mod proxy;
mod recorder;
mod reload;
mod reverse_path;
mod sender;
mod serving;
mod serving_rounds;
mod signals;
mod standby;
mod state_dir;
mod status;
mod status_page;
mod stop;
#[cfg(test)]
mod storm_tests;
mod supervisor;
mod table;
mod vip;
mod vrf;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cplb_config::Config;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use vrrp::runner::InstanceId;

use crate::cli::RunArgs;
use crate::control;
use crate::exit::{Failure, Kind};
use crate::logging::{self, ANSWER};
use crate::socket::{BindError, LocalSocket};

use auto_peers::AutoPeers;
use backends::{Answers, Backends};
use certificates::Certificates;
use desired::Desired;
use drains::Drains;
use end_to_end::EndToEnd;
use event::Event;
use group::{Contention, GroupChannels};
use handover::Handovers;
use host_lock::HostLock;
use ipvs::{Input, Ipvs};
use mismatches::Mismatches;
use operators::Operators;
use owners::OwnerWatches;
use prepare::Prepared;
use problems::{Cause, Problems};
use proxy::Proxy;
use recorder::Recorder;
use reload::Reloads;
use sender::EventSender;
use serving::Verdict;
use signals::Signals;
use standby::Standby;
use status_page::StatusPage;
use supervisor::Supervisor;
use table::{Delivered, TableKeeper};
use vip::{Election, VipReport};

#[cfg(test)]
pub(crate) use table::Mode;
pub(crate) use vrf::accepts_vrfs;

/// The daemon with all its parts.
struct Daemon {
    args: RunArgs,
    config: Config,
    started: Instant,
    backends: Backends,
    /// The work under the configuration and the backends in use.
    desired: Desired,
    proxy: Proxy,
    table: Arc<TableKeeper>,
    /// The delivery of connections that was logged last.
    delivered: BTreeMap<SocketAddr, Delivered>,
    election: Option<Election>,
    ipvs: Ipvs,
    verdict: Verdict,
    /// The status socket.
    socket: LocalSocket,
    /// The socket for requests of operators.
    control: LocalSocket,
    page: StatusPage,
    handovers: Handovers,
    operators: Operators,
    standby: Standby,
    events: UnboundedReceiver<Event>,
    channel: UnboundedSender<Event>,
    /// The problems of this node, by cause.
    problems: Problems,
    reloads: Reloads,
    /// Set once the virtual IPs are handed over because the daemon stops.
    stopping: bool,
    /// The count of netlink overruns at the last round of maintenance.
    overruns: u64,
    /// Excludes other daemons from this network namespace.
    host_lock: HostLock,
    state_dir: state_dir::Watch,
    mismatches: Mismatches,
    /// The channels to the other controllers.
    group: GroupChannels,
    node_name: String,
    /// The start by the wall clock, in seconds since 1970-01-01 00:00 UTC.
    started_at: u64,
    contention: Contention,
    /// The watches for foreign owners of the virtual IPs.
    owners: OwnerWatches,
    logged_owners: owner_report::Logged,
    /// The checks of services through the virtual IPs of other routers.
    end_to_end: EndToEnd,
    certificates: Certificates,
    /// By instance with `unicastPeers: auto`.
    auto_peers: BTreeMap<InstanceId, AutoPeers>,
    recorder: Recorder,
    drains: Drains,
    /// Set if the drains have changed since a reload that is not over computed its services.
    drains_changed: bool,
    /// The operators that wait for the end of connections.
    draining: Vec<drain_requests::Waiting>,
    /// The filter of the log at the start, and the one in use.
    log_level: (String, String),
    supervisor: Supervisor,
}

/// Runs until a signal ends it.
pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let (log_level, ignored) = logging::initial_filter(args.log_level.as_deref());
    let filter = logging::filter(&log_level).map_err(|why| Failure::new(Kind::Usage, why))?;
    let args = &RunArgs { log_level: Some(log_level), ..args.clone() };
    logging::init(args.log_format, filter);
    if let Some(why) = ignored {
        tracing::warn!("{why}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::System, format_args!("cannot start the event loop: {error}")))?;
    let result = runtime.block_on(async {
        // First, so that no signal ends the process without a clean-up of what it has made.
        let mut signals = Signals::new()
            .map_err(|error| Failure::new(Kind::System, format_args!("cannot catch signals: {error}")))?;
        let slow = || tracing::warn!("{}", prepare::slow_read(args));
        let prepared = tokio::select! {
            prepared = prepare::read(args.clone(), slow) => prepared?,
            () = signals.stop() => return Ok(()),
        };
        let daemon = Daemon::start(args.clone(), prepared, &mut signals).await?;
        daemon.run(&mut signals).await
    });
    // Threads of the pool may still wait for a name server, a file system or the keeper.
    runtime.shutdown_background();
    result
}

impl Daemon {
    /// Starts all parts. After a failure, those that were started before are stopped again.
    async fn start(args: RunArgs, prepared: Prepared, signals: &mut Signals) -> Result<Self, Failure> {
        let mut daemon = Self::build(args, prepared, signals).await?;
        if let Err(failure) = daemon.start_election() {
            daemon.take_down().await;
            return Err(failure);
        }
        if daemon.standby.is_wanted() {
            tracing::warn!("this node is in standby, as an operator asked before; `cplb active` ends that");
            daemon.follow_standby();
        }
        daemon.ipvs.start();
        daemon.update_ipvs(Input::Instances(daemon.interfaces()));
        daemon.report_refusals();
        daemon.page.follow(daemon.config.status_listen, &mut daemon.problems);
        tracing::info!(
            config = %daemon.args.config.config.display(),
            instances = daemon.config.instances.len(),
            services = daemon.config.services.len(),
            "started"
        );
        daemon.supervisor.ready(Instant::now());
        Ok(daemon)
    }

    /// The daemon with the load balancer and the nftables table, before the election and IPVS.
    async fn build(args: RunArgs, prepared: Prepared, signals: &mut Signals) -> Result<Self, Failure> {
        let Prepared { config, warnings } = prepared;
        let (channel, events) = unbounded_channel();
        let mut problems = Problems::default();
        problems.raise_all(Cause::Configuration, warnings);
        let host_lock = HostLock::at_start(&config).await?;
        let (path, group) = (&args.socket.socket, args.socket_group);
        let socket = LocalSocket::bind(path, group).map_err(socket_failure)?;
        let control = LocalSocket::bind(&control::socket_path(path), group).map_err(socket_failure)?;
        if !config.instances.is_empty() {
            let reports = EventSender::<VipReport>::new(&channel);
            for report in vip::reclaim(&args.state_dir)? {
                let _ = reports.send(report);
            }
        }
        let standby = Standby::open(&args.state_dir);
        let backends = open_backends(&args, &config, &channel, signals, &mut problems).await;
        let desired = Desired::new(&config, &backends.resolved, &BTreeSet::new(), &Drains::default());
        let mut proxy = Proxy::start(desired.proxy.clone(), EventSender::new(&channel))?;
        let table = Arc::new(TableKeeper::default());
        let (observations, probes) = (EventSender::new(&channel), EventSender::new(&channel));
        let interfaces = vip::named_interfaces(&config);
        let ipvs = Ipvs::new(desired.ipvs.clone(), interfaces, &args.state_dir, observations, probes);
        match table.set(desired.table(ipvs.rules())).await {
            Ok(()) => {}
            // The next round of evidence tries it again; until then this node does not serve.
            Err(failure) if failure.kind() == Kind::Temporary => tracing::warn!("{}", failure.message()),
            Err(failure) => {
                proxy.stop();
                return Err(failure);
            }
        }
        let now = Instant::now();
        let node_name = group_report::node_name(args.node_name.as_deref());
        let recorder = open_history(&args, &node_name, &channel, &mut problems);
        let log_level = args.log_level.clone().unwrap_or_default();
        Ok(Self {
            ipvs,
            args,
            config,
            started: now,
            backends,
            desired,
            proxy,
            table,
            delivered: BTreeMap::new(),
            election: None,
            verdict: Verdict::new(now),
            socket,
            control,
            page: StatusPage::new(EventSender::new(&channel)),
            handovers: Handovers::default(),
            operators: Operators::default(),
            standby,
            events,
            problems,
            reloads: Reloads::default(),
            stopping: false,
            overruns: 0,
            host_lock,
            state_dir: state_dir::Watch::new(EventSender::new(&channel), now),
            mismatches: Mismatches::default(),
            group: GroupChannels::new(EventSender::new(&channel)),
            node_name,
            started_at: group_report::started_at(),
            contention: Contention::default(),
            owners: OwnerWatches::default(),
            logged_owners: owner_report::Logged::new(),
            end_to_end: EndToEnd::default(),
            certificates: Certificates::default(),
            auto_peers: BTreeMap::new(),
            recorder,
            drains: Drains::default(),
            drains_changed: false,
            draining: Vec::new(),
            log_level: (log_level.clone(), log_level),
            supervisor: Supervisor::from_environment(),
            channel,
        })
    }

    fn start_election(&mut self) -> Result<(), Failure> {
        let instances = desired::instances(&self.config)?;
        self.election = Election::start(instances, &self.args.state_dir, EventSender::new(&self.channel))?;
        self.update_controllers();
        self.update_peers();
        Ok(())
    }

    /// Stops all parts and removes their objects from the system, at the end or after a failed start.
    async fn take_down(&mut self) {
        self.group.set(BTreeMap::new());
        self.owners = OwnerWatches::default();
        if let Some(election) = &self.election {
            election.end().await;
            // The last reports of both threads, such as the number of sessions that were reset.
            self.dispatch_queued().await;
            self.election = None;
        }
        for left in self.ipvs.end().await {
            tracing::warn!(target: ANSWER, "left behind: {left}");
        }
        if let Err(error) = self.table.set(None).await {
            tracing::warn!(%error, "nftables table left behind");
        }
        self.proxy.stop();
    }
}

/// The backends at the start: by the record of the last run and one round of name resolution, which a request to stop
/// cuts short.
async fn open_backends(
    args: &RunArgs,
    config: &Config,
    channel: &UnboundedSender<Event>,
    signals: &mut Signals,
    problems: &mut Problems,
) -> Backends {
    let (rounds, discovered) = (EventSender::new(channel), EventSender::new(channel));
    let (mut backends, unreadable) = Backends::open(&args.state_dir, rounds, discovered);
    if let Some(why) = unreadable {
        let text = format!("the backends of the last run cannot be read, and are discovered again: {why}");
        problems.raise_fading(Cause::Record("backends"), text, Instant::now());
    }
    let answers = tokio::select! {
        answers = backends.resolver.resolve(config) => answers,
        () = signals.stop() => Answers::default(),
    };
    event_log::log_names(&answers, problems);
    backends.clusters.follow(config);
    backends.resolved = backends.resolve(config, backends.resolved.after(&answers));
    backends
}

/// The history, which goes on after the last run.
fn open_history(
    args: &RunArgs,
    node: &str,
    channel: &UnboundedSender<Event>,
    problems: &mut Problems,
) -> Recorder {
    let (recorder, unreadable) = Recorder::open(&args.state_dir, node, EventSender::new(channel));
    if let Some(why) = unreadable {
        let text = format!(
            "the history of earlier runs cannot be read, and begins anew; the file is kept as history.bad: {why}"
        );
        tracing::warn!("{text}");
        problems.raise_fading(Cause::Record("history"), text, Instant::now());
    }
    recorder
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
