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

use super::backends::Discovered;
use super::desired;
use super::event::{BackendsEvent, Event, IpvsEvent, ReloadEvent};
use super::ipvs::{Input, Ipvs, News, ProbeReport, Sessions};
use super::problems::Cause;
use super::sender::EventSender;
use super::serving::{self, Lease, Observation, Sources};
use super::signals::{Asked, Signals};
use super::table::{Delivered, Look, Reason, TableChange};
use super::vip::{Election, Instance, VipEvent};
use super::{Daemon, events, resolve, reverse_path, vrf};

/// How often names, locks and other rare things are looked at again.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);
/// Shortest and longest time between two gatherings of evidence for the serving verdict.
const EVIDENCE_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
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
        let mut evidence = steady(self.evidence_interval());
        let mut maintenance = steady(MAINTENANCE_INTERVAL);
        let mut deadline: Option<Instant> = None;
        loop {
            tokio::select! {
                Some(event) = self.events.recv() => self.on_event(event).await?,
                _ = evidence.tick() => {
                    self.check_threads()?;
                    self.gather_evidence();
                }
                _ = maintenance.tick() => self.maintain(),
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
            if evidence.period() != self.evidence_interval() {
                evidence = steady(self.evidence_interval());
            }
            if let Some(deadline) = deadline
                && self.poll_departure()
                && self.handover_is_over(deadline)
            {
                return Ok(());
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

    fn evidence_interval(&self) -> Duration {
        let service = desired::deciding_service(&self.config);
        let health = self.config.services.iter().find(|found| Some(found.name.as_str()) == service);
        health
            .map_or(Duration::from_secs(1), |service| service.health.interval)
            .clamp(EVIDENCE_INTERVAL.0, EVIDENCE_INTERVAL.1)
    }

    /// Gathers evidence for the serving verdict, unless that is under way.
    fn gather_evidence(&mut self) {
        let output = self.verdict.handle(serving::Input::Due, Instant::now());
        self.gather(output.gather);
    }

    fn gather(&self, generation: Option<u64>) {
        let Some(generation) = generation else { return };
        let sources = Sources {
            generation,
            keeper: self.election.as_ref().map(|election| election.keeper.clone()),
            balancer: self.proxy.balancer().cloned(),
            table: self.table.clone(),
            ipvs: self.ipvs.evidence(),
            service: desired::deciding_service(&self.config).map(str::to_owned),
        };
        sources.spawn(EventSender::new(&self.channel));
    }

    async fn on_event(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Vip(event) => self.on_vip(event).await,
            Event::Proxy(event) => self.on_proxy(&event),
            Event::Backends(BackendsEvent::Resolved(resolved)) => self.on_resolved(resolved),
            Event::Backends(BackendsEvent::Discovered(discovered)) => self.on_discovered(discovered),
            Event::Serving(observation) => self.on_observation(&observation),
            Event::Ipvs(IpvsEvent::Observed(news)) => self.on_ipvs(news),
            Event::Ipvs(IpvsEvent::Probed(report)) => self.on_probed(report),
            Event::Table(change) => self.on_table(change),
            Event::Reload(ReloadEvent::Read(reading)) => self.on_read(reading),
            Event::Reload(ReloadEvent::Staged(staging)) => self.on_staged(staging),
            Event::StateDir(probed) => self.state_dir.conclude(probed, &mut self.problems, Instant::now()),
        }
        Ok(())
    }

    async fn on_vip(&mut self, event: VipEvent) {
        match event {
            VipEvent::Runner(event) => events::election(&event, &mut self.problems),
            VipEvent::Keeper(event) => self.on_keeper(&event).await,
            VipEvent::PlannedRelease(id) => self.release(id).await,
            VipEvent::Source { id, source, present } => {
                events::source(id, source, present, &mut self.problems);
            }
        }
    }

    async fn on_keeper(&mut self, event: &KeeperEvent) {
        let instances = self.election.as_ref().map(|election| &election.instances);
        let wanted = |id: GroupId| {
            let instance = instances.and_then(|instances| instances.get(&InstanceId(id.0)));
            instance.map(|instance| instance.group.interface.to_string()).unwrap_or_default()
        };
        events::keeper(event, wanted, &mut self.problems);
        let multicasts = |id: GroupId| {
            let instance = instances.and_then(|instances| instances.get(&InstanceId(id.0)));
            instance.is_some_and(Instance::multicasts_v6)
        };
        events::link_local(event, multicasts, &mut self.problems);
        self.on_addresses(event);
        if let KeeperEvent::SessionsLeft { ips, .. } = event {
            self.proxy.reset_sessions(ips).await;
        }
    }

    fn on_proxy(&mut self, event: &Balancer) {
        events::balancer(event, &mut self.problems);
        match event {
            Balancer::TransparentRefused { reason } => {
                let why = format!("listeners cannot be transparent: {reason}");
                self.table.expect_ordinary_listeners(why);
                self.gather_evidence();
            }
            Balancer::BackendUp { .. } | Balancer::BackendLeaving { .. } | Balancer::BackendDown { .. } => {
                self.gather_evidence();
                self.update_ipvs(Input::Tick);
            }
            _ => {}
        }
    }

    /// Tells IPVS what the keeper reports of an instance's addresses and interface.
    fn on_addresses(&mut self, event: &KeeperEvent) {
        let input = match event {
            KeeperEvent::Installed { id, .. } => Input::Held(InstanceId(id.0)),
            KeeperEvent::Removed { id, .. } => Input::Lost(InstanceId(id.0)),
            KeeperEvent::Interface { id, state } => {
                Input::Interface(InstanceId(id.0), state.as_ref().map(|state| state.name.clone()))
            }
            KeeperEvent::Resynced { .. } => Input::InitialSync,
            _ => return,
        };
        self.update_ipvs(input);
    }

    fn on_ipvs(&mut self, news: News) {
        self.update_ipvs(Input::Observed(news));
        self.ipvs.report_faults(&mut self.problems);
    }

    fn on_probed(&mut self, report: ProbeReport) {
        Ipvs::report_probes(&report, &mut self.problems);
        self.update_ipvs(Input::Probed(report));
        self.ipvs.log_probes();
    }

    /// Tells directors on other nodes that this one departs. Returns whether they know.
    fn poll_departure(&mut self) -> bool {
        let now = Instant::now();
        if self.ipvs.departure().is_none() {
            self.update_ipvs(Input::Depart);
            let until = self.ipvs.departure().filter(|until| *until > now);
            if let Some(until) = until {
                let seconds = (until - now).as_secs_f64();
                tracing::info!(seconds, "telling directors on other nodes that this one departs");
            }
        }
        self.ipvs.departure().is_none_or(|until| now >= until)
    }

    fn uses_state_dir(&self) -> bool {
        self.election.is_some() || self.ipvs.is_running() || self.clusters.known().next().is_some()
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

    fn on_observation(&mut self, observation: &Observation) {
        let Observation { generation, evidence, table, fitness } = observation;
        if self.verdict.is_current(*generation) {
            self.note_table(table.as_ref());
            self.ipvs.log_probes();
            self.update_ipvs(Input::Tick);
            events::fitness(fitness, &mut self.problems);
        }
        let interval = self.evidence_interval();
        let input = serving::Input::Observed { generation: *generation, evidence, fitness, interval };
        let output = self.verdict.handle(input, Instant::now());
        self.gather(output.gather);
        match output.news {
            Some(Ok(())) => tracing::info!("this node can serve"),
            Some(Err(why)) => tracing::warn!("this node cannot serve: {why}"),
            None => {}
        }
        let Some(election) = &self.election else { return };
        match output.lease {
            // If this thread or a check hangs, the lease ends.
            Some(Lease::Until(until, unfit)) => election.runner.serving_except(until, unfit),
            Some(Lease::None) => election.runner.not_serving(),
            None => {}
        }
    }

    /// Reports the state of the table that was observed.
    fn note_table(&mut self, look: Option<&Look>) {
        match look {
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
    }

    fn on_table(&mut self, change: TableChange) {
        if let Err(failure) = &change.result {
            self.table_is_wrong(failure.message());
        }
        self.log_delivery();
        self.update_ipvs(Input::RulesApplied(change.directors));
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
            self.proxy.reset_sessions(&lasting).await;
        }
        let sessions = if instance.group.lasting.is_empty() { Sessions::End } else { Sessions::Continue };
        self.update_ipvs(Input::PlannedRelease(id, sessions));
        if sessions == Sessions::End {
            self.ipvs.withdrawn(id).await;
        }
        keeper.finish_release(group);
    }

    fn maintain(&mut self) {
        self.problems.fade(Instant::now());
        self.keep_lock();
        self.keep_socket();
        if self.uses_state_dir() {
            let keeper = self.election.as_ref().map(|election| &election.keeper);
            self.state_dir.probe(&self.args.state_dir, keeper);
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
        self.resolver.refresh(&self.config);
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
            let balanced = interface.filter(|_| self.proxy.balancer().is_some());
            let apart = balanced.and_then(|interface| vrf::problem(interface, accepted, has_tproxy));
            events::interface(id, Cause::Vrf(id.0), apart, &mut self.problems);
        }
    }

    fn on_discovered(&mut self, news: Discovered) {
        let kubeconfig = news.kubeconfig.clone();
        self.clusters.update(news, &self.config);
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
        let backends = resolve(&self.config, self.backends.clone(), &self.clusters);
        if backends != self.backends && self.reloads.is_idle() {
            self.backends = backends;
            self.update_desired();
            self.update_ipvs(Input::Tick);
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
