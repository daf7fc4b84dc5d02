//! The owner's side: starts the thread and sends it commands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::engine::{Engine, Owner};
use super::status::RunnerStatus;
use super::{InstanceConfig, InstanceId, Interface, RunnerEvent, RunnerOptions, SpawnError, VipKeeper};
use crate::router::VipEvent;

/// The commands of the owner.
pub(super) enum Command {
    Interface(InstanceId, Option<Interface>),
    Vip(InstanceId, VipEvent),
    /// The end of the evidence that the node can serve, and the instances that it should not hold all the same.
    Serving(Instant, BTreeSet<InstanceId>),
    NotServing,
    Controllers(BTreeSet<IpAddr>),
    ResignAll,
    Resign(InstanceId),
    Succession(InstanceId, [IpAddr; 2], Instant),
    HandOver(InstanceId),
    Peers(InstanceId, Vec<IpAddr>),
    Add(Box<InstanceConfig>),
    Remove(InstanceId),
    Shutdown(Duration),
    Abort,
    Ping(Arc<AtomicU64>, u64),
}

/// The thread panicked, which is a bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the VRRP thread panicked")]
pub struct JoinError;

/// A handle of a runner. No method waits for it, except [`RunnerHandle::join`] and [`RunnerHandle::ended`].
///
/// When the last handle is dropped, the runner shuts down within 5 s as by [`RunnerHandle::shutdown`].
#[derive(Clone)]
pub struct RunnerHandle(Arc<Shared>);

struct Shared {
    commands: UnboundedSender<Command>,
    status: Arc<ArcSwap<RunnerStatus>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RunnerHandle {
    /// Gives a router its interface; `None` if the interface does not exist.
    ///
    /// To be called at the start and at each change. A router takes part while its interface is up, has a source
    /// address and its sockets could be opened.
    pub fn interface(&self, instance: InstanceId, interface: Option<Interface>) {
        self.send(Command::Interface(instance, interface));
    }

    /// Reports what happened to a router's virtual addresses.
    pub fn vip(&self, instance: InstanceId, event: VipEvent) {
        self.send(Command::Vip(instance, event));
    }

    /// Reports that this node can serve, which is valid until `until` unless it is reported again.
    pub fn serving(&self, until: Instant) {
        self.serving_except(until, BTreeSet::new());
    }

    /// The same, but not for the instances in `unfit`, for example because one of their addresses cannot be installed
    /// here: these advertise the degraded priority.
    pub fn serving_except(&self, until: Instant, unfit: BTreeSet<InstanceId>) {
        self.send(Command::Serving(until, unfit));
    }

    /// Reports that this node cannot serve.
    pub fn not_serving(&self) {
        self.send(Command::NotServing);
    }

    /// Gives all routers the addresses of the cluster's controllers, as far as they are known; see
    /// [`Command::Controllers`](crate::router::Command::Controllers).
    pub fn controllers(&self, addresses: BTreeSet<IpAddr>) {
        self.send(Command::Controllers(addresses));
    }

    /// Hands the addresses of one router over and stops it for good.
    pub fn resign(&self, instance: InstanceId) {
        self.send(Command::Resign(instance));
    }

    /// Names the router that is to have the addresses of a router's group after `active`; see
    /// [`Command::Succession`](crate::router::Command::Succession).
    pub fn succession(&self, instance: InstanceId, active: IpAddr, successor: IpAddr, until: Instant) {
        self.send(Command::Succession(instance, [active, successor], until));
    }

    /// Hands the addresses of one router over, which then waits behind its successor; see
    /// [`Command::HandOver`](crate::router::Command::HandOver). The result is in
    /// [`InstanceStatus::last_move`](super::InstanceStatus::last_move).
    pub fn hand_over(&self, instance: InstanceId) {
        self.send(Command::HandOver(instance));
    }

    /// Replaces the peers of a router that sends by unicast. It has no effect on one that sends by multicast.
    pub fn peers(&self, instance: InstanceId, peers: Vec<IpAddr>) {
        self.send(Command::Peers(instance, peers));
    }

    /// Hands all addresses over and stops all routers for good.
    pub fn resign_all(&self) {
        self.send(Command::ResignAll);
    }

    /// Adds a router. One of the same name is reconfigured instead.
    pub fn add(&self, instance: InstanceConfig) {
        self.send(Command::Add(Box::new(instance)));
    }

    /// Changes the configuration of the router of that name, keeping its state where that makes sense. If there is
    /// none, it is added.
    pub fn reconfigure(&self, instance: InstanceConfig) {
        self.add(instance);
    }

    /// Hands the addresses of a router over, stops it and drops it.
    pub fn remove(&self, instance: InstanceId) {
        self.send(Command::Remove(instance));
    }

    /// Asks the thread to store `number` in `answer`, which it does as soon as it runs: a supervisor learns whether it hangs.
    pub fn ping(&self, answer: Arc<AtomicU64>, number: u64) {
        self.send(Command::Ping(answer, number));
    }

    /// The state of everything, as of at most 200 ms ago.
    #[must_use]
    pub fn status(&self) -> Arc<RunnerStatus> {
        self.0.status.load_full()
    }

    /// Lets all routers resign and ends the thread when they have, at the latest after `bound`. Addresses that are
    /// still claimed then are released.
    pub fn shutdown(&self, bound: Duration) {
        self.send(Command::Shutdown(bound));
    }

    /// Ends the thread as a crash would: no router resigns and no address is released.
    pub fn abort(&self) {
        self.send(Command::Abort);
    }

    /// Returns whether the thread has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.commands.is_closed()
    }

