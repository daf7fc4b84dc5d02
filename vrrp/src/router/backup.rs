//! The Backup state (RFC 9568 §6.4.2).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::State;
use super::active::Active;
use super::common::{Core, Heard, Hold};
use super::config::Preempt;
use super::output::{Reason, StateName, Warning};
use super::planned_move::{MoveSide, PlannedMove};
use super::standing::Standing;
use super::timers::TimerName;
use crate::types::WirePriority;

/// The number of late timers in a row that do not count. A machine that is always late could otherwise never be Active.
const MAX_OVERSLEPT: u8 = 5;

/// The time after a resignation in which an advertisement of the same router counts as sent before: longer than a link
/// reorders packets.
const REORDERING: Duration = Duration::from_millis(10);

/// The number of degraded advertisements in a row that make this router take over.
const DEGRADED_PROOF: u8 = 2;

#[derive(Debug)]
pub(super) struct Backup {
    wait: Wait,
    /// The time at which the wait began.
    since: Instant,
    /// The number of times that this process slept through the end of its wait since it last heard an Active.
    overslept: u8,
    active: Option<Followed>,
    /// Lower priorities were heard and ignored during this wait.
    ignored_lower: bool,
    beside: Option<Beside>,
    /// The known controller that is Active beside [`Core::believed`], and since when.
    disputed_by: Option<(IpAddr, Instant)>,
    /// A router of lower priority took over during this router's offset, and this router is about to correct that.
    overtakes: bool,
    /// The priority that the down timer was set for.
    armed_for: WirePriority,
    proof: Proof,
}

/// The event that the down timer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Silence of the Active for Active_Down_Interval.
    Down,
    /// A router of higher priority that follows an Active which resigned.
    Resigned,
    /// The router that was named as the successor of an Active which resigned.
    Successor,
    /// Proof that no router became Active while this process slept.
    Overslept,
}

impl Wait {
    const fn is_resignation(self) -> bool {
        matches!(self, Self::Resigned | Self::Successor)
    }
}

/// The Active, as far as known.
#[derive(Debug, Clone, Copy)]
struct Followed {
    source: IpAddr,
    interval: Duration,
    /// The highest priority it is known to have; a degraded one if it was never heard otherwise.
    full: WirePriority,
    /// As last heard.
    priority: WirePriority,
}

/// A router that advertises beside an Active of higher priority, against RFC 9568 §6.4.3, so that its advertisements do
/// not prove that it serves when that Active is gone.
#[derive(Debug, Clone, Copy)]
struct Beside {
    source: IpAddr,
    /// The time at which it counts as silent; a router that has yielded is like any other.
    until: Instant,
}

/// The degraded advertisements of the Active in a row, while this router could serve.
#[derive(Debug, Clone, Copy, Default)]
struct Proof {
    count: u8,
    last: Option<Instant>,
}

impl Backup {
    /// Begins to wait, behind the router that was heard if there was one.
    pub(super) fn enter(core: &mut Core, now: Instant, reason: Reason, heard: Option<&Heard>) -> State {
        core.transition(now, StateName::Backup, reason);
        let mut backup = Self {
            wait: Wait::Down,
            since: now,
            overslept: 0,
            active: None,
            ignored_lower: false,
            beside: None,
            disputed_by: None,
            overtakes: false,
            armed_for: core.effective(),
            proof: Proof::default(),
        };
        match heard {
            Some(heard) => backup.follow(core, now, heard),
            None => backup.arm(core, now),
        }
        State::Backup(backup)
    }

    /// The router that this one waits behind.
    pub(super) fn followed(&self) -> Option<IpAddr> {
        self.active.map(|active| active.source)
    }

    /// Returns whether the Active that this router follows for its priority resigns or reports that it is degraded.
    pub(super) fn is_declined_by(&self, core: &Core, heard: &Heard) -> bool {
        let declines = heard.priority == WirePriority::RESIGN || heard.priority.is_degraded();
        let full = core.config.priority.full();
        declines && self.active.is_some_and(|active| active.source == heard.source && active.full >= full)
    }

    /// The interval that counts for the Active.
    pub(super) fn interval(&self, core: &Core) -> Duration {
        core.judged_interval(self.active.map(|active| active.interval))
    }

