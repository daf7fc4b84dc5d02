//! Transparent delivery where the kernel and nft have `tproxy`, and translation where a table with it is refused.
//!
//! A refusal holds for a minute: the module may be loaded later, and a brief lack of memory looks like a refusal.

use std::time::{Duration, Instant};

use lb_proxy::nft::{ApplyError, Delivery, Nft, RunError, Table};

/// The time for which a refusal holds.
const REFUSED: Duration = Duration::from_secs(60);

/// The timeout of a further attempt; the serving verdict waits for it.
const RETRY_TIMEOUT: Duration = Duration::from_millis(500);

/// Replaces the table in the kernel. A refused table leaves the former one in place.
pub(super) trait Replace {
    fn replace(&mut self, table: &Table) -> impl Future<Output = Result<(), ApplyError>> + Send;
}

impl Replace for Nft {
    async fn replace(&mut self, table: &Table) -> Result<(), ApplyError> {
        self.apply(table).await
    }
}

/// The last refusal of a transparent table.
#[derive(Debug, Default)]
pub(super) struct Tproxy(Option<Refused>);

#[derive(Debug)]
struct Refused {
    reason: String,
    at: Instant,
}

impl Tproxy {
    /// The reason why no connection can be transparent.
    pub(super) fn refusal(&self) -> Option<&String> {
        self.0.as_ref().map(|refused| &refused.reason)
    }

    /// Applies `table`; if only a transparent one is refused, the translating one in its place. Returns the applied one.
    pub(super) async fn apply(
        &mut self,
        nft: &mut impl Replace,
        table: Table,
        now: Instant,
    ) -> Result<Table, ApplyError> {
        let Err(error) = nft.replace(&table).await else { return Ok(table) };
        let Some(mut reason) = refusal(&error).filter(|_| table.delivery != Delivery::Dnat) else {
            return Err(error);
        };
        let translating = Table { delivery: Delivery::Dnat, ..table.clone() };
        if nft.replace(&translating).await.is_err() {
            return Err(error);
        }
        if matches!(error, ApplyError::Run(RunError::Failed { .. })) {
            // The kernel was busy, or nft was killed: only a second refusal shows that it is about tproxy.
            let Err(second) = nft.replace(&table).await else { return Ok(table) };
            reason = refusal(&second).unwrap_or(reason);
        }
        self.0 = Some(Refused { reason, at: now });
        Ok(translating)
    }

    /// Tries a transparent table once more if its refusal no longer holds. Returns whether it was applied.
    pub(super) async fn retry(&mut self, nft: &mut impl Replace, table: &Table, now: Instant) -> bool {
        let Some(refused) = &mut self.0 else { return false };
        if now.saturating_duration_since(refused.at) < REFUSED {
            return false;
        }
        match tokio::time::timeout(RETRY_TIMEOUT, nft.replace(table)).await {
            Ok(Ok(())) => {
                self.0 = None;
                true
            }
            Ok(Err(error)) => {
                refused.at = now;
                if let Some(reason) = refusal(&error) {
                    refused.reason = reason;
                }
                false
            }
            Err(_) => {
                refused.at = now;
                false
            }
        }
    }
}

