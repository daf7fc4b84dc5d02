//! Daemons that start before the servers or without the API.

use std::time::{Duration, Instant};

use testbed::{Failure, Signal};

use super::ground::Scene;
use crate::support::PATIENCE;

/// The daemons start before the API and all servers.
pub(crate) fn from_nothing() {
    let mut scene = Scene::new();
    scene.cluster.start_all();
    let owner = scene.cluster.wait_for_owner(None);
    let status = scene.cluster.status(owner);
    let waiting = status["discovery"][0]["waiting"].to_string();
    scene.cluster.check(waiting.contains("admin.conf does not exist"), || status.to_string());
    scene.cluster.check(!status["degraded"].to_string().contains("discover"), || status.to_string());
    let probe = scene.probe();
    let since = Instant::now();
    scene.cluster.wait("30 requests have ended", || probe.report().samples().len() >= 30);
    let failures = probe.report().failures_since(since);
    let fast =
        failures.keys().all(|failure| matches!(failure, Failure::Refused | Failure::Reset | Failure::Closed));
    scene.cluster.check(fast && !failures.is_empty(), || format!("{failures:?}"));
    // The first controller's own API server starts, which no file and no list contains.
    scene.serve(owner);
    scene.served_by(&probe, &[owner]);
    let others: Vec<usize> = (0..scene.cluster.len()).filter(|node| *node != owner).collect();
    for node in others {
        scene.serve(node);
    }
    scene.list(&[0, 1, 2]);
    scene.start_api();
    scene.served_by(&probe, &[0, 1, 2]);
    for node in 0..scene.cluster.len() {
        scene.wait_for(node, "api", &[0, 1, 2]);
        // An ordinary user has other degraded entries.
        let degraded = scene.cluster.status(node)["degraded"].to_string();
        scene.cluster.check(!degraded.contains("discover") && !degraded.contains("backend"), || degraded);
    }
}

/// All nodes lose power, and the API is only reachable through the virtual IP.
pub(crate) fn from_disk() {
    let mut scene = Scene::complete();
    scene.api = None;
    for node in 0..scene.cluster.len() {
        scene.cluster.signal(node, Signal::SIGKILL);
        scene.cluster.wait_until_ended(node);
    }
    scene.cluster.start_all();
    scene.cluster.wait_until_settled();
    let probe = scene.probe();
    scene.served_by(&probe, &[0, 1, 2]);
    for node in 0..scene.cluster.len() {
        scene.wait_for(node, "disk", &[0, 1, 2]);
        scene.cluster.wait("failed discovery is reported", || {
            scene.cluster.status(node)["degraded"].to_string().contains("backends cannot be discovered")
        });
    }
    scene.start_api();
    scene.list(&[0, 2]);
    for node in 0..scene.cluster.len() {
        scene.wait_for(node, "api", &[0, 2]);
    }
}

pub(crate) fn dead_disk() {
    let mut scene = Scene::complete();
    // All servers change their addresses while no daemon runs.
    scene.api = None;
    for node in 0..scene.cluster.len() {
        scene.cluster.signal(node, Signal::SIGTERM);
        scene.cluster.wait_until_ended(node);
        let gone = r#"{"version":1,"boot_id":"","content":{"clusters":[{"kubeconfig":"FILE","servers":["10.9.0.71:6443","10.9.0.72:6443"]}]}}"#;
        let text = gone.replace("FILE", &scene.file().display().to_string());
        std::fs::write(scene.cluster.state_dir(node).join("backends.json"), text)
            .expect("the file is written");
    }
    let started = Instant::now();
    scene.cluster.start_all();
    let probe = scene.probe();
    probe.wait_for_success(started, PATIENCE).expect("a server answers");
    let took = started.elapsed();
    println!("MEASURED running servers are found after {took:?}");
    scene.cluster.check(took < Duration::from_secs(5), || format!("{took:?}"));
}

/// Unusable contents of `backends.json`.
const USELESS: [(&str, &str); 4] = [
    ("corrupt", "\u{0}garbage"),
    ("truncated", r#"{"version":1,"boot_id":"","content":{"clusters":[{"kubecon"#),
    ("of a future version", r#"{"version":99,"boot_id":"","content":{"clusters":"?"}}"#),
    ("empty", ""),
];

pub(crate) fn useless_files() {
    let mut scene = Scene::complete();
    for (what, text) in USELESS {
        scene.cluster.signal(0, Signal::SIGTERM);
        scene.cluster.wait_until_ended(0);
        std::fs::write(scene.cluster.state_dir(0).join("backends.json"), text).expect("the file is written");
        scene.cluster.start_daemon(0);
        scene.cluster.wait(&format!("a server file that is {what} is reported"), || {
            scene.cluster.daemon(0).log().text().contains("the backends of the last run cannot be read")
        });
        scene.wait_for(0, "api", &[0, 1, 2]);
        scene.cluster.wait("the server file is valid again", || {
            let saved = std::fs::read_to_string(scene.cluster.state_dir(0).join("backends.json"));
            saved.is_ok_and(|text| text.contains(&scene.server(2).to_string()))
        });
    }
}

pub(crate) fn unwritable_file() {
    let mut scene = Scene::complete();
    scene.cluster.signal(0, Signal::SIGTERM);
    scene.cluster.wait_until_ended(0);
    // Not even root can write a file in place of a directory, nor rename that to a name that another directory has.
    let file = scene.cluster.state_dir(0).join("backends.json");
    std::fs::remove_file(&file).expect("the file existed");
    for directory in [&file, &file.with_extension("bad")] {
        std::fs::create_dir_all(directory.join("content")).expect("the directory is created");
    }
    scene.cluster.start_daemon(0);
    scene.wait_for(0, "api", &[0, 1, 2]);
    scene.list(&[0, 1]);
    scene.wait_for(0, "api", &[0, 1]);
    let log = scene.cluster.daemon(0).log().text();
    for told in ["the backends of the last run cannot be read", "are not on disk for the next boot"] {
        scene.cluster.check(log.contains(told), || format!("{told:?} is not logged"));
    }
    let probe = scene.probe();
    scene.served_by(&probe, &[0, 1]);
}
