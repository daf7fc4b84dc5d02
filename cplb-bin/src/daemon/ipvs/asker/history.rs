//! From what a server answers, round by round, to what is thought about it.

use netlink_vip::acceptance::Answer;

use super::Opinion;

/// A packet may be lost; so many silent rounds are not.
const SILENT_ROUNDS: u8 = 3;

/// What a server said so far.
#[derive(Debug, Default)]
pub(super) struct History {
    opinion: Option<Opinion>,
    /// In how many rounds in a row it could not be reached, whatever the reason.
    unreached: u8,
}

impl History {
    pub(super) fn opinion(&self) -> Option<Opinion> {
        self.opinion
    }

    /// The answer of one round. Silence counts only if it lasts.
    pub(super) fn hear(&mut self, answer: Answer) {
        let said = match answer {
            Answer::Accepts => Opinion::Accepts,
            Answer::Refuses => Opinion::Refuses,
            Answer::Silent | Answer::Unresolved => Opinion::Silent,
            Answer::NotOnLink => Opinion::NotOnLink,
        };
        let reached = matches!(said, Opinion::Accepts | Opinion::Refuses);
        self.unreached = if reached { 0 } else { self.unreached.saturating_add(1) };
        if reached || self.unreached >= SILENT_ROUNDS {
            self.opinion = Some(said);
        }
    }

    /// A round in which it could not be asked. What is known from before stays.
    pub(super) fn pass(&mut self) {
        self.opinion.get_or_insert(Opinion::Unasked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_at_once_and_silence_only_if_it_lasts() {
        let mut history = History::default();
        let mut hear = |answers: &[Answer]| {
            answers.iter().for_each(|answer| history.hear(*answer));
            history.opinion()
        };
        assert_eq!(hear(&[Answer::Silent, Answer::Unresolved]), None);
        assert_eq!(hear(&[Answer::Accepts]), Some(Opinion::Accepts));
        assert_eq!(hear(&[Answer::Silent, Answer::Silent]), Some(Opinion::Accepts));
        assert_eq!(hear(&[Answer::Silent]), Some(Opinion::Silent));
        assert_eq!(hear(&[Answer::Refuses]), Some(Opinion::Refuses));
        assert_eq!(hear(&[Answer::Accepts]), Some(Opinion::Accepts));
        assert_eq!(hear(&[Answer::NotOnLink; 3]), Some(Opinion::NotOnLink));
    }

    #[test]
    fn a_round_without_a_question_changes_nothing_that_is_known() {
        let mut history = History::default();
        history.pass();
        assert_eq!(history.opinion(), Some(Opinion::Unasked));
        history.hear(Answer::Refuses);
        history.pass();
        assert_eq!(history.opinion(), Some(Opinion::Refuses));
    }
}
