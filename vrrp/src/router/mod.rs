//! The election: one virtual router as a state machine without I/O and clock.

mod active;
mod announcer;
mod backup;
mod common;
mod config;
mod counters;
mod event;
mod handover;
mod offset;
mod output;
mod planned_move;
mod receive;
mod serving;
mod standing;
#[cfg(test)]
mod tests;
mod timers;

use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use config::{Preempt, RouterConfig, skew_time};
pub use counters::{Counters, Discard, Discards};
pub use event::{Command, Delivery, InterfaceEvent, RxMeta, VipEvent};
pub use output::{Claim, Output, Reason, Release, StateName, Transition, Warning, Watch};
pub use planned_move::{MoveSide, PlannedMove};
pub use timers::TimerName;

use self::active::Active;
use self::backup::Backup;
use self::common::{Core, Heard, Sources, Succession};
use self::handover::{Listening, Resigning, Yielding};
use self::receive::Accepted;
use crate::announce::Announcement;
use crate::packet::Advertisement;
use crate::prefix::LinkPrefix;
use crate::types::WirePriority;

/// One virtual router.
///
/// Events go in: [`handle_interface`](Self::handle_interface) first, which starts it, then
/// [`handle_advertisement`](Self::handle_advertisement), [`handle_unusable`](Self::handle_unusable),
/// [`handle_announcement`](Self::handle_announcement), [`handle_vip`](Self::handle_vip),
/// [`handle_command`](Self::handle_command), and [`handle_timeout`](Self::handle_timeout) when the time of
/// [`poll_timeout`](Self::poll_timeout) has come. After each of them call [`poll_output`](Self::poll_output) until it
/// is empty, carry the outputs out in that order, and poll the timeout again.
///
/// Hand in what has been received before an expired timeout: after a stall the queue may hold the advertisement
/// that forbids a takeover. `now` never goes backwards; an earlier one counts as the latest seen.
#[derive(Debug)]
pub struct VirtualRouter {
    core: Core,
    state: State,
    /// The latest time seen.
    clock: Instant,
}

#[derive(Debug)]
enum State {
    Init,
    Backup(Backup),
    Active(Active),
    Listening(Listening),
    Yielding(Yielding),
    Resigning(Resigning),
    Stopped,
}

/// The most deadlines that one call handles; any others stay due.
const MAX_TIMEOUTS: usize = 32;

impl VirtualRouter {
    /// A router that waits for its interface.
    #[must_use]
    pub fn new(config: RouterConfig, now: Instant) -> Self {
        Self { core: Core::new(config.bounded(), now), state: State::Init, clock: now }
    }

    /// Handles a change of the interface or of its addresses.
    pub fn handle_interface(&mut self, now: Instant, event: InterfaceEvent) {
        let now = self.wake(now);
        let (sources, down) = match event {
            InterfaceEvent::Up { v4, v6 } => (Sources { v4, v6 }, Reason::NoSourceAddress),
            InterfaceEvent::Down => (Sources::default(), Reason::InterfaceDown),
        };
        let changed = sources != self.core.sources;
        self.core.sources = sources;
        let up = self.core.own().is_some();
        self.step(|state, core| match state {
            State::Stopped => State::Stopped,
            State::Init if !up => {
                core.reason = down;
                State::Init
            }
            State::Resigning(resigning) if !up => resigning.abort(core, now, down),
            state if !up => {
                // Without a source address the link still carries the packets that reset sessions.
                let release = if down == Reason::InterfaceDown { Release::Lost } else { Release::Planned };
                Self::give_up(&state, core, release);
                core.transition(now, StateName::Init, down);
                State::Init
            }
            // RFC 9568 §6.4.1: a floating address has no owner, so every router starts as Backup.
            State::Init => Backup::enter(core, now, Reason::InterfaceUp, None),
            State::Backup(backup) if changed => backup.changed(core, now),
            State::Active(active) if changed => active.changed(core, now),
            state => state,
        });
    }

    /// Notes the addresses of the interface with their prefixes, virtual ones left out: a unicast peer within one of
    /// them is on the link. To be called before [`handle_interface`](Self::handle_interface) and whenever they change.
    pub fn handle_link_prefixes(&mut self, prefixes: Vec<LinkPrefix>) {
        self.core.prefixes = prefixes;
    }

