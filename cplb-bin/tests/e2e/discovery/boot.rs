//! Daemons that start before the servers or without the API.

use std::time::{Duration, Instant};

use testbed::{Failure, Signal};

use super::fixture::Fixture;
use crate::support::TIMEOUT;

/// The daemons start before the API and all servers.
pub(crate) fn from_nothing() {
    let mut fixture = Fixture::new();
    fixture.cluster.start_all();
    let owner = fixture.cluster.wait_for_owner(None);
    let status = fixture.cluster.status(owner);
    let waiting = status["discovery"][0]["waiting"].to_string();
    fixture.cluster.check(waiting.contains("admin.conf does not exist"), || status.to_string());
    fixture.cluster.check(!status["degraded"].to_string().contains("discover"), || status.to_string());
    let probe = fixture.probe();
    let since = Instant::now();
    fixture.cluster.wait("30 requests have ended", || probe.report().samples().len() >= 30);
    let failures = probe.report().failures_since(since);
    let fast =
        failures.keys().all(|failure| matches!(failure, Failure::Refused | Failure::Reset | Failure::Closed));
    fixture.cluster.check(fast && !failures.is_empty(), || format!("{failures:?}"));
    // The first controller's own API server starts, which no file and no list contains.
    fixture.serve(owner);
    fixture.served_by(&probe, &[owner]);
    let others: Vec<usize> = (0..fixture.cluster.len()).filter(|node| *node != owner).collect();
    for node in others {
        fixture.serve(node);
    }
    fixture.list(&[0, 1, 2]);
    fixture.start_api();
    fixture.served_by(&probe, &[0, 1, 2]);
    for node in 0..fixture.cluster.len() {
        fixture.wait_for(node, "api", &[0, 1, 2]);
        // An ordinary user has other degraded entries.
        let degraded = fixture.cluster.degraded(node);
        fixture.cluster.check(!degraded.contains("discover") && !degraded.contains("backend"), || degraded);
    }
}

/// All nodes lose power, and the API is only reachable through the virtual IP.
pub(crate) fn from_disk() {
    let mut fixture = Fixture::complete();
    fixture.api = None;
    for node in 0..fixture.cluster.len() {
        fixture.cluster.signal(node, Signal::SIGKILL);
        fixture.cluster.wait_until_ended(node);
    }
    fixture.cluster.start_all();
    fixture.cluster.wait_until_settled();
    let probe = fixture.probe();
    fixture.served_by(&probe, &[0, 1, 2]);
    for node in 0..fixture.cluster.len() {
        fixture.wait_for(node, "disk", &[0, 1, 2]);
        fixture.cluster.wait("failed discovery is reported", || {
            fixture.cluster.degraded(node).contains("backends cannot be discovered")
        });
    }
    fixture.start_api();
    fixture.list(&[0, 2]);
    for node in 0..fixture.cluster.len() {
        fixture.wait_for(node, "api", &[0, 2]);
    }
}

pub(crate) fn dead_disk() {
    let mut fixture = Fixture::complete();
    // All servers change their addresses while no daemon runs.
    fixture.api = None;
    for node in 0..fixture.cluster.len() {
        fixture.cluster.signal(node, Signal::SIGTERM);
        fixture.cluster.wait_until_ended(node);
        let gone = r#"{"version":1,"boot_id":"","content":{"clusters":[{"kubeconfig":"FILE","servers":["10.9.0.71:6443","10.9.0.72:6443"]}]}}"#;
        let text = gone.replace("FILE", &fixture.file().display().to_string());
        std::fs::write(fixture.cluster.state_dir(node).join("backends.json"), text)
            .expect("the file is written");
    }
    let started = Instant::now();
    fixture.cluster.start_all();
    let probe = fixture.probe();
    probe.wait_for_success(started, TIMEOUT).expect("a server answers");
    let took = started.elapsed();
    println!("MEASURED running servers are found after {took:?}");
    fixture.cluster.check(took < Duration::from_secs(5), || format!("{took:?}"));
}

/// Unusable contents of `backends.json`.
const UNREADABLE: [(&str, &str); 4] = [
    ("corrupt", "\u{0}garbage"),
    ("truncated", r#"{"version":1,"boot_id":"","content":{"clusters":[{"kubecon"#),
    ("of a future version", r#"{"version":99,"boot_id":"","content":{"clusters":"?"}}"#),
    ("empty", ""),
];

pub(crate) fn unreadable_files() {
    let mut fixture = Fixture::complete();
    for (what, text) in UNREADABLE {
        fixture.cluster.signal(0, Signal::SIGTERM);
        fixture.cluster.wait_until_ended(0);
        std::fs::write(fixture.cluster.state_dir(0).join("backends.json"), text)
            .expect("the file is written");
        fixture.cluster.start_daemon(0);
        fixture.cluster.wait(&format!("a server file that is {what} is reported"), || {
            fixture.cluster.daemon(0).log().text().contains("the backends of the last run cannot be read")
        });
        fixture.wait_for(0, "api", &[0, 1, 2]);
        fixture.cluster.wait("the server file is valid again", || {
            let saved = std::fs::read_to_string(fixture.cluster.state_dir(0).join("backends.json"));
            saved.is_ok_and(|text| text.contains(&fixture.server(2).to_string()))
        });
    }
}

pub(crate) fn unwritable_file() {
    let mut fixture = Fixture::complete();
    fixture.cluster.signal(0, Signal::SIGTERM);
    fixture.cluster.wait_until_ended(0);
    // Not even root can write a file in place of a directory, nor rename that to a name that another directory has.
    let file = fixture.cluster.state_dir(0).join("backends.json");
    std::fs::remove_file(&file).expect("the file existed");
    for directory in [&file, &file.with_extension("bad")] {
        std::fs::create_dir_all(directory.join("content")).expect("the directory is created");
    }
    fixture.cluster.start_daemon(0);
    fixture.wait_for(0, "api", &[0, 1, 2]);
    fixture.list(&[0, 1]);
    fixture.wait_for(0, "api", &[0, 1]);
    let log = fixture.cluster.daemon(0).log().text();
    for expected in ["the backends of the last run cannot be read", "cannot be stored for the next start"] {
        fixture.cluster.check(log.contains(expected), || format!("{expected:?} is not logged"));
    }
    let probe = fixture.probe();
    fixture.served_by(&probe, &[0, 1]);
}
