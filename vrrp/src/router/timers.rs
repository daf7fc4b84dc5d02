//! The one table of deadlines.

use std::time::Instant;

/// The purpose of a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerName {
    /// Backup: the Active was silent for Active_Down_Interval (RFC 9568 §6.2), or Skew_Time after a resignation.
    Down,
    /// Backup: Skew_Time after the Active proved degraded.
    Takeover,
    /// Active: the next advertisement (Adver_Timer, RFC 9568 §6.2). Resigning: the next resignation.
    Advertise,
    /// Active: the next announcement round.
    Announce,
    /// Active: a rival has been silent for long enough to be gone.
    RivalSilent,
    /// Resigning: the next refresh of the addresses.
    Refresh,
    /// Listening: no other router advertised.
    Listen,
    /// Resigning, Yielding: the end of the handover.
    Handover,
    /// The evidence that this node can serve expires.
    ServingExpiry,
    /// This node has served long enough to advertise it.
    ServingSettled,
    /// The hold time is over.
    HoldEnd,
}

impl TimerName {
    const COUNT: usize = Self::HoldEnd as usize + 1;

    const ALL: [Self; Self::COUNT] = [
        Self::Down,
        Self::Takeover,
        Self::Advertise,
        Self::Announce,
        Self::RivalSilent,
        Self::Refresh,
        Self::Listen,
        Self::Handover,
        Self::ServingExpiry,
        Self::ServingSettled,
        Self::HoldEnd,
    ];

    /// Returns whether the deadline belongs to the present state and ends with it.
    const fn of_state(self) -> bool {
        !matches!(self, Self::ServingExpiry | Self::ServingSettled | Self::HoldEnd)
    }

    /// The name in snake case, for status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Takeover => "takeover",
            Self::Advertise => "advertise",
            Self::Announce => "announce",
            Self::RivalSilent => "rival_silent",
            Self::Refresh => "refresh",
            Self::Listen => "listen",
            Self::Handover => "handover",
            Self::ServingExpiry => "serving_expiry",
            Self::ServingSettled => "serving_settled",
            Self::HoldEnd => "hold_end",
        }
    }
}

/// The deadlines that are set.
#[derive(Debug, Clone, Default)]
pub(super) struct Timers([Option<Instant>; TimerName::COUNT]);

impl Timers {
    pub(super) const fn set(&mut self, name: TimerName, at: Instant) {
        self.0[name as usize] = Some(at);
    }

    pub(super) const fn clear(&mut self, name: TimerName) {
        self.0[name as usize] = None;
    }

    pub(super) const fn get(&self, name: TimerName) -> Option<Instant> {
        self.0[name as usize]
    }

    /// Clears the deadlines of the state that is left.
    pub(super) fn leave_state(&mut self) {
        for name in TimerName::ALL.into_iter().filter(|name| name.of_state()) {
            self.clear(name);
        }
    }

    /// The earliest deadline; of several at one time the one declared first.
    pub(super) fn next(&self) -> Option<(Instant, TimerName)> {
        TimerName::ALL.into_iter().filter_map(|name| Some((self.get(name)?, name))).min_by_key(|(at, _)| *at)
    }

    /// Takes the earliest deadline if it is due.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Instant, TimerName)> {
        let (at, name) = self.next().filter(|(at, _)| *at <= now)?;
        self.clear(name);
        Some((at, name))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_names() {
        for (index, name) in TimerName::ALL.into_iter().enumerate() {
            assert_eq!(name as usize, index, "{name:?}");
        }
    }

    #[test]
    fn deadlines_come_in_order_and_only_when_due() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        timers.set(TimerName::HoldEnd, at(5));
        timers.set(TimerName::Down, at(7));
        timers.set(TimerName::Announce, at(7));
        assert_eq!(timers.take_due(at(4)), None);
        assert_eq!(timers.take_due(at(9)), Some((at(5), TimerName::HoldEnd)));
        assert_eq!(timers.take_due(at(9)), Some((at(7), TimerName::Down)));
        timers.set(TimerName::HoldEnd, at(20));
        timers.leave_state();
        assert_eq!(timers.next(), Some((at(20), TimerName::HoldEnd)));
    }
}
