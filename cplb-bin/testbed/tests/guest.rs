//! Tests of the guest: programs that run in it, their end, and the errors of a failed guest.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use testbed::{
    Backend, Lan, Probe, Test, Tool,
    guest::{Guest, GuestCommand, GuestEnd, GuestError, is_guest, load_module, unload_module},
};

fn main() -> ExitCode {
    testbed::main(vec![
        Test::new("guest_reports_output_and_exit_status", programs),
        Test::new("lost_guest_error_contains_its_console", death),
        Test::new("guest_kernel_has_the_required_modules", kernel)
            .needs([Tool::Ip, Tool::Tc, Tool::Ipvsadm])
            .in_guest(),
        Test::new("modules_can_be_unloaded_and_loaded_again", modules).in_own_guest(),
        Test::new("lan_works_in_the_guest", lan).needs([Tool::Ip]).in_guest(),
    ])
}

fn programs() {
    let mut guest = Guest::builder().files(["/bin/sh", "/bin/sleep", "/bin/cat"]).boot().expect("a guest");
    eprintln!("up in {:?}", guest.booted_in());
    let mut output = Vec::new();
    let script = "echo out; echo err >&2; cat /proc/uptime; echo $GREETING; exit 7";
    let command = GuestCommand::new("/bin/sh").args(["-c", script]).env("GREETING", "hello");
    let end = guest.run(&command, |bytes| output.extend_from_slice(bytes)).expect("the program runs");
    let text = String::from_utf8(output).expect("text");
    assert_eq!(end, GuestEnd::Exited(7), "{text}");
    assert!(text.starts_with("out\nerr\n") && text.ends_with("hello\n"), "{text:?}");

    let killed = GuestCommand::new("/bin/sh").args(["-c", "kill -9 $$"]);
    assert_eq!(guest.run(&killed, |_| {}).expect("the program runs"), GuestEnd::Exited(128 + 9));
    // Its child keeps the output open, which must not block the guest.
    let endless =
        GuestCommand::new("/bin/sh").args(["-c", "sleep 1000; true"]).within(Duration::from_secs(1));
    let since = Instant::now();
    assert_eq!(guest.run(&endless, |_| {}).expect("the program runs"), GuestEnd::Overdue);
    assert!(since.elapsed() >= Duration::from_secs(1));
    assert_eq!(guest.run(&killed, |_| {}).expect("the guest goes on"), GuestEnd::Exited(128 + 9));
    let missing = guest.run(&GuestCommand::new("/no/such/program"), |_| {});
    assert!(matches!(missing, Err(GuestError::NotStarted(reason)) if reason.contains("/no/such/program")));

    let mut length = 0;
    let much = GuestCommand::new("/bin/sh")
        .args(["-c", "i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done"]);
    let since = Instant::now();
    guest.run(&much, |bytes| length += bytes.len()).expect("the program runs");
    eprintln!("220 kB of output in {:?}", since.elapsed());
    assert_eq!(length, 20_000 * 11);
}

fn death() {
    let mut guest = Guest::builder().files(["/bin/sh"]).boot().expect("a guest");
    let panic = GuestCommand::new("/bin/sh").args(["-c", "echo c > /proc/sysrq-trigger"]);
    let error = guest.run(&panic, |_| {}).expect_err("the kernel panics");
    let GuestError::Lost { console, .. } = &error else { panic!("{error}") };
    assert!(console.contains("sysrq"), "{error}");

    let error = Guest::builder().files(["/no/such/file"]).boot().expect_err("there is no such file");
    assert!(matches!(&error, GuestError::File { path, .. } if path == Path::new("/no/such/file")), "{error}");
}

fn run(program: Tool, arguments: &[&str]) -> String {
    let output = Command::new(program.path().expect("the tool is installed"))
        .args(arguments)
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn kernel() {
    assert!(is_guest());
    let clock = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    assert_eq!(clock.expect("a clock"), "tsc\n", "reading any other clock is slow");
    let tunnel = ["type", "ipip", "local", "192.0.2.1", "remote", "192.0.2.2"];
    run(Tool::Ip, &["link", "add", "name", "dummy0", "type", "dummy"]);
    run(Tool::Ip, &["link", "add", "link", "dummy0", "name", "macvlan0", "type", "macvlan"]);
    run(Tool::Ip, &[&["link", "add", "name", "tunnel0"], tunnel.as_slice()].concat());
    run(Tool::Tc, &["qdisc", "add", "dev", "dummy0", "root", "netem", "delay", "20ms", "loss", "1%"]);
    run(Tool::Ipvsadm, &["-A", "-t", "192.0.2.1:80", "-s", "mh"]);
    assert!(run(Tool::Ipvsadm, &["-Ln"]).contains("TCP  192.0.2.1:80 mh"));
}

fn modules() {
    let present = || PathBuf::from("/sys/module/ip_vs_rr").exists();
    assert!(present());
    unload_module("ip_vs_rr").expect("the module is unused");
    assert!(!present());
    load_module("ip_vs_rr").expect("the module exists");
    assert!(present());
    assert!(load_module("no_such_module").is_err());
}

fn lan() {
    let lan = Lan::builder().controllers(2).clients(1).build().expect("a LAN");
    let api = Backend::tls(lan.controller(0), "a", 6443).expect("an API server");
    let probe = Probe::to((lan.controller(0).v4(), 6443).into()).start(lan.client(0)).expect("a probe");
    let since = Instant::now();
    probe.wait_for_success(since, Duration::from_secs(20)).expect("the client reaches the controller");
    eprintln!("served after {:?}", since.elapsed());
    drop(api);
}
