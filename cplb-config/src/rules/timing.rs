//! Rules about the times of health checks.

use crate::duration;
use crate::read::{INTERVAL, Section, ServiceDraft};
use crate::walk::{Finding, Reporter};

use super::common::Common;

/// A check that waits for an answer delays the next one, so a long timeout stretches the interval.
pub(super) fn check(section: &Section, drafts: &[ServiceDraft], common: &Common<'_>, out: &Reporter<'_>) {
    if section.disable_load_balancer {
        return;
    }
    let mut reported = Vec::new();
    for draft in drafts {
        let Some(timeout) = draft.health.timeout_given(common.health) else { continue };
        let interval = draft.health.interval_given(common.health).map_or(INTERVAL, |placed| placed.value);
        let interval = common.longest_interval.map_or(interval, |longest| interval.min(longest));
        // Services share the common timeout.
        if timeout.value <= interval || reported.contains(&&timeout.path) {
            continue;
        }
        reported.push(&timeout.path);
        let (long, short) = (duration::format(timeout.value), duration::format(interval));
        let message = format!(
            "the timeout of {long} is longer than the interval of {short}: a server that does not answer is checked only \
             every {long}"
        );
        let help = format!("write `timeout: {short}` or less, or a longer interval");
        out.warn(&timeout.path, timeout.at, Finding::new("check-timeout", message, help));
    }
}
