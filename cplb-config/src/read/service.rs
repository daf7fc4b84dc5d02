//! `services`.

use std::num::NonZeroU32;

use lb_proxy::Balance;

use crate::model::{Port, is_konnectivity};
use crate::walk::{Field, Finding, Table};
use crate::yaml::Span;

use super::backend::{BackendsDraft, port, read_backends};
use super::health::{BALANCE, HealthDraft, read_health};
use super::{Dialect, Placed, finish};

/// Each has listeners and checks of its own.
const MOST_SERVICES: usize = 100;

/// A service as far as it could be read.
#[derive(Debug)]
pub(crate) struct ServiceDraft {
    pub(crate) path: String,
    pub(crate) at: Span,
    pub(crate) name: Option<Placed<String>>,
    pub(crate) port: Option<Placed<Port>>,
    pub(crate) bind_port: Given<Port>,
    pub(crate) backend_port: Given<Port>,
    pub(crate) backends: Option<BackendsDraft>,
    pub(crate) balance: Given<Balance>,
    pub(crate) health: HealthDraft,
    pub(crate) max_connections: Option<NonZeroU32>,
    pub(crate) max_connections_per_client: Option<NonZeroU32>,
}

/// A field with a default.
#[derive(Clone, Debug)]
pub(crate) enum Given<T> {
    Absent,
    /// Present and wrong, which was reported.
    Wrong,
    Value(Placed<T>),
}

impl<T: Clone> Given<T> {
    pub(super) fn read(field: Option<Field<'_>>, read: impl Fn(&Field<'_>) -> Option<T>) -> Self {
        match field {
            None => Self::Absent,
            Some(field) => read(&field).map_or(Self::Wrong, |value| Self::Value(Placed::new(value, &field))),
        }
    }

    /// The value, or the default if the field is absent.
    pub(crate) fn or(&self, default: Option<T>) -> Option<T> {
        match self {
            Self::Absent => default,
            Self::Wrong => None,
            Self::Value(placed) => Some(placed.value.clone()),
        }
    }
}

impl ServiceDraft {
    /// The port of servers that name none.
    pub(crate) fn server_port(&self) -> Option<Port> {
        self.backend_port.or(self.port.as_ref().map(|placed| placed.value))
    }

    /// Returns whether the service is konnectivity's; see
    /// [`Service::is_konnectivity`](crate::Service::is_konnectivity).
    pub(crate) fn is_konnectivity(&self) -> bool {
        let name = self.name.as_ref().map_or("", |name| name.value.as_str());
        let own = self.backends.iter().flat_map(|backends| &backends.fixed);
        is_konnectivity(name, own.filter_map(|backend| backend.value.port).chain(self.server_port()))
    }
}

pub(super) fn read_services(list: &Field<'_>, dialect: Dialect) -> Vec<ServiceDraft> {
    let items =
        list.items_up_to(MOST_SERVICES, "list the ports of the control plane only").unwrap_or_default();
    items.iter().filter_map(|item| read_service(item, dialect)).collect()
}

fn read_service(item: &Field<'_>, dialect: Dialect) -> Option<ServiceDraft> {
    let table = item.table()?;
    let name = required(&table, "name", "add `name:`, such as `kube-apiserver`", name);
    let port_help = "add `port:` with the port clients use, such as 6443";
    let port = required(&table, "port", port_help, self::port);
    let draft = ServiceDraft {
        path: item.path.clone(),
        at: table.first_key(),
        name,
        port,
        bind_port: Given::read(table.field("bindPort"), self::port),
        backend_port: Given::read(table.field("backendPort"), self::port),
        backends: table.field("backends").map(|field| read_backends(&field, dialect)),
        balance: read_balance(&table),
        health: table.field("healthCheck").map(|field| read_health(&field, dialect)).unwrap_or_default(),
        max_connections: table.field("maxConnections").and_then(|field| limit(&field)),
        max_connections_per_client: table.field("maxConnectionsPerClient").and_then(|field| limit(&field)),
    };
    finish(table, dialect);
    Some(draft)
}

pub(super) fn read_balance(table: &Table<'_>) -> Given<Balance> {
    Given::read(table.field("balance"), |field| field.choice(BALANCE))
}

fn required<T>(
    table: &Table<'_>,
    key: &'static str,
    help: &str,
    read: impl Fn(&Field<'_>) -> Option<T>,
) -> Option<Placed<T>> {
    let Some(field) = table.field(key) else {
        table.missing(key, help);
        return None;
    };
    read(&field).map(|value| Placed::new(value, &field))
}

fn limit(field: &Field<'_>) -> Option<NonZeroU32> {
    field.integer(1..=u32::MAX).and_then(NonZeroU32::new)
}

/// A word for logs and metrics.
fn name(field: &Field<'_>) -> Option<String> {
    const LONGEST: usize = 63;
    let text = field.string()?;
    let fits = (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !fits {
        let help = format!("write 1 to {LONGEST} letters, digits, hyphens, dots or underscores");
        field.error(Finding::new("service-name", "this is no name of a service", help));
        return None;
    }
    Some(text)
}
