//! The main loop: events, the serving verdict, status requests and signals.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_proxy::Event as Balancer;
use netlink_vip::{GroupId, KeeperEvent};
use tokio::time::{Interval, MissedTickBehavior, interval};
use vrrp::runner::InstanceId;

use crate::exit::{Failure, Kind};
use crate::logging::ANSWER;
use crate::status::server::{self, Kept};

use super::blueprint::Instance;
use super::found;
use super::link::{Event, TableChange};
use super::problems::Cause;
use super::signals::{Asked, Signals};
use super::table::{Delivered, Look, Reason};
use super::verdict::{Finding, Round};
use super::{Daemon, Election, blueprint, events, reverse_path, vrf};

/// How often names, locks and other rare things are looked at again.
const CHORES: Duration = Duration::from_secs(5);
/// The load balancer is waited for so long, where the kernel cannot reset sessions.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);
/// Shortest and longest time between two rounds of the serving verdict.
const ROUND: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The election believes a good verdict for two rounds, and at least for this time: a node whose processors are busy for
/// a moment still serves, and a heartbeat may take as long.
const LEAST_LEASE: Duration = Duration::from_secs(1);

impl Daemon {
    /// Runs until a signal asks to stop, then hands over and cleans up.
    pub(crate) async fn supervise(mut self, signals: &mut Signals) -> Result<(), Failure> {
        let mut result = self.watch(signals).await;
        // Sessions of addresses that were just given up must be reset while the addresses are there.
        while let (Ok(()), Ok(event)) = (&result, self.events.try_recv()) {
            result = self.on_event(event).await;
        }
        self.take_down().await;
        tracing::info!("stopped");
        result
    }