/// The reason of a refusal, if `tproxy` may be its cause.
fn refusal(error: &ApplyError) -> Option<String> {
    let ApplyError::Run(error) = error else { return None };
    let (why, text) = match error {
        RunError::Unsupported { text } => {
            ("the kernel or nft does not support tproxy (module nft_tproxy)".to_owned(), text)
        }
        RunError::Failed { status, text } => (format!("nft refuses a table with tproxy ({status})"), text),
        _ => return None,
    };
    Some(text.lines().next().map_or(why.clone(), |line| format!("{why}: {line}")))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    /// The scripted answers, one for each table, and the tables that were tried.
    #[derive(Default)]
    struct Scripted {
        answers: VecDeque<Result<(), ApplyError>>,
        tables: Vec<Delivery>,
    }

    impl Scripted {
        fn new(answers: impl IntoIterator<Item = Result<(), ApplyError>>) -> Self {
            Self { answers: answers.into_iter().collect(), tables: Vec::new() }
        }
    }

    impl Replace for Scripted {
        async fn replace(&mut self, table: &Table) -> Result<(), ApplyError> {
            self.tables.push(table.delivery.clone());
            self.answers.pop_front().expect("no further table is tried")
        }
    }

    fn busy() -> Result<(), ApplyError> {
        let text = "Error: Could not process rule: Device or resource busy".to_owned();
        Err(RunError::Failed { status: ExitStatus::from_raw(256), text }.into())
    }

    fn killed() -> Result<(), ApplyError> {
        Err(RunError::Failed { status: ExitStatus::from_raw(9), text: String::new() }.into())
    }

    fn unsupported() -> Result<(), ApplyError> {
        let text = "Error: Could not process rule: No such file or directory".to_owned();
        Err(RunError::Unsupported { text }.into())
    }

    async fn apply(tproxy: &mut Tproxy, nft: &mut Scripted, now: Instant) -> Result<Delivery, ApplyError> {
        let applied = tproxy.apply(nft, Table::default(), now).await;
        assert!(nft.answers.is_empty(), "{:?}", nft.answers);
        applied.map(|table| table.delivery)
    }

    #[tokio::test]
    async fn one_failure_of_nft_is_retried_before_it_counts_as_a_refusal_of_tproxy() {
        for failure in [busy(), killed()] {
            let (mut tproxy, mut nft) = (Tproxy::default(), Scripted::new([failure, Ok(()), Ok(())]));
            let applied = apply(&mut tproxy, &mut nft, Instant::now()).await.unwrap();
            assert_eq!((applied, tproxy.refusal()), (Delivery::default(), None));
            assert_eq!(nft.tables, [Delivery::default(), Delivery::Dnat, Delivery::default()]);
        }
    }

    #[tokio::test]
    async fn tproxy_is_refused_after_two_failures_while_translation_is_accepted() {
        for (answers, reason) in [
            (
                vec![busy(), Ok(()), busy()],
                "nft refuses a table with tproxy (exit status: 1): Error: Could not",
            ),
            (vec![killed(), Ok(()), killed()], "nft refuses a table with tproxy (signal: 9 (SIGKILL))"),
            (
                vec![unsupported(), Ok(())],
                "the kernel or nft does not support tproxy (module nft_tproxy): Error",
            ),
        ] {
            let (mut tproxy, mut nft) = (Tproxy::default(), Scripted::new(answers));
            let applied = apply(&mut tproxy, &mut nft, Instant::now()).await.unwrap();
            assert_eq!(applied, Delivery::Dnat);
            assert!(tproxy.refusal().unwrap().starts_with(reason), "{:?}", tproxy.refusal());
        }
    }

    #[tokio::test]
    async fn a_failure_of_both_tables_is_no_refusal_of_tproxy() {
        let (mut tproxy, mut nft) = (Tproxy::default(), Scripted::new([unsupported(), busy()]));
        apply(&mut tproxy, &mut nft, Instant::now()).await.unwrap_err();
        assert_eq!(tproxy.refusal(), None);
    }

    #[tokio::test]
    async fn a_refused_table_is_retried_every_minute_until_it_is_accepted() {
        let (mut tproxy, start, table) = (Tproxy::default(), Instant::now(), Table::default());
        apply(&mut tproxy, &mut Scripted::new([unsupported(), Ok(())]), start).await.unwrap();
        let none = &mut Scripted::default();
        assert!(!tproxy.retry(none, &table, start + REFUSED - Duration::from_millis(1)).await);
        let again = start + REFUSED;
        assert!(!tproxy.retry(&mut Scripted::new([busy()]), &table, again).await);
        assert!(tproxy.refusal().unwrap().contains("busy"), "the latest reason");
        assert!(!tproxy.retry(none, &table, again + REFUSED - Duration::from_millis(1)).await);
        let mut nft = Scripted::new([Ok(())]);
        assert!(tproxy.retry(&mut nft, &table, again + REFUSED).await);
        assert_eq!((nft.tables, tproxy.refusal()), (vec![Delivery::default()], None));
        assert!(!tproxy.retry(none, &table, again + 3 * REFUSED).await, "it is in effect");
    }
}