    /// Handles a message that was received and decoded.
    ///
    /// # Errors
    ///
    /// The reason for which the message is discarded, and under which it is counted.
    pub fn handle_advertisement(
        &mut self,
        now: Instant,
        meta: &RxMeta,
        advertisement: &Advertisement,
    ) -> Result<(), Discard> {
        let now = self.wake(now);
        let running = !matches!(self.state, State::Init | State::Stopped);
        let accepted =
            if running { self.core.accept(now, meta, advertisement) } else { Err(Discard::NotRunning) };
        let heard = match accepted {
            Ok(Accepted::Decides(heard)) => heard,
            Ok(Accepted::Copy) => return Ok(()),
            Ok(Accepted::Follows(heard)) => {
                self.note_follower(now, heard.source, heard.priority);
                return Ok(());
            }
            Err(reason) => {
                self.core.counters.discarded.count(reason);
                return Err(reason);
            }
        };
        if self.is_ignored(&heard) || self.core.was_sent_before_resignation(now, &heard) {
            return Ok(());
        }
        self.step(|state, core| match state {
            State::Backup(backup) => backup.advertisement(core, now, &heard),
            State::Active(active) => active.advertisement(core, now, &heard),
            State::Listening(_) => Listening::advertisement(core, now, &heard),
            State::Yielding(yielding) => yielding.advertisement(core, now, &heard),
            State::Resigning(resigning) => resigning.advertisement(core, now, &heard),
            state @ (State::Init | State::Stopped) => state,
        });
        Ok(())
    }

    /// Counts a message that could not be decoded or verified, and returns the reason.
    pub fn handle_unusable(&mut self, error: impl Into<Discard>) -> Discard {
        let reason = error.into();
        self.core.counters.discarded.count(reason);
        reason
    }

    /// Counts a further copy of an advertisement, signed with another key of a sender that rotates its keys.
    pub const fn handle_copy(&mut self) {
        self.core.counters.copies += 1;
    }

    /// Handles an announcement of an address by another node (see [`Output::Watch`]).
    pub fn handle_announcement(&mut self, now: Instant, announcement: Announcement) {
        let now = self.wake(now);
        let ours = match announcement.ip {
            IpAddr::V4(ip) => self.core.config.addresses_v4.contains(&ip),
            IpAddr::V6(ip) => self.core.config.addresses_v6.contains(&ip),
        };
        self.step(|state, core| match state {
            State::Active(active) if ours => active.announced(core, now, announcement),
            State::Resigning(resigning) if ours => resigning.announced(core, now),
            State::Yielding(yielding) if ours => yielding.end(core, now),
            state => state,
        });
    }

    /// Handles an event of the virtual addresses.
    pub fn handle_vip(&mut self, now: Instant, event: VipEvent) {
        let now = self.wake(now);
        self.step(|state, core| match state {
            State::Active(active) => active.vip(core, now, event),
            State::Yielding(yielding) => yielding.vip(core, now, event),
            State::Resigning(resigning) => resigning.vip(core, now, event),
            state => state,
        });
    }

