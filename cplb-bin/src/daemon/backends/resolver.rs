//! Name resolution of backends: at the start, at a reload, and periodically.
//!
//! A query to a dead name server takes seconds, so only a start waits for it: rounds run in tasks, and their answers are
//! events.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cplb_config::{Config, Host};
use tokio::task::JoinSet;

use crate::daemon::sender::EventSender;

/// The time that the look-ups of one round may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The result of a round for each name.
#[derive(Debug, Default)]
pub(crate) struct Answers(BTreeMap<String, Answer>);

impl Answers {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Answer)> {
        self.0.iter()
    }

    /// Each name, with the reason if it has no address.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|(name, answer)| (name.as_str(), answer.as_ref().err().map(String::as_str)))
    }

    /// Returns whether `name` was part of the round.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Returns whether the names of the round are exactly those of `config`.
    pub(crate) fn are_for(&self, config: &Config) -> bool {
        self.0.keys().eq(&names(config))
    }
}

/// The end of a round.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) answers: Answers,
    /// The number of the reload that waits for this round; `None` for the configuration in use.
    pub(crate) reload: Option<u64>,
}

/// Queries the system's resolver, one round at a time.
#[derive(Debug)]
pub(crate) struct Resolver {
    events: EventSender<Resolved>,
    round_is_running: bool,
    /// The names of the reload with this number, for the next round.
    waiting: Option<(u64, BTreeSet<String>)>,
    queries: Queries,
}

impl Resolver {
    /// A resolver that reports its rounds to `events`.
    pub(super) fn new(events: EventSender<Resolved>) -> Self {
        Self { events, round_is_running: false, waiting: None, queries: Queries::default() }
    }

    /// Resolves all names of `config` in parallel.
    pub(crate) fn resolve(&self, config: &Config) -> impl Future<Output = Answers> + Send + 'static {
        self.resolve_names(names(config))
    }

    fn resolve_names(&self, names: BTreeSet<String>) -> impl Future<Output = Answers> + Send + 'static {
        let queries = self.queries.clone();
        async move {
            let mut rounds: JoinSet<_> =
                names.into_iter().map(|name| queries.clone().look_up(name)).collect();
            let mut answers = Answers::default();
            while let Some(answer) = rounds.join_next().await {
                answers.0.extend(answer);
            }
            answers
        }
    }

    /// Resolves the names of a reload; the result has its number. A later reload replaces the one that waits for the end of
    /// a round.
    pub(crate) fn resolve_for_reload(&mut self, config: &Config, number: u64) {
        self.waiting = Some((number, names(config)));
        self.start_round_of_waiting();
    }

    /// Resolves the names of the configuration in use again, unless a round is in progress.
    pub(crate) fn refresh(&mut self, config: &Config) {
        let names = names(config);
        if !self.round_is_running && !names.is_empty() {
            self.start_round(names, None);
        }
    }

    /// Starts the round that waits; called with each [`Resolved`].
    pub(crate) fn round_ended(&mut self) {
        self.round_is_running = false;
        self.start_round_of_waiting();
    }

    fn start_round_of_waiting(&mut self) {
        if !self.round_is_running
            && let Some((number, names)) = self.waiting.take()
        {
            self.start_round(names, Some(number));
        }
    }

    fn start_round(&mut self, names: BTreeSet<String>, reload: Option<u64>) {
        self.round_is_running = true;
        let (answers, events) = (self.resolve_names(names), self.events.clone());
        tokio::spawn(async move {
            let answers = answers.await;
            let _ = events.send(Resolved { answers, reload });
        });
    }
}

/// The addresses from the system's resolver, or the reason of the failure.
pub(super) type Answer = Result<Vec<IpAddr>, String>;

/// The queries in progress, and the answers that came after the end of their round. The system's resolver may take much
/// longer than a round, for instance because its first name server is dead, and each query occupies a thread: there is at
/// most one query per name, and no answer is lost.
#[derive(Debug, Clone, Default)]
struct Queries(Arc<Mutex<BTreeMap<String, Option<Answer>>>>);

impl Queries {
    async fn look_up(self, name: String) -> (String, Answer) {
        let late = || Err("no answer in time".to_owned());
        match self.open().entry(name.clone()) {
            Entry::Vacant(free) => free.insert(None),
            Entry::Occupied(mut known) => {
                let Some(answer) = known.get_mut().take() else { return (name, late()) };
                known.remove();
                return (name, answer);
            }
        };
        let (queries, queried) = (self.clone(), name.clone());
        let query = tokio::spawn(async move {
            let answer = tokio::net::lookup_host((queried.as_str(), 0)).await.map(addresses);
            queries.open().insert(queried, Some(answer.map_err(|error| error.to_string())));
        });
        if tokio::time::timeout(TIMEOUT, query).await.is_err() {
            return (name, late());
        }
        let answer = self.open().remove(&name).flatten().unwrap_or_else(late);
        (name, answer)
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Option<Answer>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn addresses(found: impl Iterator<Item = std::net::SocketAddr>) -> Vec<IpAddr> {
    found.map(|address| address.ip()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The names among the backends of `config`.
fn names(config: &Config) -> BTreeSet<String> {
    let shared = config.backends.fixed.iter();
    let own =
        config.services.iter().filter_map(|service| service.backends.as_ref()).flat_map(|own| &own.fixed);
    let hosts = shared.chain(own).map(|backend| &backend.host);
    hosts
        .filter_map(|host| match host {
            Host::Name(name) => Some(name.clone()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn answers(of: &[(&str, Option<[u8; 4]>)]) -> Answers {
        let answer = |ip: &Option<[u8; 4]>| ip.map(|ip| vec![IpAddr::from(ip)]).ok_or("no answer".to_owned());
        Answers(of.iter().map(|(name, ip)| ((*name).to_owned(), answer(ip))).collect())
    }

    #[tokio::test]
    async fn a_later_reload_replaces_the_one_that_waits_for_a_round() {
        let (channel, mut rounds) = tokio::sync::mpsc::unbounded_channel::<Resolved>();
        let mut resolver = Resolver::new(EventSender::new(&channel));
        let text = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  \
                    backends: {static: [10.0.0.1]}\n";
        let config = cplb_config::load(text, "c.yaml").unwrap().config;
        resolver.refresh(&config);
        for number in 1..=3 {
            resolver.resolve_for_reload(&config, number);
        }
        let mut numbers = Vec::new();
        for _ in 0..2 {
            numbers.push(rounds.recv().await.unwrap().reload);
            resolver.round_ended();
        }
        assert_eq!(numbers, [Some(1), Some(3)], "one round at a time; no round without names");
        assert!(rounds.try_recv().is_err());
    }

    #[test]
    fn answers_match_only_a_configuration_with_the_same_names() {
        let config = |backends: &str| {
            let text = format!(
                "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  \
                 backends: {{static: [{backends}]}}\n"
            );
            cplb_config::load(&text, "c.yaml").unwrap().config
        };
        let found = answers(&[("a", Some([10, 0, 0, 1])), ("b", None)]);
        assert!(found.are_for(&config("b, 10.0.0.9, a")));
        for other in ["a", "b, c", "a, b, c", "10.0.0.1"] {
            assert!(!found.are_for(&config(other)), "{other}");
        }
        assert!(Answers::default().are_for(&config("10.0.0.1")));
    }
}
