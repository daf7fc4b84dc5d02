//! The keeper's thread and the handle to it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::event::{EventSink, Warning};
use crate::event_loop;
use crate::mailbox::{Command, Mailbox};
use crate::manager::{Manager, SessionPolicy};
use crate::netlink::NetlinkKernel;
use crate::record::{RegisterError, Registrar};
use crate::socket::KernelError;
use crate::status::Status;
use crate::types::{GroupError, GroupId, Release, VipGroupConfig};

/// Options of a keeper.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeeperOptions {
    /// Directory for its record, created with mode 0700 if absent, and locked: one keeper per directory.
    pub state_dir: PathBuf,
    /// Ask for real-time priority; without it a [`Warning::RealtimeUnavailable`] is sent and work goes on.
    pub realtime: bool,
    /// Receive buffer for the kernel's events in bytes. Too small only means more resyncs.
    pub event_buffer: usize,
    /// Treatment of TCP sessions through an address that goes.
    pub sessions: SessionPolicy,
}

impl KeeperOptions {
    /// Real-time priority, 1 MiB of event buffer, sessions reset.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let (realtime, event_buffer) = (true, 1 << 20);
        Self { state_dir: state_dir.into(), realtime, event_buffer, sessions: SessionPolicy::default() }
    }
}

/// Failure to start a keeper. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// CAP_NET_ADMIN is missing in this network namespace.
    #[error("changing addresses needs CAP_NET_ADMIN: run as root or grant the capability")]
    Permission,
    /// The groups or the state directory cannot be used.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A netlink socket could not be opened.
    #[error("opening a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The thread or its event loop could not be started.
    #[error("starting the VIP keeper's thread: {0}")]
    Thread(#[source] io::Error),
}

/// Starts keepers.
#[derive(Debug)]
pub struct Keeper;

impl Keeper {
    /// Removes what an earlier run left behind, as [`Keeper::spawn`] does too. For owners that have something to do between
    /// the two: an address that is left brings clients to this node, which are cut off when it goes. Returns what was removed,
    /// and what could not be read.
    ///
    /// # Errors
    /// [`SpawnError`], as [`Keeper::spawn`].
    pub fn reclaim(state_dir: &Path) -> Result<Vec<Warning>, SpawnError> {
        open(state_dir).map(|(_, found)| found)
    }

    /// Removes what an earlier run left behind, then starts the thread `vip-keeper` in the calling thread's network
    /// namespace. It reports every group's interface at once and touches no address before the first claim.
    ///
    /// # Errors
    /// [`SpawnError`]; the state directory is written before this returns.
    pub fn spawn(
        options: KeeperOptions,
        groups: Vec<VipGroupConfig>,
        events: EventSink,
    ) -> Result<KeeperHandle, SpawnError> {
        let KeeperOptions { state_dir, realtime, event_buffer, sessions } = options;
        let (mut registrar, found) = open(&state_dir)?;
        let (groups, foreign) = registrar.add(groups)?;
        let mut warnings: Vec<_> = found.into_iter().map(|warning| (None, warning)).collect();
        warnings.extend(foreign);

        let kernel = NetlinkKernel::open().map_err(SpawnError::Socket)?;
        let mailbox = Arc::new(Mailbox::default());
        let mut manager = Manager::new(kernel, sessions, mailbox.validity());
        groups.into_iter().for_each(|group| manager.add(group));
        warnings.into_iter().for_each(|(id, warning)| manager.warn(id, warning));

        let (started, start) = mpsc::sync_channel(1);
        let shared = Arc::clone(&mailbox);
        let body = move || event_loop::run(manager, event_buffer, shared, events, realtime, &started);
        let thread =
            std::thread::Builder::new().name("vip-keeper".into()).spawn(body).map_err(SpawnError::Thread)?;
        let ended = || Err(io::Error::other("the thread ended early"));
        start.recv().unwrap_or_else(|_| ended()).map_err(SpawnError::Thread)?;
        let registrar = Mutex::new(registrar);
        let inner = Inner { mailbox, registrar, thread: Mutex::new(Some(thread)) };
        Ok(KeeperHandle { inner: Arc::new(inner) })
    }
}

/// Takes the state directory, and removes what an earlier run left behind.
fn open(state_dir: &Path) -> Result<(Registrar<NetlinkKernel>, Vec<Warning>), SpawnError> {
    let mut kernel = NetlinkKernel::open().map_err(SpawnError::Socket)?;
    kernel.check_privilege().map_err(|_: KernelError| SpawnError::Permission)?;
    Ok(Registrar::open(state_dir, kernel)?)
}

/// Commands for a keeper. Clones command the same one. When the last is dropped the keeper removes everything of its
/// own and ends.
#[derive(Clone)]
pub struct KeeperHandle {
    inner: Arc<Inner>,
}

struct Inner {
    mailbox: Arc<Mailbox>,
    registrar: Mutex<Registrar<NetlinkKernel>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.mailbox.command(Command::Shutdown);
    }
}

impl KeeperHandle {
    /// This node may hold the group's addresses until `valid_until`. The first claim installs them, later ones
    /// refresh the lease; without them the addresses go. Never blocks.
    pub fn claim(&self, id: GroupId, valid_until: Instant) {
        self.inner.mailbox.claim(id, valid_until);
    }

    /// The last claim is valid until then, longer than the claim itself. Call it with each advertisement: a write that
    /// the kernel takes long for is judged by it, and one that ends later than the election's last word is undone,
    /// with [`KeeperEvent::LeaseLost`](crate::KeeperEvent::LeaseLost). Never blocks, and does not wake the keeper.
    pub fn extend(&self, id: GroupId, valid_until: Instant) {
        self.inner.mailbox.extend(id, valid_until);
    }

