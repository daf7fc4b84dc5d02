//! The client.

mod apply;
mod connection;
mod error;
mod exchange;
mod raw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

pub use apply::{Outcome, Report};
pub use connection::Connection;
pub use error::{CommandError, DaemonError, DestinationError, RequestError, ServiceError};
use exchange::{Answer, Exchange};
use raw::{command_message, dump_message, family_message};

use crate::model::{
    Destination, DestinationEntry, DestinationKey, Info, Service, ServiceEntry, ServiceKey, SyncDaemon,
    SyncState, TimeoutChange, Timeouts,
};
use crate::wire::{DecodeError, Reply, ReplyContent, Request};

/// For how long an answer is waited for unless set otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Number of attempts if answers are lost or the table changes.
const ATTEMPTS: usize = 5;

/// Speaks with the kernel's IPVS in the network namespace in which it was opened. Clones share the socket; all methods
/// can be called at the same time.
///
/// Every method fails with [`RequestError::NoFamily`] as long as the module `ip_vs` is not loaded, and works as soon as
/// it is: the family is looked for when it is needed, also again when it went away.
///
/// The kernel carries a command out, and loads a module for it if need be, before the call that sends it returns. The
/// thread that polls the [`Connection`] waits for that; it need not be the one that awaits the answer.
#[derive(Debug, Clone)]
pub struct Client {
    exchange: Exchange,
    family: Arc<Mutex<Option<u16>>>,
}

