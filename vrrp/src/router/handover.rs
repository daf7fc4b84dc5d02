//! The states that follow Active: listening after a long sleep, yielding to another Active, and the planned handover.

use std::time::{Duration, Instant};

use super::State;
use super::active::Active;
use super::backup::Backup;
use super::common::{Core, Heard, Hold};
use super::event::VipEvent;
use super::output::{Reason, Release, StateName, Watch};
use super::planned_move::{MoveSide, PlannedMove};
use super::standing::Standing;
use super::timers::TimerName;
use crate::types::WirePriority;

/// The time that the addresses are kept after the successor's first advertisement: enough to install and announce them.
const SUCCESSOR_TIME: Duration = Duration::from_millis(100);

/// The number of times that an unanswered resignation is repeated.
const REPEATS: u8 = 2;

/// Was Active and slept longer than its claim was valid. One interval of silence proves that no router took over.
#[derive(Debug)]
pub(super) struct Listening;

impl Listening {
    pub(super) fn enter(core: &mut Core, now: Instant, reason: Reason) -> State {
        core.release(Release::Planned);
        core.transition(now, StateName::Listening, reason);
        Self::arm(core, now);
        State::Listening(Self)
    }

    pub(super) fn advertisement(core: &mut Core, now: Instant, heard: &Heard) -> State {
        let reason = Reason::RivalHeard { source: heard.source };
        if heard.priority == WirePriority::RESIGN {
            return match Backup::enter(core, now, reason, None) {
                State::Backup(backup) => backup.advertisement(core, now, heard),
                other => other,
            };
        }
        Backup::enter(core, now, reason, Some(heard))
    }

    pub(super) fn timeout(core: &mut Core, now: Instant, late: Duration) -> State {
        if late >= core.config.claim_span() {
            core.counters.overslept += 1;
            Self::arm(core, now);
            return State::Listening(Self);
        }
        Active::enter(core, now, Reason::NoOtherActive)
    }

    /// Waits a little more than an interval, as the rival's clock differs, and less than Backups that slept at the same
    /// time, so that nothing moves.
    fn arm(core: &mut Core, now: Instant) {
        let interval = core.config.interval();
        core.timers.set(TimerName::Listen, now + interval + interval / 16);
    }
}

/// Another router is Active. This one answers for the addresses until neighbours know the other, at most
/// [`SUCCESSOR_TIME`], so that clients with reset sessions then connect to that router and not to this one again.
#[derive(Debug)]
pub(super) struct Yielding {
    until: Instant,
    heard: Heard,
    reason: Reason,
}

impl Yielding {
    pub(super) fn enter(core: &mut Core, now: Instant, reason: Reason, heard: &Heard) -> State {
        core.transition(now, StateName::Yielding, reason);
        core.watch(Watch::Start);
        let until = now + SUCCESSOR_TIME;
        core.timers.set(TimerName::Handover, until);
        State::Yielding(Self { until, heard: *heard, reason })
    }

    pub(super) const fn claim_until(&self) -> Instant {
        self.until
    }

    /// Gives the addresses up before anything else happens if the time for that has passed.
    pub(super) fn awake(self, core: &mut Core, now: Instant) -> State {
        if now >= self.until { self.end(core, now) } else { State::Yielding(self) }
    }

    pub(super) fn advertisement(mut self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        if heard.priority == WirePriority::RESIGN {
            return match self.end(core, now) {
                State::Backup(backup) => backup.advertisement(core, now, heard),
                other => other,
            };
        }
        let same = heard.source == self.heard.source;
        if same || (heard.priority, heard.source) > (self.heard.priority, self.heard.source) {
            self.heard = *heard;
        }
        State::Yielding(self)
    }

    pub(super) fn vip(self, core: &mut Core, now: Instant, event: VipEvent) -> State {
        match event {
            VipEvent::LeaseLost => self.end(core, now),
            VipEvent::Installed | VipEvent::Missing => State::Yielding(self),
        }
    }

    pub(super) fn end(self, core: &mut Core, now: Instant) -> State {
        Self::release(core, Release::Planned);
        Backup::enter(core, now, self.reason, Some(&self.heard))
    }

    /// Ends the state before the next one is entered.
    pub(super) fn release(core: &mut Core, release: Release) {
        core.watch(Watch::Stop);
        core.release(release);
    }
}

/// The state that follows a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Stopped: the router leaves the election.
    Stop,
    /// Backup: the router waits behind its successor.
    Wait,
}

/// Resigned, but answers for the addresses until a successor does.
#[derive(Debug)]
pub(super) struct Resigning {
    until: Instant,
    successor: Option<Heard>,
    repeats: u8,
    after: After,
    /// The end of the last claim.
    claimed_until: Instant,
}

impl Resigning {
    /// RFC 9568 §6.4.3: an advertisement with priority 0.
    pub(super) fn enter(core: &mut Core, now: Instant, after: After) -> State {
        let reason = match after {
            After::Stop => Reason::Shutdown,
            After::Wait => Reason::HandoverRequested,
        };
        core.transition(now, StateName::Resigning, reason);
        core.last_move = Some(PlannedMove::new(MoveSide::From, None, now));
        let interval = core.config.interval();
        let until = now + core.config.down_interval();
        core.advertise(WirePriority::RESIGN);
        core.timers.set(TimerName::Handover, until);
        core.timers.set(TimerName::Advertise, now + interval);
        let mut resigning = Self { until, successor: None, repeats: REPEATS, after, claimed_until: until };
        resigning.refresh(core, now);
        State::Resigning(resigning)
    }

    /// The router leaves the election when the handover is over, whatever was wanted before.
    pub(super) fn stop_afterwards(mut self) -> State {
        self.after = After::Stop;
        State::Resigning(self)
    }

