//! Following a cluster whose API does what APIs do.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use testbed::api::{
    ApiBehaviour, ApiCluster, ApiServer, Authority, Credential, Identity, Validity, kubeconfig,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::dial::Directory;
use super::{Report, State, Subject, follow};

const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
/// What all API servers are called.
const NAMES: [&str; 2] = ["kubernetes", "kubernetes.default.svc"];
/// For what happens at once.
const SOON: Duration = Duration::from_secs(10);

fn servers(hosts: &[u8]) -> Vec<SocketAddr> {
    hosts.iter().map(|host| SocketAddr::from(([10, 0, 0, *host], 6443))).collect()
}

/// A cluster with one API server, and somebody who follows it.
struct Scene {
    authority: Authority,
    client: Identity,
    cluster: ApiCluster,
    api: ApiServer,
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let authority = Authority::new("cluster").unwrap();
        let client = authority.client("cplb", Validity::Now).unwrap();
        let cluster = ApiCluster::new(&servers(&[11]));
        let identity = authority.server(&NAMES, Validity::Now).unwrap();
        let api = ApiServer::start(&cluster, HERE, &authority, &identity).unwrap();
        Self { authority, client, cluster, api, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("admin.conf")
    }

    fn write(&self, credential: &Credential<'_>) {
        std::fs::write(self.file(), kubeconfig(self.api.address(), &self.authority, credential)).unwrap();
    }

    /// Another API server of the cluster.
    fn server(&self, validity: Validity) -> ApiServer {
        let identity = self.authority.server(&NAMES, validity).unwrap();
        ApiServer::start(&self.cluster, HERE, &self.authority, &identity).unwrap()
    }

    fn follow(&self) -> Following {
        let directory = Directory::default();
        let subject = Subject { kubeconfig: self.file(), directory: directory.clone(), mark: 0, watch: 1 };
        let (sender, reports) = unbounded_channel();
        let task = tokio::spawn(follow(subject, move |report| drop(sender.send(report))));
        Following { directory, reports, task }
    }

    /// Somebody who has found the servers with the usual credential.
    async fn found(&self) -> Following {
        self.write(&Credential::Certificate(&self.client));
        let mut following = self.follow();
        following.finds(&[11]).await;
        following
    }
}

struct Following {
    directory: Directory,
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
        tokio::time::timeout(SOON, self.reports.recv()).await.expect("news come soon").unwrap()
    }

    /// Passes over what else is told.
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
async fn servers_come_go_and_are_replaced() {
    let scene = Scene::new();
    let mut following = scene.found().await;
    for hosts in [&[11, 12][..], &[11, 12, 13], &[12, 13], &[21, 22, 23]] {
        scene.cluster.set_servers(&servers(hosts));
        following.finds(hosts).await;
    }
    scene.cluster.delete();
    following.finds(&[]).await;
    scene.cluster.set_servers(&servers(&[11]));
    following.finds(&[11]).await;
    assert_eq!(following.directory.answered().unwrap().0, scene.api.address());
    assert_eq!(scene.api.requests().lists, 1, "all the rest was watched");
}

