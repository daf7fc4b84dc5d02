//! The rounds of evidence for the serving verdict, and the lease that the election gets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::Event;
use super::ipvs::Input;
use super::serving::{self, Lease, Observation, Sources};
use super::table::TableState;
use super::vip::Election;
use super::{Daemon, desired, event_log};

/// The shortest and the longest time between two rounds of evidence for the serving verdict.
const EVIDENCE_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl Daemon {
    /// The time between two rounds of evidence: the interval of the deciding service's health checks.
    pub(super) fn evidence_interval(&self) -> Duration {
        let service = desired::deciding_service(&self.config);
        let health = self.config.services.iter().find(|found| Some(found.name.as_str()) == service);
        health
            .map_or(Duration::from_secs(1), |service| service.health.interval)
            .clamp(EVIDENCE_INTERVAL.0, EVIDENCE_INTERVAL.1)
    }

    /// Gathers evidence for the serving verdict, unless a round is in progress.
    pub(super) fn gather_evidence(&mut self) {
        let output = self.verdict.handle(serving::Input::Due, Instant::now());
        self.gather(output.gather);
    }

    fn gather(&self, generation: Option<u64>) {
        let Some(generation) = generation else { return };
        let sources = Sources {
            generation,
            keeper: self.election.as_ref().map(|election| election.keeper.clone()),
            balancer: self.proxy.balancer().cloned(),
            ipvs: self.ipvs.evidence(),
            service: desired::deciding_service(&self.config).map(str::to_owned),
        };
        let (table, channel) = (Arc::clone(&self.table), self.channel.clone());
        tokio::spawn(async move {
            let table = table.resync().await;
            let fault = table.as_ref().and_then(|table| table.fault().map(str::to_owned));
            let observation = sources.gather(fault).await;
            let _ = channel.send(Event::Serving(observation, table));
        });
    }

    /// Takes the evidence of a round, and passes the lease that follows to the election.
    pub(super) fn on_observation(&mut self, observation: &Observation, table: Option<&TableState>) {
        let Observation { generation, evidence, fitness } = observation;
        if self.verdict.is_current(*generation) {
            self.report_table(table);
            self.update_ipvs(Input::Tick);
            let instance = Election::log_fields(self.election.as_ref());
            event_log::log_fitness(fitness, instance, &mut self.problems);
        }
        let interval = self.evidence_interval();
        let input = serving::Input::Observed { generation: *generation, evidence, fitness, interval };
        let output = self.verdict.handle(input, Instant::now());
        self.gather(output.gather);
        match output.changed {
            Some(Ok(())) => tracing::info!("this node can serve"),
            Some(Err(why)) => tracing::warn!("this node cannot serve: {why}"),
            None => {}
        }
        let Some(election) = &self.election else { return };
        match output.lease {
            // The lease expires if this thread or a check hangs.
            Some(Lease::Until(until, unfit)) => election.runner.serving_except(until, unfit),
            Some(Lease::Withheld) => election.runner.not_serving(),
            None => {}
        }
    }
}
