//! nft missing, failing, hanging or without privilege: precise errors in bounded time.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use lb_proxy::nft::{ApplyError, Nft, Presence, RunError, Table, TableName};
use tempfile::TempDir;

use crate::ns::{ip, nft};
use crate::{block_on, find, table};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_missing_nft_names_the_package", a_missing_nft_names_the_package),
    ("nft_is_found_outside_path", nft_is_found_outside_path),
    ("error_text_of_nft_is_reported", error_text_of_nft_is_reported),
    ("a_hanging_nft_is_stopped", a_hanging_nft_is_stopped),
    ("output_of_nft_is_bounded", output_of_nft_is_bounded),
    ("an_nft_that_ignores_its_input_does_not_block", an_nft_that_ignores_its_input_does_not_block),
    ("missing_kernel_features_are_distinguished", missing_kernel_features_are_distinguished),
    (
        "an_nft_that_reports_success_without_applying_is_detected",
        an_nft_that_reports_success_without_applying_is_detected,
    ),
    ("a_cancelled_apply_leaves_no_process", a_cancelled_apply_leaves_no_process),
    ("a_failed_apply_keeps_the_previous_table", a_failed_apply_keeps_the_previous_table),
    ("without_privilege_the_capability_is_named", without_privilege_the_capability_is_named),
];

/// Argument that makes this binary print the error of an apply.
pub(crate) const PROBE: &str = "--probe-apply";

pub(crate) fn probe() -> ExitCode {
    match block_on(find().apply(&table())) {
        Ok(()) => println!("applied"),
        Err(error) => println!("apply: {error}"),
    }
    match block_on(find().remove(&TableName::default())) {
        Ok(()) => println!("removed"),
        Err(error) => println!("remove: {error}"),
    }
    ExitCode::SUCCESS
}

/// An `nft` that is this shell script.
fn fake(script: &str) -> (TempDir, Nft) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nft");
    // Not written by this process: a child that another thread forks meanwhile would hold the file open for writing,
    // and the kernel refuses to run such a file (ETXTBSY).
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("coreutils");
    install.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
    let nft = Nft::find_in(&[directory.path().to_owned()]).unwrap();
    assert_eq!(nft.path(), path);
    (directory, nft)
}

