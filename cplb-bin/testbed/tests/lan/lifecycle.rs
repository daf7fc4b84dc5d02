//! Tests of the namespaces' creation and end. Some of them start this program again in another role.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use testbed::{Backend, Entered, Lan, Probe, Signal, Test, Tool, eventually};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("killed_test_leaves_no_orphan", || assert_no_process_survives(Signal::SIGKILL)),
        Test::new("terminated_test_leaves_no_orphan", || assert_no_process_survives(Signal::SIGTERM)),
        Test::new("exit_code_of_the_second_process_is_returned", exit_code_of_the_second_process_is_returned),
        Test::new("enter_refuses_a_process_with_threads", enter_refuses_a_process_with_threads),
        Test::new("host_namespaces_are_not_visible", host_namespaces_are_not_visible).alone(),
        Test::new("dropped_lan_frees_all_resources", || run_in_a_separate_process("frees")).needs([Tool::Ip]),
        Test::new("missing_tool_fails_with_its_install_line", missing_tool_fails_with_its_install_line),
        Test::new("tests_run_as_an_ordinary_user", tests_run_as_an_ordinary_user)
            .needs([Tool::Setpriv, Tool::Ping]),
        Test::new("root_has_real_time_scheduling", root_has_real_time_scheduling).needs_root_realtime(),
    ]
}

/// The role of this process, if it is not to run tests.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

pub(crate) fn run_role(role: &str) -> ExitCode {
    match role {
        "victim" => {
            let Ok(Entered::Inside) = testbed::enter() else { return ExitCode::SUCCESS };
            let lan = Lan::builder().build().expect("a LAN");
            let sleepers = lan.controllers().iter().map(|node| {
                let mut command = Command::new("sh");
                // It ignores the signals that a dying parent may send, and has a child process.
                command.args(["-c", "trap '' HUP TERM INT; sleep 1000 & wait"]);
                node.spawn("sleeper", command).expect("a process")
            });
            let _sleepers: Vec<_> = sleepers.collect();
            println!("ready");
            loop {
                thread::park();
            }
        }
        "code" => match testbed::enter() {
            Ok(Entered::Inside) => ExitCode::from(42),
            Ok(Entered::Finished(code)) => code,
            Err(error) => panic!("{error}"),
        },
        "threads" => {
            let _other = thread::spawn(thread::park);
            println!("{}", testbed::enter().expect_err("it is too late"));
            ExitCode::SUCCESS
        }
        "ticker" => {
            let speak = |name: &str, line: &'static str| {
                // Not with `println`, whose lock a frozen thread may have locked.
                let mut out = fs::OpenOptions::new().write(true).open("/dev/stdout").expect("a pipe");
                let endless = move || {
                    loop {
                        out.write_all(line.as_bytes()).expect("a reader");
                        thread::sleep(Duration::from_millis(5));
                    }
                };
                thread::Builder::new().name(name.into()).spawn(endless).expect("a thread")
            };
            let threads = [speak("ticks", "tick\n"), speak("tocks", "tock\n")];
            let _ended = threads.map(thread::JoinHandle::join);
            ExitCode::SUCCESS
        }
        "frees" => testbed::main(vec![Test::new("frees", dropped_lan_frees_all_resources)]),
        "tools" => testbed::main(vec![Test::new("tool", || {}).needs([Tool::Arping])]),
        other => panic!("no role {other}"),
    }
}

pub(crate) const ROLE: &str = "TESTBED_TEST_ROLE";
const LONG: Duration = Duration::from_secs(10);

fn start(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.env(ROLE, role);
    command
}

fn assert_no_process_survives(signal: Signal) {
    let mut victim = start("victim").stdout(Stdio::piped()).spawn().expect("a process");
    let mut line = String::new();
    BufReader::new(victim.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let mut family = Vec::new();
    eventually("the second process, three shells and three sleeps run", LONG, || {
        family = descendants(&victim);
        family.len() == 7
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim.id().cast_signed()), signal).expect("a signal");
    victim.wait().expect("an end");
    eventually("all descendants have ended", LONG, || family.iter().all(|pid| !runs(*pid)));
}

/// All descendants of this process, by the parent ids in `/proc`.
fn descendants(root: &Child) -> Vec<u32> {
    let mut family = vec![root.id()];
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .expect("processes")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, stat(pid)?.1)))
        .collect();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(parents.iter().filter(|(_, its_parent)| *its_parent == parent).map(|(pid, _)| pid));
        next += 1;
    }
    family.split_off(1)
}

