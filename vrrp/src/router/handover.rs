//! The states that follow Active: listening after a long sleep, yielding to another Active, and the planned handover.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::State;
use super::active::Active;
use super::backup::Backup;
use super::common::{Core, Heard};
use super::event::VipEvent;
use super::output::{Reason, Release, StateName, Watch};
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

/// Resigned, but answers for the addresses until a successor does.
#[derive(Debug)]
pub(super) struct Resigning {
    until: Instant,
    successor: Option<IpAddr>,
    repeats: u8,
}

impl Resigning {
    /// RFC 9568 §6.4.3: an advertisement with priority 0.
    pub(super) fn enter(core: &mut Core, now: Instant) -> State {
        core.transition(now, StateName::Resigning, Reason::Shutdown);
        let interval = core.config.interval();
        let until = now + core.config.down_interval();
        core.advertise(WirePriority::RESIGN);
        core.timers.set(TimerName::Handover, until);
        core.timers.set(TimerName::Advertise, now + interval);
        let resigning = Self { until, successor: None, repeats: REPEATS };
        resigning.refresh(core, now);
        State::Resigning(resigning)
    }

    pub(super) fn claim_until(&self, core: &Core, now: Instant) -> Instant {
        self.until.min(now + core.config.claim_span())
    }

    /// Ends a handover that is over before another event refreshes it.
    pub(super) fn awake(self, core: &mut Core, now: Instant) -> State {
        if now >= self.until { self.timeout(core, now, TimerName::Handover) } else { State::Resigning(self) }
    }

    /// The first router to advertise is the successor, unless it is unknown and of lower priority: it may have
    /// advertised all the time. If it is the successor nevertheless, its announcement ends the handover.
    pub(super) fn advertisement(mut self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        if heard.standing != Standing::Controller && heard.priority < core.config.priority.full() {
            return State::Resigning(self);
        }
        if heard.priority != WirePriority::RESIGN && self.successor.is_none() {
            self.successor = Some(heard.source);
            self.until = self.until.min(now + SUCCESSOR_TIME);
            core.timers.set(TimerName::Handover, self.until);
            core.timers.clear(TimerName::Advertise);
        }
        State::Resigning(self)
    }

    /// Neighbours know the successor now.
    pub(super) fn announced(core: &mut Core, now: Instant) -> State {
        Self::end(core, now, Reason::SuccessorAnnounced)
    }

    pub(super) fn vip(self, core: &mut Core, now: Instant, event: VipEvent) -> State {
        match event {
            VipEvent::Installed => {}
            VipEvent::Missing => {
                core.counters.missing += 1;
                self.refresh(core, now);
            }
            VipEvent::LeaseLost => return Self::abort(core, now, Reason::LeaseLost),
        }
        State::Resigning(self)
    }

    pub(super) fn timeout(mut self, core: &mut Core, now: Instant, name: TimerName) -> State {
        match name {
            TimerName::Handover => {
                let reason = match self.successor {
                    Some(_) => Reason::SuccessorAdvertised,
                    None => Reason::NoSuccessor,
                };
                return Self::end(core, now, reason);
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

    /// Gives up without waiting for a successor.
    pub(super) fn abort(core: &mut Core, now: Instant, reason: Reason) -> State {
        core.release(Release::Lost);
        Self::stop(core, now, reason)
    }

    fn end(core: &mut Core, now: Instant, reason: Reason) -> State {
        core.release(Release::Planned);
        Self::stop(core, now, reason)
    }

    fn stop(core: &mut Core, now: Instant, reason: Reason) -> State {
        core.transition(now, StateName::Stopped, reason);
        State::Stopped
    }

    /// Renews the claim, which no advertisement does in this state.
    fn refresh(&self, core: &mut Core, now: Instant) {
        core.claim(self.claim_until(core, now));
        let next = now + core.config.lease / 4;
        if next < self.until {
            core.timers.set(TimerName::Refresh, next);
        }
    }
}
