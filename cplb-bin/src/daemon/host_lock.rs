//! Excludes two daemons that manage addresses and tables from one network namespace. A daemon without virtual IPs
//! manages neither, and any number of those may run beside each other.

use cplb_config::Config;

use crate::exit::Failure;
use crate::lock::{self, Locked, NamespaceLock};

use super::problems::{Cause, Problems};

/// The lock of the network namespace; absent while it is not needed, or while a process that is no daemon holds its name.
#[derive(Debug)]
pub(crate) struct HostLock(Option<NamespaceLock>);

impl HostLock {
    /// Locks the network namespace at the start, if `config` needs that.
    pub(crate) async fn at_start(config: &Config) -> Result<Self, Failure> {
        if !is_exclusive(config) {
            return Ok(Self(None));
        }
        let locked = lock::acquire_at_start().await.map_err(|error| Failure::from(&error))?;
        Ok(Self(locked.held()))
    }

    /// Locks the network namespace for `config`, if that needs it.
    ///
    /// # Errors
    /// If another daemon holds the lock.
    pub(crate) fn acquire_for(&mut self, config: &Config, problems: &mut Problems) -> Result<(), Failure> {
        if self.0.is_some() || !is_exclusive(config) {
            return Ok(());
        }
        match lock::acquire().map_err(|error| Failure::from(&error))? {
            Locked::Held(lock) => self.0 = Some(lock),
            Locked::Without(why) | Locked::Unanswered(why) => report_unlocked(&why, problems),
        }
        Ok(())
    }

    /// Tries again to lock the network namespace, if another process held the name before.
    pub(crate) fn retry(&mut self, problems: &mut Problems) {
        if self.0.is_some() {
            return;
        }
        match lock::acquire() {
            Ok(Locked::Held(lock)) => {
                self.0 = Some(lock);
                problems.clear(&Cause::NamespaceLock);
                tracing::info!("network namespace locked");
            }
            Ok(Locked::Without(why) | Locked::Unanswered(why)) => report_unlocked(&why, problems),
            Err(error) => report_unlocked(&error.to_string(), problems),
        }
    }

    /// Unlocks the network namespace, once this daemon manages no addresses and tables.
    pub(crate) fn release(&mut self, problems: &mut Problems) {
        self.0 = None;
        problems.clear(&Cause::NamespaceLock);
    }
}

fn report_unlocked(why: &str, problems: &mut Problems) {
    if problems.raise(Cause::NamespaceLock, why) {
        tracing::warn!("network namespace not locked: {why}");
    }
}

/// Returns whether a configuration has virtual IPs, and so needs the lock.
pub(super) fn is_exclusive(config: &Config) -> bool {
    !config.instances.is_empty() || !config.virtual_servers.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configurations_with_virtual_ips_need_the_host_lock() {
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