impl Client {
    /// Opens a socket in the network namespace of the calling thread. The [`Connection`] has to be polled for anything
    /// to happen, usually by `tokio::spawn`.
    ///
    /// # Errors
    /// If the kernel grants no socket.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<(Self, Connection)> {
        let (handle, connection) = connection::open()?;
        Ok((Self::on(handle), connection))
    }

    /// Opens a socket, see [`Client::open`], and spawns its connection on the current runtime. It ends with the last
    /// clone of the client.
    ///
    /// # Errors
    /// If the kernel grants no socket.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn spawn() -> io::Result<Self> {
        let (client, connection) = Self::open()?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn on(handle: connection::Handle) -> Self {
        Self { exchange: Exchange::new(handle, TIMEOUT), family: Arc::default() }
    }

    /// With another time to wait for an answer than 10 s. A command can take long when the kernel has to load a module
    /// for it.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.exchange.timeout = timeout;
        self
    }

    /// All services, without their destinations. The kernel has no snapshots: services that are added or deleted
    /// while they are listed can cause others to be left out.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn services(&self) -> Result<Vec<ServiceEntry>, RequestError> {
        let replies = self.dump(&Request::DumpServices).await?;
        Ok(unique(replies, service_of, |entry: &ServiceEntry| entry.service.key()))
    }

    /// One service.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], or as for all.
    pub async fn service(&self, key: &ServiceKey) -> Result<ServiceEntry, ServiceError> {
        Ok(self.ask(Request::GetService(*key), service_of).await?)
    }

    /// The destinations of a service. For a service that does not exist the kernel reports none.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn destinations(&self, service: &ServiceKey) -> Result<Vec<DestinationEntry>, RequestError> {
        let replies = self.dump(&Request::DumpDestinations(*service)).await?;
        Ok(unique(replies, destination_of, |entry: &DestinationEntry| entry.destination.key))
    }

    /// Adds a service.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn add_service(&self, service: &Service) -> Result<(), ServiceError> {
        Ok(self.command(Request::NewService(service.clone())).await?)
    }

    /// Gives a service other settings: all but its key, and the flags outside of its mask.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn set_service(&self, service: &Service) -> Result<(), ServiceError> {
        Ok(self.command(Request::SetService(service.clone())).await?)
    }

    /// Deletes a service with its destinations. Their connections are cut.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn delete_service(&self, key: &ServiceKey) -> Result<(), ServiceError> {
        Ok(self.command(Request::DeleteService(*key)).await?)
    }

    /// Adds a destination.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn add_destination(
        &self,
        service: &ServiceKey,
        destination: &Destination,
    ) -> Result<(), DestinationError> {
        Ok(self.command(Request::NewDestination(*service, *destination)).await?)
    }

    /// Gives a destination other settings. Weight 0 quiesces it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn set_destination(
        &self,
        service: &ServiceKey,
        destination: &Destination,
    ) -> Result<(), DestinationError> {
        Ok(self.command(Request::SetDestination(*service, *destination)).await?)
    }

    /// Deletes a destination. Its connections are cut.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub async fn delete_destination(
        &self,
        service: &ServiceKey,
        destination: &DestinationKey,
    ) -> Result<(), DestinationError> {
        Ok(self.command(Request::DeleteDestination(*service, *destination)).await?)
    }

    /// The sync daemons that run.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn daemons(&self) -> Result<Vec<SyncDaemon>, RequestError> {
        let replies = self.dump(&Request::DumpDaemons).await?;
        let daemon = |reply| match reply {
            ReplyContent::Daemon(daemon) => Some(daemon),
            _ => None,
        };
        Ok(unique(replies, daemon, |daemon: &SyncDaemon| daemon.state))
    }

    /// Starts a sync daemon.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub async fn start_daemon(&self, daemon: &SyncDaemon) -> Result<(), DaemonError> {
        Ok(self.command(Request::NewDaemon(daemon.clone())).await?)
    }

    /// Stops a sync daemon.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub async fn stop_daemon(&self, state: SyncState) -> Result<(), DaemonError> {
        Ok(self.command(Request::DeleteDaemon(state)).await?)
    }

    /// The timeouts of connections.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn timeouts(&self) -> Result<Timeouts, RequestError> {
        let timeouts = |reply| match reply {
            ReplyContent::Config(timeouts) => Some(timeouts),
            _ => None,
        };
        Ok(self.ask(Request::GetConfig, timeouts).await?)
    }

    /// Sets timeouts of connections.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn set_timeouts(&self, change: &TimeoutChange) -> Result<(), RequestError> {
        Ok(self.command(Request::SetConfig(*change)).await?)
    }

    /// Version and size of the kernel's IPVS.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn info(&self) -> Result<Info, RequestError> {
        let info = |reply| match reply {
            ReplyContent::Info(info) => Some(info),
            _ => None,
        };
        Ok(self.ask(Request::GetInfo, info).await?)
    }

    /// Zeroes the counters of one service and its destinations, or all.
    ///
    /// # Errors
    /// [`ServiceError`].
    pub async fn zero(&self, service: Option<&ServiceKey>) -> Result<(), ServiceError> {
        Ok(self.command(Request::Zero(service.copied())).await?)
    }

    /// Deletes all services, foreign ones included.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn flush(&self) -> Result<(), RequestError> {
        Ok(self.command(Request::Flush).await?)
    }

    /// Carries out commands in order, many to a datagram, and returns the result of each. One that the kernel refuses
    /// keeps none of the others from being carried out; when no answer comes at all, the rest is not sent and has the
    /// same error. Queries belong to the other methods: here their answers are lost, and dumps are refused.
    pub async fn run(&self, commands: &[Request]) -> Vec<Result<(), CommandError>> {
        let mut results = Vec::with_capacity(commands.len());
        for batch in commands.chunks(self.exchange.in_flight) {
            match self.answers(batch).await {
                Ok(answers) => {
                    let outcomes = batch.iter().zip(answers);
                    results.extend(outcomes.map(|(command, answer)| {
                        answer.result.map_err(|errno| CommandError::of(command, errno))
                    }));
                }
                Err(error) => {
                    results.resize(commands.len(), Err(error.into()));
                    break;
                }
            }
        }
        results
    }

    async fn command(&self, request: Request) -> Result<(), CommandError> {
        self.answer(request).await.map(|_| ())
    }

    /// A question that has one answer.
    async fn ask<T>(
        &self,
        request: Request,
        pick: impl Fn(ReplyContent) -> Option<T>,
    ) -> Result<T, CommandError> {
        let answer = self.answer(request).await?;
        let reply = answer.replies.first().ok_or(RequestError::NoAnswer)?;
        let content = reply.reply().map_err(RequestError::from)?.content;
        Ok(pick(content).ok_or(RequestError::NoAnswer)?)
    }

    async fn answer(&self, request: Request) -> Result<Answer, CommandError> {
        let requests = [request];
        let answer = self.answers(&requests).await?.pop().ok_or(RequestError::NoAnswer)?;
        let [request] = requests;
        match answer.result {
            Ok(()) => Ok(answer),
            Err(errno) => Err(CommandError::of(&request, errno)),
        }
    }

    /// The answers to at most [`Exchange::in_flight`] requests that are no dumps. When answers are lost, what can be
    /// done twice is done again.
    async fn answers(&self, requests: &[Request]) -> Result<Vec<Answer>, RequestError> {
        let repeatable = requests.iter().all(can_be_repeated);
        for _ in 1..ATTEMPTS {
            match self.answers_of_family(requests).await {
                Err(RequestError::Overrun) if repeatable => {}
                other => return other,
            }
        }
        self.answers_of_family(requests).await
    }

    /// An unknown family is refused with the same number as an unknown scheduler or destination. So after such a
    /// refusal the family is looked for anew: only if it is still there, the refusal is what it seems.
    async fn answers_of_family(&self, requests: &[Request]) -> Result<Vec<Answer>, RequestError> {
        let family = self.family().await?;
        let mut answers = self.exchange_batch(family, requests).await?;
        let absent: Vec<usize> =
            (0..answers.len()).filter(|&at| answers[at].result == Err(Errno::ENOENT)).collect();
        if absent.is_empty() {
            return Ok(answers);
        }
        let current = self.resolve().await?;
        if current != family {
            let again: Vec<_> = absent.iter().filter_map(|&at| requests.get(at)).cloned().collect();
            for (at, answer) in absent.into_iter().zip(self.exchange_batch(current, &again).await?) {
                answers[at] = answer;
            }
        }
        Ok(answers)
    }

    async fn exchange_batch(&self, family: u16, requests: &[Request]) -> Result<Vec<Answer>, RequestError> {
        let mut answers = Vec::with_capacity(requests.len());
        for part in requests.chunk_by(|before, after| !(is_unsure(before) || is_unsure(after))) {
            match part {
                [request] if is_unsure(request) => {
                    let answer = self.exchange.unsure(command_message(family, request), family_message());
                    answers.push(answer.await?.unwrap_or(Answer { result: Ok(()), replies: Vec::new() }));
                }
                sure => {
                    let messages = sure.iter().map(|request| command_message(family, request)).collect();
                    answers.append(&mut self.exchange.batch(messages).await?);
                }
            }
        }
        Ok(answers)
    }

    async fn dump(&self, request: &Request) -> Result<Vec<Reply>, RequestError> {
        let mut attempts = 1;
        loop {
            match self.dump_once(request).await {
                Err(RequestError::Overrun | RequestError::Interrupted) if attempts < ATTEMPTS => {
                    attempts += 1;
                }
                other => return other,
            }
        }
    }

    async fn dump_once(&self, request: &Request) -> Result<Vec<Reply>, RequestError> {
        let family = self.family().await?;
        let mut dumped = self.exchange.dump(dump_message(family, request)).await;
        if dumped == Err(RequestError::Refused(Errno::ENOENT)) {
            let current = self.resolve().await?;
            dumped = self.exchange.dump(dump_message(current, request)).await;
        }
        let replies: Result<Vec<Reply>, DecodeError> = dumped?.iter().map(raw::Raw::reply).collect();
        Ok(replies?)
    }

    /// The number of the family, looked for if it is not known.
    async fn family(&self) -> Result<u16, RequestError> {
        let known = *self.family.lock().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(family) => Ok(family),
            None => self.resolve().await,
        }
    }

    /// Looks for the family. That it is absent is never remembered.
    async fn resolve(&self) -> Result<u16, RequestError> {
        let mut attempts = 1;
        let answers = loop {
            match self.exchange.batch(vec![family_message()]).await {
                Err(RequestError::Overrun) if attempts < ATTEMPTS => attempts += 1,
                other => break other,
            }
        };
        let found = match answers?.pop() {
            None => Err(RequestError::NoAnswer),
            Some(Answer { result: Err(Errno::ENOENT), .. }) => Err(RequestError::NoFamily),
            Some(Answer { result: Err(errno), .. }) => Err(RequestError::of(errno)),
            Some(Answer { replies, .. }) => {
                replies.first().and_then(raw::Raw::family_id).ok_or(RequestError::NoAnswer)
            }
        };
        *self.family.lock().unwrap_or_else(PoisonError::into_inner) = found.ok();
        found
    }
}

