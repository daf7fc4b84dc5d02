//! Looking at the table, and carrying plans out.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Client, CommandError, RequestError};
use crate::model::ServiceKey;
use crate::reconcile::{Desired, Plan, Planner, Step, Table};
use crate::wire::Request;

/// Outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is so: the kernel did it, or there was nothing left to delete.
    Done,
    /// The kernel refused, or did not answer.
    Failed(CommandError),
    /// It was not sent, because its service could not be added or because no answers come.
    Skipped,
}

/// Outcome of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub struct Report {
    /// Outcome of each step, in the order of the plan.
    pub outcomes: Vec<Outcome>,
    /// Why the rest was not sent, if it was not.
    pub stopped: Option<RequestError>,
}

impl Report {
    /// Returns whether every step was done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.outcomes.iter().all(|outcome| *outcome == Outcome::Done)
    }

    /// The steps that failed, with the reasons.
    pub fn failures<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a Step, &'a CommandError)> {
        plan.steps.iter().zip(&self.outcomes).filter_map(|(step, outcome)| match outcome {
            Outcome::Failed(error) => Some((step, error)),
            Outcome::Done | Outcome::Skipped => None,
        })
    }

    /// Takes out of `owned` what is not there after the plan, and what was claimed for it but added by another
    /// program. A service of which that is unknown stays, and so does one that was owned before: the kernel's list
    /// may have left it out.
    pub fn release(&self, plan: &Plan, owned: &mut BTreeSet<ServiceKey>) {
        owned.retain(|key| !plan.gone.contains(key));
        for (step, outcome) in plan.steps.iter().zip(&self.outcomes) {
            let absent = match (step, outcome) {
                (Step::DeleteService(_), outcome) => *outcome == Outcome::Done,
                (Step::AddService(service), _) if !plan.claims.contains(&service.key()) => false,
                (Step::AddService(_), Outcome::Skipped) => true,
                (Step::AddService(_), Outcome::Failed(error)) => error.request().is_none(),
                _ => false,
            };
            if absent {
                owned.remove(&step.service());
            }
        }
    }
}

impl Client {
    /// The table: all services, and the destinations of those that are owned.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn table(&self, owned: &BTreeSet<ServiceKey>) -> Result<Table, RequestError> {
        let mut table = Table::default();
        for entry in self.services().await? {
            let key = entry.service.key();
            let destinations = if owned.contains(&key) { self.destinations(&key).await? } else { Vec::new() };
            table.insert(entry.service, &destinations);
        }
        Ok(table)
    }

    /// Carries a plan out. Steps that the kernel refuses do not keep others from being carried out, except that no
    /// destinations are added to a service that could not be. When no answer comes, or none will be other, the rest is
    /// skipped. `progress` hears of each step when its outcome is known.
    pub async fn apply(&self, plan: &Plan, progress: impl FnMut(&Step, &Outcome)) -> Report {
        let mut run = Run {
            plan,
            progress,
            report: Report { outcomes: Vec::with_capacity(plan.steps.len()), stopped: None },
            batch: Vec::with_capacity(self.exchange.in_flight),
            unconfirmed: BTreeSet::new(),
            missing: BTreeSet::new(),
        };
        for step in &plan.steps {
            let service = step.service();
            let dependent = matches!(step, Step::AddDestination(..));
            if run.batch.len() == self.exchange.in_flight || (dependent && run.unconfirmed.contains(&service))
            {
                run.send(self).await;
            }
            if run.report.stopped.is_some() {
                break;
            }
            if dependent && run.missing.contains(&service) {
                run.send(self).await;
                run.record(Outcome::Skipped);
                continue;
            }
            if matches!(step, Step::AddService(_)) {
                run.unconfirmed.insert(service);
            }
            run.batch.push(step.request());
        }
        run.send(self).await;
        while run.report.outcomes.len() < plan.steps.len() {
            run.record(Outcome::Skipped);
        }
        run.report
    }

    /// Looks at the table, plans, and carries the plan out. `owned` is brought up to date: what is about to be added
    /// is in it before, what is gone is taken out after. To keep that on disk, call [`Client::table`],
    /// [`Planner::plan`] and [`Client::apply`] instead, and writes in between.
    ///
    /// # Errors
    /// [`RequestError`] if the table cannot be read. Failures of steps are in the report.
    pub async fn reconcile(
        &self,
        planner: &mut Planner,
        desired: &Desired,
        owned: &mut BTreeSet<ServiceKey>,
    ) -> Result<(Plan, Report), RequestError> {
        let table = self.table(owned).await?;
        let plan = planner.plan(Instant::now(), desired, &table, owned);
        owned.extend(&plan.claims);
        let report = self.apply(&plan, |_, _| {}).await;
        report.release(&plan, owned);
        Ok((plan, report))
    }
}

/// A plan while it is carried out. Outcomes are known in the order of the steps.
struct Run<'a, F> {
    plan: &'a Plan,
    progress: F,
    report: Report,
    /// The requests after the steps whose outcomes are known.
    batch: Vec<Request>,
    /// Services that are being added.
    unconfirmed: BTreeSet<ServiceKey>,
    /// Services that could not be added.
    missing: BTreeSet<ServiceKey>,
}

impl<F: FnMut(&Step, &Outcome)> Run<'_, F> {
    /// Sends the batch and notes the outcomes.
    async fn send(&mut self, client: &Client) {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        match client.answers(&batch).await {
            Ok(answers) => {
                for (request, answer) in batch.iter().zip(answers) {
                    let result = answer.result.map_err(|errno| CommandError::of(request, errno));
                    self.record(outcome(request, result));
                }
            }
            Err(error) => {
                for _ in &batch {
                    self.record(Outcome::Failed(error.into()));
                }
                self.report.stopped = Some(error);
            }
        }
        self.unconfirmed.clear();
    }

    /// Notes the outcome of the next step.
    fn record(&mut self, outcome: Outcome) {
        let Some(step) = self.plan.steps.get(self.report.outcomes.len()) else { return };
        if let Outcome::Failed(error) = &outcome {
            if matches!(step, Step::AddService(_)) {
                self.missing.insert(step.service());
            }
            if let Some(error) = error.request().filter(|error| error.is_fatal()) {
                self.report.stopped.get_or_insert(*error);
            }
        }
        (self.progress)(step, &outcome);
        self.report.outcomes.push(outcome);
    }
}

/// A deletion that finds nothing has what it wanted.
fn outcome(request: &Request, result: Result<(), CommandError>) -> Outcome {
    let deletion = matches!(request, Request::DeleteService(_) | Request::DeleteDestination(..));
    match result {
        Ok(()) => Outcome::Done,
        Err(error) if deletion && error.is_absence() => Outcome::Done,
        Err(error) => Outcome::Failed(error),
    }
}
