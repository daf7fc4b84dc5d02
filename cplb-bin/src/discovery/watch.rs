//! Follows the list of a cluster's API servers, through whatever happens to the kubeconfig, the servers and the
//! connections to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::watcher::{self, Event as Step};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::dial;
use super::kubeconfig::{Access, KubeconfigError, Server};
use super::pace::Pace;
use super::slices::{EndpointSlice, Endpoints, LABEL, Lists, SERVICE};
use super::{Report, State, Subject};

/// How long a list may take as a whole.
const LIST: Duration = Duration::from_secs(20);
/// How often a kubeconfig is looked at that is not there or has changed.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait for the system's resolver.
const RESOLVE: Duration = Duration::from_secs(2);
/// What a hostile server invents must not fill the memory.
const OBJECTS_MAX: usize = 100;
const SERVERS_MAX: usize = 20_000;
/// What a server says of a failure is shown up to this length.
const SAID_MAX: usize = 300;

/// Where servers are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slices,
    Endpoints,
}

/// Why following ended.
#[derive(Debug)]
enum End {
    /// The kubeconfig has changed.
    Outdated,
    /// The servers know nothing of this kind.
    NoSuchKind,
    Failed(String),
}

/// Follows until the future is dropped.
pub(super) async fn follow(subject: Subject, report: impl Fn(Report) + Sync) {
    let mut kind = Kind::Slices;
    // Randomly keyed: the nodes of a cluster shall not ask in step.
    let seed = RandomState::new().build_hasher().finish();
    let pace = Arc::new(Mutex::new(Pace::new(Duration::from_secs(subject.watch.into()), seed)));
    let mut known: Option<Access> = None;
    loop {
        // What is still good is not read again: whoever checks by it would begin anew.
        let read = match known.take() {
            Some(access) if !is_outdated(&access).await => Ok(access),
            _ => read(subject.kubeconfig.clone()).await,
        };
        let access = match read {
            Ok(access) => known.insert(access),
            Err(error) => {
                report(Report::State(match error {
                    error if error.is_absent() => State::Waiting(error.to_string()),
                    error => State::Failing(error.to_string()),
                }));
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        subject.directory.set_named(look_up(&access.server).await);
        let client = dial::client(access, &subject.directory, subject.mark, &pace);
        let told = |servers| {
            subject.directory.praise();
            report(Report::Servers(servers, access.trust.clone()));
        };
        let followed = async {
            match kind {
                Kind::Slices => follow_kind::<EndpointSlice>(client, slices(subject.watch), told).await,
                Kind::Endpoints => follow_kind::<Endpoints>(client, endpoints(subject.watch), told).await,
            }
        };
        let end = tokio::select! {
            end = followed => end,
            () = outdated(access) => End::Outdated,
        };
        match end {
            End::Outdated => {
                tracing::info!(kubeconfig = %subject.kubeconfig.display(), "read again: it has changed");
            }
            End::NoSuchKind if kind == Kind::Slices => kind = Kind::Endpoints,
            End::NoSuchKind => {
                kind = Kind::Slices;
                subject.directory.blame();
                report(Report::State(State::Failing(
                    "the API server knows neither EndpointSlices nor Endpoints".to_owned(),
                )));
                pause(&pace, access).await;
            }
            End::Failed(why) => {
                // The next server may know slices.
                kind = Kind::Slices;
                subject.directory.blame();
                report(Report::State(State::Failing(shown(&why))));
                pause(&pace, access).await;
            }
        }
    }
}

/// A text that strangers had a part in, fit for logs and terminals.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(SAID_MAX).map(plain).collect();
    if text.chars().nth(SAID_MAX).is_some() {
        short.push('…');
    }
    short
}

/// Looks away from the loop: the file system may not answer.
async fn is_outdated(access: &Access) -> bool {
    let access = access.clone();
    tokio::task::spawn_blocking(move || access.is_outdated()).await.unwrap_or(true)
}

async fn read(path: PathBuf) -> Result<Access, KubeconfigError> {
    let reading = tokio::task::spawn_blocking(move || Access::read(&path));
    match reading.await {
        Ok(read) => read,
        // The runtime ends.
        Err(_) => std::future::pending().await,
    }
}

/// Where the server is that a kubeconfig names; nowhere, if nobody knows it: there are others.
async fn look_up(server: &Server) -> Vec<SocketAddr> {
    let found = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((server.host.as_str(), server.port)));
    found.await.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default()
}