/// Returns whether the kernel may forget to answer. A sync daemon whose thread has not run yet when it is stopped
/// says so with a number (`EINTR`) that netlink takes for "no answer"; it is stopped then.
const fn is_unsure(request: &Request) -> bool {
    matches!(request, Request::DeleteDaemon(_))
}

/// Returns whether a request does the same twice as once.
const fn can_be_repeated(request: &Request) -> bool {
    request.is_query()
        || matches!(
            request,
            Request::SetService(_)
                | Request::SetDestination(..)
                | Request::SetConfig(_)
                | Request::Zero(_)
                | Request::Flush
        )
}

fn service_of(reply: ReplyContent) -> Option<ServiceEntry> {
    match reply {
        ReplyContent::Service(entry) => Some(entry),
        _ => None,
    }
}

fn destination_of(reply: ReplyContent) -> Option<DestinationEntry> {
    match reply {
        ReplyContent::Destination(entry) => Some(entry),
        _ => None,
    }
}

/// The contents of replies, in the kernel's order. The kernel may report something twice if the table changes while it
/// is read; the later report counts, in the place of the first.
fn unique<T, K: Ord>(
    replies: Vec<Reply>,
    pick: impl Fn(ReplyContent) -> Option<T>,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let (mut found, mut places) = (Vec::with_capacity(replies.len()), BTreeMap::new());
    for item in replies.into_iter().filter_map(|reply| pick(reply.content)) {
        let place = *places.entry(key(&item)).or_insert(found.len());
        match found.get_mut(place) {
            Some(earlier) => *earlier = item,
            None => found.push(item),
        }
    }
    found
}
