//! The history of a server's answers, round by round, and the result that follows from it.

use netlink_vip::acceptance::Answer;

use super::ProbeResult;

/// The number of rounds in a row without an answer after which a server is silent. Fewer may be lost packets.
const SILENT_ROUNDS: u8 = 3;

/// The answers of a server so far.
#[derive(Debug, Default)]
pub(super) struct History {
    result: Option<ProbeResult>,
    /// The number of rounds in a row in which it could not be reached, for any reason.
    unreached: u8,
}

impl History {
    pub(super) fn result(&self) -> Option<ProbeResult> {
        self.result
    }

    /// Records the answer of one round. A missing answer counts only after [`SILENT_ROUNDS`].
    pub(super) fn record(&mut self, answer: Answer) {
        let result = match answer {
            Answer::Accepts => ProbeResult::Accepts,
            Answer::Refuses => ProbeResult::Refuses,
            Answer::Silent | Answer::Unresolved => ProbeResult::Silent,
            Answer::NotOnLink => ProbeResult::NotOnLink,
        };
        let reached = matches!(result, ProbeResult::Accepts | ProbeResult::Refuses);
        self.unreached = if reached { 0 } else { self.unreached.saturating_add(1) };
        if reached || self.unreached >= SILENT_ROUNDS {
            self.result = Some(result);
        }
    }

    /// Records a round in which it could not be probed. The former result stays.
    pub(super) fn record_inconclusive(&mut self) {
        self.result.get_or_insert(ProbeResult::NotProbed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_at_once_and_silence_after_three_rounds() {
        let mut history = History::default();
        let mut record = |answers: &[Answer]| {
            answers.iter().for_each(|answer| history.record(*answer));
            history.result()
        };
        assert_eq!(record(&[Answer::Silent, Answer::Unresolved]), None);
        assert_eq!(record(&[Answer::Accepts]), Some(ProbeResult::Accepts));
        assert_eq!(record(&[Answer::Silent, Answer::Silent]), Some(ProbeResult::Accepts));
        assert_eq!(record(&[Answer::Silent]), Some(ProbeResult::Silent));
        assert_eq!(record(&[Answer::Refuses]), Some(ProbeResult::Refuses));
        assert_eq!(record(&[Answer::Accepts]), Some(ProbeResult::Accepts));
        assert_eq!(record(&[Answer::NotOnLink; 3]), Some(ProbeResult::NotOnLink));
    }

    #[test]
    fn an_inconclusive_round_keeps_the_former_result() {
        let mut history = History::default();
        history.record_inconclusive();
        assert_eq!(history.result(), Some(ProbeResult::NotProbed));
        history.record(Answer::Refuses);
        history.record_inconclusive();
        assert_eq!(history.result(), Some(ProbeResult::Refuses));
    }
}