    pub(super) const fn stops(&self) -> bool {
        matches!(self.after, After::Stop)
    }

    pub(super) fn claim_until(&self, core: &Core, now: Instant) -> Instant {
        self.ends_at(core).min(now + core.config.claim_span())
    }

    /// The time at which this state is over, even if no timer was handled. A router that goes on as Active needs its claim
    /// for a little longer than its wait.
    fn ends_at(&self, core: &Core) -> Instant {
        if self.resumes_without_successor() { self.until + core.config.claim_span() } else { self.until }
    }

    /// Returns whether this router goes on as Active if no other one takes over.
    const fn resumes_without_successor(&self) -> bool {
        matches!(self.after, After::Wait) && self.successor.is_none()
    }

    /// Ends a handover that is over before another event refreshes it.
    pub(super) fn awake(self, core: &mut Core, now: Instant) -> State {
        if self.resumes_without_successor() && now >= self.claimed_until {
            // The process slept for longer than its claim was valid: another router may be Active.
            return Listening::enter(core, now, Reason::Overslept);
        }
        if now < self.ends_at(core) {
            return State::Resigning(self);
        }
        let reason = self.reason();
        self.end(core, now, reason)
    }

    /// Ends the handover because of another configuration. Returns to Active where no successor has advertised, so that the
    /// addresses are never without a holder.
    pub(super) fn interrupt(self, core: &mut Core, now: Instant) -> State {
        if self.resumes_without_successor() {
            return Active::enter(core, now, Reason::Reconfigured);
        }
        self.end(core, now, Reason::Reconfigured)
    }

    /// The first router to advertise is the successor, unless it is unknown, of lower priority and not the one that was named:
    /// it may have advertised all the time. If it is the successor nevertheless, its announcement ends the handover.
    pub(super) fn advertisement(mut self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        let useless = heard.priority.is_degraded() && !core.effective().is_degraded();
        if matches!(self.after, After::Wait) && self.successor.is_none() && useless {
            // It yields to this router again.
            return Active::enter(core, now, Reason::NoSuccessor);
        }
        let unlikely = heard.standing != Standing::Controller && heard.priority < core.config.priority.full();
        if unlikely && !core.is_successor(now, heard) {
            return State::Resigning(self);
        }
        if heard.priority != WirePriority::RESIGN && self.successor.is_none() {
            self.successor = Some(*heard);
            self.until = self.until.min(now + SUCCESSOR_TIME);
            core.timers.set(TimerName::Handover, self.until);
            core.timers.clear(TimerName::Advertise);
        }
        State::Resigning(self)
    }

    /// Neighbours know the successor now. A router that would go on without one waits for its advertisement: another host
    /// may announce the addresses.
    pub(super) fn announced(self, core: &mut Core, now: Instant) -> State {
        if self.resumes_without_successor() {
            return State::Resigning(self);
        }
        self.end(core, now, Reason::SuccessorAnnounced)
    }

    pub(super) fn vip(mut self, core: &mut Core, now: Instant, event: VipEvent) -> State {
        match event {
            VipEvent::Installed => {}
            VipEvent::Missing => {
                core.counters.missing += 1;
                self.refresh(core, now);
            }
            VipEvent::LeaseLost => return self.abort(core, now, Reason::LeaseLost),
        }
        State::Resigning(self)
    }

    pub(super) fn timeout(mut self, core: &mut Core, now: Instant, name: TimerName) -> State {
        match name {
            TimerName::Handover if self.resumes_without_successor() => {
                // The addresses are still here, and no other router wants them.
                return Active::enter(core, now, Reason::NoSuccessor);
            }
            TimerName::Handover => {
                let reason = self.reason();
                return self.end(core, now, reason);
            }
            // The first resignation may have been lost. Not before an interval has passed, which is longer than any
            // Skew_Time: peers begin to wait anew with each.
            TimerName::Advertise if self.repeats > 0 => {
                self.repeats -= 1;
                core.advertise(WirePriority::RESIGN);
                core.timers.set(TimerName::Advertise, now + core.config.interval());
            }
            TimerName::Refresh => self.refresh(core, now),
            _ => {}
        }
        State::Resigning(self)
    }

    const fn reason(&self) -> Reason {
        match self.successor {
            Some(_) => Reason::SuccessorAdvertised,
            None => Reason::NoSuccessor,
        }
    }

    /// Gives up without waiting for a successor.
    pub(super) fn abort(self, core: &mut Core, now: Instant, reason: Reason) -> State {
        core.release(Release::Lost);
        core.last_move = None;
        self.leave(core, now, reason)
    }

    /// Ends the handover.
    pub(super) fn end(self, core: &mut Core, now: Instant, reason: Reason) -> State {
        core.release(Release::Planned);
        core.end_move(now, MoveSide::From, self.successor.map(|heard| heard.source));
        self.leave(core, now, reason)
    }

    fn leave(self, core: &mut Core, now: Instant, reason: Reason) -> State {
        match self.after {
            After::Stop => {
                core.transition(now, StateName::Stopped, reason);
                State::Stopped
            }
            After::Wait if core.own().is_none() => {
                core.transition(now, StateName::Init, reason);
                State::Init
            }
            After::Wait => {
                core.hold(now, Hold::Moved);
                Backup::enter(core, now, reason, self.successor.as_ref())
            }
        }
    }

    /// Renews the claim, which no advertisement does in this state.
    fn refresh(&mut self, core: &mut Core, now: Instant) {
        self.claimed_until = self.claim_until(core, now);
        core.claim(self.claimed_until);
        let next = now + (core.config.lease / 4).min(core.config.claim_span() / 2);
        if next < self.ends_at(core) {
            core.timers.set(TimerName::Refresh, next);
        }
    }
}