fn failure(nft: &mut Nft) -> RunError {
    match block_on(nft.apply(&table())) {
        Err(ApplyError::Run(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn a_missing_nft_names_the_package() {
    let directory = tempfile::tempdir().unwrap();
    // Present but not executable counts as missing.
    fs::write(directory.path().join("nft"), "").unwrap();
    let looked_in = vec![directory.path().to_owned(), PathBuf::from("/nonexistent")];
    let missing = Nft::find_in(&looked_in).unwrap_err();
    assert_eq!(missing.looked_in, looked_in);
    let text = missing.to_string();
    assert!(text.contains("install the package 'nftables'") && text.contains("/nonexistent"), "{text}");
}

fn nft_is_found_outside_path() {
    let found = Nft::find_from(Some("/nonexistent:relative:".as_ref())).unwrap();
    assert!(found.path().starts_with("/usr/sbin") || found.path().starts_with("/sbin"), "{:?}", found.path());
    let (directory, fake) = fake("exit 0");
    let path = std::env::join_paths(["/nonexistent".into(), directory.path().to_owned()]).unwrap();
    assert_eq!(Nft::find_from(Some(&path)).unwrap().path(), fake.path(), "PATH comes first");
}

fn error_text_of_nft_is_reported() {
    let (_directory, mut nft) = fake("echo 'internal:0:0-0: Error: something odd' >&2; exit 1");
    let error = failure(&mut nft);
    assert!(matches!(&error, RunError::Failed { status, text }
        if status.code() == Some(1) && text == "internal:0:0-0: Error: something odd"));
    assert!(error.to_string().contains("Error: something odd"), "{error}");
    let (directory, mut nft) = fake("");
    fs::remove_file(directory.path().join("nft")).unwrap();
    assert!(
        matches!(failure(&mut nft), RunError::Start { path, .. } if path == directory.path().join("nft"))
    );
}

fn a_hanging_nft_is_stopped() {
    let (directory, nft) =
        fake("echo $$ >\"$(dirname \"$0\")\"/pid; echo waiting for a lock >&2; exec sleep 1000");
    let start = Instant::now();
    let error = failure(&mut nft.with_timeout(Duration::from_millis(500)));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(
        matches!(&error, RunError::TimedOut { after, text, .. }
        if *after == Duration::from_millis(500) && text == "waiting for a lock"),
        "{error:?}"
    );
    let pid = fs::read_to_string(directory.path().join("pid")).unwrap();
    assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists(), "killed and reaped");
}

fn output_of_nft_is_bounded() {
    let (_directory, mut nft) = fake("head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1");
    let error = failure(&mut nft);
    let RunError::Failed { text, .. } = &error else { panic!("{error:?}") };
    assert_eq!(text.len(), 16 * 1024);
}

fn an_nft_that_ignores_its_input_does_not_block() {
    let (_directory, mut nft) = fake("exec <&-; echo no thanks >&2; exit 3");
    let vips = (0..20_000u32).map(|n| ip(&format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)));
    let large = Table { vips: vips.collect(), ..table() };
    let error = block_on(nft.apply(&large)).unwrap_err();
    assert!(
        matches!(&error, ApplyError::Run(RunError::Failed { text, .. }) if text == "no thanks"),
        "{error:?}"
    );
}

fn missing_kernel_features_are_distinguished() {
    let says = |text: &str| failure(&mut fake(&format!("echo '{text}' >&2; exit 1")).1);
    let error = says("internal:0:0-0: Error: Could not process rule: Operation not supported");
    assert!(matches!(error, RunError::Unsupported { .. }), "{error:?}");
    let error = says("internal:0:0-0: Error: Could not process rule: No such file or directory");
    assert!(error.to_string().contains("nft_fib_inet"), "{error}");
    let error = says("Operation not permitted (you must be root)");
    assert!(matches!(error, RunError::Permission { .. }), "{error:?}");
}

fn an_nft_that_reports_success_without_applying_is_detected() {
    let error = block_on(fake("cat >/dev/null; exit 0").1.apply(&table())).unwrap_err();
    assert!(matches!(&error, ApplyError::Contended { .. }), "{error:?}");
    assert!(error.to_string().contains("inet cplb"), "{error}");
    // Applied, but incompletely, as if other software had removed an address at once.
    let (_directory, mut partial) = fake("sed 's/,\"elem\":\\[\"10.0.0.100\"\\]//' | nft -j -f -");
    let error = block_on(partial.apply(&table())).unwrap_err();
    assert!(matches!(&error, ApplyError::Contended { .. }), "{error:?}");
    assert!(!nft("list table inet cplb").contains("10.0.0.100"));
}

fn a_cancelled_apply_leaves_no_process() {
    let (directory, mut nft) = fake("echo $$ >\"$(dirname \"$0\")\"/pid; exec sleep 1000");
    let desired = table();
    let pid = block_on(async {
        let file = directory.path().join("pid");
        let started = async {
            loop {
                match fs::read_to_string(&file) {
                    Ok(pid) if pid.ends_with('\n') => return pid.trim().to_owned(),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::select! {
            result = nft.apply(&desired) => panic!("{result:?}"),
            pid = started => pid,
        }
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    // Killed; the runtime that would have reaped it has ended as well.
    let has_ended = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    while !has_ended() {
        assert!(Instant::now() < deadline, "{pid} runs on");
        std::thread::yield_now();
    }
}

fn a_failed_apply_keeps_the_previous_table() {
    // The address of a wrong family makes nft refuse the last command; the whole batch is void.
    let (_directory, mut broken) = fake("sed 's/\"10.0.0.7\"/\"fd00::7\"/' | nft -j -f -");
    block_on(broken.apply(&table())).unwrap();
    let before = nft("list table inet cplb");
    let other = Table { vips: [ip("10.0.0.7")].into(), ..table() };
    let error = block_on(broken.apply(&other)).unwrap_err();
    assert!(matches!(&error, ApplyError::Run(RunError::Failed { .. })), "{error:?}");
    assert_eq!(nft("list table inet cplb"), before);
    assert_eq!(broken.present(&table()).unwrap(), Presence::Intact);
    assert_eq!(broken.present(&other).unwrap(), Presence::Missing);
}

fn without_privilege_the_capability_is_named() {
    let output = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .arg(PROBE)
        .output()
        .expect("setpriv (apt-get install util-linux)");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("apply: nft needs CAP_NET_ADMIN"), "{text}");
    assert!(text.contains("nft reported: "), "{text}");
    assert!(text.contains("remove: nft needs CAP_NET_ADMIN"), "{text}");
}
