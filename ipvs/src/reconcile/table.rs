//! The table that should be and the table that is.

use std::collections::BTreeMap;

use crate::model::{
    Destination, DestinationEntry, DestinationKey, ForwardMethod, Service, ServiceFlags, ServiceKey,
};

/// The services that should be, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired(BTreeMap<ServiceKey, DesiredService>);

impl Desired {
    /// Adds a service; one with the same key is replaced and returned.
    pub fn insert(&mut self, service: DesiredService) -> Option<DesiredService> {
        self.0.insert(service.service.key(), service)
    }

    /// The services, in the order of their keys.
    pub fn services(&self) -> impl Iterator<Item = &DesiredService> {
        self.0.values()
    }

    /// The service with a key.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&DesiredService> {
        self.0.get(key)
    }
}

impl FromIterator<DesiredService> for Desired {
    fn from_iter<I: IntoIterator<Item = DesiredService>>(services: I) -> Self {
        let mut desired = Self::default();
        desired.extend(services);
        desired
    }
}

impl Extend<DesiredService> for Desired {
    fn extend<I: IntoIterator<Item = DesiredService>>(&mut self, services: I) {
        for service in services {
            self.insert(service);
        }
    }
}

/// A service that should be, with its destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredService {
    /// Its settings.
    pub service: Service,
    destinations: BTreeMap<DestinationKey, Option<Destination>>,
}

impl DesiredService {
    /// A service without destinations.
    #[must_use]
    pub const fn new(service: Service) -> Self {
        Self { service, destinations: BTreeMap::new() }
    }

    /// With a destination; what was said before about one with the same key no longer holds.
    #[must_use]
    pub fn with(mut self, destination: Destination) -> Self {
        self.destinations.insert(destination.key, Some(destination));
        self
    }

    /// With a destination that is known to be dead: if it is in the table, it is deleted without being drained.
    #[must_use]
    pub fn with_dead(mut self, destination: DestinationKey) -> Self {
        self.destinations.insert(destination, None);
        self
    }

    /// The destinations that should be, in the order of their keys.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.destinations.values().flatten()
    }

    /// Returns whether a destination is known to be dead.
    #[must_use]
    pub fn is_dead(&self, destination: &DestinationKey) -> bool {
        matches!(self.destinations.get(destination), Some(None))
    }

    /// The destination with a key, if it should be.
    #[must_use]
    pub fn destination(&self, key: &DestinationKey) -> Option<&Destination> {
        self.destinations.get(key).and_then(Option::as_ref)
    }
}

/// The services that are, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table(BTreeMap<ServiceKey, ObservedService>);

/// A service that is, with its destinations. Of a service that is not owned, the destinations need not be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedService {
    /// Its settings.
    pub service: Service,
    pub(super) destinations: BTreeMap<DestinationKey, ObservedDestination>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ObservedDestination {
    pub(super) destination: Destination,
    pub(super) active_connections: u32,
}

impl ObservedService {
    /// The destinations that are, in the order of their keys.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.destinations.values().map(|observed| &observed.destination)
    }
}

impl Table {
    /// Adds a service with its destinations. The kernel may report something twice if the table changes while it is
    /// read; the later report counts.
    pub fn insert<'a>(
        &mut self,
        service: Service,
        destinations: impl IntoIterator<Item = &'a DestinationEntry>,
    ) {
        let destinations = destinations.into_iter().map(|entry| {
            let observed = ObservedDestination {
                destination: entry.destination,
                active_connections: entry.active_connections,
            };
            (entry.destination.key, observed)
        });
        let destinations = destinations.collect();
        self.0.insert(service.key(), ObservedService { service, destinations });
    }

    /// The services, in the order of their keys.
    pub fn services(&self) -> impl Iterator<Item = &ObservedService> {
        self.0.values()
    }

    /// The service with a key.
    #[must_use]
    pub fn service(&self, key: &ServiceKey) -> Option<&ObservedService> {
        self.0.get(key)
    }
}

/// Returns whether a service is set as desired, as far as it makes a difference.
pub(super) fn service_is_as(desired: &Service, observed: &Service) -> bool {
    let mask = desired.flags_mask & !ServiceFlags::HASHED;
    let persistence = |service: &Service| (service.timeout, service.netmask());
    desired.scheduler == observed.scheduler
        && desired.engine == observed.engine
        && desired.flags & mask == observed.flags & mask
        && (!(desired.is_persistent() || observed.is_persistent())
            || persistence(desired) == persistence(observed))
}

/// Returns whether a destination is set as desired, as far as it makes a difference.
pub(super) fn destination_is_as(desired: &Destination, observed: &Destination) -> bool {
    let tunnelled = desired.method == ForwardMethod::TUNNEL;
    let tunnel = if tunnelled { desired.tunnel } else { observed.tunnel };
    let method = ForwardMethod(desired.method.0 & ForwardMethod::MASK);
    *observed == Destination { tunnel, method, ..*desired }
}
