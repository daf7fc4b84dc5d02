//! The unit that is shipped, and what the daemon tells systemd.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use testbed::{Lan, Probe, Signal, Test, Tool};

use crate::support::{Cluster, Plan, TIMEOUT, binary, degraded};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("unit_is_valid_and_exposes_little", unit).needs([Tool::SystemdAnalyze]),
        Test::new("daemon_with_the_rights_of_the_unit_serves_and_fails_over", rights)
            .needs([Tool::Nft, Tool::Setpriv])
            .needs_root_realtime(),
        Test::new("watchdog_is_fed_while_event_loop_and_election_run", watchdog).needs([Tool::Nft]),
    ]
}

const UNIT: &str = include_str!("../../systemd/cplb.service");
/// The highest exposure level of `systemd-analyze security`, in tenths.
const EXPOSURE: &str = "25";

fn unit() {
    let directory = tempfile::tempdir().expect("a directory");
    let unit = directory.path().join("cplb.service");
    // The program need not be installed here.
    let text = UNIT.replace("/usr/local/bin/cplb", binary().to_str().expect("UTF-8"));
    fs::write(&unit, text).expect("the unit is written");
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new(Tool::SystemdAnalyze.path().expect("it is installed"));
        command.args(arguments).arg(&unit).output().expect("it runs")
    };
    let output = analyze(&["verify"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // Other units of this machine are none of the test's business.
    let about_it: Vec<&str> = text.lines().filter(|line| line.contains("cplb")).collect();
    assert!(about_it.is_empty(), "{about_it:?}");
    let output = analyze(&["security", "--offline=yes", "--no-pager", &format!("--threshold={EXPOSURE}")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    println!("MEASURED {}", text.lines().last().unwrap_or_default());
}

/// The user of the daemon; any but root.
const USER: u32 = 65534;

/// The command with the user and the capabilities of the unit.
fn restricted(command: &Command, program: &Path) -> Command {
    let line = |key: &str| {
        let line = UNIT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("the unit has no {key}"))
    };
    let set = |key: &str| {
        let names = line(key).split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase());
        std::iter::once("-all".to_owned())
            .chain(names.map(|name| format!("+{name}")))
            .collect::<Vec<_>>()
            .join(",")
    };
    let (ambient, bounding) = (set("AmbientCapabilities"), set("CapabilityBoundingSet"));
    let mut wrapped = Command::new(Tool::Setpriv.path().expect("it is installed"));
    wrapped.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()]);
    wrapped.args([format!("--inh-caps={ambient}"), format!("--ambient-caps={ambient}")]);
    wrapped.args([format!("--bounding-set={bounding}"), "--no-new-privs".to_owned()]);
    wrapped.arg(program).args(command.get_args());
    wrapped
}

fn rights() {
    let mut cluster = Cluster::build(Lan::builder(), Plan::v3("100ms"));
    let start = |cluster: &mut Cluster, index: usize| {
        let command = cluster.command(index);
        let directory = cluster.node(index).directory().to_owned();
        let program = directory.join("cplb");
        fs::copy(binary(), &program).expect("the program is copied");
        fs::set_permissions(directory.parent().expect("the LAN's"), fs::Permissions::from_mode(0o711))
            .expect("others may pass");
        fs::set_permissions(cluster.config_file(index), fs::Permissions::from_mode(0o644))
            .expect("others may read");
        chown(&directory, Some(USER), Some(USER)).expect("the user owns it");
        cluster.launch(index, restricted(&command, &program));
    };
    for index in 0..cluster.len() {
        start(&mut cluster, index);
    }
    let owner = cluster.wait_until_settled();
    for index in 0..cluster.len() {
        let status = cluster.status(index);
        let problems = degraded(&status);
        cluster.check(problems.is_empty() && status["realTime"] == true, || format!("{status}"));
        let identity = fs::read_to_string(format!("/proc/{}/status", cluster.daemon(index).pid()));
        let identity = identity.expect("it runs");
        let is_restricted =
            identity.lines().any(|line| line == format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}"));
        cluster.check(is_restricted, || identity.clone());
    }
    // A crash, a stop, and a start after each.
    let probe = Probe::to(cluster.address()).every(Duration::from_millis(10));
    let probe = probe.start(cluster.client()).expect("the probe starts");
    let mut owner = owner;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        cluster.signal(owner, signal);
        let next = cluster.wait_for_owner(Some(owner));
        cluster.wait_until_ended(owner);
        start(&mut cluster, owner);
        cluster.wait("the daemon answers", || cluster.try_status(owner).is_some());
        let stable = probe.wait_until_stable(Duration::from_millis(300), TIMEOUT);
        cluster.check(stable.is_ok(), || "the VIP does not answer".to_owned());
        owner = next;
    }
    cluster.check(cluster.degraded(owner) == "[]", || cluster.degraded(owner));
}

/// The time within which the watchdog is to be fed.
const WATCHDOG: Duration = Duration::from_secs(2);

/// What the daemon sends within a time.
fn messages(socket: &UnixDatagram, time: Duration) -> Vec<String> {
    let (deadline, mut found, mut buffer) = (Instant::now() + time, Vec::new(), [0; 4096]);
    while let Some(rest) = deadline.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        socket.set_read_timeout(Some(rest)).expect("a timeout");
        if let Ok(length) = socket.recv(&mut buffer) {
            found.push(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
        }
    }
    found
}

fn watchdog() {
    let mut cluster = Cluster::build(Lan::builder().controllers(1), Plan::v3("100ms"));
    let path = cluster.node(0).directory().join("notify");
    let socket = UnixDatagram::bind(&path).expect("the socket is made");
    let mut command = cluster.command(0);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    cluster.launch(0, command);
    cluster.wait_for_owner(None);
    let has = |messages: &[String], text: &str| messages.iter().any(|message| message.contains(text));
    let first = messages(&socket, 2 * WATCHDOG);
    cluster.check(has(&first, "READY=1") && has(&first, "WATCHDOG=1"), || format!("{first:?}"));
    let active = format!("serving; Active for {}", cluster.vip());
    cluster.check(has(&first, &active), || format!("{first:?}"));
    // The event loop alone is not enough.
    let frozen = cluster.daemon(0).freeze_threads(|name| name == "vrrp").expect("the election is stopped");
    messages(&socket, WATCHDOG);
    let silent = messages(&socket, 2 * WATCHDOG);
    cluster.check(!has(&silent, "WATCHDOG=1"), || format!("{silent:?}"));
    frozen.thaw();
    let again = messages(&socket, 2 * WATCHDOG);
    cluster.check(has(&again, "WATCHDOG=1"), || format!("{again:?}"));
    cluster.signal(0, Signal::SIGTERM);
    cluster.wait_until_ended(0);
    let last = messages(&socket, Duration::from_millis(100));
    cluster.check(has(&last, "STOPPING=1"), || format!("{last:?}"));
}
