//! Follows a cluster with a fake API: changes of servers, watches that end, failures, and credentials.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use testbed::api::{
    ApiBehaviour, ApiCluster, ApiServer, Authority, Credential, Identity, Validity, kubeconfig,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::dial::Candidates;
use super::{Report, State, Target, follow};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// Names in the certificates of all API servers.
const NAMES: [&str; 2] = ["kubernetes", "kubernetes.default.svc"];
/// The time limit for results that need no waiting.
const TIMEOUT: Duration = Duration::from_secs(10);

fn servers(hosts: &[u8]) -> Vec<SocketAddr> {
    hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 6443))).collect()
}

/// A cluster with one API server, and the kubeconfig of a follower.
struct Fixture {
    authority: Authority,
    client: Identity,
    cluster: ApiCluster,
    api: ApiServer,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let authority = Authority::new("cluster").unwrap();
        let client = authority.client("cplb", Validity::Now).unwrap();
        let cluster = ApiCluster::new(&servers(&[11]));
        let identity = authority.server(&NAMES, Validity::Now).unwrap();
        let api = ApiServer::start(&cluster, LOOPBACK, &authority, &identity).unwrap();
        Self { authority, client, cluster, api, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("admin.conf")
    }

    fn write(&self, credential: &Credential<'_>) {
        std::fs::write(self.file(), kubeconfig(self.api.address(), &self.authority, credential)).unwrap();
    }

    /// Starts another API server of the cluster.
    fn server(&self, validity: Validity) -> ApiServer {
        let identity = self.authority.server(&NAMES, validity).unwrap();
        ApiServer::start(&self.cluster, LOOPBACK, &self.authority, &identity).unwrap()
    }

    fn follow(&self) -> Following {
        let candidates = Candidates::default();
        let target =
            Target { kubeconfig: self.file(), candidates: candidates.clone(), mark: 0, watch_seconds: 1 };
        let (sender, reports) = unbounded_channel();
        let task = tokio::spawn(follow(target, move |report| drop(sender.send(report))));
        Following { candidates, reports, task }
    }

    /// Follows with the client certificate, until the servers are discovered.
    async fn follow_until_found(&self) -> Following {
        self.write(&Credential::Certificate(&self.client));
        let mut following = self.follow();
        following.finds(&[11]).await;
        following
    }
}

