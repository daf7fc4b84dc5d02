//! The keeper's event loop: it waits, handles all notifications and commands, then delivers events.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::event::{EventSink, KeeperEvent, Warning};
use crate::kernel::Kernel;
use crate::lease::Claim;
use crate::listener::{Listener, Notification};
use crate::mailbox::{Command, Intent, Mailbox, Pending};
use crate::manager::Manager;
use crate::realtime::make_current_thread_realtime;

/// Reads of the event socket before anything else gets its turn.
const READS_PER_ITERATION: usize = 64;
/// The published status is at most this old after an event.
const STATUS_DEBOUNCE: Duration = Duration::from_millis(10);
/// And this while only counters change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of checks of the last departure that waits for the owner of its sessions.
const DEPARTURE_POLL: Duration = Duration::from_millis(1);
/// Wakes up at least so often; there is no reason but to bound what a mistake can do.
const MAX_IDLE: Duration = Duration::from_secs(3_600);

/// The body of the thread. Tells `started` whether it runs.
pub(crate) fn run<K: Kernel>(
    mut manager: Manager<K>,
    event_buffer: usize,
    mailbox: Arc<Mailbox>,
    events: EventSink,
    realtime: bool,
    started: &SyncSender<io::Result<()>>,
) {
    // The receiver waits for exactly this; if it is gone, so is the reason to run.
    let (runtime, listener) = match set_up(event_buffer) {
        Ok(parts) => parts,
        Err(error) => return started.send(Err(error)).unwrap_or_default(),
    };
    let mut is_realtime = false;
    if realtime {
        match make_current_thread_realtime() {
            Ok(()) => is_realtime = true,
            Err(why) => manager.warn(None, Warning::RealtimeUnavailable { why }),
        }
    }
    mailbox.publish(manager.status(is_realtime));
    let published = manager.now();
    let event_loop =
        EventLoop { manager, listener, mailbox, events, realtime: is_realtime, published, unpublished: true };
    if started.send(Ok(())).is_ok() {
        runtime.block_on(event_loop.run());
    }
}

fn set_up(event_buffer: usize) -> io::Result<(Runtime, Listener)> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = runtime.block_on(async { Listener::open(event_buffer) })?;
    Ok((runtime, listener))
}

struct EventLoop<K> {
    manager: Manager<K>,
    listener: Listener,
    mailbox: Arc<Mailbox>,
    events: EventSink,
    realtime: bool,
    published: Instant,
    /// `true` if something happened since.
    unpublished: bool,
}

impl<K: Kernel> EventLoop<K> {
    async fn run(mut self) {
        loop {
            self.mailbox.pong();
            let unread = self.read_events();
            self.manager.reconcile();
            self.manager.handle_timeout();
            let pending = self.mailbox.take(self.manager.now());
            let is_last = self.handle_commands(pending);
            self.manager.advance();
            if is_last {
                self.finish();
                return;
            }
            self.watch_routes();
            self.deliver();
            if !unread && !self.manager.is_busy() {
                self.wait().await;
            }
        }
    }

    /// Lets everything go that is still there; the bounds of departures bound this, too.
    fn finish(&mut self) {
        self.manager.shutdown();
        while self.manager.is_departing() {
            if !self.manager.advance() {
                std::thread::sleep(DEPARTURE_POLL);
            }
            self.deliver();
        }
        self.deliver();
    }

    async fn wait(&mut self) {
        let status = self.unpublished.then(|| self.next_status());
        let Self { manager, listener, mailbox, .. } = self;
        let idle = manager.now() + MAX_IDLE;
        let deadlines = [manager.poll_timeout(), mailbox.deadline(), status];
        let deadline = deadlines.into_iter().flatten().fold(idle, Instant::min);
        tokio::select! {
            () = mailbox.changed() => {}
            () = listener.wait(|notification| manager.handle_notification(notification)) => {}
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
    }

    /// Takes in the kernel's events. Returns whether some may be left.
    fn read_events(&mut self) -> bool {
        let Self { manager, listener, .. } = self;
        (0..READS_PER_ITERATION)
            .all(|_| listener.read(|notification| manager.handle_notification(notification)))
    }

    /// Carries out commands, claims and releases of other threads. Returns whether shutdown was among them.
    fn handle_commands(&mut self, pending: Pending) -> bool {
        let mut last = false;
        for command in pending.commands {
            match command {
                Command::Add(group) => self.manager.add(*group),
                Command::Update(group) => self.manager.update(*group),
                Command::Remove(id) => self.manager.remove(id),
                Command::Warn(id, warning) => self.manager.warn(id, warning),
                Command::Shutdown => last = true,
            }
        }
        for (id, intent) in pending.intents {
            match intent {
                Intent::Claim(claim) => self.manager.claim(id, &claim),
                Intent::Release(release, claim) => {
                    self.manager.release(id, release);
                    if let Some(claim) = claim {
                        // It came after the release, which is carried out only now.
                        let issued = self.manager.now();
                        self.manager.claim(id, &Claim { issued, ..claim });
                    }
                }
            }
        }
        last
    }

    fn watch_routes(&mut self) {
        let wanted = self.manager.needs_routes();
        // Changes before the subscription bring no event.
        match self.listener.watch_routes(wanted) {
            Ok(true) if wanted => self.manager.mark_routes_dirty(),
            Ok(_) => {}
            Err(_) => self.manager.handle_notification(Notification::Overrun),
        }
    }

    /// Publishes the status if it is due, then delivers the events.
    fn deliver(&mut self) {
        let new: Vec<KeeperEvent> = std::iter::from_fn(|| self.manager.poll_event()).collect();
        self.unpublished |= !new.is_empty();
        let now = self.manager.now();
        if now >= self.next_status() {
            (self.published, self.unpublished) = (now, false);
            self.mailbox.publish(self.manager.status(self.realtime));
        }
        for event in new {
            tracing::debug!(?event, "VIP keeper event");
            (self.events)(event);
        }
    }

    /// When the status is next to be published. With hundreds of groups that takes longer than a claim does.
    fn next_status(&self) -> Instant {
        self.published + if self.unpublished { STATUS_DEBOUNCE } else { STATUS_INTERVAL }
    }
}
