//! Health checks against real and hostile servers on loopback.

mod cost;
mod good;
mod hostile;
mod servers;
mod trusted;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_proxy::health::{
    HealthChange, HealthState, Monitor, MonitorOptions, Target, TargetKey, TargetSnapshot,
};
use lb_proxy::{HealthCheck, HealthKind};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

/// A monitor and the changes that it reported.
struct Watch {
    monitor: Monitor,
    changes: UnboundedReceiver<HealthChange>,
}

impl Watch {
    fn new(targets: impl IntoIterator<Item = Target>) -> Self {
        let (sender, changes) = unbounded_channel();
        let sink = Box::new(move |change| drop(sender.send(change)));
        let monitor = Monitor::spawn(MonitorOptions { mark: 0, seed: 1 }, sink).unwrap();
        monitor.update(targets.into_iter().collect());
        Self { monitor, changes }
    }

    async fn change(&mut self) -> HealthChange {
        timeout(PATIENCE, self.changes.recv()).await.expect("no change").unwrap()
    }

    /// Returns the next health state of the only target.
    async fn state(&mut self) -> HealthState {
        self.change().await.to
    }

    /// Returns the snapshot of the only target after `count` more checks.
    async fn after_checks(&self, count: u64) -> TargetSnapshot {
        let goal = self.known().checks + count;
        let reached = async {
            loop {
                let known = self.known();
                if known.checks >= goal {
                    return known;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, reached).await.expect("the checks do not continue")
    }

    fn known(&self) -> TargetSnapshot {
        let mut all = self.monitor.snapshot();
        assert!(all.len() <= 1, "{all:?}");
        // The first update may not have reached the monitor's thread yet.
        all.pop().unwrap_or_else(|| {
            std::thread::sleep(Duration::from_millis(20));
            self.monitor.snapshot().pop().expect("no target")
        })
    }

    fn assert_quiet(&mut self) {
        assert!(self.changes.try_recv().is_err());
    }
}

/// A check every 50 ms with a timeout of 1 s: rise 1, fall 2.
fn check(kind: HealthKind) -> HealthCheck {
    HealthCheck { kind, interval: Duration::from_millis(50), ..HealthCheck::default() }
}

fn https() -> HealthKind {
    HealthKind::https("/readyz")
}

fn target(addr: SocketAddr, check: HealthCheck) -> Target {
    Target::new("kube-apiserver", addr, check).unwrap()
}

fn key(addr: SocketAddr) -> TargetKey {
    TargetKey { service: Arc::from("kube-apiserver"), backend: addr }
}
