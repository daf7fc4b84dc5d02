//! Maintenance: periodic checks of threads, locks, sockets, interfaces and backends.

use std::time::Instant;

use vrrp::runner::InstanceStatus;

use crate::exit::{Failure, Kind};
use crate::socket::Kept;

use super::host_lock::is_exclusive;
use super::ids::instance_of;
use super::problems::Cause;
use super::table::{Delivered, Reason};
use super::vip::Election;
use super::{Daemon, event_log, mismatches, reverse_path, vrf};

impl Daemon {
    /// Ends the daemon if one of its threads has ended, so that its supervisor restarts it.
    pub(super) fn check_threads(&self) -> Result<(), Failure> {
        let reconciler = self.ipvs.is_dead().then_some("the IPVS reconciler");
        match self.election.as_ref().and_then(Election::dead_thread).or(reconciler) {
            Some(thread) => Err(Failure::new(Kind::Internal, format_args!("{thread} ended unexpectedly"))
                .help("please report this with the log; restart cplb")),
            None => Ok(()),
        }
    }

    pub(super) fn maintain(&mut self) {
        self.problems.fade(Instant::now());
        let holds = self.election.as_ref().is_some_and(|election| election.addresses().next().is_some());
        if is_exclusive(&self.config) || holds || !self.reloads.is_idle() {
            self.host_lock.retry(&mut self.problems);
        } else {
            self.host_lock.release(&mut self.problems);
        }
        self.check_sockets();
        self.page.follow(self.config.status_listen, &mut self.problems);
        if self.uses_state_dir() {
            let keeper = self.election.as_ref().map(|election| &election.keeper);
            self.state_dir.probe(&self.args.state_dir, keeper);
        } else {
            self.problems.clear(&Cause::StateDir);
        }
        self.report_mismatches();
        self.check_interfaces();
        if let Some(election) = &self.election {
            let overruns = election.keeper.status().counters.overruns;
            if overruns == std::mem::replace(&mut self.overruns, overruns) {
                event_log::log_overrun_end(overruns, &mut self.problems);
            } else {
                event_log::log_overrun(&mut self.problems);
            }
        }
        self.backends.resolver.refresh(&self.config);
        self.backends.clusters.save();
        // This node's addresses may have changed.
        self.use_discovered();
        // An observation from before the removal of an instance may have raised a problem after it.
        self.forget_problems();
    }

    /// Reports differences to the configuration of other routers.
    fn report_mismatches(&mut self) {
        let Some(election) = &self.election else { return };
        let (status, now) = (election.runner.status(), Instant::now());
        // A removed instance may still be handing over.
        let is_wanted = |found: &&InstanceStatus| election.instances.contains_key(&found.id);
        for found in status.instances.iter().filter(is_wanted) {
            let id = found.id.0;
            for (kind, count) in mismatches::counts(&found.counters) {
                self.mismatches.observe(id, &kind, count, now);
            }
            let kinds = self.mismatches.current(id, now).into_keys();
            let text = |kind| format!("virtual router {id}: another router's configuration differs ({kind})");
            self.problems.raise_all(Cause::Mismatch(id), kinds.map(text).collect());
        }
        self.mismatches.retain(|id| status.instances.iter().any(|found| found.id.0 == id));
    }

    pub(super) fn uses_state_dir(&self) -> bool {
        self.election.is_some() || self.ipvs.is_running() || self.backends.clusters.known().next().is_some()
    }

    /// Creates the sockets for local programs again if their files were removed or replaced.
    fn check_sockets(&mut self) {
        let sockets = [
            (&mut self.socket, Cause::StatusSocket, "status", "`cplb status`"),
            (&mut self.control, Cause::ControlSocket, "control", "`cplb handover`"),
        ];
        for (socket, cause, name, user) in sockets {
            match socket.keep() {
                Ok(Kept::Present) => {
                    self.problems.clear(&cause);
                }
                Ok(Kept::Restored) => {
                    tracing::warn!("{name} socket removed by another process; created again");
                    self.problems.clear(&cause);
                }
                Err(error) => {
                    let text = format!("{user} cannot reach this daemon: {error}");
                    if self.problems.raise(cause, &text) {
                        tracing::warn!("{text}");
                    }
                }
            }
        }
    }

    fn check_interfaces(&mut self) {
        let Some(election) = &self.election else { return };
        let accepted = vrf::accepts_vrfs();
        let refused = |it: &Delivered| matches!(it.reason, Some(Reason::Unavailable(_)));
        let has_tproxy = !self.delivered.values().any(refused);
        for group in &election.keeper.status().groups {
            let (id, interface) = (group.id, group.interface.as_ref());
            let fields = Election::log_fields(Some(election))(instance_of(id));
            let filtered = interface.and_then(reverse_path::problem);
            event_log::log_interface(&fields, Cause::ReversePath(id.0), filtered, &mut self.problems);
            let balanced = interface.filter(|_| self.proxy.balancer().is_some());
            let unserved = balanced.and_then(|interface| vrf::problem(interface, accepted, has_tproxy));
            event_log::log_interface(&fields, Cause::Vrf(id.0), unserved, &mut self.problems);
        }
    }
}