    pub(super) fn advertisement(mut self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        if heard.priority == WirePriority::RESIGN {
            self.resigned(core, now, heard);
            return State::Backup(self);
        }
        self.weigh(core, now, heard);
        if core.is_successor(now, heard) {
            if core.config.preempt == Preempt::Always && heard.priority < core.effective() {
                core.hold(now, Hold::Moved);
            }
        } else if heard.priority < core.effective() {
            if self.overtakes || self.was_overtaken_in_offset(core, now, heard) {
                // The rest of the queue comes first, which may hold an advertisement of a better router.
                core.timers.set(TimerName::Down, now);
                (self.ignored_lower, self.overtakes) = (true, true);
                return State::Backup(self);
            }
            // RFC 9568 §6.4.2: with Preempt_Mode True a lower priority is discarded and the timer runs on.
            if core.config.preempt == Preempt::Always && core.hold.is_none() {
                self.ignored_lower = true;
                return State::Backup(self);
            }
            if self.is_beside_active(now, heard) {
                let until = now + core.down(core.judged_interval(Some(heard.interval)));
                (self.ignored_lower, self.beside) = (true, Some(Beside { source: heard.source, until }));
                return State::Backup(self);
            }
        }
        if !self.shortens_interval(now, heard) {
            self.follow(core, now, heard);
        }
        State::Backup(self)
    }

    pub(super) fn timeout(mut self, core: &mut Core, now: Instant, name: TimerName, late: Duration) -> State {
        let interval = self.interval(core);
        if late >= interval && self.overslept < MAX_OVERSLEPT {
            // A router that became Active meanwhile advertises within one interval. Its earlier advertisements may not
            // have been queued (a paused virtual machine), so a drained socket proves nothing.
            self.overslept += 1;
            core.counters.overslept += 1;
            core.warn(Warning::Overslept { by: late });
            self.disprove(core);
            (self.wait, self.since) = (Wait::Overslept, now);
            self.arm(core, now);
            return State::Backup(self);
        }
        match name {
            TimerName::Down => {
                let planned = self.wait.is_resignation();
                core.last_move = planned.then(|| PlannedMove::new(MoveSide::To, self.followed(), self.since));
                Active::enter(core, now, self.reason())
            }
            TimerName::Takeover => {
                core.last_move = None;
                Active::enter(core, now, Reason::ActiveDegraded { source: self.followed() })
            }
            _ => State::Backup(self),
        }
    }

    /// Own priority may have changed.
    pub(super) fn priority_changed(mut self, core: &mut Core, now: Instant) -> State {
        if core.effective() != self.armed_for {
            return self.changed(core, now);
        }
        self.check_proof(core, now);
        State::Backup(self)
    }

    /// Own priority, address or configuration changed.
    pub(super) fn changed(mut self, core: &mut Core, now: Instant) -> State {
        self.check_proof(core, now);
        let before = core.timers.get(TimerName::Down);
        self.arm(core, now);
        if let Some(before) = before {
            self.keep_order(core, now, before);
        }
        State::Backup(self)
    }

    fn check_proof(&mut self, core: &mut Core, now: Instant) {
        if !core.may_take_over(now) || core.config.preempt == Preempt::Never {
            self.disprove(core);
        }
    }

    fn disprove(&mut self, core: &mut Core) {
        self.proof = Proof::default();
        core.timers.clear(TimerName::Takeover);
    }

    fn reason(&self) -> Reason {
        match self.wait {
            Wait::Resigned | Wait::Successor => Reason::ActiveResigned { source: self.followed() },
            Wait::Down if self.ignored_lower => Reason::LowerPriority,
            Wait::Down => Reason::ActiveSilent { source: self.followed() },
            Wait::Overslept => Reason::NoOtherActive,
        }
    }

    /// RFC 9568 §6.4.2: Active_Down_Timer = Skew_Time. Only for the Active: a resignation that arrives late or
    /// twice must not put its successor in question.
    fn resigned(&mut self, core: &mut Core, now: Instant, heard: &Heard) {
        core.counters.resignations_received += 1;
        let from_active = self.active.is_none_or(|active| active.source == heard.source);
        let skew = core.skew(self.interval(core));
        if !from_active || self.wait.is_resignation() || self.rfc_deadline(core) <= now + skew {
            return;
        }
        core.timers.clear(TimerName::Takeover);
        (self.wait, self.since) = (Wait::Resigned, now);
        let interval = self.interval(core);
        core.resigned = Some((heard.source, now + REORDERING.min(interval / 2)));
        let successor = core.successor_of(now, heard.source);
        let succeeds = successor.is_some() && successor == core.own() && !core.effective().is_degraded();
        if successor.is_some() && !succeeds {
            self.wait = Wait::Successor;
        }
        self.arm(core, now);
        if succeeds {
            core.timers.set(TimerName::Down, now);
        }
    }

    /// RFC 9568 §6.4.2: learn the interval, Active_Down_Timer = Active_Down_Interval.
    fn follow(&mut self, core: &mut Core, now: Instant, heard: &Heard) {
        let known = self.active.filter(|active| active.source == heard.source).map(|active| active.full);
        let full = match known {
            Some(full) if heard.priority.is_degraded() => full,
            _ => heard.priority,
        };
        let Heard { source, interval, priority, .. } = *heard;
        self.active = Some(Followed { source, interval, full, priority });
        (self.wait, self.since, self.overslept) = (Wait::Down, now, 0);
        (self.ignored_lower, self.overtakes) = (false, false);
        self.beside = self.beside.filter(|beside| beside.source != heard.source);
        self.dispute(core, now, heard);
        self.arm(core, now);
    }

