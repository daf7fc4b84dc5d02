//! The data that all states of a router share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::config::{RouterConfig, skew_time};
use super::counters::Counters;
use super::offset::offset;
use super::output::{Claim, Output, Reason, Release, StateName, Transition, Warning, Watch};
use super::planned_move::{MoveSide, PlannedMove};
use super::receive::FirstCopy;
use super::serving::Serving;
use super::standing::Standing;
use super::timers::{TimerName, Timers};
use crate::packet::{Advertisement, Auth};
use crate::prefix::LinkPrefix;
use crate::types::{Family, Version, WirePriority};

/// The addresses of the interface that advertisements are sent from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sources {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Sources {
    pub(super) fn of(self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }
}

/// An advertisement of the deciding family that passed all checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) source: IpAddr,
    pub(super) priority: WirePriority,
    pub(super) interval: Duration,
    pub(super) standing: Standing,
}

/// The reason why this router does not ask for the addresses back for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hold {
    /// It handed them over on request: it does not take them back for its priority, but from a router that cannot serve.
    Moved,
    /// It gave them to a router that can serve.
    Patient,
    /// It was not heard, so it counts as degraded, too.
    Unheard,
}

/// The announcement of an Active that it hands over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Succession {
    pub(super) active: IpAddr,
    pub(super) successor: IpAddr,
    pub(super) until: Instant,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: RouterConfig,
    pub(super) sources: Sources,
    /// The addresses of the interface and their prefixes.
    pub(super) prefixes: Vec<LinkPrefix>,
    /// The known controllers of the cluster.
    pub(super) controllers: BTreeSet<IpAddr>,
    /// A router that is not known, and that this one has yielded to because it announced the addresses.
    pub(super) believed: Option<IpAddr>,
    pub(super) serving: Serving,
    pub(super) hold: Option<Hold>,
    /// The Active that resigned last, and the time until which its advertisements count as sent before.
    pub(super) resigned: Option<(IpAddr, Instant)>,
    /// The router that is to have the addresses next.
    pub(super) succession: Option<Succession>,
    /// The last planned move that this router took part in.
    pub(super) last_move: Option<PlannedMove>,
    pub(super) timers: Timers,
    pub(super) counters: Counters,
    pub(super) outputs: VecDeque<Output>,
    pub(super) name: StateName,
    pub(super) since: Instant,
    pub(super) reason: Reason,
    /// The last advertisement of each sender, if another copy of it may follow.
    pub(super) first_copies: BTreeMap<IpAddr, FirstCopy>,
    watching: bool,
}

impl Core {
    pub(super) fn new(config: RouterConfig, now: Instant) -> Self {
        Self {
            config,
            sources: Sources::default(),
            prefixes: Vec::new(),
            controllers: BTreeSet::new(),
            believed: None,
            serving: Serving::default(),
            hold: None,
            resigned: None,
            succession: None,
            last_move: None,
            timers: Timers::default(),
            counters: Counters::default(),
            outputs: VecDeque::new(),
            name: StateName::Init,
            since: now,
            reason: Reason::Created,
            first_copies: BTreeMap::new(),
            watching: false,
        }
    }

    /// Changes the state's name and clears its deadlines.
    pub(super) fn transition(&mut self, now: Instant, to: StateName, reason: Reason) {
        let from = self.name;
        match (from, to) {
            (StateName::Active | StateName::Yielding, StateName::Backup) => self.counters.became_backup += 1,
            (_, StateName::Active) => self.counters.became_active += 1,
            _ => {}
        }
        let after = now.saturating_duration_since(self.since);
        self.timers.leave_state();
        if !matches!(to, StateName::Active | StateName::Yielding | StateName::Resigning) {
            self.watch(Watch::Stop);
        }
        (self.name, self.since, self.reason) = (to, now, reason);
        tracing::debug!(vrid = self.config.vrid.get(), %from, %to, %reason, ?after, "transition");
        self.outputs.push_back(Output::Transition(Transition { from, to, reason, after }));
    }

    /// Starts or stops to watch for announcements. A router that holds the addresses watches.
    pub(super) fn watch(&mut self, watch: Watch) {
        let watching = watch == Watch::Start;
        if std::mem::replace(&mut self.watching, watching) != watching {
            self.outputs.push_back(Output::Watch(watch));
        }
    }

    /// The source of this router's deciding advertisements, if the interface has one.
    pub(super) fn own(&self) -> Option<IpAddr> {
        self.sources.of(self.config.deciding_family())
    }

    /// The priority that this router advertises now.
    pub(super) fn effective(&self) -> WirePriority {
        if self.serving.settled() && self.hold != Some(Hold::Unheard) {
            self.config.priority.full()
        } else {
            self.config.priority.degraded()
        }
    }