/// The state and the parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Returns whether a process runs. A zombie does not.
fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn exit_code_of_the_second_process_is_returned() {
    let output = start("code").output().expect("a process");
    assert_eq!(output.status.code(), Some(42), "{output:?}");
}

fn enter_refuses_a_process_with_threads() {
    let output = start("threads").output().expect("a process");
    let message = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(message.contains("it has 2"), "{message}");
}

fn host_namespaces_are_not_visible() {
    assert_eq!(std::process::id(), 1);
    let here = fs::read_to_string("/proc/net/dev").expect("interfaces");
    assert_eq!(here.lines().skip(2).count(), 1, "only lo: {here}");
    // Process 2 of a machine is the kernel's `kthreadd`.
    let names: Vec<String> = fs::read_dir("/proc")
        .expect("processes")
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok())
        .collect();
    assert!(!names.is_empty() && !names.iter().any(|name| name.trim() == "kthreadd"), "{names:?}");
    assert!(fs::read_dir("/run").expect("a directory").count() < 5);
}

/// Runs a test that counts the resources of its process in a separate process, without other tests.
fn run_in_a_separate_process(role: &str) {
    let output = start(role).output().expect("a process");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn dropped_lan_frees_all_resources() {
    let count = |directory: &str| fs::read_dir(directory).expect("a directory").count();
    // Links whose other ends are in a namespace disappear with it.
    let links = || fs::read_to_string("/proc/self/net/dev").expect("interfaces").matches("spy").count();
    let before = (count("/proc/self/task"), count("/proc/self/fd"), count("/run"));
    let lan = Lan::builder().routed_client(0).build().expect("a LAN");
    let nodes: Vec<_> = lan.nodes().chain([lan.switch()]).cloned().collect();
    for (i, node) in nodes.iter().enumerate() {
        let spy = format!("spy{i}");
        node.exec("ip", ["link", "add", "far", "type", "veth", "peer", "name", &spy, "netns", "1"])
            .expect("a link");
    }
    assert_eq!(links(), nodes.len());
    drop(nodes);
    let backend = Backend::echo(lan.controller(0), "one", 7000).expect("a backend");
    let probe = Probe::to((lan.controller(0).v4(), 7000).into()).start(lan.client(0)).expect("a probe");
    probe.wait_until_stable(Duration::from_millis(50), LONG).expect("probes succeed");
    let mut sleep = Command::new("sleep");
    sleep.arg("1000");
    let process = lan.controller(2).spawn("sleep", sleep).expect("a process");
    drop((probe, backend));
    drop(lan);
    eventually("the process has been killed", LONG, || !process.is_running());
    drop(process);
    eventually("the namespaces are gone", LONG, || links() == 0);
    eventually("threads, descriptors and directories are gone", LONG, || {
        (count("/proc/self/task"), count("/proc/self/fd"), count("/run")) == before
    });
}

fn missing_tool_fails_with_its_install_line() {
    let empty = tempfile::tempdir().expect("a directory");
    let present = Tool::Arping.path().is_ok();
    let output = start("tools").env("PATH", empty.path()).output().expect("a process");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The usual directories are searched besides PATH, so the tool may be found nevertheless.
    assert_eq!(output.status.success(), present, "{text}");
    assert_eq!(text.contains("apt-get install -y iputils-arping"), !present, "{text}");
}

fn tests_run_as_an_ordinary_user() {
    // A copy, because a user may lack access to the directory that this program was built in.
    let copy = std::path::Path::new("/run/testbed-copy");
    // Not copied by this process: a child that another thread forks meanwhile would keep the copy open for writing, and
    // the kernel refuses to run such a file (ETXTBSY).
    let copied = Command::new("cp").arg(env::current_exe().expect("this program")).arg(copy).status();
    assert!(copied.expect("coreutils").success());
    let mut command = Command::new(copy);
    if testbed::is_initial_root() {
        command = Command::new(Tool::Setpriv.path().expect("a program"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    }
    let output = command.args(["--exact", "all_nodes_reach_each_other"]).output().expect("a process");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert!(text.contains("1 real-time tests need root"), "{text}");
    fs::remove_file(copy).expect("removed");
}

fn root_has_real_time_scheduling() {
    use thread_priority::{
        RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
        thread_native_id,
    };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    let inside = thread::spawn(move || {
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy)
    });
    inside.join().expect("a thread").expect("real-time scheduling");
}
