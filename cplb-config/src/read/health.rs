//! `balance` and `healthCheck`.

use std::time::Duration;

use lb_proxy::{Balance, HealthCheck, HealthKind};

use crate::walk::{Field, Finding};

use super::{Dialect, Placed, finish};

/// The words of `balance`.
pub(crate) const BALANCE: &[(&str, Balance)] = &[
    ("roundRobin", Balance::RoundRobin),
    ("leastConnections", Balance::LeastConnections),
    ("weighted", Balance::Weighted),
    ("sourceHash", Balance::SourceHash),
];

/// The path that the API server answers with success while it can serve.
pub(crate) const READYZ: &str = "/readyz";
/// The shortest interval and timeout.
pub(crate) const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(3600);
/// The interval where none is given.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Tls,
    Https,
}

/// `healthCheck` as far as it was given.
#[derive(Clone, Debug, Default)]
pub(crate) struct HealthDraft {
    pub(crate) kind: Option<Kind>,
    pub(crate) path: Option<String>,
    pub(crate) statuses: Option<Vec<u16>>,
    pub(crate) interval: Option<Placed<Duration>>,
    pub(crate) timeout: Option<Placed<Duration>>,
    pub(crate) rise: Option<u32>,
    pub(crate) fall: Option<u32>,
}

pub(super) fn read_health(field: &Field<'_>, dialect: Dialect) -> HealthDraft {
    let Some(table) = field.table() else {
        return HealthDraft::default();
    };
    let kinds = [("https", Kind::Https), ("tls", Kind::Tls), ("tcp", Kind::Tcp)];
    let kind = table.field("type").and_then(|field| field.choice(&kinds));
    let path_field = table.field("path");
    let path = path_field.as_ref().and_then(path);
    let statuses_field = table.field("statuses");
    let statuses = statuses_field.as_ref().and_then(statuses);
    let draft = HealthDraft {
        // A path or a status implies https.
        kind: kind.or_else(|| (path.is_some() || statuses.is_some()).then_some(Kind::Https)),
        path,
        statuses,
        interval: table
            .field("interval")
            .and_then(|field| Some(Placed::new(field.duration(SHORTEST, LONGEST)?, &field))),
        timeout: table
            .field("timeout")
            .and_then(|field| Some(Placed::new(field.duration(SHORTEST, LONGEST)?, &field))),
        rise: table.field("rise").and_then(|field| field.integer(1..=100)),
        fall: table.field("fall").and_then(|field| field.integer(1..=100)),
    };
    finish(table, dialect);
    if let (Some(field), Some(Kind::Tcp | Kind::Tls)) = (&path_field, draft.kind) {
        let help = "remove the path, or write `type: https`";
        field.error(Finding::new("health-path", "only a check of type https asks for a path", help));
    }
    if let (Some(field), Some(Kind::Tcp | Kind::Tls)) = (&statuses_field, draft.kind) {
        let help = "remove the statuses, or write `type: https`";
        field.error(Finding::new("health-statuses", "only a check of type https gets a status", help));
    }
    draft
}

/// HTTP statuses (RFC 9110 §15), each once.
fn statuses(field: &Field<'_>) -> Option<Vec<u16>> {
    let mut all: Vec<u16> = Vec::new();
    for item in field.items()? {
        let status = item.integer::<u16>(200..=599)?;
        if all.contains(&status) {
            let help = "write each status once";
            item.error(Finding::new("health-statuses", format!("{status} is there already"), help));
            return None;
        }
        all.push(status);
    }
    if all.is_empty() {
        let help = "write those that mean the server is ready, such as `[200]`, or remove the field";
        field.error(Finding::new("health-statuses", "no status is listed", help));
        return None;
    }
    Some(all)
}

/// An absolute path with optional query (RFC 9112 §3.2.1).
fn path(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    if text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Some(text);
    }
    let help = "write a path that begins with `/`, such as `/readyz`";
    field.error(Finding::new("health-path", format!("`{text}` is no path"), help));
    None
}

impl HealthDraft {
    /// Fills what the service leaves open from the common check, then from the defaults.
    ///
    /// A common `https` is meant for the API server: konnectivity and the join API have no such path, so they get
    /// the TLS handshake with the common timing. Nothing is checked less often than every `longest`, if there is one.
    pub(crate) fn resolve(&self, common: &Self, is_api: bool, longest: Option<Duration>) -> HealthCheck {
        let inherited = match common.kind {
            Some(Kind::Https) | None => {
                if is_api {
                    Kind::Https
                } else {
                    Kind::Tls
                }
            }
            Some(kind) => kind,
        };
        let kind = match self.kind.unwrap_or(inherited) {
            Kind::Tcp => HealthKind::Tcp,
            Kind::Tls => HealthKind::Tls,
            Kind::Https => {
                let path = self.path.clone().or_else(|| common.path.clone());
                let statuses = self.statuses.clone().or_else(|| common.statuses.clone());
                HealthKind::Https {
                    path: path.unwrap_or_else(|| READYZ.to_owned()),
                    statuses: statuses.unwrap_or_default(),
                }
            }
        };
        let interval = self.interval_given(common).map_or(INTERVAL, |placed| placed.value);
        HealthCheck {
            kind,
            interval: longest.map_or(interval, |longest| interval.min(longest)),
            timeout: self.timeout_given(common).map_or(Duration::from_secs(1), |placed| placed.value),
            rise: self.rise.or(common.rise).unwrap_or(1),
            fall: self.fall.or(common.fall).unwrap_or(2),
        }
    }

    /// The timeout that the file gives, for the service or for all.
    pub(crate) fn timeout_given<'a>(&'a self, common: &'a Self) -> Option<&'a Placed<Duration>> {
        self.timeout.as_ref().or(common.timeout.as_ref())
    }

    /// The interval that the file gives, for the service or for all.
    pub(crate) fn interval_given<'a>(&'a self, common: &'a Self) -> Option<&'a Placed<Duration>> {
        self.interval.as_ref().or(common.interval.as_ref())
    }
}
