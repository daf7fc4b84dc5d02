//! The requests of operators about connections: to drain backends, and to list what is open.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_proxy::BackendState;
use tokio::sync::oneshot;

use crate::control::server::Progress;
use crate::control::{Connection, Connections, Drain, Outcome, Selection, Undrain};

use crate::exit::Kind;

use super::Daemon;
use super::drains::Selector;

/// An operator that waits until no connection to drained backends is open.
#[derive(Debug)]
pub(super) struct Waiting {
    selector: Selector,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Outcome>,
    progress: Progress,
}

/// A backend of a service with its open connections.
struct Found {
    service: String,
    backend: SocketAddr,
    open: usize,
}

impl Daemon {
    pub(super) fn drain(&mut self, request: &Drain, reply: oneshot::Sender<Outcome>, progress: Progress) {
        let selector = match self.drainable(request) {
            Ok(selector) => selector,
            Err(refused) => {
                let _ = reply.send(refused);
                return;
            }
        };
        let now = Instant::now();
        let expires = request.for_seconds.map(Duration::from_secs);
        self.drains.add(selector.clone(), expires.and_then(|duration| now.checked_add(duration)));
        let (backend, service) = (&request.backend, request.service.as_deref().unwrap_or("all"));
        let for_seconds = request.for_seconds;
        tracing::info!(backend, service, for_seconds, "backend drained, as an operator asked");
        self.apply_drains();
        if request.wait {
            let deadline =
                request.timeout_seconds.and_then(|limit| now.checked_add(Duration::from_secs(limit)));
            self.draining.push(Waiting { selector, deadline, reply, progress });
            self.tick_drains();
        } else {
            let _ = reply.send(message(&self.found(&selector), "is drained"));
        }
    }

    pub(super) fn undrain(&mut self, request: &Undrain, reply: oneshot::Sender<Outcome>) {
        let _ = reply.send(self.undrained(request).unwrap_or_else(|refused| refused));
    }

    fn undrained(&mut self, request: &Undrain) -> Result<Outcome, Outcome> {
        let selector = parse(&request.backend, request.service.as_deref())?;
        let is_within = |found: &[Found], other: &Selector| {
            found.iter().all(|it| selector.selects(&it.service, it.backend)) || *other == selector
        };
        // A drain with other words for the same backends is meant, too.
        let all: Vec<Selector> = self.drains.selectors().cloned().collect();
        let (meant, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|other| is_within(&self.found(other), other));
        let found = self.found(&selector);
        let covers = |other: &&Selector| found.iter().any(|it| other.selects(&it.service, it.backend));
        if let Some(wider) = others.iter().find(covers) {
            let why = format!("it is drained together with others: `cplb undrain {}`", wider.ip);
            return Err(Outcome::refused_as(Kind::Usage, why));
        }
        if found.is_empty() && meant.is_empty() {
            return Err(self.unknown_backend(&selector));
        }
        if meant.is_empty() {
            return Err(Outcome::refused_as(Kind::Usage, format!("{} is not drained", request.backend)));
        }
        meant.iter().for_each(|drain| self.drains.remove(drain));
        let (backend, service) = (&request.backend, request.service.as_deref().unwrap_or("all"));
        tracing::info!(backend, service, "backend takes connections again, as an operator asked");
        self.apply_drains();
        Ok(message(&found, "is no longer drained"))
    }

    fn unknown_backend(&self, selector: &Selector) -> Outcome {
        let services = &self.desired.proxy.services;
        let why = match &selector.service {
            Some(name) if !services.iter().any(|service| service.name == *name) => {
                let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
                format!("no such service: there are {}", names.join(", "))
            }
            _ => {
                let backends = |service: &lb_proxy::Service| {
                    let name = service.name.clone();
                    service
                        .backends
                        .iter()
                        .map(move |it| format!("{} of {name}", it.addr))
                        .collect::<Vec<_>>()
                };
                let known: Vec<String> = services.iter().flat_map(backends).collect();
                format!("no such backend: there are {}", known.join(", "))
            }
        };
        Outcome::refused_as(Kind::Usage, why)
    }

    /// Lists the open connections in a task, since each worker has to answer.
    pub(super) fn list_connections(&self, selection: &Selection, reply: oneshot::Sender<Outcome>) {
        let backend = selection.backend.as_deref();
        let backend = match backend.map(|text| parse(text, None)).transpose() {
            Ok(backend) => backend,
            Err(refused) => {
                let _ = reply.send(refused);
                return;
            }
        };
        let (balancer, selection) = (self.proxy.balancer().cloned(), selection.clone());
        tokio::spawn(async move {
            let all = match balancer {
                Some(balancer) => balancer.connections().await,
                None => Vec::new(),
            };
            let connections = Some(selected(all, &selection, backend.as_ref()));
            let _ = reply.send(Outcome { connections, ..Outcome::default() });
        });
    }

