//! The Active that a Backup follows, and why it is another one than before.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::status::ActivePeer;
use crate::types::WirePriority;

/// The number of changes that are reported within [`SPAN`]: forged advertisements could change the Active with each packet.
const BURST: usize = 10;
const SPAN: Duration = Duration::from_secs(60);

/// Another router is Active than before, as a Backup sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ActiveChange {
    /// The source of the former Active's advertisements; `None` for the first one that is heard.
    pub from: Option<IpAddr>,
    /// The source of the new Active's advertisements.
    pub to: IpAddr,
    /// The reason, as far as a Backup can know it.
    pub reason: ChangeReason,
}

/// The reason why another router is Active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeReason {
    /// No Active was known before.
    First,
    /// This router was the former Active; its own transition has the reason.
    Own,
    /// The former Active resigned (priority 0, RFC 9568 §6.4.3).
    Resigned,
    /// The former Active advertised that it cannot serve.
    Degraded,
    /// The former Active was not heard for this time.
    Silent(Duration),
    /// The former Active was heard until then: the new one has precedence.
    Replaced,
}

impl fmt::Display for ActiveChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(from) = self.from else { return f.write_str("no active router was known before") };
        match self.reason {
            ChangeReason::Own => f.write_str("this router was active before"),
            ChangeReason::Resigned => write!(f, "{from} resigned"),
            ChangeReason::Degraded => write!(f, "{from} cannot serve"),
            ChangeReason::Silent(_) => write!(f, "{from} fell silent"),
            ChangeReason::First | ChangeReason::Replaced => write!(f, "it took over from {from}"),
        }
    }
}

/// The Active that was known last.
#[derive(Debug, Default)]
pub(super) struct Followed {
    active: Option<IpAddr>,
    is_own: bool,
    reported: VecDeque<Instant>,
    suppressed: u64,
}

impl Followed {
    /// Notes that this router is Active, from this source.
    pub(super) fn become_active(&mut self, own: Option<IpAddr>) {
        (self.active, self.is_own) = (own, true);
    }

    /// Notes the Active that a Backup follows. `former` is the last advertisement that counted before; `silence` is the time
    /// without one after which a router counts as silent. Returns a change that is to be reported, with the number of those
    /// that were not since the last one.
    pub(super) fn follow(
        &mut self,
        now: Instant,
        to: IpAddr,
        former: Option<ActivePeer>,
        silence: Duration,
    ) -> Option<(ActiveChange, u64)> {
        if self.active == Some(to) && !self.is_own {
            return None;
        }
        let last = former.filter(|peer| Some(peer.source) == self.active);
        let silent =
            last.map(|peer| now.saturating_duration_since(peer.heard)).filter(|time| *time >= silence);
        let reason = match (self.active, last) {
            (None, _) => ChangeReason::First,
            _ if self.is_own => ChangeReason::Own,
            (_, Some(ActivePeer { priority: WirePriority(0), .. })) => ChangeReason::Resigned,
            (_, Some(peer)) if peer.priority.is_degraded() => ChangeReason::Degraded,
            _ => silent.map_or(ChangeReason::Replaced, ChangeReason::Silent),
        };
        let change = ActiveChange { from: self.active, to, reason };
        (self.active, self.is_own) = (Some(to), false);
        self.may_report(now).then(|| (change, std::mem::take(&mut self.suppressed)))
    }

    fn may_report(&mut self, now: Instant) -> bool {
        self.reported.retain(|at| now.saturating_duration_since(*at) < SPAN);
        let may = self.reported.len() < BURST;
        if may {
            self.reported.push_back(now);
        } else {
            self.suppressed += 1;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(1600);

    fn router(host: u8) -> IpAddr {
        [10, 0, 0, host].into()
    }

    fn heard(host: u8, priority: u8, at: Instant) -> Option<ActivePeer> {
        Some(ActivePeer { source: router(host), priority: WirePriority(priority), heard: at })
    }

    #[test]
    fn a_change_of_the_active_has_its_reason() {
        let start = Instant::now();
        let mut followed = Followed::default();
        let mut follow = |host, former, after: u64| {
            let now = start + Duration::from_millis(after);
            followed.follow(now, router(host), former, SILENCE).map(|(change, _)| change)
        };
        let change = |from, to, reason| Some(ActiveChange { from, to: router(to), reason });
        assert_eq!(follow(1, None, 0), change(None, 1, ChangeReason::First));
        assert_eq!(follow(1, heard(1, 200, start), 1000), None);
        let from = |host| Some(router(host));
        assert_eq!(follow(2, heard(1, 0, start), 1010), change(from(1), 2, ChangeReason::Resigned));
        assert_eq!(follow(1, heard(2, 40, start), 1200), change(from(2), 1, ChangeReason::Degraded));
        let silent = ChangeReason::Silent(Duration::from_millis(3300));
        assert_eq!(follow(3, heard(1, 200, start), 3300), change(from(1), 3, silent));
        assert_eq!(follow(2, heard(3, 200, start), 900), change(from(3), 2, ChangeReason::Replaced));
        followed.become_active(from(4));
        let own = followed.follow(start, router(1), heard(2, 200, start), SILENCE).unwrap().0;
        assert_eq!(own, ActiveChange { from: from(4), to: router(1), reason: ChangeReason::Own });
        assert_eq!(own.to_string(), "this router was active before");
    }

    #[test]
    fn changes_that_a_forger_causes_are_counted_and_not_all_reported() {
        let start = Instant::now();
        let mut followed = Followed::default();
        let mut reported = 0;
        for number in 0..1000u32 {
            let now = start + Duration::from_millis(number.into());
            let to = router(u8::try_from(1 + number % 2).unwrap());
            reported += usize::from(followed.follow(now, to, None, SILENCE).is_some());
        }
        assert_eq!(reported, BURST);
        let later = start + SPAN + Duration::from_secs(1);
        assert_eq!(followed.follow(later, router(9), None, SILENCE).unwrap().1, 1000 - BURST as u64);
    }
}
