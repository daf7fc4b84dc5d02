//! The fixture of the tests.

use std::future::Future;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipvs::{Client, Destination, DestinationKey, ForwardMethod, ServiceKey};
use testbed::Tool;

/// Runs on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// Runs with a client of this network namespace, which has an interface `dummy0` with 10.0.0.1 and fd00::1.
pub(crate) fn with_client<T>(body: impl AsyncFnOnce(&Client) -> T) -> T {
    ip("link set lo up");
    ip("link add dummy0 type dummy");
    ip("addr add 10.0.0.1/8 dev dummy0");
    ip("addr add fd00::1/64 dev dummy0 nodad");
    ip("link set dummy0 up");
    block_on(async {
        let client = Client::spawn().expect("a client");
        body(&client).await
    })
}

/// Runs `ip`.
pub(crate) fn ip(arguments: &str) {
    run(Tool::Ip, arguments, "");
}

/// Runs `ipvsadm` and returns what it prints, without blanks at the ends of lines.
pub(crate) fn ipvsadm(arguments: &str) -> String {
    run(Tool::Ipvsadm, arguments, "")
}

/// Runs a program with this input, and returns its output.
pub(crate) fn run(tool: Tool, arguments: &str, input: &str) -> String {
    let mut child = Command::new(tool.path().expect("it is installed"))
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{tool} {arguments}: {} {errors}", output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn tcp(text: &str, port: u16) -> ServiceKey {
    ServiceKey::tcp(address(text), port)
}

pub(crate) fn destination(text: &str, port: u16, method: ForwardMethod) -> Destination {
    Destination::new(DestinationKey::new(address(text), port), method)
}
