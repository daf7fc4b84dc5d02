//! The event loop: waits for events, timers and signals, and dispatches them.

use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::exit::Failure;
use crate::logging::ANSWER;
use crate::status::server;

use super::Daemon;
use super::event::{BackendsEvent, Event, IpvsEvent, ReloadEvent};
use super::signals::{Request, Signals};

/// The time between two rounds of maintenance, such as name resolution and the host lock.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two checks of whether a handover and a departure are over.
const HANDOVER_POLL: Duration = Duration::from_millis(20);

impl Daemon {
    /// Runs until a signal asks to stop, then hands over and cleans up.
    pub(super) async fn run(mut self, signals: &mut Signals) -> Result<(), Failure> {
        let result = self.run_until_stopped(signals).await;
        if result.is_ok() {
            // Deferred releases and `SessionsLeft` that are queued need the addresses, which `take_down` removes.
            self.dispatch_queued().await;
        }
        let keeps_history = self.uses_state_dir();
        self.take_down().await;
        if keeps_history && result.is_ok() {
            self.recorder.end().await;
        }
        tracing::info!("stopped");
        result
    }

    async fn run_until_stopped(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let mut evidence = delayed_interval(self.evidence_interval());
        let mut maintenance = delayed_interval(MAINTENANCE_INTERVAL);
        let mut deadline: Option<Instant> = None;
        loop {
            let save = self.recorder.next_save().filter(|_| self.uses_state_dir());
            let supervisor = self.supervisor.poll_timeout();
            tokio::select! {
                Some(event) = self.events.recv() => self.dispatch(event).await,
                _ = evidence.tick() => {
                    self.check_threads()?;
                    self.gather_evidence();
                    self.update_group();
                    self.tick_drains();
                    self.tick_supervisor();
                }
                _ = maintenance.tick() => self.maintain(),
                stream = self.socket.accept() => {
                    tokio::spawn(server::answer(stream, self.status()));
                }
                stream = self.control.accept() => self.serve_control(stream),
                request = signals.next() => match request {
                    // A second request to stop does not wait.
                    Request::Stop if deadline.is_some() => return Ok(()),
                    Request::Stop => deadline = Some(self.begin_handover()),
                    Request::Reload => self.reload(),
                    Request::Report => self.log_status(),
                },
                () = sleep_until(save), if save.is_some() => self.save_history(),
                () = sleep_until(supervisor), if supervisor.is_some() => self.tick_supervisor(),
                () = tokio::time::sleep(HANDOVER_POLL), if deadline.is_some() || !self.handovers.is_idle() => {}
            }
            self.tick_handovers();
            self.finish_removals();
            if evidence.period() != self.evidence_interval() {
                evidence = delayed_interval(self.evidence_interval());
            }
            if let Some(deadline) = deadline {
                self.begin_departure();
                if self.departure_is_over(Instant::now()) && self.handover_is_over(deadline) {
                    return Ok(());
                }
            }
        }
    }

    /// Dispatches the events that have been sent so far.
    pub(super) async fn dispatch_queued(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.dispatch(event).await;
        }
    }

    async fn dispatch(&mut self, event: Event) {
        match event {
            Event::Vip(event) => self.on_vip(event).await,
            Event::Proxy(event) => self.on_proxy(&event),
            Event::Backends(BackendsEvent::Resolved(resolved)) => self.on_resolved(resolved),
            Event::Backends(BackendsEvent::Discovered(discovered)) => self.on_discovered(discovered),
            Event::Serving(observation, table) => self.on_observation(&observation, table.as_ref()),
            Event::Ipvs(IpvsEvent::Observed(report)) => self.on_ipvs(report),
            Event::Ipvs(IpvsEvent::Probed(report)) => self.on_probed(report),
            Event::Table(change) => self.on_table(change),
            Event::Reload(ReloadEvent::Read(reading)) => self.on_read(reading),
            Event::Reload(ReloadEvent::Staged(staging)) => self.on_staged(staging),
            Event::Group(event) => self.on_group(event),
            Event::Checked(checked) => self.on_checked(checked),
            Event::Compared(compared) => self.on_compared(compared),
            Event::Control(event) => self.on_control(event),
            Event::History(written) => self.on_history_written(written),
            // The client may have left.
            Event::Status(request) if request.reply.is_closed() => {}
            Event::Status(request) => _ = request.reply.send(self.page_view()),
            Event::StateDir(probed) => self.state_dir.conclude(probed, &mut self.problems, Instant::now()),
        }
    }

    /// Writes the document of `cplb status --json` to the log.
    fn log_status(&self) {
        match serde_json::to_string(&self.status()) {
            Ok(document) => tracing::info!(target: ANSWER, document, "status"),
            Err(error) => tracing::error!(%error, "status cannot be serialised"),
        }
    }
}

/// Waits until a time; for ever without one.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// An interval that does not catch up on missed ticks.
fn delayed_interval(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
