//! The end of the daemon's service: the handover of the virtual IPs, and the departure as a real server.

use std::time::{Duration, Instant};

use super::Daemon;
use super::ipvs::Input;
use super::vip::{Election, Instance};

impl Daemon {
    /// Starts the handover of all virtual IPs. Returns its deadline.
    pub(super) fn begin_handover(&mut self) -> Instant {
        tracing::info!("handing over");
        self.stopping = true;
        self.supervisor.stopping();
        let Some(election) = &self.election else { return Instant::now() };
        election.runner.resign_all();
        Instant::now() + election.handover_bound() + Duration::from_secs(1)
    }

    /// Tells the supervisor what this node does and, where its watchdog wants that, that the election runs.
    pub(super) fn tick_supervisor(&mut self) {
        let now = Instant::now();
        if !self.stopping {
            let status = self.one_line(now);
            self.supervisor.show(&status, now);
        }
        let election = self.election.as_ref();
        self.supervisor.tick(now, |answer, number| {
            election.is_some_and(|election| {
                election.runner.ping(answer, number);
                true
            })
        });
    }

    fn one_line(&self, now: Instant) -> String {
        let verdict = self.verdict.status(now);
        let serving = match verdict.reason {
            _ if verdict.serving => "serving".to_owned(),
            reason => format!("not serving: {}", reason.as_deref().unwrap_or("not yet known")),
        };
        let held = |election: &Election| {
            let instances = election.instances.values().filter(|instance| election.holds(instance.id));
            instances.flat_map(Instance::addresses).map(|ip| ip.to_string()).collect::<Vec<_>>()
        };
        let held = self.election.as_ref().map(held).unwrap_or_default();
        let problems = self.problems.texts().len();
        let holds = if held.is_empty() { String::new() } else { format!("; Active for {}", held.join(", ")) };
        let degraded = if problems == 0 { String::new() } else { format!("; {problems} degraded") };
        format!("{serving}{holds}{degraded}")
    }

    /// Returns whether the virtual IPs are handed over, or the deadline has passed.
    pub(super) fn handover_is_over(&self, deadline: Instant) -> bool {
        Instant::now() >= deadline || self.election.as_ref().is_none_or(Election::is_over)
    }

    /// Announces to directors on other nodes that this one departs, once.
    pub(super) fn begin_departure(&mut self) {
        if self.ipvs.departure().is_some() {
            return;
        }
        self.update_ipvs(Input::Depart);
        // After the departure began: where nothing is directed to this node, it is over at once.
        let now = Instant::now();
        if let Some(until) = self.ipvs.departure().filter(|until| *until > now) {
            let seconds = (until - now).as_secs_f64();
            tracing::info!(seconds, "departing; waiting for directors on other nodes to notice");
        }
    }

    /// Returns whether directors on other nodes have had time to notice the departure.
    pub(super) fn departure_is_over(&self, now: Instant) -> bool {
        self.ipvs.departure().is_none_or(|until| now >= until)
    }
}
