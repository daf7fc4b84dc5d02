//! The event loop: selects what happened and dispatches it.

use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::exit::Failure;
use crate::logging::ANSWER;
use crate::status::server;

use super::Daemon;
use super::event::{BackendsEvent, Event, IpvsEvent, ReloadEvent};
use super::signals::{Asked, Signals};
use super::vip::Election;

/// The time between two rounds of maintenance: names, locks and other rare things.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);

impl Daemon {
    /// Runs until a signal asks to stop, then hands over and cleans up.
    pub(crate) async fn run(mut self, signals: &mut Signals) -> Result<(), Failure> {
        let result = self.watch(signals).await;
        // Sessions of addresses that were just given up must be reset while the addresses are there.
        while let (Ok(()), Ok(event)) = (&result, self.events.try_recv()) {
            self.dispatch(event).await;
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
                Some(event) = self.events.recv() => self.dispatch(event).await,
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

    async fn dispatch(&mut self, event: Event) {
        match event {
            Event::Vip(event) => self.on_vip(event).await,
            Event::Proxy(event) => self.on_proxy(&event),
            Event::Backends(BackendsEvent::Resolved(resolved)) => self.on_resolved(resolved),
            Event::Backends(BackendsEvent::Discovered(discovered)) => self.on_discovered(discovered),
            Event::Serving(observation, table) => self.on_observation(&observation, table.as_ref()),
            Event::Ipvs(IpvsEvent::Observed(news)) => self.on_ipvs(news),
            Event::Ipvs(IpvsEvent::Probed(report)) => self.on_probed(report),
            Event::Table(change) => self.on_table(change),
            Event::Reload(ReloadEvent::Read(reading)) => self.on_read(reading),
            Event::Reload(ReloadEvent::Staged(staging)) => self.on_staged(staging),
            Event::StateDir(probed) => self.state_dir.conclude(probed, &mut self.problems, Instant::now()),
        }
    }

    /// Writes the document of `cplb status --json` to the log.
    fn log_status(&self) {
        match serde_json::to_string(&self.status()) {
            Ok(document) => tracing::info!(target: ANSWER, document, "status"),
            Err(error) => tracing::error!(%error, "status"),
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