    /// The router that is to have the addresses of this Active next, if one was named.
    pub(super) fn successor_of(&self, now: Instant, active: IpAddr) -> Option<IpAddr> {
        self.succession
            .filter(|named| named.active == active && now < named.until)
            .map(|named| named.successor)
    }

    /// Returns whether an advertisement is from the router that was named as the next Active.
    pub(super) fn is_successor(&self, now: Instant, heard: &Heard) -> bool {
        self.succession.is_some_and(|named| named.successor == heard.source && now < named.until)
    }

    /// Notes the end of this router's part in a planned move.
    pub(super) fn end_move(&mut self, now: Instant, side: MoveSide, other: Option<IpAddr>) {
        let current =
            self.last_move.as_mut().filter(|current| current.side == side && current.took.is_none());
        if let Some(current) = current {
            current.other = other.or(current.other);
            current.took = Some(now.saturating_duration_since(current.resigned));
        }
    }

    /// Returns whether this router has served for long enough to take over from a degraded Active.
    pub(super) fn may_take_over(&self, now: Instant) -> bool {
        let served = self.serving.duration(now).is_some_and(|served| served >= self.config.takeover_after);
        served && self.serving.settled() && self.hold.is_none_or(|hold| hold == Hold::Moved)
    }

    /// The interval that counts for an Active: its own in version 3 (RFC 9568 §6.1, Active_Adver_Interval); in version
    /// 2, where both should have the same, the longer one.
    pub(super) fn judged_interval(&self, heard: Option<Duration>) -> Duration {
        let own = self.config.interval();
        match (heard, self.config.deciding_version()) {
            (None, _) => own,
            (Some(heard), Version::V2) => heard.max(own),
            (Some(heard), Version::V3) => heard,
        }
    }

    /// Skew_Time (RFC 9568 §6.1) at the priority advertised now.
    pub(super) fn skew(&self, interval: Duration) -> Duration {
        skew_time(self.config.deciding_version(), self.effective(), interval)
    }

    /// Active_Down_Interval (RFC 9568 §6.1) for an Active with this interval, at the priority advertised now.
    pub(super) fn down(&self, interval: Duration) -> Duration {
        3 * interval + self.skew(interval)
    }

    /// The time that the order among equal priorities adds to a wait.
    pub(super) fn offset(&self, interval: Duration, active: Option<WirePriority>) -> Duration {
        let Some(own) = self.own() else { return Duration::ZERO };
        offset(&self.config, own, interval, self.effective(), active)
    }

    /// Sends an advertisement for every family that has addresses and a source.
    pub(super) fn advertise(&mut self, priority: WirePriority) {
        for family in [Family::V4, Family::V6] {
            if self.sources.of(family).is_none() {
                continue;
            }
            let Some(addresses) = self.config.addresses(family) else { continue };
            let version = self.config.version_of(family);
            let interval = self.config.advert_interval.in_version(version);
            let vrid = self.config.vrid;
            self.counters.advertisements_sent += 1;
            self.counters.resignations_sent += u64::from(priority == WirePriority::RESIGN);
            let advertisement =
                Advertisement { version, vrid, priority, interval, addresses, auth: Auth::None };
            let passwords = self.config.passwords().filter(|_| version == Version::V2);
            let copies: Vec<Advertisement> = passwords
                .map(|password| Advertisement { auth: Auth::Pass(password), ..advertisement.clone() })
                .collect();
            let copies = if copies.is_empty() { vec![advertisement] } else { copies };
            self.outputs.extend(copies.into_iter().map(Output::Advertise));
        }
    }

    /// Returns whether an advertisement was overtaken by its sender's resignation.
    pub(super) fn was_sent_before_resignation(&self, now: Instant, heard: &Heard) -> bool {
        heard.priority != WirePriority::RESIGN
            && self.resigned.is_some_and(|(source, until)| source == heard.source && now < until)
    }

    pub(super) fn claim(&mut self, valid_until: Instant) {
        self.outputs.push_back(Output::Claim(Claim { valid_until }));
    }

    pub(super) fn release(&mut self, release: Release) {
        self.outputs.push_back(Output::Release(release));
    }

    pub(super) fn warn(&mut self, warning: Warning) {
        self.outputs.push_back(Output::Warning(warning));
    }

    /// Starts or strengthens a hold of the configured length.
    pub(super) fn hold(&mut self, now: Instant, hold: Hold) {
        self.hold = self.hold.max(Some(hold));
        self.timers.set(TimerName::HoldEnd, now + self.config.hold_time);
    }
}