struct Following {
    candidates: Candidates,
    reports: UnboundedReceiver<Report>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Following {
    async fn next(&mut self) -> Report {
        tokio::time::timeout(TIMEOUT, self.reports.recv()).await.expect("a report in time").unwrap()
    }

    /// Waits for these servers; other reports before them are ignored.
    async fn finds(&mut self, hosts: &[u8]) {
        let wanted: BTreeSet<SocketAddr> = servers(hosts).into_iter().collect();
        while !matches!(self.next().await, Report::Servers(found, _) if found == wanted) {}
    }

    async fn state(&mut self) -> State {
        loop {
            if let Report::State(state) = self.next().await {
                return state;
            }
        }
    }

    async fn fails_with(&mut self, words: &str) {
        let state = self.state().await;
        assert!(matches!(&state, State::Failing(why) if why.contains(words)), "{state:?}");
    }
}

#[tokio::test]
async fn changes_of_the_servers_are_followed() {
    let fixture = Fixture::new();
    let mut following = fixture.follow_until_found().await;
    for hosts in [&[11, 12][..], &[11, 12, 13], &[12, 13], &[21, 22, 23]] {
        fixture.cluster.set_servers(&servers(hosts));
        following.finds(hosts).await;
    }
    fixture.cluster.delete();
    following.finds(&[]).await;
    fixture.cluster.set_servers(&servers(&[11]));
    following.finds(&[11]).await;
    assert_eq!(following.candidates.answered().unwrap().0, fixture.api.address());
    assert_eq!(fixture.api.requests().lists, 1, "the changes came by the watch");
}

#[tokio::test]
async fn a_watch_continues_where_the_last_one_ended() {
    let fixture = Fixture::new();
    let mut following = fixture.follow_until_found().await;
    let since = Instant::now();
    while fixture.api.requests().watches < 4 {
        assert!(since.elapsed() < TIMEOUT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fixture.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
    assert_eq!(fixture.api.requests().lists, 1);
}

#[tokio::test]
async fn a_resource_version_that_is_gone_leads_to_a_list() {
    let fixture = Fixture::new();
    let mut following = fixture.follow_until_found().await;
    fixture.cluster.compact();
    fixture.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
    assert_eq!(fixture.api.requests().lists, 2);
}

/// Requests become rare, and go on until the server recovers.
#[tokio::test]
async fn a_server_that_ends_watches_at_once_gets_few_requests() {
    for behaviour in [ApiBehaviour::EndsWatches, ApiBehaviour::AlwaysGone] {
        let fixture = Fixture::new();
        fixture.api.set_behaviour(behaviour.clone());
        let mut following = fixture.follow_until_found().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let requests = fixture.api.requests();
        // Pauses of at least 125, 250, 500, 1000 and 2000 ms.
        assert!((3..=6).contains(&requests.watches), "{behaviour:?}: {requests:?}");
        assert!(requests.lists <= requests.watches + 1, "{behaviour:?}: {requests:?}");
        fixture.api.set_behaviour(ApiBehaviour::Serve);
        fixture.cluster.set_servers(&servers(&[11, 12]));
        following.finds(&[11, 12]).await;
    }
}

#[tokio::test]
async fn a_half_open_watch_is_replaced() {
    let fixture = Fixture::new();
    fixture.api.set_behaviour(ApiBehaviour::HalfOpen);
    let mut following = fixture.follow_until_found().await;
    fixture.cluster.set_servers(&servers(&[11, 12]));
    let since = Instant::now();
    while fixture.api.requests().watches < 2 {
        assert!(since.elapsed() < 2 * TIMEOUT, "the watch lasts one second");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fixture.api.set_behaviour(ApiBehaviour::Serve);
    following.finds(&[11, 12]).await;
}

#[tokio::test]
async fn failures_are_reported_and_retried() {
    let fixture = Fixture::new();
    fixture.write(&Credential::Certificate(&fixture.client));
    for (behaviour, words) in [
        (ApiBehaviour::Status(403), "forbids to list and watch"),
        (ApiBehaviour::Status(401), "does not accept the kubeconfig's credentials"),
        (ApiBehaviour::Status(500), "status 500"),
        (ApiBehaviour::Garbage, "not a list of servers"),
    ] {
        fixture.api.set_behaviour(behaviour);
        let mut following = fixture.follow();
        following.fails_with(words).await;
        fixture.api.set_behaviour(ApiBehaviour::Serve);
        following.finds(&[11]).await;
    }
    fixture.api.set_behaviour(ApiBehaviour::Slow(Duration::from_secs(2)));
    fixture.follow().finds(&[11]).await;
}

#[tokio::test]
async fn endpoints_are_followed_without_endpoint_slices() {
    let fixture = Fixture::new();
    fixture.api.set_behaviour(ApiBehaviour::WithoutSlices);
    let mut following = fixture.follow_until_found().await;
    fixture.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
}

#[tokio::test]
async fn any_verified_server_of_the_cluster_is_used() {
    let fixture = Fixture::new();
    let (second, expired) = (fixture.server(Validity::Now), fixture.server(Validity::Expired));
    let mut following = fixture.follow_until_found().await;
    let known = [expired.address(), second.address(), fixture.api.address()];
    following.candidates.set(known.to_vec(), Vec::new());
    drop(fixture.api);
    fixture.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
    assert_eq!(following.candidates.answered().unwrap().0, second.address());
    drop(second);
    following.fails_with("no API server answers").await;
}

/// An API server whose etcd is down answers with status 500.
#[tokio::test]
async fn an_unhelpful_server_does_not_hide_the_others() {
    let fixture = Fixture::new();
    let broken = fixture.server(Validity::Now);
    broken.set_behaviour(ApiBehaviour::Status(500));
    fixture.write(&Credential::Certificate(&fixture.client));
    let mut following = fixture.follow();
    following.candidates.set(vec![broken.address()], Vec::new());
    following.finds(&[11]).await;
    assert_eq!(following.candidates.answered().unwrap().0, fixture.api.address());
}

#[tokio::test]
async fn credentials_go_to_verified_servers_of_the_cluster_only() {
    let fixture = Fixture::new();
    let other_authority = Authority::new("other").unwrap();
    let identity = other_authority.server(&NAMES, Validity::Now).unwrap();
    let foreign = ApiServer::start(&fixture.cluster, LOOPBACK, &other_authority, &identity).unwrap();
    // Another host that the authority has certified.
    let identity = fixture.authority.server(&["worker-1"], Validity::Now).unwrap();
    let other = ApiServer::start(&fixture.cluster, LOOPBACK, &fixture.authority, &identity).unwrap();
    let expired = fixture.server(Validity::Expired);
    for (server, words) in
        [(&foreign, "did not sign it"), (&other, "it is for other names"), (&expired, "it has expired")]
    {
        let text =
            kubeconfig(server.address(), &fixture.authority, &Credential::Certificate(&fixture.client));
        std::fs::write(fixture.file(), text).unwrap();
        fixture.follow().fails_with(words).await;
        assert_eq!(server.requests(), testbed::api::ApiRequests::default());
    }
}

#[tokio::test]
async fn a_changed_kubeconfig_changes_the_credentials() {
    let fixture = Fixture::new();
    let mut following = fixture.follow();
    let state = following.state().await;
    assert!(matches!(&state, State::Waiting(why) if why.contains("admin.conf does not exist")), "{state:?}");
    fixture.write(&Credential::Anonymous);
    following.fails_with("credentials (401)").await;
    fixture.cluster.set_token("s3cret");
    fixture.write(&Credential::Token("wrong"));
    following.fails_with("credentials (401)").await;
    fixture.write(&Credential::Token("s3cret"));
    following.finds(&[11]).await;
    let expired = fixture.authority.client("cplb", Validity::Expired).unwrap();
    fixture.write(&Credential::Certificate(&expired));
    let State::Failing(why) = following.state().await else { panic!("the certificate has expired") };
    assert!(!why.contains("s3cret"), "{why}");
    fixture.write(&Credential::Certificate(&fixture.client));
    following.finds(&[11]).await;
}

#[tokio::test]
async fn a_list_of_ten_thousand_servers_is_read() {
    let fixture = Fixture::new();
    let many: Vec<SocketAddr> =
        (0..10_000u32).map(|n| SocketAddr::from(((0x0a01_0000 + n).to_be_bytes(), 6443))).collect();
    fixture.cluster.set_servers(&many);
    fixture.write(&Credential::Certificate(&fixture.client));
    let mut following = fixture.follow();
    let Report::Servers(found, _) = following.next().await else { panic!("the servers are listed") };
    assert_eq!(found, many.into_iter().collect());
}
