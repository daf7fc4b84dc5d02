//! Turns the events of the parts into log lines and problems.

mod balancer;
mod election;
mod keeper;
#[cfg(test)]
mod tests;

use vrrp::runner::InstanceId;

use super::backends::Answers;
use super::instance_log::{InstanceFields, instance_log};
use super::problems::{Cause, Problems};
use super::serving::Fitness;

pub(crate) use balancer::log_balancer;
pub(crate) use election::{log_election, log_source};
pub(crate) use keeper::{log_interface, log_keeper, log_link_local, log_overrun, log_overrun_end};

/// Reports instances whose addresses this node cannot hold together, once per change.
pub(crate) fn log_fitness(
    all: &[Fitness],
    instance: impl Fn(InstanceId) -> InstanceFields,
    problems: &mut Problems,
) {
    for Fitness { id, faults } in all {
        let cause = Cause::Unfit(id.0);
        if faults.is_empty() {
            if problems.clear(&cause) {
                instance_log!(info, instance(*id), "this node can hold all virtual IPs again");
            }
        } else if problems.raise_all(cause, faults.clone()) {
            instance_log!(warn, instance(*id), reasons = ?faults, "this node cannot hold all virtual IPs");
        }
    }
}

/// Reports backend names that have no address, once per change.
pub(crate) fn log_names(answers: &Answers, problems: &mut Problems) {
    problems.retain(|cause| match cause {
        Cause::Name(name) => answers.contains(name),
        _ => true,
    });
    for (name, failure) in answers.failures() {
        let cause = Cause::Name(name.to_owned());
        match failure {
            None => {
                problems.clear(&cause);
            }
            Some(why) => {
                if problems.raise(cause, format!("the backend name {name} cannot be resolved: {why}")) {
                    tracing::warn!(name, error = why, "backend name cannot be resolved; retrying");
                }
            }
        }
    }
}