#[tokio::test]
async fn watches_that_end_are_taken_up_where_they_ended() {
    let scene = Scene::new();
    let mut following = scene.found().await;
    let since = Instant::now();
    while scene.api.requests().watches < 4 {
        assert!(since.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
    assert_eq!(scene.api.requests().lists, 1);
}

#[tokio::test]
async fn a_version_that_is_gone_is_listed_anew() {
    let scene = Scene::new();
    let mut following = scene.found().await;
    scene.cluster.forget();
    scene.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
    assert_eq!(scene.api.requests().lists, 2);
}

/// Whatever the server does with its watches, it is asked more and more rarely, and heard when it is well again.
#[tokio::test]
async fn a_server_that_ends_watches_at_once_is_asked_rarely() {
    for behaviour in [ApiBehaviour::EndsWatches, ApiBehaviour::AlwaysGone] {
        let scene = Scene::new();
        scene.api.set_behaviour(behaviour.clone());
        let mut following = scene.found().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let requests = scene.api.requests();
        // Pauses of at least 125, 250, 500, 1000 and 2000 ms.
        assert!((3..=6).contains(&requests.watches), "{behaviour:?}: {requests:?}");
        assert!(requests.lists <= requests.watches + 1, "{behaviour:?}: {requests:?}");
        scene.api.set_behaviour(ApiBehaviour::Serve);
        scene.cluster.set_servers(&servers(&[11, 12]));
        following.finds(&[11, 12]).await;
    }
}

#[tokio::test]
async fn a_watch_that_says_nothing_is_found_out() {
    let scene = Scene::new();
    scene.api.set_behaviour(ApiBehaviour::HalfOpen);
    let mut following = scene.found().await;
    scene.cluster.set_servers(&servers(&[11, 12]));
    let since = Instant::now();
    while scene.api.requests().watches < 2 {
        assert!(since.elapsed() < 2 * SOON, "the watch was for one second");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.api.set_behaviour(ApiBehaviour::Serve);
    following.finds(&[11, 12]).await;
}

#[tokio::test]
async fn failures_are_named_and_end_by_themselves() {
    let scene = Scene::new();
    scene.write(&Credential::Certificate(&scene.client));
    for (behaviour, words) in [
        (ApiBehaviour::Status(403), "forbids to list and watch"),
        (ApiBehaviour::Status(401), "does not accept the kubeconfig's credentials"),
        (ApiBehaviour::Status(500), "status 500"),
        (ApiBehaviour::Garbage, "no list of servers"),
    ] {
        scene.api.set_behaviour(behaviour);
        let mut following = scene.follow();
        following.fails_with(words).await;
        scene.api.set_behaviour(ApiBehaviour::Serve);
        following.finds(&[11]).await;
    }
    scene.api.set_behaviour(ApiBehaviour::Slow(Duration::from_secs(2)));
    scene.follow().finds(&[11]).await;
}

#[tokio::test]
async fn a_server_without_slices_has_endpoints() {
    let scene = Scene::new();
    scene.api.set_behaviour(ApiBehaviour::WithoutSlices);
    let mut following = scene.found().await;
    scene.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
}

#[tokio::test]
async fn any_server_of_the_cluster_will_do() {
    let scene = Scene::new();
    let (second, expired) = (scene.server(Validity::Now), scene.server(Validity::Expired));
    let mut following = scene.found().await;
    let known = [expired.address(), second.address(), scene.api.address()];
    following.directory.set(known.to_vec(), Vec::new());
    drop(scene.api);
    scene.cluster.set_servers(&servers(&[11, 12]));
    following.finds(&[11, 12]).await;
    assert_eq!(following.directory.answered().unwrap().0, second.address());
    drop(second);
    following.fails_with("no API server answers").await;
}

/// Such as one whose etcd is down.
#[tokio::test]
async fn a_server_that_says_nothing_of_use_is_passed_over() {
    let scene = Scene::new();
    let broken = scene.server(Validity::Now);
    broken.set_behaviour(ApiBehaviour::Status(500));
    scene.write(&Credential::Certificate(&scene.client));
    let mut following = scene.follow();
    following.directory.set(vec![broken.address()], Vec::new());
    following.finds(&[11]).await;
    assert_eq!(following.directory.answered().unwrap().0, scene.api.address());
}

#[tokio::test]
async fn credentials_are_for_servers_of_the_cluster_only() {
    let scene = Scene::new();
    let strangers = Authority::new("strangers").unwrap();
    let identity = strangers.server(&NAMES, Validity::Now).unwrap();
    let stranger = ApiServer::start(&scene.cluster, HERE, &strangers, &identity).unwrap();
    // Another host that the authority has certified.
    let identity = scene.authority.server(&["worker-1"], Validity::Now).unwrap();
    let other = ApiServer::start(&scene.cluster, HERE, &scene.authority, &identity).unwrap();
    let expired = scene.server(Validity::Expired);
    for (server, words) in
        [(&stranger, "did not sign it"), (&other, "it is for other names"), (&expired, "it has expired")]
    {
        let text = kubeconfig(server.address(), &scene.authority, &Credential::Certificate(&scene.client));
        std::fs::write(scene.file(), text).unwrap();
        scene.follow().fails_with(words).await;
        assert_eq!(server.requests(), testbed::api::ApiRequests::default());
    }
}

#[tokio::test]
async fn credentials_are_what_the_file_says_now() {
    let scene = Scene::new();
    let mut following = scene.follow();
    let state = following.state().await;
    assert!(matches!(&state, State::Waiting(why) if why.contains("admin.conf does not exist")), "{state:?}");
    scene.write(&Credential::Anonymous);
    following.fails_with("credentials (401)").await;
    scene.cluster.set_token("s3cret");
    scene.write(&Credential::Token("wrong"));
    following.fails_with("credentials (401)").await;
    scene.write(&Credential::Token("s3cret"));
    following.finds(&[11]).await;
    let expired = scene.authority.client("cplb", Validity::Expired).unwrap();
    scene.write(&Credential::Certificate(&expired));
    let State::Failing(why) = following.state().await else { panic!("it should fail") };
    assert!(!why.contains("s3cret"), "{why}");
    scene.write(&Credential::Certificate(&scene.client));
    following.finds(&[11]).await;
}

#[tokio::test]
async fn a_list_of_ten_thousand_is_a_list() {
    let scene = Scene::new();
    let many: Vec<SocketAddr> =
        (0..10_000u32).map(|n| SocketAddr::from(((0x0a01_0000 + n).to_be_bytes(), 6443))).collect();
    scene.cluster.set_servers(&many);
    scene.write(&Credential::Certificate(&scene.client));
    let mut following = scene.follow();
    let Report::Servers(found, _) = following.next().await else { panic!("they should be found") };
    assert_eq!(found, many.into_iter().collect());
}
