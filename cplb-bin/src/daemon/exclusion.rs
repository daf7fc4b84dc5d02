//! Keeps two daemons that manage addresses and tables out of one network namespace. One without virtual IPs manages
//! neither, and any number of those may run beside each other.

use cplb_config::Config;

use crate::exit::Failure;
use crate::lock::{self, Locked};

use super::problems::Cause;
use super::{Daemon, Election};

impl Daemon {
    /// Locks the network namespace for `config`, if that needs it.
    ///
    /// # Errors
    /// If another daemon has it.
    pub(super) fn lock_for(&mut self, config: &Config) -> Result<(), Failure> {
        if self.lock.is_some() || !is_exclusive(config) {
            return Ok(());
        }
        match lock::acquire().map_err(|error| Failure::from(&error))? {
            Locked::Held(lock) => self.lock = Some(lock),
            Locked::Without(why) | Locked::Unanswered(why) => self.report_unlocked(&why),
        }
        Ok(())
    }

    /// Locks the network namespace once the process that had its name is gone, and unlocks it when there is nothing left
    /// to exclude others from.
    pub(super) fn keep_lock(&mut self) {
        let holds =
            self.election.as_ref().is_some_and(|election: &Election| election.addresses().next().is_some());
        if !is_exclusive(&self.config) && !holds && self.reloads.is_idle() {
            self.lock = None;
            self.problems.clear(&Cause::NamespaceLock);
            return;
        }
        if self.lock.is_some() {
            return;
        }
        match lock::acquire() {
            Ok(Locked::Held(lock)) => {
                self.lock = Some(lock);
                self.problems.clear(&Cause::NamespaceLock);
                tracing::info!("network namespace locked");
            }
            Ok(Locked::Without(why) | Locked::Unanswered(why)) => self.report_unlocked(&why),
            Err(error) => self.report_unlocked(&error.to_string()),
        }
    }

    fn report_unlocked(&mut self, why: &str) {
        if self.problems.raise(Cause::NamespaceLock, why) {
            tracing::warn!("network namespace not locked: {why}");
        }
    }
}

/// Whether a configuration has addresses, which need rules in the daemon's table, too.
pub(super) fn is_exclusive(config: &Config) -> bool {
    !config.instances.is_empty() || !config.virtual_servers.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configurations_with_addresses_exclude_each_other() {
        let config = |spec: &str| {
            let head = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n";
            let text = format!("{head}  backends: {{static: [10.0.0.11]}}\n{spec}");
            cplb_config::load(&text, "test.yaml").expect("it is accepted").config
        };
        assert!(!is_exclusive(&config("")));
        assert!(is_exclusive(&config("  vrrpInstances: [{virtualIPs: [10.0.0.100/24], version: 3}]\n")));
        assert!(is_exclusive(&config("  virtualServers: [{ipAddress: 10.0.0.200}]\n")));
    }
}
