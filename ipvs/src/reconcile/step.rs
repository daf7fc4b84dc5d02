//! The steps of a plan.

use std::fmt;

use crate::model::{Destination, DestinationKey, Service, ServiceKey, Weight};
use crate::wire::Request;

/// One command of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Adds a service.
    AddService(Service),
    /// Gives a service other settings.
    SetService(Service),
    /// Adds a destination.
    AddDestination(ServiceKey, Destination),
    /// Gives a destination other settings.
    SetDestination(ServiceKey, Destination),
    /// Sets the weight of a destination that goes to 0. What is given are its settings before that.
    Quiesce(ServiceKey, Destination),
    /// Deletes a destination.
    DeleteDestination(ServiceKey, DestinationKey, Deletion),
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
}

/// Reason for the deletion of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// It has no active connections any more.
    Drained,
    /// The time for it to be drained is over.
    Overdue {
        /// Connections that are still active.
        active_connections: u32,
    },
    /// It is dead.
    Dead,
}

impl Step {
    /// The service that the step is about.
    #[must_use]
    pub const fn service(&self) -> ServiceKey {
        match self {
            Self::AddService(service) | Self::SetService(service) => service.key(),
            Self::AddDestination(service, _)
            | Self::SetDestination(service, _)
            | Self::Quiesce(service, _)
            | Self::DeleteDestination(service, ..)
            | Self::DeleteService(service) => *service,
        }
    }

    /// The command that carries it out.
    #[must_use]
    pub fn request(&self) -> Request {
        match self {
            Self::AddService(service) => Request::NewService(service.clone()),
            Self::SetService(service) => Request::SetService(service.clone()),
            Self::AddDestination(service, destination) => Request::NewDestination(*service, *destination),
            Self::SetDestination(service, destination) => Request::SetDestination(*service, *destination),
            Self::Quiesce(service, destination) => {
                Request::SetDestination(*service, destination.with_weight(Weight::QUIESCED))
            }
            Self::DeleteDestination(service, destination, _) => {
                Request::DeleteDestination(*service, *destination)
            }
            Self::DeleteService(service) => Request::DeleteService(*service),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = |destination: &Destination| {
            format!("{} ({}, weight {})", destination.key, destination.method, destination.weight)
        };
        match self {
            Self::AddService(service) => write!(f, "add service {} ({})", service.key(), service.scheduler),
            Self::SetService(service) => write!(f, "set service {} ({})", service.key(), service.scheduler),
            Self::AddDestination(service, destination) => {
                write!(f, "add destination {} to {service}", settings(destination))
            }
            Self::SetDestination(service, destination) => {
                write!(f, "set destination {} of {service}", settings(destination))
            }
            Self::Quiesce(service, destination) => {
                write!(f, "quiesce destination {} of {service}", destination.key)
            }
            Self::DeleteDestination(service, destination, why) => {
                write!(f, "delete destination {destination} of {service} ({why})")
            }
            Self::DeleteService(service) => write!(f, "delete service {service}"),
        }
    }
}

impl fmt::Display for Deletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("drained"),
            Self::Overdue { active_connections } => {
                write!(f, "overdue, {active_connections} active connections")
            }
            Self::Dead => f.write_str("dead"),
        }
    }
}
