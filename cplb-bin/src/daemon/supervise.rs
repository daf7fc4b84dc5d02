//! The main loop: events, the serving verdict, status requests and signals.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_proxy::Event as Balancer;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use vrrp::runner::InstanceId;

use crate::exit::{Failure, Kind};
use crate::lock::LockError;
use crate::source;
use crate::status::server;

use super::link::Event;
use super::names::Names;
use super::table::{self, Look};
use super::verdict::{Finding, Round};
use super::{Daemon, blueprint, events, start_balancer, stop_balancer};

/// How often names, locks and other rare things are looked at again.
const CHORES: Duration = Duration::from_secs(5);
/// Resetting the sessions of a VIP may delay its removal by this much.
const RESET_TIMEOUT: Duration = Duration::from_millis(100);
/// A start that meets another daemon's lock within this time is given up.
const START_PHASE: Duration = Duration::from_secs(3);
/// Shortest and longest time between two rounds of the serving verdict.
const ROUND: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The signals that matter.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

impl Daemon {
    /// Runs until a signal asks to stop, then hands over and cleans up.
    pub(crate) async fn supervise(mut self) -> Result<(), Failure> {
        let signals =
            Signals::new().map_err(|error| Failure::new(Kind::System, format_args!("signals: {error}")));
        let result = match signals {
            Ok(mut signals) => self.watch(&mut signals).await,
            Err(failure) => Err(failure),
        };
        self.take_down().await;
        tracing::info!("stopped");
        result
    }