    /// Waits for the end of the thread.
    pub async fn ended(&self) {
        self.0.commands.closed().await;
    }

    /// Waits for the end of the thread by blocking.
    ///
    /// # Errors
    ///
    /// The thread panicked. Only the first caller gets the error.
    pub fn join(&self) -> Result<(), JoinError> {
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.map_or(Ok(()), |thread| thread.join().map_err(|_| JoinError))
    }

    fn send(&self, command: Command) {
        // After the thread has ended, commands have no effect.
        let _ended = self.0.commands.send(command);
    }
}

impl std::fmt::Debug for RunnerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunnerHandle").field("ended", &self.has_ended()).finish_non_exhaustive()
    }
}

pub(super) fn spawn(
    options: RunnerOptions,
    instances: Vec<InstanceConfig>,
    keeper: Box<dyn VipKeeper>,
    events: Box<dyn Fn(RunnerEvent) + Send>,
) -> Result<RunnerHandle, SpawnError> {
    let (sender, commands) = unbounded_channel();
    let status = Arc::new(ArcSwap::from_pointee(RunnerStatus::empty(Instant::now())));
    let owner = Owner { commands, status: Arc::clone(&status), keeper, events };
    let (started, start) = mpsc::sync_channel(1);
    let body = move || run(&options, instances, owner, &started);
    let thread = std::thread::Builder::new().name("vrrp".into()).spawn(body).map_err(SpawnError::Thread)?;
    match start.recv() {
        Ok(Ok(())) => {
            Ok(RunnerHandle(Arc::new(Shared { commands: sender, status, thread: Mutex::new(Some(thread)) })))
        }
        Ok(Err(error)) => Err(error),
        // It panicked before it could answer.
        Err(mpsc::RecvError) => Err(SpawnError::Thread(std::io::Error::other(JoinError))),
    }
}

fn run(
    options: &RunnerOptions,
    instances: Vec<InstanceConfig>,
    owner: Owner,
    started: &mpsc::SyncSender<Result<(), SpawnError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _gone = started.send(Err(SpawnError::Reactor(error)));
            return;
        }
    };
    let engine = {
        let _context = runtime.enter();
        Engine::new(options, instances, owner)
    };
    let answer = match engine {
        Ok(engine) => {
            let _gone = started.send(Ok(()));
            // Cooperative budgets would hide sockets from an iteration once there are more than a hundred.
            runtime.block_on(tokio::task::coop::unconstrained(engine.run()));
            return;
        }
        Err(error) => Err(error),
    };
    let _gone = started.send(answer);
}