    /// Ends the drains whose time is over, and answers the operators whose backends have no connection any more.
    pub(super) fn tick_drains(&mut self) {
        let now = Instant::now();
        if self.drains.expire(now) {
            tracing::info!("the time of a drain is over; the backend takes connections again");
            self.apply_drains();
        }
        for waiting in std::mem::take(&mut self.draining) {
            let found = self.found(&waiting.selector);
            let open: usize = found.iter().map(|found| found.open).sum();
            let is_drained = |it: &Found| self.drains.of(&it.service, it.backend, now).is_some();
            if !found.iter().all(is_drained) {
                let why = format!("the drain has ended meanwhile; {} open", connections(open));
                let _ = waiting.reply.send(Outcome::refused(why));
            } else if open == 0 {
                let _ = waiting.reply.send(message(&found, "is drained"));
            } else if waiting.deadline.is_some_and(|deadline| deadline <= now) {
                let why = format!("drained, but {} still open", connections(open));
                let _ = waiting.reply.send(Outcome::refused(why));
            } else if !waiting.reply.is_closed() {
                waiting.progress.set(format!("{} open", connections(open)));
                self.draining.push(waiting);
            }
        }
    }

    /// Applies the drains as they are now; during a reload at its end, since that replaces the services.
    pub(super) fn apply_drains(&mut self) {
        self.drains_changed = !self.reloads.is_idle();
        if self.drains_changed {
            return;
        }
        self.update_desired();
        self.update_ipvs(super::ipvs::Input::Tick);
        self.gather_evidence();
    }

    /// The selector of a request, if the backends may be drained.
    fn drainable(&self, request: &Drain) -> Result<Selector, Outcome> {
        let selector = parse(&request.backend, request.service.as_deref())?;
        if self.found(&selector).is_empty() {
            return Err(self.unknown_backend(&selector));
        }
        let Some(balancer) = self.proxy.balancer().filter(|_| !request.force) else { return Ok(selector) };
        for service in &balancer.snapshot().services {
            let accepts =
                |state| matches!(state, BackendState::Unknown | BackendState::Up | BackendState::Suspect);
            let is_selected = |addr| selector.selects(&service.name, addr);
            let mut able = service.backends.iter().filter(|it| accepts(it.state)).peekable();
            if able.peek().is_some() && able.all(|it| is_selected(it.addr)) {
                let why = format!(
                    "no other backend of {} takes connections: clients would be refused (--force drains it all the same)",
                    service.name
                );
                return Err(Outcome::refused(why));
            }
        }
        Ok(selector)
    }

    fn found(&self, selector: &Selector) -> Vec<Found> {
        let snapshot = self.proxy.balancer().map(|balancer| balancer.snapshot());
        let open = |service: &str, addr: SocketAddr| {
            let service = snapshot.as_ref()?.services.iter().find(|it| &*it.name == service)?;
            service.backends.iter().find(|it| it.addr == addr).map(|it| it.active + it.connecting)
        };
        let ipvs = self.ipvs.status(&self.members());
        let directed = |service: &str, addr: SocketAddr| {
            let servers =
                ipvs.iter().flat_map(|ipvs| &ipvs.virtual_servers).filter(|it| it.service == service);
            let servers = servers.flat_map(|it| &it.servers);
            let of_it = servers.filter(|server| {
                let is_ip = server
                    .address
                    .parse()
                    .is_ok_and(|ip: IpAddr| ip.to_canonical() == addr.ip().to_canonical());
                is_ip || server.address.parse() == Ok(addr)
            });
            of_it.map(|server| server.connections_active as usize).sum::<usize>()
        };
        let services = self.desired.proxy.services.iter();
        let all = services.flat_map(|service| service.backends.iter().map(move |it| (service, it.addr)));
        let selected = all.filter(|(service, addr)| selector.selects(&service.name, *addr));
        let found = |(service, backend): (&lb_proxy::Service, SocketAddr)| Found {
            service: service.name.clone(),
            backend,
            open: open(&service.name, backend).unwrap_or_default() + directed(&service.name, backend),
        };
        selected.map(found).collect()
    }
}

/// The most connections in an answer.
const MAX_LISTED: usize = 10_000;

fn selected(
    all: Vec<lb_proxy::Connection>,
    selection: &Selection,
    backend: Option<&Selector>,
) -> Connections {
    let is_selected = |it: &lb_proxy::Connection| {
        backend.is_none_or(|wanted| it.backend.is_some_and(|backend| wanted.selects(&it.service, backend)))
            && selection.service.as_ref().is_none_or(|service| **service == *it.service)
            && selection.client.is_none_or(|client| client.to_canonical() == it.client.ip())
    };
    let mut connections: Vec<Connection> = all
        .into_iter()
        .filter(is_selected)
        .map(|it| Connection {
            client: it.client,
            to: it.local,
            service: it.service.to_string(),
            backend: it.backend,
        })
        .collect();
    let total = connections.len();
    connections.sort_unstable();
    connections.truncate(MAX_LISTED);
    Connections { total, connections }
}

fn connections(count: usize) -> String {
    let (noun, verb) = if count == 1 { ("connection", "is") } else { ("connections", "are") };
    format!("{count} {noun} {verb}")
}

fn parse(backend: &str, service: Option<&str>) -> Result<Selector, Outcome> {
    Selector::parse(backend, service).map_err(|why| Outcome::refused_as(Kind::Usage, why))
}

fn message(found: &[Found], what: &str) -> Outcome {
    let lines = found.iter().map(|Found { service, backend, open }| {
        format!("{backend} of {service} {what}; {} open", connections(*open))
    });
    Outcome { message: Some(lines.collect::<Vec<_>>().join("\n")), ..Outcome::default() }
}
