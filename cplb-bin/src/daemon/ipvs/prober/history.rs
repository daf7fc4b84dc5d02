//! From what a server answers, round by round, to what is thought about it.

use netlink_vip::acceptance::Answer;

use super::ProbeResult;

/// A packet may be lost; so many silent rounds are not.
const SILENT_ROUNDS: u8 = 3;

/// What a server said so far.
#[derive(Debug, Default)]
pub(super) struct History {
    result: Option<ProbeResult>,
    /// In how many rounds in a row it could not be reached, whatever the reason.
    unreached: u8,
}

impl History {
    pub(super) fn result(&self) -> Option<ProbeResult> {
        self.result
    }

    /// The answer of one round. Silence counts only if it lasts.
    pub(super) fn record(&mut self, answer: Answer) {
        let said = match answer {
            Answer::Accepts => ProbeResult::Accepts,
            Answer::Refuses => ProbeResult::Refuses,
            Answer::Silent | Answer::Unresolved => ProbeResult::Silent,
            Answer::NotOnLink => ProbeResult::NotOnLink,
        };
        let reached = matches!(said, ProbeResult::Accepts | ProbeResult::Refuses);
        self.unreached = if reached { 0 } else { self.unreached.saturating_add(1) };
        if reached || self.unreached >= SILENT_ROUNDS {
            self.result = Some(said);
        }
    }

    /// A round in which it could not be asked. What is known from before stays.
    pub(super) fn record_inconclusive(&mut self) {
        self.result.get_or_insert(ProbeResult::NotProbed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_at_once_and_silence_only_if_it_lasts() {
        let mut history = History::default();
        let mut hear = |answers: &[Answer]| {
            answers.iter().for_each(|answer| history.record(*answer));
            history.result()
        };
        assert_eq!(hear(&[Answer::Silent, Answer::Unresolved]), None);
        assert_eq!(hear(&[Answer::Accepts]), Some(ProbeResult::Accepts));
        assert_eq!(hear(&[Answer::Silent, Answer::Silent]), Some(ProbeResult::Accepts));
        assert_eq!(hear(&[Answer::Silent]), Some(ProbeResult::Silent));
        assert_eq!(hear(&[Answer::Refuses]), Some(ProbeResult::Refuses));
        assert_eq!(hear(&[Answer::Accepts]), Some(ProbeResult::Accepts));
        assert_eq!(hear(&[Answer::NotOnLink; 3]), Some(ProbeResult::NotOnLink));
    }

    #[test]
    fn a_round_without_a_question_changes_nothing_that_is_known() {
        let mut history = History::default();
        history.record_inconclusive();
        assert_eq!(history.result(), Some(ProbeResult::NotProbed));
        history.record(Answer::Refuses);
        history.record_inconclusive();
        assert_eq!(history.result(), Some(ProbeResult::Refuses));
    }
}