    async fn watch(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let mut rounds = steady(self.round_interval());
        let mut chores = steady(CHORES);
        let mut deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => self.on_event(event).await?,
                _ = rounds.tick() => {
                    self.check_threads()?;
                    self.start_round();
                }
                _ = chores.tick() => self.chores(),
                stream = self.socket.accept() => {
                    tokio::spawn(server::answer(stream, self.status()));
                }
                asked = signals.next() => match asked {
                    Asked::Stop if deadline.is_some() => return Ok(()),
                    Asked::Stop => deadline = Some(self.begin_handover()),
                    Asked::Reload => self.reload(),
                    Asked::Report => self.log_status(),
                },
                () = tokio::time::sleep(Duration::from_millis(20)), if deadline.is_some() => {}
            }
            self.finish_removals();
            if rounds.period() != self.round_interval() {
                rounds = steady(self.round_interval());
            }
            if let Some(deadline) = deadline {
                let left = self.has_left();
                if left && self.handover_is_over(deadline) {
                    return Ok(());
                }
            }
        }
    }

    /// Without its threads this process only looks alive: whoever supervises it shall start another one.
    fn check_threads(&self) -> Result<(), Failure> {
        let director = self.ipvs.is_dead().then_some("the task that keeps IPVS");
        match self.election.as_ref().and_then(Election::dead_thread).or(director) {
            Some(thread) => Err(Failure::new(Kind::Internal, format_args!("{thread} ended unexpectedly"))
                .help("please report this with the log; restart cplb")),
            None => Ok(()),
        }
    }

    fn round_interval(&self) -> Duration {
        let service = blueprint::deciding_service(&self.config);
        let health = self.config.services.iter().find(|found| Some(found.name.as_str()) == service);
        health.map_or(Duration::from_secs(1), |service| service.health.interval).clamp(ROUND.0, ROUND.1)
    }

    fn start_round(&mut self) {
        let round = Round {
            generation: self.generation,
            keeper: self.election.as_ref().map(|election| election.keeper.clone()),
            balancer: self.balancer.clone(),
            table: self.table.clone(),
            ipvs: self.ipvs.wanted_director(),
            service: blueprint::deciding_service(&self.config).map(str::to_owned),
        };
        self.verdict.start_round(round, &self.sender);
    }

    async fn on_event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Runner(event) => events::election(&event, &mut self.problems),
            Event::Keeper(event) => {
                let instances = self.election.as_ref().map(|election| &election.instances);
                let wanted = |id: GroupId| {
                    let instance = instances.and_then(|instances| instances.get(&InstanceId(id.0)));
                    instance.map(|instance| instance.group.interface.to_string()).unwrap_or_default()
                };
                events::keeper(&event, wanted, &mut self.problems);
                let multicasts = |id: GroupId| {
                    let instance = instances.and_then(|instances| instances.get(&InstanceId(id.0)));
                    instance.is_some_and(Instance::multicasts_v6)
                };
                events::link_local(&event, multicasts, &mut self.problems);
                self.on_seat(&event);
                if let KeeperEvent::SessionsLeft { ips, .. } = &event {
                    self.reset_sessions(ips).await;
                }
            }
            Event::Balancer(event) => {
                events::balancer(&event, &mut self.problems);
                if let Balancer::TransparentRefused { reason } = &event {
                    let why = format!("listeners cannot be transparent: {reason}");
                    self.table.expect_ordinary_listeners(why);
                    self.start_round();
                }
                if matches!(
                    event,
                    Balancer::BackendUp { .. }
                        | Balancer::BackendTerminating { .. }
                        | Balancer::BackendDown { .. }
                ) {
                    self.start_round();
                    self.update_ipvs();
                }
            }
            Event::PlannedRelease(id) => self.release(id).await,
            Event::Read(reading) => self.on_read(reading),
            Event::StateDir(fault) => self.state_dir.conclude(fault, &mut self.problems, Instant::now()),
            Event::Source(id, source, present) => events::source(id, source, present, &mut self.problems),
            Event::Finding(finding) => self.on_finding(&finding),
            Event::Resolved(resolved) => self.on_resolved(resolved),
            Event::Staged(result) => self.on_staged(result),
            Event::Discovered(news) => self.on_discovered(news),
            Event::Table(change) => self.on_table(change),
            Event::Ipvs(news) => self.on_ipvs(news),
            Event::Heard(heard) => self.on_heard(heard),
        }
        Ok(())
    }

    fn uses_state_dir(&self) -> bool {
        self.election.is_some() || self.ipvs.director.is_some() || self.clusters.known().next().is_some()
    }

    /// Writes the document of `cplb status --json` to the log.
    fn log_status(&self) {
        match serde_json::to_string(&self.status()) {
            Ok(document) => tracing::info!(target: ANSWER, document, "status"),
            Err(error) => tracing::error!(%error, "status"),
        }
    }

    /// The socket is made anew if its file was removed or replaced.
    fn keep_socket(&mut self) {
        match self.socket.keep() {
            Ok(Kept::Present) => {
                self.problems.clear(&Cause::StatusSocket);
            }
            Ok(Kept::Restored) => {
                tracing::warn!("status socket removed by another process; made anew");
                self.problems.clear(&Cause::StatusSocket);
            }
            Err(error) => {
                let text = format!("`cplb status` cannot reach this daemon: {error}");
                if self.problems.raise(Cause::StatusSocket, &text) {
                    tracing::warn!("{text}");
                }
            }
        }
    }

    fn on_finding(&mut self, finding: &Finding) {
        if finding.generation != self.generation {
            self.verdict.discard();
            return self.start_round();
        }
        match &finding.look {
            Some(Look::Restored) => {
                tracing::warn!("somebody removed or changed the nftables table; it is restored");
                self.problems.clear(&Cause::Table);
            }
            Some(Look::Failed(why)) => self.table_is_wrong(why),
            Some(Look::Present | Look::Applied) | None => {
                self.problems.clear(&Cause::Table);
            }
        }
        self.log_delivery();
        self.tell_opinions();
        self.update_ipvs();
        let lease = LEAST_LEASE.max(2 * self.round_interval());
        match self.verdict.conclude(&finding.evidence, lease) {
            Some(Ok(())) => tracing::info!("this node can serve"),
            Some(Err(why)) => tracing::warn!("this node cannot serve: {why}"),
            None => {}
        }
        self.verdict.set_fitness(&finding.fitness);
        events::fitness(&finding.fitness, &mut self.problems);
        let Some(election) = &self.election else { return };
        match self.verdict.believed() {
            // A lease: if this thread or a check hangs, it ends.
            Some(until) => election.runner.serving_except(until, self.verdict.unfit()),
            None => election.runner.not_serving(),
        }
    }

    fn on_table(&mut self, change: TableChange) {
        if let Err(failure) = &change.result {
            self.table_is_wrong(failure.message());
        }
        self.log_delivery();
        self.on_directors(change.directors);
    }

    fn table_is_wrong(&mut self, why: &str) {
        if self.problems.raise(Cause::Table, why) {
            tracing::warn!("{why}");
        }
    }

    /// Lets IPVS stop directing, then the addresses go: unless they went already, or are claimed again.
    async fn release(&mut self, id: InstanceId) {
        let Some(election) = &self.election else { return };
        let Some(instance) = election.instances.get(&id) else { return };
        let (keeper, group) = (election.keeper.clone(), GroupId(id.0));
        if !keeper.defers_release(group) {
            return;
        }
        if !self.ipvs.is_available() {
            // The proxy served in the place of IPVS: no other node goes on with its sessions, and the keeper spares them.
            let lasting: Vec<IpAddr> = instance.group.lasting.iter().copied().collect();
            self.reset_sessions(&lasting).await;
        }
        self.withdraw(id).await;
        keeper.finish_release(group);
    }

    /// Lets the load balancer reset its sessions through `vips`, which are about to go.
    async fn reset_sessions(&self, vips: &[IpAddr]) {
        let Some(balancer) = self.balancer.as_ref().filter(|_| !vips.is_empty()) else { return };
        match tokio::time::timeout(RESET_TIMEOUT, balancer.reset_sessions(vips)).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(addresses = ?vips, count, "sessions reset by the load balancer"),
            Err(_) => {
                tracing::warn!(addresses = ?vips, "sessions not reset in time by the load balancer");
            }
        }
    }

    fn chores(&mut self) {
        self.problems.fade(Instant::now());
        self.keep_lock();
        self.keep_socket();
        if self.uses_state_dir() {
            let keeper = self.election.as_ref().map(|election| &election.keeper);
            self.state_dir.look(&self.args.state_dir, keeper, &self.sender);
        } else {
            self.problems.clear(&Cause::StateDir);
        }
        self.note_mismatches();
        self.check_interfaces();
        if let Some(election) = &self.election {
            let overruns = election.keeper.status().counters.overruns;
            if overruns == std::mem::replace(&mut self.overruns, overruns) {
                events::no_overrun(overruns, &mut self.problems);
            } else {
                events::overrun(&mut self.problems);
            }
        }
        self.resolver.refresh(&self.config, &self.sender);
        self.clusters.save();
        // This node's addresses may have changed.
        self.use_discovered();
        // What was observed before an instance was removed may have been told after.
        self.forget_problems();
    }

    fn check_interfaces(&mut self) {
        let Some(election) = &self.election else { return };
        let accepted = vrf::accepts();
        let refused = |it: &Delivered| matches!(it.reason, Some(Reason::Unavailable(_)));
        let has_tproxy = !self.delivered.values().any(refused);
        for group in &election.keeper.status().groups {
            let (id, interface) = (group.id, group.interface.as_ref());
            let filtered = interface.and_then(reverse_path::problem);
            events::interface(id, Cause::ReversePath(id.0), filtered, &mut self.problems);
            let balanced = interface.filter(|_| self.balancer.is_some());
            let apart = balanced.and_then(|interface| vrf::problem(interface, accepted, has_tproxy));
            events::interface(id, Cause::Vrf(id.0), apart, &mut self.problems);
        }
    }

    fn on_discovered(&mut self, news: found::News) {
        let kubeconfig = news.kubeconfig.clone();
        self.clusters.hear(news, &self.config);
        let wrong = self.clusters.wrong(&kubeconfig);
        let cause = Cause::Discovery(kubeconfig);
        if wrong.is_empty() {
            self.problems.clear(&cause);
        } else {
            self.problems.raise_all(cause, wrong);
        }
        self.use_discovered();
    }

    /// Balances over what was discovered.
    pub(super) fn use_discovered(&mut self) {
        let names = self.names.clone().on_node(found::node_addresses(&self.config));
        let clusters = self.clusters.servers(&self.config, &blueprint::fixed(&self.config, &names));
        let names = names.with(clusters);
        if names != self.names && self.reloads.is_idle() {
            self.names = names;
            self.apply_services();
            self.update_ipvs();
        }
    }

    /// Tells the election to hand over; the time by which it must have.
    fn begin_handover(&mut self) -> Instant {
        tracing::info!("handing over");
        self.stopping = true;
        let Some(election) = &self.election else { return Instant::now() };
        election.runner.resign_all();
        Instant::now() + election.handover_bound() + Duration::from_secs(1)
    }

    fn handover_is_over(&self, deadline: Instant) -> bool {
        Instant::now() >= deadline || self.election.as_ref().is_none_or(Election::is_over)
    }
}

fn steady(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
