//! Another configuration takes the place of the one in use: the whole of it, or nothing.
//!
//! Names are resolved first, in a task of their own. What may fail comes before what cannot be taken back. An instance
//! that the new configuration does not have hands its addresses over before it goes, as at a stop, and a reload that
//! comes meanwhile waits for that.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use cplb_config::Config;

use crate::exit::Failure;
use crate::source;

use super::link::Event;
use super::names::{Names, Resolved};
use super::problems::Cause;
use super::supervise::reset_sessions;
use super::{
    Daemon, Election, balancer_refusal, blueprint, events, preflight, start_balancer, stop_balancer,
};

impl Daemon {
    /// Reads the configuration again. A wrong one changes nothing.
    pub(super) fn reload(&mut self) {
        match self.read() {
            Ok(config) => self.resolver.prepare(config, &self.sender),
            Err(failure) => self.refuse(&failure, "the configuration file has errors"),
        }
    }

    fn read(&self) -> Result<Config, Failure> {
        let mut loaded = source::load(&self.args.config.config)?;
        for warning in &loaded.warnings {
            tracing::warn!(line = warning.line(), "configuration: {}", warning.message);
        }
        source::add_backends(&mut loaded, &self.args.backends);
        preflight::check(&loaded.config, &self.args)?;
        Ok(loaded.config)
    }

    fn refuse(&mut self, failure: &Failure, summary: &str) {
        tracing::error!("the configuration is not reloaded: {failure}");
        self.problems.raise(Cause::Reload, format!("{summary}; the former one is in use"));
    }

    /// The names of the configuration in use, or of the one to come, were asked for.
    pub(super) async fn on_resolved(&mut self, resolved: Resolved) {
        self.resolver.on_resolved(&self.sender);
        self.take_over(resolved).await;
    }

    async fn take_over(&mut self, resolved: Resolved) {
        let handing_over = self.election.as_ref().is_some_and(Election::is_removing);
        if resolved.config.is_some() && handing_over {
            self.next = Some(resolved);
            return;
        }
        let names = self.names.after(&resolved.answers);
        let Some(config) = resolved.config else {
            events::names(&resolved.answers, &mut self.problems);
            if names != self.names {
                tracing::info!(?names, "backends' names have other addresses");
                self.names = names;
                self.apply_names();
            }
            return;
        };
        match self.apply(*config, names).await {
            Ok(()) => {
                self.problems.clear(&Cause::Reload);
                events::names(&resolved.answers, &mut self.problems);
                tracing::info!("the configuration is reloaded");
            }
            Err(failure) => {
                let summary = format!("the configuration cannot be reloaded: {}", failure.message());
                self.refuse(&failure, &summary);
            }
        }
    }

    fn apply_names(&mut self) {
        let Some(balancer) = &self.balancer else { return };
        match balancer.reconfigure(blueprint::services(&self.config, &self.names)) {
            Ok(()) => {
                self.problems.clear(&Cause::Services);
            }
            Err(error) => {
                let text = format!("the load balancer keeps its former services: {error}");
                if self.problems.raise(Cause::Services, &text) {
                    tracing::error!("{text}");
                }
            }
        }
    }

    /// Puts `config` into effect, or changes nothing.
    async fn apply(&mut self, config: Config, names: Names) -> Result<(), Failure> {
        let services = !blueprint::services(&config, &names).is_empty();
        let running = self.balancer.is_some();
        match (&self.balancer, services) {
            (Some(balancer), true) => {
                balancer.forbid(config.virtual_ips().collect());
                let changed = balancer.reconfigure(blueprint::services(&config, &names));
                if let Err(error) = changed {
                    balancer.forbid(self.config.virtual_ips().collect());
                    return Err(balancer_refusal(&error));
                }
            }
            (None, true) => self.balancer = start_balancer(&config, &names, &self.sender)?,
            (_, false) => {}
        }
        if let Err(failure) = self.apply_instances(&config).await {
            self.restore_services(running);
            return Err(failure);
        }
        if !services {
            stop_balancer(self.balancer.take());
        }
        (self.config, self.names) = (config, names);
        self.problems.clear(&Cause::Services);
        self.change_table();
        self.forget_removed();
        Ok(())
    }

    /// The load balancer as the configuration in use wants it.
    fn restore_services(&mut self, running: bool) {
        if !running {
            stop_balancer(self.balancer.take());
        } else if let Some(balancer) = &self.balancer {
            balancer.forbid(self.config.virtual_ips().collect());
            self.apply_names();
        }
    }

    async fn apply_instances(&mut self, config: &Config) -> Result<(), Failure> {
        let Some(election) = &mut self.election else {
            self.election = Election::start(config, &self.args.state_dir, &self.sender)?;
            return Ok(());
        };
        let change = election.prepare(config)?;
        if let Some(balancer) = &self.balancer {
            let vips: Vec<IpAddr> = change.dropped().collect();
            if !vips.is_empty() {
                reset_sessions(balancer, &vips).await;
            }
        }
        election.reload(change)
    }

    /// Runs `nft` in a task of its own; a table that cannot be changed is tried again with each round of the verdict.
    fn change_table(&self) {
        let (table, events) = (Arc::clone(&self.table), self.sender.clone());
        let desired = blueprint::table(&self.config);
        tokio::spawn(async move {
            let _ = events.send(Event::Table(table.set(desired).await));
        });
    }

    /// Takes down removed instances that have handed over, and goes on with a reload that waited for them.
    pub(super) async fn finish_removals(&mut self) {
        let Some(election) = &mut self.election else { return };
        if !election.is_removing() {
            return;
        }
        election.finish_removals();
        if election.is_removing() {
            return;
        }
        self.forget_removed();
        if let Some(next) = self.next.take() {
            self.take_over(next).await;
        }
    }

    fn forget_removed(&mut self) {
        let known: BTreeSet<u32> =
            self.election.iter().flat_map(|election| election.instances.keys()).map(|id| id.0).collect();
        self.problems.retain_instances(|id| known.contains(&id));
    }
}
