//! The Active state (RFC 9568 §6.4.3).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::State;
use super::announcer::{Announcer, Round};
use super::backup::Backup;
use super::common::{Core, Heard, Hold};
use super::event::VipEvent;
use super::handover::{After, Listening, Resigning, Yielding};
use super::output::{Output, Reason, Release, StateName, Warning, Watch};
use super::planned_move::MoveSide;
use super::standing::Standing;
use super::timers::TimerName;
use crate::announce::Announcement;
use crate::types::WirePriority;

/// The least time before an advertisement that a rival provokes, so that no router can make this one flood the LAN.
const ASSERT_GAP: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Active {
    last_advert: Instant,
    /// The priority of the last advertisement; other routers act on it, so it binds this router, too.
    advertised: WirePriority,
    last_claim: Instant,
    installed: bool,
    /// The contention with known controllers.
    controllers: Option<Contention>,
    /// The contention with other routers.
    others: Option<Contention>,
    announcer: Announcer,
}

/// Routers advertise against this one and lose.
#[derive(Debug, Clone, Copy)]
struct Contention {
    since: Instant,
    /// They are gone unless they advertise before this time.
    until: Instant,
    /// The time since which another node has announced one of the addresses.
    announced: Option<Instant>,
}

impl Contention {
    /// Goes on, or begins anew after a silence.
    fn heard(before: Option<Self>, now: Instant, down: Duration) -> Self {
        let fresh = Self { since: now, until: now, announced: None };
        Self { until: now + down, ..before.filter(|it| now <= it.until).unwrap_or(fresh) }
    }
}

impl Active {
    /// RFC 9568 §6.4.2: advertise first, so that other Backups hear of it as early as possible, then take the
    /// addresses. They are announced once they are installed.
    pub(super) fn enter(core: &mut Core, now: Instant, reason: Reason) -> State {
        core.transition(now, StateName::Active, reason);
        core.believed = None;
        let mut announcer = Announcer::new(now, core.config.seed);
        announcer.repeat_until(now + core.config.predecessor_span());
        let advertised = core.effective();
        let active = Self {
            last_advert: now,
            advertised,
            last_claim: now,
            installed: false,
            controllers: None,
            others: None,
            announcer,
        };
        core.advertise(advertised);
        core.claim(active.claim_until(core));
        core.watch(Watch::Start);
        core.timers.set(TimerName::Advertise, now + core.config.interval());
        State::Active(active)
    }

    /// Until when this router may hold the addresses unless it advertises again.
    pub(super) fn claim_until(&self, core: &Core) -> Instant {
        self.last_advert + core.config.claim_span()
    }

    /// Stays Active only if the claim is still valid: afterwards a successor may be Active.
    pub(super) fn awake(self, core: &mut Core, now: Instant) -> State {
        if now < self.claim_until(core) {
            return State::Active(self);
        }
        core.counters.overslept += 1;
        core.warn(Warning::Overslept { by: now.saturating_duration_since(self.last_advert) });
        Listening::enter(core, now, Reason::Overslept)
    }

    pub(super) fn advertisement(mut self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        if heard.priority == WirePriority::RESIGN {
            // RFC 9568 §6.4.3: advertise and rearm. Its announcements may have come last, too.
            core.counters.resignations_received += 1;
            self.announce_once(core, now);
            self.assert(core, now);
            return State::Active(self);
        }
        core.counters.rival_advertisements += 1;
        if heard.standing == Standing::Controller
            && let Some(others) = &mut self.others
        {
            // The announcement heard before may have been this controller's, after a split for instance.
            others.announced = None;
        }
        let Some(own) = core.own() else { return State::Active(self) };
        // RFC 9568 §6.4.3: the higher priority wins, among equals the higher address, unsigned in network order.
        if (heard.priority, heard.source) > (self.advertised, own) && !core.is_weaker_stranger(heard) {
            return self.outranked(core, now, heard);
        }
        self.contend(core, now, heard)
    }