    async fn watch(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let mut rounds = interval(self.round_interval());
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut chores = interval(CHORES);
        chores.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => self.on_event(event).await?,
                _ = rounds.tick() => self.start_round(),
                _ = chores.tick() => self.chores().await,
                stream = self.socket.accept() => {
                    tokio::spawn(server::answer(stream, self.status().await));
                }
                asked = signals.next() => match asked {
                    Asked::Stop if deadline.is_some() => return Ok(()),
                    Asked::Stop => deadline = Some(self.begin_handover()),
                    Asked::Reload => {
                        self.reload().await;
                        rounds = interval(self.round_interval());
                        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    }
                },
                () = tokio::time::sleep(Duration::from_millis(20)), if deadline.is_some() => {}
            }
            if deadline.is_some_and(|deadline| self.handover_is_over(deadline)) {
                return Ok(());
            }
        }
    }

    fn round_interval(&self) -> Duration {
        let service = blueprint::deciding_service(&self.config);
        let health = self.config.services.iter().find(|found| Some(found.name.as_str()) == service);
        health.map_or(Duration::from_secs(1), |service| service.health.interval).clamp(ROUND.0, ROUND.1)
    }

    fn start_round(&mut self) {
        let round = Round {
            keeper: self.election.as_ref().map(|election| election.keeper.clone()),
            balancer: self.balancer.clone(),
            table: self.table.clone(),
            service: blueprint::deciding_service(&self.config).map(str::to_owned),
        };
        self.verdict.start_round(round, &self.sender);
    }

    async fn on_event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Runner(event) => events::election(&event, &mut self.problems),
            Event::Keeper(event) => events::keeper(&event, &mut self.problems),
            Event::Balancer(event) => {
                events::balancer(&event, &mut self.problems);
                if matches!(event, Balancer::BackendUp { .. } | Balancer::BackendDown { .. }) {
                    self.start_round();
                }
            }
            Event::PlannedRelease(id) => self.release(id).await,
            Event::Lost(id) => {
                self.reset_sessions(id).await;
            }
            Event::Locked(id, error) => self.on_locked(id, &error)?,
            Event::Ready(id) => self.problems.clear(&format!("lock {id}")),
            Event::Source(id, source, present) => events::source(id, source, present, &mut self.problems),
            Event::Finding(finding) => self.on_finding(&finding),
        }
        Ok(())
    }

    /// At the start a second daemon must say so and leave; later it waits.
    fn on_locked(&mut self, id: InstanceId, error: &LockError) -> Result<(), Failure> {
        if self.started.elapsed() < START_PHASE {
            return Err(Failure::from(error));
        }
        tracing::error!(%error, "waiting");
        self.problems.raise(format!("lock {id}"), error.to_string());
        Ok(())
    }

    fn on_finding(&mut self, finding: &Finding) {
        match &finding.look {
            Some(Look::Restored) => {
                tracing::warn!("somebody removed or changed the nftables table; it is restored");
                self.problems.clear("table");
            }
            Some(Look::Failed(why)) => {
                tracing::warn!(error = %why, "the nftables table");
                self.problems.raise("table", format!("the nftables table is not in place: {why}"));
            }
            Some(Look::Present) => self.problems.clear("table"),
            None => {}
        }
        if finding.evidence.heartbeat.is_none() {
            self.problems.clear(events::EXHAUSTED);
        }
        match self.verdict.conclude(&finding.evidence) {
            Some(Ok(())) => tracing::info!("this node can serve"),
            Some(Err(why)) => tracing::warn!("this node cannot serve: {why}"),
            None => {}
        }
        let Some(election) = &self.election else { return };
        if self.verdict.is_serving() {
            // A lease: if this thread hangs, the election stops believing after two rounds.
            election.runner.serving(Instant::now() + 2 * self.round_interval());
        } else {
            election.runner.not_serving();
        }
    }

    /// Sessions first: once the address is gone not even a RST leaves.
    async fn release(&mut self, id: InstanceId) {
        self.reset_sessions(id).await;
        if let Some(election) = &self.election {
            election.keeper.release(netlink_vip::GroupId(id.0), netlink_vip::Release::Planned);
        }
    }

    async fn reset_sessions(&self, id: InstanceId) {
        let Some(balancer) = &self.balancer else { return };
        let Some(instance) = self.election.as_ref().and_then(|election| election.instances.get(&id)) else {
            return;
        };
        let vips: Vec<IpAddr> = instance.group.addresses.iter().map(netlink_vip::VipAddress::ip).collect();
        match tokio::time::timeout(RESET_TIMEOUT, balancer.reset_sessions(&vips)).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(vrid = id.0, count, "sessions through the virtual IPs are reset"),
            Err(_) => tracing::warn!(vrid = id.0, "sessions through the virtual IPs were not reset in time"),
        }
    }

    async fn chores(&mut self) {
        if let Some(election) = &self.election {
            election.retry_locks();
            let overruns = election.keeper.status().counters.overruns;
            if overruns == std::mem::replace(&mut self.overruns, overruns) {
                events::no_overrun(overruns, &mut self.problems);
            } else {
                events::overrun(&mut self.problems);
            }
        }
        if self.names.is_empty() {
            return;
        }
        let mut names = Names::resolve(&self.config).await;
        names.keep_known(&self.names);
        if names != self.names {
            tracing::info!(?names, "backends' names have other addresses");
            self.names = names;
            self.apply_services();
        }
    }

    fn apply_services(&mut self) {
        let Some(balancer) = &self.balancer else { return };
        if let Err(error) = balancer.reconfigure(blueprint::services(&self.config, &self.names)) {
            tracing::error!(%error, "the load balancer keeps its services");
            self.problems.raise("services", format!("the load balancer keeps its former services: {error}"));
        } else {
            self.problems.clear("services");
        }
    }

    /// Tells the election to hand over; the time by which it must have.
    fn begin_handover(&mut self) -> Instant {
        tracing::info!("handing over");
        let Some(election) = &self.election else { return Instant::now() };
        election.runner.resign_all();
        Instant::now() + election.handover_bound() + Duration::from_secs(1)
    }

    fn handover_is_over(&self, deadline: Instant) -> bool {
        Instant::now() >= deadline || self.election.as_ref().is_none_or(super::election::Election::is_over)
    }

    /// Reads the configuration again. A wrong one changes nothing.
    async fn reload(&mut self) {
        let mut loaded = match source::load(&self.args.config.config) {
            Ok(loaded) => loaded,
            Err(failure) => {
                tracing::error!("the configuration is not reloaded: {failure}");
                self.problems.raise("reload", "the configuration file has errors; the former one is in use");
                return;
            }
        };
        source::add_backends(&mut loaded, &self.args.backends);
        let names = Names::resolve(&loaded.config).await;
        self.config = loaded.config;
        self.names = names;
        match self.apply().await {
            Ok(()) => {
                self.problems.clear("reload");
                tracing::info!("the configuration is reloaded");
            }
            Err(failure) => {
                tracing::error!("the configuration is reloaded only in part: {failure}");
                self.problems
                    .raise("reload", format!("the configuration was reloaded only in part: {failure}"));
            }
        }
    }

    async fn apply(&mut self) -> Result<(), Failure> {
        match (&self.balancer, self.config.disable_load_balancer || self.config.services.is_empty()) {
            (Some(_), false) => self.apply_services(),
            (_, true) => stop_balancer(self.balancer.take()),
            (None, false) => self.balancer = start_balancer(&self.config, &self.names, &self.sender)?,
        }
        self.apply_table().await?;
        if self.election.is_some() {
            let config = &self.config;
            return self.election.as_mut().map_or(Ok(()), |election| election.reload(config));
        }
        self.election = super::Election::start(&self.config, self.state_dir(), &self.sender)?;
        Ok(())
    }

    async fn apply_table(&mut self) -> Result<(), Failure> {
        let mut keeper = self.table.lock().await;
        match (keeper.as_mut(), blueprint::table(&self.config)) {
            (Some(table), Some(desired)) => {
                table.set(desired).await.map_err(|error| Failure::new(Kind::System, error))
            }
            (Some(table), None) => {
                let removed = table.remove().await.map_err(|error| Failure::new(Kind::System, error));
                *keeper = None;
                removed
            }
            (None, Some(_)) => {
                *keeper = table::start(&self.config).await?;
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }
}
