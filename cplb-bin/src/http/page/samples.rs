//! The course of the last minutes: the connections of each service and backend.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::status::schema::{Service, Status};

/// The time between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);
/// The samples that are kept: three minutes.
const KEPT: usize = 90;
/// The backends of a service that are shown; those of the largest control planes are fewer.
pub(super) const SHOWN_BACKENDS: usize = 64;
/// The series that are kept at most, of 1 KB each.
const MAX_SERIES: usize = 512;

/// A service and, for its own series, no backend.
type Key = (String, Option<String>);

/// The new connections per second by service and backend, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    series: BTreeMap<Key, Series>,
}

#[derive(Debug)]
struct Series {
    total: u64,
    rates: VecDeque<f32>,
}

impl Samples {
    /// Takes the totals, `elapsed` after those before. Series of what is no longer there go.
    pub(crate) fn take(&mut self, status: &Status, elapsed: Duration) {
        let mut former = std::mem::take(&mut self.series);
        for (key, total) in status.services.iter().flat_map(totals).take(MAX_SERIES) {
            let series = match former.remove(&key) {
                Some(mut series) => {
                    let new = total.saturating_sub(series.total) as f64;
                    if series.rates.len() == KEPT {
                        series.rates.pop_front();
                    }
                    series.rates.push_back((new / elapsed.as_secs_f64().max(0.001)) as f32);
                    series.total = total;
                    series
                }
                None => Series { total, rates: VecDeque::new() },
            };
            self.series.insert(key, series);
        }
    }

    /// The rates of a service, or of one of its backends.
    pub(super) fn rates(&self, service: &str, backend: Option<&str>) -> Vec<f32> {
        let key = (service.to_owned(), backend.map(str::to_owned));
        self.series.get(&key).map(|series| series.rates.iter().copied().collect()).unwrap_or_default()
    }
}

fn totals(service: &Service) -> impl Iterator<Item = (Key, u64)> {
    let backends = service.backends.iter().take(SHOWN_BACKENDS);
    let own = ((service.name.clone(), None), service.connections_accepted);
    std::iter::once(own).chain(
        backends.map(|backend| {
            ((service.name.clone(), Some(backend.address.clone())), backend.connections_total)
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::schema::Backend;

    fn status(accepted: u64, backends: &[(&str, u64)]) -> Status {
        let backend = |(address, total): &(&str, u64)| Backend {
            address: (*address).to_owned(),
            connections_total: *total,
            ..Backend::default()
        };
        let service = Service {
            name: "api".to_owned(),
            connections_accepted: accepted,
            backends: backends.iter().map(backend).collect(),
            ..Service::default()
        };
        Status { services: vec![service], ..Status::default() }
    }

    #[test]
    fn rates_are_the_differences_of_totals() {
        let mut samples = Samples::default();
        let second = Duration::from_secs(1);
        samples.take(&status(100, &[("a", 60), ("b", 40)]), second);
        assert!(samples.rates("api", None).is_empty(), "the first total is no rate");
        samples.take(&status(130, &[("a", 80), ("b", 50)]), 2 * second);
        // A restarted or replaced part counts from 0 again.
        samples.take(&status(131, &[("a", 5), ("c", 1)]), second);
        assert_eq!(samples.rates("api", None), [15.0, 1.0]);
        assert_eq!(samples.rates("api", Some("a")), [10.0, 0.0]);
        assert!(samples.rates("api", Some("b")).is_empty() && samples.rates("api", Some("c")).is_empty());
    }

    #[test]
    fn series_and_their_samples_are_bounded() {
        let mut samples = Samples::default();
        let names: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
        let backends: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        for _ in 0..KEPT + 10 {
            samples.take(&status(1, &backends), INTERVAL);
        }
        assert_eq!(samples.series.len(), SHOWN_BACKENDS + 1);
        assert_eq!(samples.rates("api", None).len(), KEPT);
    }
}