    pub(super) fn vip(mut self, core: &mut Core, now: Instant, event: VipEvent) -> State {
        match event {
            VipEvent::Installed if self.installed => {}
            VipEvent::Installed => {
                self.installed = true;
                self.announcer.installed(now);
                core.end_move(now, MoveSide::To, None);
                self.announce_if_due(core, now);
            }
            VipEvent::Missing => {
                core.counters.missing += 1;
                self.installed = false;
                self.last_claim = now;
                core.claim(self.claim_until(core));
            }
            VipEvent::LeaseLost => return Listening::enter(core, now, Reason::LeaseLost),
        }
        State::Active(self)
    }

    pub(super) fn timeout(mut self, core: &mut Core, now: Instant, name: TimerName, due: Instant) -> State {
        match name {
            TimerName::Advertise => {
                self.send(core, now);
                // Keep the rhythm after a late wake-up, but never catch up.
                let next = due + core.config.interval();
                core.timers
                    .set(TimerName::Advertise, if next > now { next } else { now + core.config.interval() });
            }
            TimerName::Announce => self.announce_if_due(core, now),
            TimerName::RivalSilent => {
                (self.controllers, self.others) = (None, None);
                self.announce_once(core, now);
            }
            _ => {}
        }
        State::Active(self)
    }

    /// Own priority changed. Recovery is advertised at once, before a Backup takes over; loss can wait.
    pub(super) fn priority_changed(mut self, core: &mut Core, now: Instant) -> State {
        if core.effective() > self.advertised {
            self.assert(core, now);
        }
        State::Active(self)
    }

    /// The configuration or the source address changed.
    pub(super) fn changed(mut self, core: &mut Core, now: Instant) -> State {
        self.assert(core, now);
        State::Active(self)
    }

    /// There are other virtual addresses now.
    pub(super) fn readdressed(mut self, core: &mut Core, now: Instant) -> State {
        self.assert(core, now);
        self.installed = false;
        self.last_claim = now;
        core.claim(self.claim_until(core));
        State::Active(self)
    }

    /// Another node announced one of the addresses. With a rival it is evidence about that; without one, two nodes hold
    /// the address and the other is not heard. A predecessor's last announcement may still be on its way in the first
    /// interval.
    pub(super) fn announced(mut self, core: &mut Core, now: Instant, announcement: Announcement) -> State {
        let lasts = |it: &Contention| now <= it.until;
        // The announcement of a controller that contends is no evidence about the others.
        if self.controllers.as_ref().is_some_and(lasts) {
            return State::Active(self);
        }
        if let Some(others) = self.others.as_mut().filter(|it| lasts(it)) {
            others.announced.get_or_insert(now);
        } else if now >= core.since + core.config.interval() {
            let Announcement { mac, ip } = announcement;
            core.warn(Warning::AnnouncedElsewhere { ip, mac });
            // The other's announcement came last. A degraded Active may have a successor that it does not hear.
            if !self.advertised.is_degraded() {
                self.announcer.defend(now);
                self.announce_if_due(core, now);
            }
        }
        State::Active(self)
    }

    pub(super) fn resign(self, core: &mut Core, now: Instant) -> State {
        Resigning::enter(core, now, After::Stop)
    }

    /// The addresses are to move, and this router stays.
    pub(super) fn hand_over(self, core: &mut Core, now: Instant) -> State {
        Resigning::enter(core, now, After::Wait)
    }

    /// RFC 9568 §6.4.3: become Backup and learn the interval.
    fn outranked(self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        // The winner of a split may not have noticed it, while this router's announcements came last in some caches.
        // This last advertisement, which loses, makes it announce again.
        core.advertise(self.advertised);
        if self.advertised.is_degraded() && !heard.priority.is_degraded() {
            core.hold(now, Hold::Patient);
        }
        let reason = Reason::Outranked { source: heard.source, priority: heard.priority };
        self.give_way(core, now, reason, heard)
    }

    /// Leaves the addresses to the router that was heard. Where they are installed, there may be sessions to reset.
    fn give_way(self, core: &mut Core, now: Instant, reason: Reason, heard: &Heard) -> State {
        if self.installed {
            return Yielding::enter(core, now, reason, heard);
        }
        core.release(Release::Planned);
        Backup::enter(core, now, reason, Some(heard))
    }