async fn outdated(access: &Access) {
    loop {
        tokio::time::sleep(LOOK).await;
        if is_outdated(access).await {
            return;
        }
    }
}

fn slices(watch: u32) -> watcher::Config {
    watcher::Config::default().timeout(watch).labels(LABEL)
}

fn endpoints(watch: u32) -> watcher::Config {
    watcher::Config::default().timeout(watch).fields(&format!("metadata.name={SERVICE}"))
}

async fn follow_kind<K>(client: Client, config: watcher::Config, told: impl Fn(BTreeSet<SocketAddr>)) -> End
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Lists
        + Clone
        + fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, "default");
    let mut steps = pin!(watcher::watcher(api, config));
    let mut objects = Objects::default();
    let mut deadline = Instant::now() + LIST;
    loop {
        let step = if objects.is_listing() {
            match tokio::time::timeout_at(deadline.into(), steps.next()).await {
                Ok(step) => step,
                Err(_) => {
                    return End::Failed(format!("the list of servers was not complete within {LIST:?}"));
                }
            }
        } else {
            steps.next().await
        };
        match step {
            Some(Ok(step)) => {
                if matches!(step, Step::Init) {
                    deadline = Instant::now() + LIST;
                }
                if let Some(servers) = objects.take(step) {
                    told(servers);
                }
            }
            // It lists again by itself.
            Some(Err(watcher::Error::WatchError(status))) if status.code == GONE => {
                objects = Objects::default();
                deadline = Instant::now() + LIST;
            }
            Some(Err(error)) => return failure(&error),
            None => return End::Failed("the watch has ended".to_owned()),
        }
    }
}

/// The resource version that was asked for is too old.
const GONE: u16 = 410;

fn failure(error: &watcher::Error) -> End {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let inner = match error {
        InitialListFailed(inner) | WatchStartFailed(inner) | WatchFailed(inner) => inner,
        other => return End::Failed(other.to_string()),
    };
    match inner {
        kube::Error::Api(status) => match status.code {
            404 => End::NoSuchKind,
            401 => End::Failed("the API server does not accept the kubeconfig's credentials (401): has the certificate or the token expired?".to_owned()),
            403 => End::Failed(format!("the API server forbids to list and watch the servers (403): {}", status.message)),
            code => End::Failed(format!("the API server answers with status {code}: {}", status.message)),
        },
        kube::Error::Service(error) => End::Failed(chain(error.as_ref())),
        kube::Error::SerdeError(error) => End::Failed(format!("what the API server says is no list of servers: {error}")),
        other => End::Failed(chain(other)),
    }
}

/// An error with those that caused it, as far as they add something.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The servers that objects list, by the objects' names.
#[derive(Debug, Default)]
struct Objects {
    known: Option<BTreeMap<String, BTreeSet<SocketAddr>>>,
    listed: BTreeMap<String, BTreeSet<SocketAddr>>,
}

impl Objects {
    fn is_listing(&self) -> bool {
        self.known.is_none()
    }

    /// All servers, if they may have changed.
    fn take<K: Resource<DynamicType = ()> + Lists>(&mut self, step: Step<K>) -> Option<BTreeSet<SocketAddr>> {
        let name = |object: &K| object.meta().name.clone().unwrap_or_default();
        match step {
            Step::Init => {
                self.known = None;
                self.listed.clear();
            }
            Step::InitApply(object) => add(&mut self.listed, name(&object), &object),
            Step::InitDone => self.known = Some(std::mem::take(&mut self.listed)),
            Step::Apply(object) => add(self.known.as_mut()?, name(&object), &object),
            Step::Delete(object) => drop(self.known.as_mut()?.remove(&name(&object))),
        }
        Some(self.known.as_ref()?.values().flatten().copied().collect())
    }
}

fn add(objects: &mut BTreeMap<String, BTreeSet<SocketAddr>>, name: String, object: &impl Lists) {
    if objects.len() < OBJECTS_MAX || objects.contains_key(&name) {
        objects.remove(&name);
        let known: usize = objects.values().map(BTreeSet::len).sum();
        let servers = object.servers().into_iter().take(SERVERS_MAX.saturating_sub(known));
        objects.insert(name, servers.collect());
    }
}

/// Waits after a failure, unless there is another kubeconfig meanwhile.
async fn pause(pace: &Mutex<Pace>, access: &Access) {
    let pause = pace.lock().unwrap_or_else(PoisonError::into_inner).failed(Instant::now());
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = outdated(access) => {}
    }
}
