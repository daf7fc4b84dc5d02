//! The election and the keeper of the addresses, started, changed and ended together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cplb_config::Config;
use netlink_vip::{Keeper, KeeperHandle, KeeperOptions, RegisterError, SpawnError as KeeperError};
use tokio::sync::mpsc::UnboundedSender;
use vrrp::router::StateName;
use vrrp::runner::{InstanceId, Runner, RunnerHandle, RunnerOptions};

use crate::exit::{Failure, Kind};
use crate::lock::{self, HostLock};

use super::blueprint::{self, Instance};
use super::link::{Event, Link, Wire};

/// How much longer than its own bound an ending election is waited for.
const END_GRACE: Duration = Duration::from_secs(2);

/// The two real-time threads and what they run.
pub(crate) struct Election {
    pub(crate) runner: RunnerHandle,
    pub(crate) keeper: KeeperHandle,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    link: Arc<Link>,
    /// Taken before the keeper hears of an address: it removes what it manages when it ends.
    addresses: BTreeMap<IpAddr, HostLock>,
}

impl Election {
    /// Starts both threads; `None` if the configuration has no instance.
    pub(crate) fn start(
        config: &Config,
        state_dir: &Path,
        events: &UnboundedSender<Event>,
    ) -> Result<Option<Self>, Failure> {
        let instances = plan(config)?;
        if instances.is_empty() {
            return Ok(None);
        }
        let mut addresses = BTreeMap::new();
        lock_addresses(config, &mut addresses)?;
        let link = Link::new(events.clone(), PathBuf::from(lock::DEFAULT_DIR));
        for instance in instances.values() {
            link.join(instance.id, instance.member);
        }
        let runner = {
            let (wire, heard) = (Wire(Arc::clone(&link)), Arc::clone(&link));
            let routers = instances.values().map(|instance| instance.router.clone()).collect();
            Runner::spawn(
                RunnerOptions::default(),
                routers,
                Box::new(wire),
                Box::new(move |event| heard.on_runner(event)),
            )
            .map_err(|error| Failure::new(Kind::System, format_args!("cannot start the election: {error}")))?
        };
        let groups = instances.values().map(|instance| instance.group.clone()).collect();
        let heard = Arc::clone(&link);
        let keeper = match Keeper::spawn(
            KeeperOptions::new(state_dir),
            groups,
            Box::new(move |event| heard.on_keeper(event)),
        ) {
            Ok(keeper) => keeper,
            Err(error) => {
                runner.abort();
                return Err(keeper_failure(&error));
            }
        };
        link.connect(keeper.clone(), runner.clone());
        Ok(Some(Self { runner, keeper, instances, link, addresses }))
    }

    /// Applies another configuration: what is equal goes on undisturbed.
    pub(crate) fn reload(&mut self, config: &Config) -> Result<(), Failure> {
        let wanted = plan(config)?;
        lock_addresses(config, &mut self.addresses)?;
        let gone: Vec<InstanceId> =
            self.instances.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for id in gone {
            self.runner.remove(id);
            self.instances.remove(&id);
            if let Err(error) = self.keeper.remove_group(netlink_vip::GroupId(id.0)) {
                tracing::warn!(%error, vrid = id.0, "removing an instance");
            }
            self.link.leave(id);
        }
        for (id, instance) in wanted {
            let changed = match self.instances.get(&id) {
                Some(known) if known.group == instance.group => Ok(()),
                Some(_) => self.keeper.update_group(instance.group.clone()),
                None => self.keeper.add_group(instance.group.clone()),
            };
            changed.map_err(|error| Failure::new(Kind::System, error))?;
            self.link.join(id, instance.member);
            if self.instances.get(&id).is_none_or(|known| known.router != instance.router) {
                self.runner.reconfigure(instance.router.clone());
                self.link.join(id, instance.member);
            }
            self.instances.insert(id, instance);
        }
        let used: BTreeSet<IpAddr> = config.virtual_ips().collect();
        self.addresses.retain(|ip, _| used.contains(ip));
        Ok(())
    }

    /// The longest a planned handover may take: Skew_Time and three intervals of the slowest instance.
    pub(crate) fn handover_bound(&self) -> Duration {
        self.instances.values().map(|i| i.router.router.down_interval()).max().unwrap_or_default()
    }

    /// Whether every router has handed over.
    pub(crate) fn is_over(&self) -> bool {
        self.runner.status().instances.iter().all(|instance| instance.state == StateName::Stopped)
    }

    /// Tries again to lock what another daemon held.
    pub(crate) fn retry_locks(&self) {
        self.link.retry_locks();
    }

    /// Ends both threads and removes everything of theirs.
    pub(crate) async fn end(self) {
        self.runner.shutdown(Duration::from_millis(100));
        if tokio::time::timeout(END_GRACE, self.runner.ended()).await.is_err() {
            tracing::warn!("the election does not end; going on without it");
            self.runner.abort();
        }
        self.keeper.shutdown();
        let keeper = self.keeper.clone();
        let joined = tokio::task::spawn_blocking(move || keeper.join());
        let joined = tokio::time::timeout(END_GRACE, joined).await;
        // Not earlier: while the addresses are there, no other daemon may take their place.
        self.link.leave_all();
        match joined {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the VIP keeper"),
            Ok(Err(error)) => tracing::warn!(%error, "the VIP keeper"),
            Err(_) => tracing::warn!(
                "the VIP keeper does not end; the kernel removes the addresses when their lease is over"
            ),
        }
    }
}

/// Locks the virtual IPs that are not locked yet.
fn lock_addresses(config: &Config, locked: &mut BTreeMap<IpAddr, HostLock>) -> Result<(), Failure> {
    for ip in config.virtual_ips() {
        if let Entry::Vacant(free) = locked.entry(ip) {
            let lock = HostLock::virtual_ip(Path::new(lock::DEFAULT_DIR), ip);
            free.insert(lock.map_err(|error| Failure::from(&error))?);
        }
    }
    Ok(())
}

fn plan(config: &Config) -> Result<BTreeMap<InstanceId, Instance>, Failure> {
    let instances = blueprint::instances(config).map_err(|error| Failure::new(Kind::Config, error))?;
    Ok(instances.into_iter().map(|instance| (instance.id, instance)).collect())
}

fn keeper_failure(error: &KeeperError) -> Failure {
    let kind = match error {
        KeeperError::Permission => Kind::Permission,
        KeeperError::Register(RegisterError::InUse { .. }) => Kind::Temporary,
        KeeperError::Register(_) => Kind::CannotCreate,
        _ => Kind::System,
    };
    let failure = Failure::new(kind, format_args!("cannot manage the virtual IPs: {error}"));
    match error {
        KeeperError::Register(_) => {
            failure.help("name another directory with --state-dir, unless another cplb should be stopped")
        }
        _ => failure,
    }
}