    /// RFC 9568 §6.4.3: discard, and advertise at once so that the rival yields.
    ///
    /// A rival that goes on for Active_Down_Interval does not hear this router, or ignores it. Only one that must hold
    /// the addresses itself, because it is a controller or has announced them, makes this router yield.
    fn contend(mut self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        let own = core.config.interval();
        // The rival's interval decides how long a contention lasts, and only a controller may choose it freely.
        let longest = if heard.standing == Standing::Controller { heard.interval } else { 4 * own };
        let interval = own.max(heard.interval.min(longest));
        let down = core.down(interval);
        if core.timers.get(TimerName::RivalSilent).is_none() {
            self.announcer.repeat_until(now + core.config.predecessor_span());
            self.announce_once(core, now);
        }
        core.timers.set(TimerName::RivalSilent, now + down);
        let known = heard.standing == Standing::Controller;
        let contention = if known { &mut self.controllers } else { &mut self.others };
        let Contention { since, announced, .. } =
            *contention.insert(Contention::heard(*contention, now, down));
        if now >= since + down {
            if heard.standing != Standing::Stranger {
                core.warn(Warning::Contended { source: heard.source });
            }
            // A controller that has announced the addresses advertises before so long a time is over.
            let proven = announced.is_some_and(|announced| now >= announced + down);
            if (known || proven) && !self.is_heard(core, heard) {
                return self.unheard(core, now, heard);
            }
        }
        self.assert(core, now);
        State::Active(self)
    }

    /// Returns whether the rival does not receive rather than this router not send: serving proves that this router's
    /// packets arrive, and the rival itself reports that it does not serve.
    fn is_heard(&self, core: &Core, heard: &Heard) -> bool {
        core.serving.settled() && !self.advertised.is_degraded() && heard.priority.is_degraded()
    }

    fn unheard(self, core: &mut Core, now: Instant, heard: &Heard) -> State {
        let source: IpAddr = heard.source;
        core.counters.unheard += 1;
        core.believed = (heard.standing != Standing::Controller).then_some(source).or(core.believed);
        core.warn(Warning::Unheard { source });
        core.hold(now, Hold::Unheard);
        self.give_way(core, now, Reason::Unheard { source }, heard)
    }

    /// Advertises now, or as soon as the last advertisement is long enough ago.
    fn assert(&mut self, core: &mut Core, now: Instant) {
        let gap = ASSERT_GAP.min(core.config.interval() / 4);
        let at = self.last_advert + gap;
        if at <= now {
            self.send(core, now);
            core.timers.set(TimerName::Advertise, now + core.config.interval());
        } else if core.timers.get(TimerName::Advertise).is_none_or(|next| at < next) {
            core.timers.set(TimerName::Advertise, at);
        }
    }

    /// The addresses are refreshed just before an advertisement, because a refresh after it could let them outlive the
    /// silence that makes a successor.
    fn send(&mut self, core: &mut Core, now: Instant) {
        self.last_advert = now;
        self.advertised = core.effective();
        if !self.installed || now >= self.last_claim + core.config.lease / 4 {
            self.last_claim = now;
            core.claim(self.claim_until(core));
        }
        core.advertise(self.advertised);
    }

    fn announce_once(&mut self, core: &mut Core, now: Instant) {
        self.announcer.once(now);
        self.announce_if_due(core, now);
    }

    fn announce_if_due(&mut self, core: &mut Core, now: Instant) {
        if self.announcer.next().is_some_and(|at| at <= now) {
            let round = self.announcer.round(now);
            // A degraded Active that no longer hears its successor must not call clients back.
            if round == Round::Needed || !self.advertised.is_degraded() {
                core.counters.announcements += 1;
                core.outputs.push_back(Output::Announce);
            }
        }
        match self.announcer.next() {
            Some(at) => core.timers.set(TimerName::Announce, at),
            None => core.timers.clear(TimerName::Announce),
        }
    }
}
