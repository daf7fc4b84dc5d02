//! Tests of `cplb`'s output to readers that close or stop reading, and of `cplb status --watch` while the daemon stops.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Several intervals of `--watch` on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The smallest valid status document.
const STATUS: &str = r#"{"schema":1,"version":"0","pid":7,"uptimeSeconds":1.0,"config":"c.yaml","degraded":[],
    "serving":{"serving":true,"sinceSeconds":1.0},"realTime":true,"instances":[],"services":[]}"#;

fn cplb<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cplb"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The writing end of a pipe whose reading end is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// Waits for the child to end; returns its exit code and its standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > TIMEOUT {
            child.kill().unwrap();
            panic!("the process still runs");
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

/// Answers one client with [`STATUS`].
fn answer_once(listener: &UnixListener) {
    listener.accept().unwrap().0.write_all(STATUS.as_bytes()).unwrap();
}

#[test]
fn closed_standard_output_is_no_error() {
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
fn closed_output_streams_change_no_exit_code() {
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
fn watch_continues_while_no_daemon_answers() {
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
fn watch_json_prints_one_document_per_line_and_errors_to_stderr() {
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
    // No document is printed meanwhile, so the closed pipe causes no error.
    drop(documents);
    assert_eq!(end(child).0, Some(0));
}

/// A load balancer without virtual IPs, which needs no privilege.
struct Balancer {
    child: Child,
    directory: tempfile::TempDir,
}

impl Balancer {
    fn start(bind_port: u16, stderr: Stdio) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let text = format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  \
             services: [{{name: kube-apiserver, port: 6443, bindPort: {bind_port}}}]\n  \
             backends: {{static: [\"127.0.0.1:1\"]}}\n"
        );
        std::fs::write(path("c.yaml"), text).unwrap();
        let child = cplb(["run", "--config"])
            .arg(path("c.yaml"))
            .arg("--socket")
            .arg(path("s"))
            .arg("--state-dir")
            .arg(path("state"))
            .stderr(stderr)
            .spawn()
            .unwrap();
        let balancer = Self { child, directory };
        balancer.wait_for_status("the daemon answers", |_| true);
        balancer
    }

    fn wait_for_status(&self, what: &str, expected: impl Fn(&serde_json::Value) -> bool) {
        let started = Instant::now();
        loop {
            let socket = self.directory.path().join("s");
            let output = cplb(["status", "--json", "--socket"]).arg(socket).output().unwrap();
            if serde_json::from_slice(&output.stdout).is_ok_and(|status| expected(&status)) {
                return;
            }
            assert!(started.elapsed() < TIMEOUT, "{what}: {output:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Makes the daemon read an invalid file and a valid one in turn: each is logged, and reported in the status.
    fn reload_often(&self, times: usize) {
        let file = self.directory.path().join("c.yaml");
        let good = std::fs::read_to_string(&file).unwrap();
        for _ in 0..times {
            for (text, wrong) in [("kind: [", true), (good.as_str(), false)] {
                std::fs::write(&file, text).unwrap();
                self.signal(nix::sys::signal::Signal::SIGHUP);
                self.wait_for_status("the reload is reflected in the status", |status| {
                    status["degraded"].to_string().contains("is not reloaded") == wrong
                });
            }
        }
    }

    fn stop(self) -> Option<i32> {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        end(self.child).0
    }
}

#[test]
fn daemon_survives_a_closed_log_pipe() {
    let balancer = Balancer::start(16_445, closed());
    balancer.reload_often(2);
    assert_eq!(balancer.stop(), Some(0));
}

#[test]
fn daemon_survives_a_full_log_pipe() {
    let (reader, writer) = std::io::pipe().unwrap();
    // The smallest pipe that the kernel supports.
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let balancer = Balancer::start(16_446, writer.into());
    balancer.reload_often(20);
    assert_eq!(balancer.stop(), Some(0));
    let mut log = String::new();
    BufReader::new(reader).read_to_string(&mut log).unwrap();
    assert!(log.len() >= 4096 - 1024, "the pipe was full: {} bytes", log.len());
}
