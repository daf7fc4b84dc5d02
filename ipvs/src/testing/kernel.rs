//! A model of the kernel's table: what it keeps of a request, and what it answers.

use std::collections::BTreeMap;

use crate::model::*;
use crate::wire::{ReplyContent, Request};

/// Error numbers of the answers.
pub(crate) const ENOENT: i32 = 2;
pub(crate) const ESRCH: i32 = 3;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ERANGE: i32 = 34;

#[derive(Debug, Clone, Default)]
pub(crate) struct FakeKernel {
    pub(crate) services: BTreeMap<ServiceKey, FakeService>,
    daemons: Vec<SyncDaemon>,
    timeouts: Timeouts,
}

#[derive(Debug, Clone)]
pub(crate) struct FakeService {
    pub(crate) service: Service,
    pub(crate) destinations: BTreeMap<DestinationKey, DestinationEntry>,
}

impl FakeKernel {
    /// Carries a request out and answers, with an error number if it refuses.
    pub(crate) fn handle(&mut self, request: &Request) -> Result<Vec<ReplyContent>, i32> {
        match request {
            Request::NewService(_) | Request::SetService(_) | Request::DeleteService(_) => {
                self.change_service(request)
            }
            Request::NewDestination(service, _)
            | Request::SetDestination(service, _)
            | Request::DeleteDestination(service, _) => {
                let service = self.services.get_mut(service).ok_or(ESRCH)?;
                service.change_destination(request)
            }
            Request::GetService(key) => {
                let found = self.services.get(key).ok_or(ESRCH)?;
                Ok(vec![found.reply()])
            }
            Request::DumpServices => Ok(self.services.values().map(FakeService::reply).collect()),
            Request::DumpDestinations(key) => {
                let destinations = self.services.get(key).into_iter().flat_map(|s| s.destinations.values());
                Ok(destinations.cloned().map(ReplyContent::Destination).collect())
            }
            Request::NewDaemon(daemon) => {
                if self.daemons.iter().any(|running| running.state == daemon.state) {
                    return Err(EEXIST);
                }
                self.daemons.push(daemon.clone());
                Ok(Vec::new())
            }
            Request::DeleteDaemon(state) => {
                let running = self.daemons.iter().position(|daemon| daemon.state == *state).ok_or(ESRCH)?;
                self.daemons.remove(running);
                Ok(Vec::new())
            }
            Request::DumpDaemons => Ok(self.daemons.iter().cloned().map(ReplyContent::Daemon).collect()),
            Request::SetConfig(change) => {
                let set = |field: &mut Seconds, value: Option<Seconds>| {
                    *field = value.filter(|seconds| seconds.0 != 0).unwrap_or(*field);
                };
                set(&mut self.timeouts.tcp, change.tcp);
                set(&mut self.timeouts.tcp_fin, change.tcp_fin);
                set(&mut self.timeouts.udp, change.udp);
                Ok(Vec::new())
            }
            Request::GetConfig => Ok(vec![ReplyContent::Config(self.timeouts)]),
            Request::GetInfo => Ok(vec![ReplyContent::Info(Info::new(Version(0x01_02_01), 4096))]),
            Request::Zero(Some(key)) => self.services.get(key).map(|_| Vec::new()).ok_or(ESRCH),
            Request::Zero(None) => Ok(Vec::new()),
            Request::Flush => {
                self.services.clear();
                Ok(Vec::new())
            }
        }
    }

    fn change_service(&mut self, request: &Request) -> Result<Vec<ReplyContent>, i32> {
        let known = |service: &Service| service.scheduler.as_str() != "missing";
        match request {
            Request::NewService(service) => {
                if self.services.contains_key(&service.key()) {
                    return Err(EEXIST);
                }
                if !known(service) {
                    return Err(ENOENT);
                }
                let service = kept(service, ServiceFlags::NONE);
                let entry = FakeService { service, destinations: BTreeMap::new() };
                self.services.insert(entry.service.key(), entry);
            }
            Request::SetService(service) => {
                let entry = self.services.get_mut(&service.key()).ok_or(ESRCH)?;
                if !known(service) {
                    return Err(ENOENT);
                }
                entry.service = kept(service, entry.service.flags);
            }
            Request::DeleteService(key) => {
                self.services.remove(key).ok_or(ESRCH)?;
            }
            _ => return Err(EINVAL),
        }
        Ok(Vec::new())
    }
}

impl FakeService {
    fn reply(&self) -> ReplyContent {
        ReplyContent::Service(ServiceEntry::new(self.service.clone()))
    }

    fn change_destination(&mut self, request: &Request) -> Result<Vec<ReplyContent>, i32> {
        let in_range = |destination: &Destination| {
            destination.weight.0 <= i32::MAX as u32
                && destination.lower_threshold <= destination.upper_threshold
        };
        match request {
            Request::NewDestination(_, destination) => {
                if !in_range(destination) {
                    return Err(ERANGE);
                }
                if self.destinations.contains_key(&destination.key) {
                    return Err(EEXIST);
                }
                self.destinations
                    .insert(destination.key, DestinationEntry::new(kept_destination(destination)));
            }
            Request::SetDestination(_, destination) => {
                if !in_range(destination) {
                    return Err(ERANGE);
                }
                self.destinations.get_mut(&destination.key).ok_or(ENOENT)?.destination =
                    kept_destination(destination);
            }
            Request::DeleteDestination(_, key) => {
                self.destinations.remove(key).ok_or(ENOENT)?;
            }
            _ => return Err(EINVAL),
        }
        Ok(Vec::new())
    }
}

/// A service as the kernel keeps it.
fn kept(service: &Service, before: ServiceFlags) -> Service {
    let mut kept = service.clone();
    kept.flags = (before & !service.flags_mask) | (service.flags & service.flags_mask) | ServiceFlags::HASHED;
    kept.flags_mask = ServiceFlags::ALL;
    kept
}

/// A destination as the kernel keeps it.
const fn kept_destination(destination: &Destination) -> Destination {
    let mut kept = *destination;
    kept.method = ForwardMethod(kept.method.0 & 7);
    kept
}
