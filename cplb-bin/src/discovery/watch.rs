//! Follows the list of a cluster's API servers, through changes of the kubeconfig and failures of servers and
//! connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::watcher::{self, Event as Step};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::backoff::Backoff;
use super::dial;
use super::kubeconfig::{Access, KubeconfigError, Server};
use super::slices::{EndpointSlice, Endpoints, LABEL, SERVICE, ServerList};
use super::{ClusterIdentity, Report, State, Target};

/// The time limit of a complete list.
const LIST_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval between checks of the kubeconfig for a change.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of the system's resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum number of objects: a hostile server must not exhaust the memory.
const MAX_OBJECTS: usize = 100;
/// The maximum number of servers in all objects.
const MAX_SERVERS: usize = 20_000;
/// The maximum length of a failure's text, which a server may have written.
const MAX_REASON: usize = 300;

/// The kind of objects that list the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slices,
    Endpoints,
}

/// The reason why following ended.
#[derive(Debug)]
enum End {
    /// The kubeconfig has changed.
    Outdated,
    /// The API server does not know this kind.
    NoSuchKind,
    Failed(String),
}

/// Follows the cluster until the future is dropped.
pub(super) async fn follow(target: Target, report: impl Fn(Report) + Sync) {
    let mut kind = Kind::Slices;
    // A random seed, so that the nodes of a cluster do not send at the same time.
    let seed = RandomState::new().build_hasher().finish();
    let backoff = Arc::new(Mutex::new(Backoff::new(Duration::from_secs(target.watch_seconds.into()), seed)));
    let mut known: Option<Access> = None;
    loop {
        let access = match current(known.take(), &target.kubeconfig).await {
            Ok(access) => known.insert(access),
            Err(error) => {
                report(Report::State(match error {
                    error if error.is_absent() => State::Waiting(error.to_string()),
                    error => State::Failing(error.to_string()),
                }));
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            }
        };
        target.candidates.set_kubeconfig(resolve(&access.server).await);
        let client = dial::client(access, &target.candidates, target.mark, &backoff);
        let report_servers = |servers| {
            target.candidates.record_success();
            let (trust, host) = (access.trust.clone(), access.client_name.clone());
            report(Report::Servers(servers, ClusterIdentity { trust, host }));
        };
        let followed = async {
            match kind {
                Kind::Slices => {
                    follow_kind::<EndpointSlice>(client, slices(target.watch_seconds), report_servers).await
                }
                Kind::Endpoints => {
                    follow_kind::<Endpoints>(client, endpoints(target.watch_seconds), report_servers).await
                }
            }
        };
        let end = tokio::select! {
            end = followed => end,
            () = wait_until_outdated(access) => End::Outdated,
        };
        let failure = match end {
            End::Outdated => {
                tracing::info!(kubeconfig = %target.kubeconfig.display(), "kubeconfig changed; reading it again");
                continue;
            }
            End::NoSuchKind if kind == Kind::Slices => {
                kind = Kind::Endpoints;
                continue;
            }
            End::NoSuchKind => "the API server knows neither EndpointSlices nor Endpoints".to_owned(),
            End::Failed(reason) => sanitized(&reason),
        };
        // The next server may know EndpointSlices.
        kind = Kind::Slices;
        target.candidates.record_failure();
        report(Report::State(State::Failing(failure)));
        pause(&backoff, access).await;
    }
}

/// The access by the kubeconfig as it is now. An unchanged one is not read again: with another `Trust` the health checks
/// would start again.
async fn current(known: Option<Access>, kubeconfig: &Path) -> Result<Access, KubeconfigError> {
    match known {
        Some(access) if !is_outdated(&access).await => Ok(access),
        _ => read(kubeconfig.to_owned()).await,
    }
}

/// Shortens a text that a server may have written, and replaces its control characters.
fn sanitized(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(MAX_REASON).map(plain).collect();
    if text.chars().nth(MAX_REASON).is_some() {
        short.push('…');
    }
    short
}

/// Checks in a thread of its own: the file system may block.
async fn is_outdated(access: &Access) -> bool {
    let access = access.clone();
    tokio::task::spawn_blocking(move || access.is_outdated()).await.unwrap_or(true)
}

async fn read(path: PathBuf) -> Result<Access, KubeconfigError> {
    let reading = tokio::task::spawn_blocking(move || Access::read(&path));
    match reading.await {
        Ok(read) => read,
        // The runtime shuts down.
        Err(_) => std::future::pending().await,
    }
}

/// The addresses of the server in a kubeconfig. None if its name cannot be resolved: there are other servers to try.
async fn resolve(server: &Server) -> Vec<SocketAddr> {
    let found =
        tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((server.host.as_str(), server.port)));
    found.await.ok().and_then(Result::ok).map(Iterator::collect).unwrap_or_default()
}

async fn wait_until_outdated(access: &Access) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
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

async fn follow_kind<K>(client: Client, config: watcher::Config, report: impl Fn(BTreeSet<SocketAddr>)) -> End
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + ServerList
        + Clone
        + fmt::Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = Api::namespaced(client, "default");
    let mut steps = pin!(watcher::watcher(api, config));
    let mut objects = Objects::default();
    let mut deadline = Instant::now() + LIST_TIMEOUT;
    loop {
        let step = if objects.is_listing() {
            match tokio::time::timeout_at(deadline.into(), steps.next()).await {
                Ok(step) => step,
                Err(_) => {
                    return End::Failed(format!(
                        "the list of servers was not complete within {LIST_TIMEOUT:?}"
                    ));
                }
            }
        } else {
            steps.next().await
        };
        match step {
            Some(Ok(step)) => {
                if matches!(step, Step::Init) {
                    deadline = Instant::now() + LIST_TIMEOUT;
                }
                if let Some(servers) = objects.take(step) {
                    report(servers);
                }
            }
            // The watcher lists again by itself.
            Some(Err(watcher::Error::WatchError(status))) if status.code == GONE => {
                objects = Objects::default();
                deadline = Instant::now() + LIST_TIMEOUT;
            }
            Some(Err(error)) => return failure(&error),
            None => return End::Failed("the watch has ended".to_owned()),
        }
    }
}

/// Status of a watch whose resource version is too old.
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
        kube::Error::SerdeError(error) => End::Failed(format!("the response of the API server is not a list of servers: {error}")),
        other => End::Failed(chain(other)),
    }
}

/// The text of an error and of those that caused it, without repetitions.
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

    /// Applies a step of the watch. Returns all servers, if they may have changed.
    fn take<K: Resource<DynamicType = ()> + ServerList>(
        &mut self,
        step: Step<K>,
    ) -> Option<BTreeSet<SocketAddr>> {
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

fn add(objects: &mut BTreeMap<String, BTreeSet<SocketAddr>>, name: String, object: &impl ServerList) {
    if objects.len() < MAX_OBJECTS || objects.contains_key(&name) {
        objects.remove(&name);
        let known: usize = objects.values().map(BTreeSet::len).sum();
        let servers = object.servers().into_iter().take(MAX_SERVERS.saturating_sub(known));
        objects.insert(name, servers.collect());
    }
}

/// Waits after a failure, or until the kubeconfig changes.
async fn pause(backoff: &Mutex<Backoff>, access: &Access) {
    let pause = backoff.lock().unwrap_or_else(PoisonError::into_inner).failed(Instant::now());
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = wait_until_outdated(access) => {}
    }
}
