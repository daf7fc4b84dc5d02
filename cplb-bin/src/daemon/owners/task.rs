//! The watch of one link: its sockets, and a core for each instance.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vrrp::owners::{Holder, Owners, OwnersSocket, Timing};
use vrrp::router::StateName;
use vrrp::runner::{InstanceId, InstanceStatus, RunnerHandle, RunnerStatus};

use super::{Board, Instances, Link, Watched};

/// The wait after the sockets could not be opened or failed.
const RETRY: Duration = Duration::from_secs(5);

/// The time in which at most [`CLAIMS`] are handled, after which the results are posted. A flood of forged claims takes no more
/// of the daemon's thread.
const WINDOW: Duration = Duration::from_millis(100);
const CLAIMS: u32 = 100;

/// Runs until the owner drops its end.
pub(super) async fn run(
    link: Link,
    mut instances: watch::Receiver<Instances>,
    runner: RunnerHandle,
    board: Arc<Mutex<Board>>,
) {
    let (cores, watched) = (BTreeMap::new(), BTreeMap::new());
    let mut task = Task { link, status: runner.status(), runner, board, cores, watched };
    loop {
        let error = match task.watch(&mut instances).await {
            Ok(()) => return,
            Err(error) => error,
        };
        task.board.lock().unwrap_or_else(PoisonError::into_inner).error = Some(error.to_string());
        tokio::time::sleep(RETRY).await;
        if instances.has_changed().is_err() {
            return;
        }
    }
}

struct Task {
    link: Link,
    runner: RunnerHandle,
    /// The status that the cores follow.
    status: Arc<RunnerStatus>,
    board: Arc<Mutex<Board>>,
    cores: BTreeMap<InstanceId, Owners>,
    watched: Instances,
}

impl Task {
    /// Watches until the owner drops its end, or a socket fails.
    async fn watch(&mut self, instances: &mut watch::Receiver<Instances>) -> io::Result<()> {
        let Link { index, mac, source, .. } = self.link;
        let socket = OwnersSocket::open(index, mac, source)?;
        self.board.lock().unwrap_or_else(PoisonError::into_inner).error = None;
        loop {
            let current = instances.borrow_and_update().clone();
            self.set(current);
            self.follow(self.runner.status(), Instant::now());
            let mut filter = self.addresses();
            socket.watch(&filter)?;
            let (mut window_ends, mut claims, mut received) = (Instant::now(), 0, None);
            loop {
                let now = Instant::now();
                if self.follow_election(now) {
                    // The Active's address is among those that are listened to.
                    let addresses = self.addresses();
                    if addresses != filter {
                        socket.watch(&addresses)?;
                        filter = addresses;
                    }
                }
                // Compared with the Active of this moment.
                if let Some(claim) = received.take() {
                    self.cores.values_mut().for_each(|core| core.handle_claim(now, claim));
                }
                self.ask(now, &socket);
                if now >= window_ends {
                    self.post();
                    (window_ends, claims) = (now + WINDOW, 0);
                }
                let wake = self.cores.values().map(Owners::poll_timeout).min();
                let wake = wake.unwrap_or(now + RETRY).max(now + Duration::from_millis(10));
                // The results of the claims are posted at the end of the window.
                let wake = if claims > 0 { wake.min(window_ends) } else { wake };
                tokio::select! {
                    result = instances.changed() => match result {
                        Ok(()) => break,
                        Err(_) => return Ok(()),
                    },
                    claim = socket.receive(), if claims < CLAIMS => {
                        claims += 1;
                        received = Some(claim?);
                    }
                    () = tokio::time::sleep_until(wake.into()) => {}
                }
                // A flood of claims must not keep the loop of the daemon from its work.
                tokio::task::yield_now().await;
            }
        }
    }

    fn set(&mut self, instances: Instances) {
        self.cores.retain(|id, _| {
            instances.get(id).is_some_and(|new| self.watched.get(id).is_some_and(|old| old.vrid == new.vrid))
        });
        for (id, Watched { vrid, addresses, controllers, .. }) in &instances {
            let new = || Owners::new(Timing::default(), *vrid, self.link.mac, Instant::now());
            let core = self.cores.entry(*id).or_insert_with(new);
            core.handle_addresses(addresses.clone(), controllers.clone());
        }
        self.watched = instances;
    }

    /// The addresses whose claims count.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        let listed = self.watched.values().flat_map(|watched| {
            watched.addresses.iter().chain(&watched.controllers).chain([&watched.own]).copied()
        });
        let holders = self.cores.values().filter_map(|core| core.holder().map(|holder| holder.reference));
        listed.chain(holders).collect()
    }

    /// Passes a changed Active to the cores. Returns whether the status changed; it is at most 200 ms old.
    fn follow_election(&mut self, now: Instant) -> bool {
        let status = self.runner.status();
        let changed = !Arc::ptr_eq(&status, &self.status);
        if changed {
            self.follow(status, now);
        }
        changed
    }

    fn follow(&mut self, status: Arc<RunnerStatus>, now: Instant) {
        let routers: BTreeMap<InstanceId, &InstanceStatus> =
            status.instances.iter().map(|router| (router.id, router)).collect();
        for (id, core) in &mut self.cores {
            let own = self.watched.get(id).map(|watched| watched.own);
            core.handle_holder(now, routers.get(id).zip(own).and_then(|(router, own)| holder(router, own)));
        }
        self.status = status;
    }

    fn ask(&mut self, now: Instant, socket: &OwnersSocket) {
        let mut asked = BTreeSet::new();
        for (id, core) in &mut self.cores {
            core.handle_timeout(now);
            let own = self.watched.get(id).and_then(|watched| match watched.own {
                IpAddr::V4(own) => Some(own),
                IpAddr::V6(_) => None,
            });
            asked.extend(std::iter::from_fn(|| core.poll_question()).map(|question| (question, own)));
        }
        for (question, own) in asked {
            // A question that is not sent is asked again in the next round.
            let _ = socket.ask(question, own);
        }
    }

    fn post(&self) {
        let found = self.cores.iter().map(|(id, core)| (*id, core.foreign().collect::<Vec<_>>()));
        let found = found.filter(|(_, owners)| !owners.is_empty()).collect();
        self.board.lock().unwrap_or_else(PoisonError::into_inner).found = found;
    }
}

/// The holder as a router sees it; `None` while it changes, or is not known.
fn holder(router: &InstanceStatus, own: IpAddr) -> Option<Holder> {
    match (router.state, router.active) {
        (StateName::Active, _) => Some(Holder { reference: own, is_own: true }),
        (StateName::Backup, Some(active)) => Some(Holder { reference: active.source, is_own: false }),
        _ => None,
    }
}