    /// Takes back what an announcement proved about a router that is not known if a known controller goes on as Active
    /// beside it: the announcement may have been that controller's, with its advertisements lost. A controller that
    /// yields to the other router has done so within two Active_Down_Intervals.
    fn dispute(&mut self, core: &mut Core, now: Instant, heard: &Heard) {
        let Some(believed) = core.believed else { return };
        if heard.source == believed || heard.standing != Standing::Controller || heard.priority.is_degraded()
        {
            return;
        }
        let same = self.disputed_by.filter(|(source, _)| *source == heard.source);
        let (_, since) = *self.disputed_by.insert(same.unwrap_or((heard.source, now)));
        let interval = core.judged_interval(Some(heard.interval));
        if now >= since + 2 * core.down(interval) {
            core.believed = None;
        }
    }

    /// Returns whether a router that is not known to be a controller advertises although it loses against the Active.
    fn is_beside_active(&self, now: Instant, heard: &Heard) -> bool {
        let loses = |active: Followed| active.source != heard.source && heard.priority < active.priority;
        let went_on = |beside: Beside| beside.source == heard.source && now < beside.until;
        heard.standing == Standing::Unknown
            && (self.beside.is_some_and(went_on) || self.active.is_some_and(loses))
    }

    /// Returns whether the sender loses to the Active and has a shorter interval. A router that has just been outranked
    /// advertises once more; this router would then expect the next advertisement before the Active sends it, and take
    /// over from it.
    fn shortens_interval(&self, now: Instant, heard: &Heard) -> bool {
        self.wait == Wait::Down
            && self.active.is_some_and(|active| {
                let loses = (heard.priority, heard.source) < (active.priority, active.source);
                let other = active.source != heard.source;
                other && loses && heard.interval < active.interval && now < self.since + active.interval
            })
    }

    /// Counts degraded advertisements of the Active while this router has the higher priority.
    fn weigh(&mut self, core: &mut Core, now: Instant, heard: &Heard) {
        let better = heard.priority.is_degraded() && core.effective() > heard.priority;
        let same = self.active.is_some_and(|active| active.source == heard.source);
        if !better || !core.may_take_over(now) || core.config.preempt == Preempt::Never {
            self.disprove(core);
            return;
        }
        if !same {
            self.disprove(core);
        }
        let interval = core.judged_interval(Some(heard.interval));
        // The network may deliver one advertisement twice.
        if self.proof.last.is_some_and(|last| now < last + interval / 2) {
            return;
        }
        self.proof = Proof { count: self.proof.count.saturating_add(1), last: Some(now) };
        if self.proof.count >= DEGRADED_PROOF && core.timers.get(TimerName::Takeover).is_none() {
            let active = self.active.map(|active| active.full);
            let wait = core.skew(interval) + core.offset(interval, active);
            core.timers.set(TimerName::Takeover, now + wait);
        }
    }

    /// Returns whether a new Active of lower priority took over only because this router waited for its equals: without
    /// the offset it would have been Active by now, and the other one would have yielded (RFC 9568 §6.4.3).
    fn was_overtaken_in_offset(&self, core: &Core, now: Instant, heard: &Heard) -> bool {
        let new = self.active.is_none_or(|active| active.source != heard.source);
        let in_time = core.timers.get(TimerName::Down).is_some_and(|deadline| now <= deadline);
        new && in_time && now >= self.rfc_deadline(core)
    }

    /// The expiry of the down timer by RFC 9568 §6.1, without an offset.
    fn rfc_deadline(&self, core: &Core) -> Instant {
        let interval = self.interval(core);
        self.since
            + match self.wait {
                Wait::Down => core.down(interval),
                Wait::Resigned => core.skew(interval),
                // Longer than the Skew_Time of any other router.
                Wait::Successor => interval + core.skew(interval),
                Wait::Overslept => interval + core.skew(interval),
            }
    }

    /// Sets the down timer.
    fn arm(&mut self, core: &mut Core, now: Instant) {
        self.armed_for = core.effective();
        let offset = core.offset(self.interval(core), self.active.map(|active| active.full));
        let deadline = self.rfc_deadline(core) + offset;
        core.timers.set(TimerName::Down, deadline.max(now));
    }

    /// If the down timer would have expired already, because the own priority rose, waits for Skew_Time and the offset
    /// again, or as long as before if that is shorter: others rise at the same moment, and still have an order. A
    /// deadline that has passed stays where it is, so that its handler still sees how late it is.
    fn keep_order(&self, core: &mut Core, now: Instant, before: Instant) {
        if self.rfc_deadline(core) > now {
            return;
        }
        let interval = self.interval(core);
        let wait = core.skew(interval) + core.offset(interval, self.active.map(|active| active.full));
        core.timers.set(TimerName::Down, before.min(now + wait));
    }
}