    /// This node gives the group's addresses up: they are removed as `release` says, and only a later claim brings them
    /// back. Answered by [`KeeperEvent::Removed`](crate::KeeperEvent::Removed) when they are gone. Never blocks.
    pub fn release(&self, id: GroupId, release: Release) {
        self.inner.mailbox.release(id, release);
    }

    /// A planned release that waits for another thread: the addresses stay until [`KeeperHandle::finish_release`], or
    /// until `deadline`. A claim that comes before ends the wait: nothing that follows the release revokes it, and it
    /// is answered by [`KeeperEvent::Installed`](crate::KeeperEvent::Installed). The first of several deadlines
    /// counts. Never blocks.
    pub fn release_by(&self, id: GroupId, deadline: Instant) {
        self.inner.mailbox.release_by(id, deadline);
    }

    /// Ends the wait of [`KeeperHandle::release_by`]. Does nothing if it has ended. Never blocks.
    pub fn finish_release(&self, id: GroupId) {
        self.inner.mailbox.finish_release(id);
    }

    /// Returns whether a release waits for [`KeeperHandle::finish_release`]. Never blocks.
    pub fn defers_release(&self, id: GroupId) -> bool {
        self.inner.mailbox.defers_release(id)
    }

    /// Adds a group. Blocks for writing and syncing the state file (milliseconds; longer on a busy disk).
    ///
    /// # Errors
    /// [`RegisterError`]; the keeper then goes on as before.
    pub fn add_group(&self, config: VipGroupConfig) -> Result<(), RegisterError> {
        let (groups, warnings) = self.registrar(|registrar| registrar.add(vec![config]))?;
        for group in groups {
            self.inner.mailbox.command(Command::Add(Box::new(group)));
        }
        self.announce(warnings);
        Ok(())
    }

    /// Changes the group of the same id: addresses that stay are not touched, those that are no longer wanted are
    /// removed now, new ones come with the next claim. Blocks as [`KeeperHandle::add_group`] does.
    ///
    /// # Errors
    /// [`RegisterError`]; the keeper then goes on as before.
    pub fn update_group(&self, config: VipGroupConfig) -> Result<(), RegisterError> {
        let (group, warnings) = self.registrar(|registrar| registrar.update(config))?;
        self.inner.mailbox.command(Command::Update(Box::new(group)));
        self.announce(warnings);
        Ok(())
    }

    /// Makes these the groups, and no others: as [`KeeperHandle::add_group`], [`KeeperHandle::update_group`] and
    /// [`KeeperHandle::remove_group`] together, except that an address may change its group. What stays as it is goes
    /// on undisturbed. Blocks as [`KeeperHandle::add_group`] does.
    ///
    /// # Errors
    /// [`RegisterError`]; the keeper then goes on as before, with all groups.
    pub fn set_groups(&self, groups: Vec<VipGroupConfig>) -> Result<(), RegisterError> {
        let (change, warnings) = self.registrar(|registrar| registrar.set(groups))?;
        let removed = change.removed.into_iter().map(Command::Remove);
        let updated = change.updated.into_iter().map(|group| Command::Update(Box::new(group)));
        let added = change.added.into_iter().map(|group| Command::Add(Box::new(group)));
        self.inner.mailbox.command_all(removed.chain(updated).chain(added));
        self.announce(warnings);
        Ok(())
    }

    /// Removes the group and what is there of it, as a planned release. Never blocks for long.
    ///
    /// # Errors
    /// [`GroupError::Unknown`].
    pub fn remove_group(&self, id: GroupId) -> Result<(), GroupError> {
        self.registrar(|registrar| registrar.remove(id))?;
        self.inner.mailbox.command(Command::Remove(id));
        Ok(())
    }

    /// Writes the record of the groups if that failed before, as [`Warning::Unrecorded`] said. Blocks as
    /// [`KeeperHandle::add_group`] does.
    ///
    /// # Errors
    /// Why it still cannot be written.
    pub fn save_record(&self) -> io::Result<()> {
        self.registrar(Registrar::save)
    }

    /// The last published snapshot: at most 10 ms older than the last event, and a second where only counters changed.
    pub fn status(&self) -> Arc<Status> {
        self.inner.mailbox.status()
    }

    /// Pings the keeper, and returns for how long the last ping is unanswered: zero, if it answered the last
    /// one. A keeper that is unresponsive for seconds holds no address, because leases end without it. Never blocks.
    pub fn unresponsive_for(&self) -> Duration {
        self.inner.mailbox.ping()
    }

    /// Returns whether the keeper's thread is at work. A keeper that stopped without [`KeeperHandle::shutdown`]
    /// panicked: the kernel then ends the leases, and only a new keeper holds an address again.
    pub fn is_running(&self) -> bool {
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Removes everything of ours and ends the thread. Returns at once; see [`KeeperHandle::join`].
    pub fn shutdown(&self) {
        self.inner.mailbox.command(Command::Shutdown);
    }

    /// Waits for the thread to end and then forgets the record. The first call does; others return at once.
    ///
    /// # Errors
    /// If the thread panicked, or the record could not be removed.
    pub fn join(&self) -> io::Result<()> {
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        thread.join().map_err(|_| io::Error::other("the VIP keeper's thread panicked"))?;
        self.registrar(Registrar::forget)
    }

    fn registrar<T>(&self, act: impl FnOnce(&mut Registrar<NetlinkKernel>) -> T) -> T {
        act(&mut self.inner.registrar.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn announce(&self, warnings: Vec<(Option<GroupId>, Warning)>) {
        for (id, warning) in warnings {
            self.inner.mailbox.command(Command::Warn(id, warning));
        }
    }
}
