//! The answers to `cplb reload`.

use std::time::{Duration, Instant};

use cplb_config::{Config, Redact};
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline, group_diff_ops};
use tokio::sync::oneshot;

use crate::control::Outcome;
use crate::exit::Failure;

/// The time for the comparison of two configurations.
const COMPARISON: Duration = Duration::from_millis(50);
/// The unchanged lines around a change that are shown.
const CONTEXT: usize = 3;

/// The operators that wait for the result of a reload.
#[derive(Debug, Default)]
pub(super) struct Waiting(Vec<(u64, oneshot::Sender<Outcome>)>);

impl Waiting {
    /// Adds one that waits for the reload with this number, or a later one.
    pub(super) fn add(&mut self, number: u64, reply: oneshot::Sender<Outcome>) {
        self.0.push((number, reply));
    }

    /// Returns whether one waits for this reload or an earlier one.
    pub(super) fn is_asked(&self, number: u64) -> bool {
        self.0.iter().any(|(of, _)| *of <= number)
    }

    /// Answers all that wait for this reload or an earlier one.
    pub(super) fn conclude(&mut self, number: u64, outcome: &Outcome) {
        let (done, waiting) = std::mem::take(&mut self.0).into_iter().partition(|(of, _)| *of <= number);
        self.0 = waiting;
        for (_, reply) in done {
            // The operator may have left.
            let _ = reply.send(outcome.clone());
        }
    }
}

/// The answer after a reload that is in effect.
pub(super) fn reloaded(former: &Config, config: &Config, warnings: &[String]) -> Outcome {
    let difference = difference(former, config);
    let what = match &difference {
        Ok(lines) if lines.is_empty() => {
            vec!["the configuration is reloaded; nothing has changed".to_owned()]
        }
        Ok(lines) => {
            std::iter::once("the configuration is reloaded:".to_owned()).chain(lines.clone()).collect()
        }
        Err(error) => vec![format!("the configuration is reloaded; the difference cannot be shown: {error}")],
    };
    let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
    let lines: Vec<String> = what.into_iter().chain(warnings).collect();
    Outcome { message: Some(lines.join("\n")), ..Outcome::default() }
}

/// The answer after a reload that was refused.
pub(super) fn refused(failure: &Failure) -> Outcome {
    Outcome::refused_as(failure.kind(), format!("the former configuration is in use: {failure}"))
}

/// The lines of the effective configuration that differ, with some around them; `-` before those that are gone, `+` before new
/// ones. Passwords and keys are compared and not shown.
fn difference(former: &Config, config: &Config) -> Result<Vec<String>, String> {
    let text = |config: &Config, redact| config.to_native_yaml(redact).map_err(|error| error.to_string());
    let [old, new] = [text(former, Redact::Nothing)?, text(config, Redact::Nothing)?];
    let [shown_old, shown_new] = [text(former, Redact::Passwords)?, text(config, Redact::Passwords)?];
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let [old, new, shown_old, shown_new] = [&old, &new, &shown_old, &shown_new].map(|text| lines(text));
    // A placeholder takes the line of what it replaces.
    if (old.len(), new.len()) != (shown_old.len(), shown_new.len()) {
        return Err("a secret has several lines".to_owned());
    }
    let mut found = Vec::new();
    // Lines that are not compared by then count as replaced.
    let deadline = Some(Instant::now() + COMPARISON);
    let operations = capture_diff_slices_deadline(Algorithm::Myers, &old, &new, deadline);
    for (index, group) in group_diff_ops(operations, CONTEXT).into_iter().enumerate() {
        if index > 0 {
            found.push("  …".to_owned());
        }
        for operation in group {
            let (before, after) = (operation.old_range(), operation.new_range());
            if matches!(operation, DiffOp::Equal { .. }) {
                found.extend(shown_new[after].iter().map(|line| format!("  {line}")));
            } else {
                found.extend(shown_old[before].iter().map(|line| format!("- {line}")));
                found.extend(shown_new[after].iter().map(|line| format!("+ {line}")));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(password: &str, interval: &str) -> Config {
        let text = format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
             - {{virtualIPs: [10.0.0.100/24], authPass: {password}}}\n  backends: {{static: [10.0.0.11]}}\n  \
             healthCheck: {{interval: {interval}}}\n"
        );
        cplb_config::load(&text, "c.yaml").unwrap().config
    }

    fn shown(former: &Config, config: &Config) -> String {
        reloaded(former, config, &["odd".to_owned()]).message.unwrap()
    }

    #[test]
    fn the_answer_shows_what_has_changed_and_no_secret() {
        let former = config("Secret1", "1s");
        assert_eq!(
            shown(&former, &former),
            "the configuration is reloaded; nothing has changed\nwarning: odd"
        );
        let text = shown(&former, &config("Secret1", "2s"));
        assert!(text.contains("\n- ") && text.contains("interval: 2s"), "{text}");
        let text = shown(&former, &config("Secret2", "1s"));
        let changed = text.lines().filter(|line| line.starts_with(['-', '+'])).count();
        assert!(changed == 2 && !text.contains("Secret"), "{text}");
    }

    #[test]
    fn a_later_reload_answers_for_those_before() {
        let mut waiting = Waiting::default();
        let mut replies: Vec<_> = (1..=3)
            .map(|number| {
                let (reply, answer) = oneshot::channel();
                waiting.add(number, reply);
                answer
            })
            .collect();
        waiting.conclude(2, &Outcome::refused("no"));
        let is_answered: Vec<bool> = replies.iter_mut().map(|answer| answer.try_recv().is_ok()).collect();
        assert_eq!(is_answered, [true, true, false]);
        assert!(waiting.is_asked(3) && !waiting.is_asked(2));
    }
}