    /// Handles a command of the operator or the daemon.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        let now = self.wake(now);
        match command {
            Command::Serving { until } if until > now => self.serving(now, until),
            Command::Serving { .. } | Command::NotServing => self.not_serving(now),
            Command::Controllers(controllers) => self.core.controllers = controllers,
            Command::Resign => self.resign(now),
            Command::HandOver => self.step(|state, core| match state {
                State::Active(active) => active.hand_over(core, now),
                state => state,
            }),
            Command::Succession { active, successor, until } => {
                self.core.succession = Some(Succession { active, successor, until });
            }
            Command::Peers(peers) => self.core.config.peers = peers,
            Command::Reconfigure(config) => self.reconfigure(now, *config),
        }
    }

    /// Handles the deadlines that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.wake(now);
        for _ in 0..MAX_TIMEOUTS {
            let Some((due, name)) = self.core.timers.take_due(now) else { return };
            tracing::trace!(vrid = self.core.config.vrid.get(), timer = name.as_str(), "expired");
            self.expired(now, name, due);
        }
    }

    /// The next action to carry out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.core.outputs.pop_front()
    }

    /// The time at which to call [`handle_timeout`](Self::handle_timeout), never earlier than the latest time seen.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, TimerName)> {
        self.core.timers.next().map(|(at, name)| (at.max(self.clock), name))
    }

    /// The state's name.
    #[must_use]
    pub const fn state(&self) -> StateName {
        self.core.name
    }

    /// The time at which the state was entered.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.core.since
    }

    /// The cause of the last transition.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        self.core.reason
    }

    /// The counters since the router was made.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// The configuration in use.
    #[must_use]
    pub const fn config(&self) -> &RouterConfig {
        &self.core.config
    }

    /// The priority that this router would advertise now.
    #[must_use]
    pub fn priority(&self) -> WirePriority {
        self.core.effective()
    }

    /// Returns whether this node counts as able to serve.
    #[must_use]
    pub const fn is_serving(&self) -> bool {
        self.core.serving.settled()
    }

    /// The source of the Active's advertisements, as far as it is known; this router's own while it is Active.
    #[must_use]
    pub fn active_source(&self) -> Option<IpAddr> {
        match &self.state {
            State::Backup(backup) => backup.followed(),
            State::Active(_) => self.core.own(),
            _ => None,
        }
    }

    /// Active_Down_Interval as it is now (RFC 9568 §6.1), without the offset for equal priorities.
    #[must_use]
    pub fn down_interval(&self) -> Duration {
        let interval = match &self.state {
            State::Backup(backup) => backup.interval(&self.core),
            _ => self.core.config.interval(),
        };
        self.core.down(interval)
    }

    /// The time until which this node may hold the addresses; `None` if it may not.
    #[must_use]
    pub fn claim_until(&self) -> Option<Instant> {
        match &self.state {
            State::Active(active) => Some(active.claim_until(&self.core)),
            State::Yielding(yielding) => Some(yielding.claim_until()),
            State::Resigning(resigning) => Some(resigning.claim_until(&self.core, self.clock)),
            _ => None,
        }
    }

    /// The end of the hold time, during which this router does not ask for addresses that it gave away.
    #[must_use]
    pub const fn hold_until(&self) -> Option<Instant> {
        self.core.timers.get(TimerName::HoldEnd)
    }

    /// The last planned move that this router took part in, from its resignation or as the one that followed it.
    #[must_use]
    pub const fn last_move(&self) -> Option<PlannedMove> {
        self.core.last_move
    }

    /// Returns whether an advertisement of a weaker stranger is to be ignored. An Active answers it, and a Backup
    /// accepts it from the router that it follows when that one resigns or reports that it is degraded.
    fn is_ignored(&self, heard: &Heard) -> bool {
        let concerned = match &self.state {
            State::Active(_) => true,
            State::Backup(backup) => backup.is_declined_by(&self.core, heard),
            _ => false,
        };
        !concerned && self.core.is_weaker_stranger(heard) && !self.core.is_successor(self.clock, heard)
    }

    /// Takes the state through `transition`.
    fn step(&mut self, transition: impl FnOnce(State, &mut Core) -> State) {
        let state = std::mem::replace(&mut self.state, State::Stopped);
        self.state = transition(state, &mut self.core);
    }

    /// Advances the clock. Whatever the event is, a claim that ended while this process slept comes first.
    fn wake(&mut self, now: Instant) -> Instant {
        self.clock = self.clock.max(now);
        let now = self.clock;
        self.step(|state, core| match state {
            State::Active(active) => active.awake(core, now),
            State::Yielding(yielding) => yielding.awake(core, now),
            State::Resigning(resigning) => resigning.awake(core, now),
            state => state,
        });
        now
    }

    fn expired(&mut self, now: Instant, name: TimerName, due: Instant) {
        let late = now.saturating_duration_since(due);
        match name {
            TimerName::ServingExpiry => self.not_serving(now),
            TimerName::ServingSettled => self.settled(now),
            TimerName::HoldEnd => {
                self.core.hold = None;
                self.priority_changed(now);
            }
            _ => self.step(|state, core| match state {
                State::Backup(backup) => backup.timeout(core, now, name, late),
                State::Active(active) => active.timeout(core, now, name, due),
                State::Listening(_) => Listening::timeout(core, now, late),
                State::Yielding(yielding) => yielding.end(core, now),
                State::Resigning(resigning) => resigning.timeout(core, now, name),
                state @ (State::Init | State::Stopped) => state,
            }),
        }
    }

    fn serving(&mut self, now: Instant, until: Instant) {
        self.core.timers.set(TimerName::ServingExpiry, until);
        match self.core.serving.begin(now, self.core.config.takeover_after) {
            None => {}
            Some(settled) if settled > now => self.core.timers.set(TimerName::ServingSettled, settled),
            Some(_) => self.settled(now),
        }
    }

    fn settled(&mut self, now: Instant) {
        self.core.serving.settle();
        self.priority_changed(now);
    }

    fn not_serving(&mut self, now: Instant) {
        self.core.serving.end();
        self.core.timers.clear(TimerName::ServingExpiry);
        self.core.timers.clear(TimerName::ServingSettled);
        self.priority_changed(now);
    }

    fn priority_changed(&mut self, now: Instant) {
        self.step(|state, core| match state {
            State::Backup(backup) => backup.priority_changed(core, now),
            State::Active(active) => active.priority_changed(core, now),
            state => state,
        });
    }

    fn resign(&mut self, now: Instant) {
        self.step(|state, core| match state {
            State::Active(active) => active.resign(core, now),
            State::Resigning(resigning) => resigning.stop_afterwards(),
            State::Stopped => State::Stopped,
            state @ (State::Init | State::Backup(_) | State::Listening(_) | State::Yielding(_)) => {
                Self::give_up(&state, core, Release::Planned);
                core.transition(now, StateName::Stopped, Reason::Shutdown);
                State::Stopped
            }
        });
    }

    /// Another identity is another election. Anything else is taken over in place, so that nothing moves.
    fn reconfigure(&mut self, now: Instant, config: RouterConfig) {
        let config = config.bounded();
        let identity =
            |config: &RouterConfig| (config.vrid, config.deciding_family(), config.deciding_version());
        let same = identity(&config) == identity(&self.core.config);
        // A handover that only moves the addresses ends here, so that the router goes on with the new configuration.
        self.step(|state, core| match state {
            State::Resigning(resigning) if !resigning.stops() => resigning.interrupt(core, now),
            state => state,
        });
        if matches!(self.state, State::Resigning(_) | State::Stopped) {
            return;
        }
        let moved = config.addresses_v4 != self.core.config.addresses_v4
            || config.addresses_v6 != self.core.config.addresses_v6;
        self.core.config = config;
        let up = self.core.own().is_some();
        self.step(|state, core| match state {
            State::Init if up => Backup::enter(core, now, Reason::InterfaceUp, None),
            State::Backup(backup) if same => backup.changed(core, now),
            State::Active(active) if same && moved => active.readdressed(core, now),
            State::Active(active) if same => active.changed(core, now),
            state if same => state,
            state => {
                Self::give_up(&state, core, Release::Planned);
                if up {
                    return Backup::enter(core, now, Reason::Reconfigured, None);
                }
                if !matches!(state, State::Init) {
                    core.transition(now, StateName::Init, Reason::NoSourceAddress);
                }
                State::Init
            }
        });
    }

    /// Releases the addresses in a state that may hold them, before it is left.
    fn give_up(state: &State, core: &mut Core, release: Release) {
        match state {
            State::Active(_) => core.release(release),
            State::Yielding(_) => Yielding::release(core, release),
            _ => {}
        }
    }

    /// The other family follows, so its advertisements never decide. They show when a peer does not tie the families.
    fn note_follower(&mut self, now: Instant, source: IpAddr, priority: WirePriority) {
        let settled = now >= self.core.since + self.core.config.down_interval();
        if matches!(self.state, State::Active(_)) && settled && priority != WirePriority::RESIGN {
            self.core.warn(Warning::FamilySplit { source });
        }
    }
}
