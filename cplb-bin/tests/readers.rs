//! What `cplb` prints for readers that go away, and `cplb status --watch` for daemons that do.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A few turns of `--watch` on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The least that is a status.
const STATUS: &str = r#"{"schema":1,"version":"0","pid":7,"uptimeSeconds":1.0,"config":"c.yaml","degraded":[],
    "serving":{"serving":true,"sinceSeconds":1.0},"realTime":true,"instances":[],"services":[]}"#;

fn cplb<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cplb"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// The exit code and what was written to standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it still runs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut errors = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut errors).unwrap();
    }
    (child.wait().unwrap().code(), errors)
}

fn example() -> String {
    format!("{}/../cplb-config/tests/examples/native-k3s.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// Answers one reader with [`STATUS`].
fn answer_once(listener: &UnixListener) {
    listener.accept().unwrap().0.write_all(STATUS.as_bytes()).unwrap();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let path = example();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = std::thread::spawn(move || {
        answer_once(&listener);
        answer_once(&listener);
    });
    let socket = socket.to_str().unwrap();
    for arguments in [
        vec!["completions", "bash"],
        vec!["completions", "zsh"],
        vec!["check", "--config", &path],
        vec!["check", "--print", "schema", "--config", &path],
        vec!["status", "--socket", socket],
        vec!["status", "--json", "--socket", socket],
        vec!["--help"],
        vec!["--version"],
    ] {
        let child = cplb(&arguments).stdout(closed()).stderr(Stdio::piped()).spawn().unwrap();
        let (code, errors) = end(child);
        assert_eq!(code, Some(0), "{arguments:?}: {errors}");
        assert!(!errors.contains("panic") && !errors.contains("cannot write"), "{arguments:?}: {errors}");
    }
    daemon.join().unwrap();
}

#[test]
fn nobody_to_complain_to_changes_no_exit_code() {
    let missing =
        cplb(["check", "--config", "/nonexistent"]).stdout(closed()).stderr(closed()).spawn().unwrap();
    assert_eq!(end(missing).0, Some(66));
    let warned = format!("{}/../cplb-config/tests/examples/k0s-userspace.yaml", env!("CARGO_MANIFEST_DIR"));
    let child = cplb(["check", "--config", &warned]).stdout(closed()).stderr(closed()).spawn().unwrap();
    assert_eq!(end(child).0, Some(0));
}

fn watch(socket: &Path, json: bool) -> Child {
    let mut command = cplb(["status", "--watch", "--socket"]);
    command.arg(socket).stdout(Stdio::piped()).stderr(Stdio::piped());
    if json {
        command.arg("--json");
    }
    command.spawn().unwrap()
}

#[test]
fn watching_goes_on_while_no_daemon_answers() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut child = watch(&socket, false);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    for _ in 0..2 {
        assert!(lines.any(|line| line.contains("no cplb daemon answers")));
    }
    let listener = UnixListener::bind(&socket).unwrap();
    answer_once(&listener);
    assert!(lines.any(|line| line.contains("pid 7")));
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    assert!(lines.any(|line| line.contains("no cplb daemon answers")));
    drop(lines);
    assert_eq!(end(child), (Some(0), String::new()));
}

#[test]
fn watched_documents_stay_one_a_line_and_failures_go_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut child = watch(&socket, true);
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert!(line.contains("no cplb daemon answers"), "{line}");
    let listener = UnixListener::bind(&socket).unwrap();
    answer_once(&listener);
    let mut documents = BufReader::new(child.stdout.take().unwrap());
    let mut document = String::new();
    documents.read_line(&mut document).unwrap();
    let status: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(status["pid"], 7);
    drop(listener);
    // Nothing is printed meanwhile that could meet the closed pipe.
    drop(documents);
    assert_eq!(end(child).0, Some(0));
}
