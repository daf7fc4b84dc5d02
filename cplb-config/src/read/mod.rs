//! From fields to domain types, one file for each part of the configuration.

mod authentication;
mod backend;
mod health;
mod instance;
mod network;
mod section;
mod service;
mod unicast;
mod virtual_server;

use std::time::Duration;

use crate::duration;
use crate::suggest::closest;
use crate::walk::{Field, Finding, Hint, Table};
use crate::yaml::Span;

pub use backend::{BackendError, K0S_KUBECONFIG};
pub(crate) use backend::{BackendsDraft, PlacedBackend, host};
pub(crate) use health::{HealthDraft, INTERVAL, SHORTEST as SHORTEST_INTERVAL};
pub(crate) use instance::InstanceDraft;
pub(crate) use section::{PROXY_BIND_PORT, Section, read_section};
pub(crate) use service::{Given, ServiceDraft};

/// The document that the fields come from: k0s knows fewer of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    K0s,
    Native,
}

/// The value was wrong, and that was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reported;

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) at: Span,
    pub(crate) path: String,
}

impl<T> Placed<T> {
    pub(crate) fn new(value: T, field: &Field<'_>) -> Self {
        Self { value, at: field.at(), path: field.path.clone() }
    }
}

impl Dialect {
    /// The hint about a field that belongs to the other document.
    pub(crate) fn hint(self, name: &str) -> Option<Hint> {
        const NATIVE_ONLY: &[&str] = &[
            "ipvsSync",
            "version",
            "advertInterval",
            "priority",
            "preempt",
            "authPassPrevious",
            "authHMAC",
            "services",
            "backends",
            "balance",
            "healthCheck",
            "status",
        ];
        const K0S_ONLY: &[&str] =
            &["enabled", "type", "keepalived", "controlPlaneLoadBalancing", "api", "network"];
        match self {
            Self::K0s if NATIVE_ONLY.contains(&name) => Some(Hint::Unknown(format!(
                "`{name}` belongs to the native document (apiVersion: cplb/v1alpha1); `cplb check` prints this file in that form"
            ))),
            Self::Native if K0S_ONLY.contains(&name) => Some(Hint::Mistake(format!(
                "`{name}` belongs to k0s; here vrrpInstances and its neighbours stand directly under `spec`"
            ))),
            _ => None,
        }
    }
}

impl Field<'_> {
    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let one_of = known.join(", ");
        let help = match closest(&text, &known) {
            Some(word) => format!("did you mean `{word}`? One of {one_of}"),
            None => format!("write one of {one_of}"),
        };
        self.error(Finding::new("unknown-value", format!("`{text}` is not known here"), help));
        None
    }

    /// A Go duration between two bounds.
    pub(crate) fn duration(&self, least: Duration, most: Duration) -> Option<Duration> {
        let range = format!("from {} to {}", duration::format(least), duration::format(most));
        let value = self.any_duration()?;
        if (least..=most).contains(&value) {
            return Some(value);
        }
        let message = format!("{} is out of range", duration::format(value));
        self.error(Finding::new("out-of-range", message, format!("write a duration {range}")));
        None
    }

    /// A Go duration.
    pub(crate) fn any_duration(&self) -> Option<Duration> {
        let scalar = self.child.scalar();
        let text = match scalar {
            Some(scalar) => scalar.text.as_str(),
            None => {
                self.wrong_type("a duration such as `1s`");
                return None;
            }
        };
        match duration::parse(text) {
            Ok(value) => Some(value),
            Err(error) => {
                let help = match error {
                    duration::DurationError::MissingUnit => {
                        format!("add a unit: `{text}s`, `{text}ms`, `{text}m`")
                    }
                    _ => "write a number and a unit, such as `1s`, `1.5s`, `300ms` or `1m`".to_owned(),
                };
                self.error(Finding::new("duration", error.message(), help));
                None
            }
        }
    }
}

/// Reports everything in `table` that was not asked for.
pub(crate) fn finish(table: Table<'_>, dialect: Dialect) {
    table.finish(|name| dialect.hint(name));
}
