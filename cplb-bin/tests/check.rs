//! Tests of the command line with the real binary: `cplb check`, usage errors, help and completions.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Exit codes of sysexits: `EX_USAGE`, `EX_DATAERR`, `EX_NOINPUT`, `EX_UNAVAILABLE`.
const USAGE: i32 = 64;
const DATA: i32 = 65;
const NO_INPUT: i32 = 66;
const UNAVAILABLE: i32 = 69;

/// The beginning of a native document.
const NATIVE: &str = "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n";

/// The result of a run.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    /// Fails unless the exit code is `code`.
    fn exits_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Fails unless every text is in standard error.
    fn prints(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is not in:\n{}", self.err);
        }
        self
    }
}

fn cplb<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cplb"));
    // Variables of the developer's shell must not affect a test.
    for name in ["CPLB_CONFIG", "CPLB_SOCKET", "CPLB_STATE_DIR", "CPLB_LOG_FORMAT", "CPLB_LOG"] {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } = command.args(arguments).output().unwrap();
    Run {
        code: status.code().expect("exit code"),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn check(path: &Path) -> Run {
    cplb(["check".as_ref(), "--config".as_ref(), path.as_os_str()])
}

/// Runs `check` on a file with this text.
fn check_text(text: &str) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cplb.yaml");
    std::fs::write(&path, text).unwrap();
    check(&path)
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cplb-config/tests/examples")
}

fn example(name: &str) -> Run {
    check(&examples().join(name))
}

/// The examples that are invalid; all others are valid.
const WRONG_EXAMPLES: [&str; 2] = ["k0sctl-misplaced-network.yaml", "k0s-external-balancer.yaml"];

#[test]
fn examples_are_valid_and_their_effective_form_is_stable() {
    let mut seen = 0;
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if WRONG_EXAMPLES.contains(&name.as_str()) {
            continue;
        }
        let secrets = |path: &Path| {
            cplb([
                OsStr::new("check"),
                OsStr::new("--show-secrets"),
                OsStr::new("--config"),
                path.as_os_str(),
            ])
        };
        let first = secrets(&path).exits_with(0);
        assert!(first.out.starts_with("apiVersion: cplb/v1alpha1\n"), "{name}: {}", first.out);
        let directory = tempfile::tempdir().unwrap();
        let effective = directory.path().join("effective.yaml");
        std::fs::write(&effective, &first.out).unwrap();
        let second = secrets(&effective).exits_with(0);
        assert_eq!(first.out, second.out, "{name}");
        seen += 1;
    }
    assert!(seen >= 18, "only {seen} examples found");
}

#[test]
fn documentation_configurations_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let files = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let guides = files.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let texts = guides.chain([root.join("README.md")]).map(|path| std::fs::read_to_string(path).unwrap());
    let mut blocks: Vec<String> = Vec::new();
    for text in texts {
        let rest = text.split("```yaml\n").skip(1);
        blocks.extend(rest.filter_map(|rest| rest.split("```").next()).map(str::to_owned));
    }
    for block in &blocks {
        let run = check_text(block).exits_with(0);
        // The documentation must not recommend settings that cause a warning.
        let warned = ["kube-proxy-ipvs", "kube-proxy in mode", "checks run every", "no virtual IP"];
        assert!(warned.iter().all(|text| !run.err.contains(text)), "{}", run.err);
    }
    assert!(blocks.len() >= 11, "only {} found", blocks.len());
}

#[test]
fn effective_form_shows_k0s_defaults_and_no_password() {
    let run = example("k0s-userspace.yaml").exits_with(0).prints(&["k0s-userspace.yaml:5:16: warning"]);
    for default in [
        "    virtualRouterID: 51\n",
        "    advertInterval: 1s\n",
        "    priority: 200\n",
        "    version: 2\n",
        "    addressLabel: 10000\n",
        "  userSpaceProxyBindPort: 6444\n",
        "  disableLoadBalancer: false\n",
        "    port: 6443\n",
    ] {
        assert!(run.out.contains(default), "{default:?} is not in:\n{}", run.out);
    }
    assert!(!run.out.contains("BuyK0s") && !run.err.contains("BuyK0s"), "{}{}", run.out, run.err);
}

#[test]
fn effective_form_shows_the_ipvs_defaults_of_k0s() {
    let run = example("k0sctl-ipvs.yaml").exits_with(0);
    for default in [
        "delayLoop: 1m",
        "lbAlgo: rr",
        "lbKind: DR",
        "persistenceTimeoutSeconds: 360",
        "ipvsSync: false",
        "      interval: 1s",
    ] {
        assert!(run.out.contains(default), "{default:?} is not in:\n{}", run.out);
    }
}

#[test]
fn misplaced_network_section_error_names_the_right_path() {
    let run = example("k0sctl-misplaced-network.yaml")
        .exits_with(DATA)
        .prints(&["k0sctl-misplaced-network.yaml:21:9: error", "config.spec.network"]);
    assert_eq!(run.out, "", "a wrong configuration has no effective form");
}

#[test]
fn file_without_a_load_balancer_section_is_an_error() {
    example("k0s-external-balancer.yaml").exits_with(DATA).prints(&["k0s-external-balancer.yaml:"]);
}

#[test]
fn all_errors_are_reported_with_location_and_fix() {
    let text = format!(
        "{NATIVE}  vrrpInstances:\n  - virtualIPs: [10.0.0.100]\n    virtualRouterId: 51\n  \
         backends: {{static: [10.0.0.11]}}\n"
    );
    check_text(&text).exits_with(DATA).prints(&["cplb.yaml:6:5", "virtualRouterID", "10.0.0.100/"]);
}

#[test]
fn duplicates_and_mixed_families_are_located_errors() {
    let twice = format!(
        "{NATIVE}  vrrpInstances:\n  - {{virtualIPs: [10.0.0.100/24], virtualRouterID: 51}}\n  \
         - {{virtualIPs: [10.0.0.100/24], virtualRouterID: 51}}\n"
    );
    let run = check_text(&twice).exits_with(DATA);
    let errors = run.err.matches("cplb.yaml:6:").count();
    assert!(errors >= 2, "the VRID and the VIP are both reported at line 6:\n{}", run.err);
    let key = format!("{NATIVE}  userSpaceProxyBindPort: 1\n  userSpaceProxyBindPort: 2\n");
    check_text(&key).exits_with(DATA).prints(&["cplb.yaml:5:", "userSpaceProxyBindPort"]);
    let mixed = format!(
        "{NATIVE}  vrrpInstances:\n  - virtualIPs: ['fd00::100/64']\n    unicastSourceIP: 10.0.0.1\n    \
         unicastPeers: [10.0.0.2]\n"
    );
    check_text(&mixed).exits_with(DATA).prints(&["cplb.yaml:"]);
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    check_text("]]] : {{{").exits_with(DATA).prints(&["cplb.yaml:1:"]);
    check_text("").exits_with(DATA).prints(&["cplb.yaml"]);
    check_text("apiVersion: v1\nkind: Pod\n").exits_with(DATA).prints(&["cplb.yaml:2:7", "Pod"]);
}

#[test]
fn huge_and_deep_files_are_refused_quickly() {
    let started = Instant::now();
    check_text(&format!("{NATIVE}{}", "# a comment that goes on and on\n".repeat(330_000))).exits_with(DATA);
    check_text(&format!("{NATIVE}  services: {}", "[".repeat(100_000))).exits_with(DATA);
    let bomb: String = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
        format!("{text}a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)
    });
    check_text(&bomb).exits_with(DATA);
    // Three runs of a debug build on a loaded machine; the library's own tests bound each to a fraction.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn unreadable_file_is_named() {
    check(Path::new("/nonexistent/k0s.yaml")).exits_with(NO_INPUT).prints(&["/nonexistent/k0s.yaml"]);
    let directory = tempfile::tempdir().unwrap();
    assert_ne!(check(directory.path()).code, 0, "a directory is no file");
}

#[test]
fn unique_vrid_is_proposed_instead_of_the_default() {
    let text = |vrid: &str| {
        format!(
            "apiVersion: cplb/v1alpha1\nkind: ControlPlaneLoadBalancer\nspec:\n  vrrpInstances:\n  \
             - virtualIPs: [10.77.0.100/24]\n    unicastPeers: [10.77.0.11, 10.77.0.12, 10.77.0.13]\n{vrid}  \
             backends: {{static: [10.77.0.11]}}\n"
        )
    };
    check_text(&text(""))
        .exits_with(0)
        .prints(&["note: virtualRouterID is 51 by default", "`virtualRouterID: 100`"]);
    let run = check_text(&text("    virtualRouterID: 51\n")).exits_with(0);
    assert!(!run.err.contains("virtualRouterID"), "{}", run.err);
}

#[test]
fn unknown_interface_is_a_warning() {
    let text = format!(
        "{NATIVE}  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24]\n    interface: nosuch0\n  \
         backends: {{static: [10.0.0.11]}}\n"
    );
    check_text(&text).exits_with(0).prints(&["warning", "nosuch0"]);
}

#[test]
fn configuration_without_virtual_ips_is_valid() {
    let text = format!("{NATIVE}  vrrpInstances: []\n  backends: {{static: [10.0.0.11, 10.0.0.12]}}\n");
    let run = check_text(&text).exits_with(0);
    assert!(run.out.contains("vrrpInstances: []"), "{}", run.out);
}

#[test]
fn schema_is_printed_on_request() {
    let path = examples().join("native-k3s.yaml");
    let run = cplb(["check", "--print", "schema"]).exits_with(0);
    let same = cplb(["check", "--print", "schema", "--config", path.to_str().unwrap()]).exits_with(0);
    assert_eq!(run.out, same.out);
    let schema: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert!(schema.get("$schema").is_some() && schema.get("properties").is_some(), "{}", run.out);
    let quiet = cplb(["check", "--print", "none", "--config", path.to_str().unwrap()]).exits_with(0);
    assert_eq!(quiet.out, "");
}

#[test]
fn usage_errors_exit_with_64_and_refer_to_help() {
    for wrong in [
        vec!["frobnicate"],
        vec!["run"],
        vec!["check"],
        vec!["check", "--config"],
        vec!["check", "--print", "effective"],
        vec!["check", "--print", "none"],
        vec!["run", "--config", "x", "--backend", "10.0.0.11:0"],
        vec!["run", "--config", "x", "--log-format", "xml"],
        vec!["demo", "--nodes", "1"],
        vec!["completions", "cobol"],
        vec![],
    ] {
        let run = cplb(&wrong).exits_with(USAGE);
        assert!(run.err.contains("--help") || run.err.contains("Usage"), "{wrong:?}: {}", run.err);
        assert_eq!(run.out, "", "{wrong:?}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    let help = cplb(["--help"]).exits_with(0);
    for command in ["run", "check", "status", "demo", "completions"] {
        assert!(help.out.contains(&format!("  {command}")), "{command} is not in:\n{}", help.out);
        let own = cplb([command, "--help"]).exits_with(0);
        assert!(own.out.contains("Usage:"), "{}", own.out);
    }
    let run = cplb(["check", "--help"]).exits_with(0);
    assert!(
        run.out.contains("--config <FILE>\n") && run.out.contains("check --print schema\n"),
        "{}",
        run.out
    );
    let run = cplb(["run", "--help"]).exits_with(0);
    for option in ["--config", "--backend", "--socket", "--state-dir", "--log-format"] {
        assert!(run.out.contains(option), "{option} is not in:\n{}", run.out);
    }
    let version = cplb(["--version"]).exits_with(0);
    assert_eq!(version.out, format!("cplb {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_contain_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = cplb(["completions", shell]).exits_with(0);
        for command in ["check", "status", "demo"] {
            assert!(run.out.contains(command), "{shell} does not complete {command}");
        }
    }
}

#[test]
fn status_without_a_daemon_explains_how_to_start_one() {
    cplb(["status", "--socket", "/nonexistent/cplb.sock"]).exits_with(UNAVAILABLE).prints(&[
        "/nonexistent/cplb.sock",
        "cplb run",
        "--socket",
    ]);
}

/// More virtual servers than there are marks, so that `run` ends before it changes the system. `more` is appended to
/// the fields of each service.
fn too_many(more: &str) -> String {
    let services: String =
        (1..=64).map(|port| format!("  - {{name: s{port}, port: {port}{more}}}\n")).collect();
    format!(
        "{NATIVE}  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24, 10.0.0.101/24]\n  virtualServers:\n  \
         - ipAddress: 10.0.0.100\n  - ipAddress: 10.0.0.101\n  backends: {{static: [10.0.0.11]}}\n  \
         services:\n{services}"
    )
}

#[test]
fn check_and_run_refuse_too_many_virtual_servers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cplb.yaml");
    std::fs::write(&path, too_many("")).unwrap();
    let checked = check(&path).exits_with(DATA).prints(&[
        "cplb.yaml: 1 error, the first at line 7, column 5",
        "cplb.yaml:7:5: error: virtualServers times services is 1 more than IPVS has marks for",
        "127 or fewer",
    ]);
    assert_eq!(checked.out, "", "a wrong configuration has no effective form");
    cplb([OsStr::new("run"), OsStr::new("--config"), path.as_os_str()])
        .exits_with(DATA)
        .prints(&["virtualServers times services is 1 more", "127 or fewer"]);
}

#[test]
fn unusable_backend_options_are_reported_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cplb.yaml");
    let run = |more: &str, backend: &str| {
        // The run ends after the backends have been checked.
        std::fs::write(&path, too_many(more)).unwrap();
        let arguments = ["run", "--backend", backend, "--config"].map(OsStr::new);
        cplb(arguments.into_iter().chain([path.as_os_str()])).exits_with(DATA)
    };
    let own = ", backends: {static: [10.0.0.11]}";
    run(own, "10.0.0.12").prints(&["WARN", "--backend 10.0.0.12 is ignored: no service would use"]);
    run("", "10.0.0.12:6444").prints(&["WARN", "--backend 10.0.0.12:6444 is ignored:", "proxy"]);
    run("", "127.0.0.1").prints(&["WARN", "--backend 127.0.0.1 is ignored:", "direct connections to itself"]);
    assert!(!run("", "10.0.0.12").err.contains("is ignored"));
    let check = |backend: &str| {
        std::fs::write(&path, format!("{NATIVE}  services: [{{name: api, port: 6443}}]\n")).unwrap();
        let arguments = ["check", "--backend", backend, "--config"].map(OsStr::new);
        cplb(arguments.into_iter().chain([path.as_os_str()])).exits_with(0)
    };
    check("10.0.0.12:6444").prints(&["warning: --backend 10.0.0.12:6444 is ignored:", "proxy"]);
    let checked = check("10.0.0.12");
    assert!(!checked.err.contains("no backend") && checked.out.contains("10.0.0.12"), "{}", checked.out);
}

#[test]
fn effective_form_with_backend_options_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cplb.yaml");
    let servers =
        "  vrrpInstances:\n  - virtualIPs: [10.0.0.100/24]\n  virtualServers:\n  - ipAddress: 10.0.0.100\n";
    std::fs::write(&path, format!("{NATIVE}{servers}  backends: {{static: [10.0.0.11]}}\n")).unwrap();
    let backends = ["10.0.0.12:7443", "10.0.0.13:6443", "127.0.0.1"];
    let arguments = backends.iter().flat_map(|backend| ["--backend", backend]).map(OsStr::new);
    let run =
        cplb(["check", "--config"].map(OsStr::new).into_iter().chain([path.as_os_str()]).chain(arguments))
            .exits_with(0)
            .prints(&[
                "warning: --backend 10.0.0.12:7443 is ignored: lbKind DR cannot change the port",
                "warning: --backend 127.0.0.1 is ignored:",
            ]);
    assert!(run.out.contains("10.0.0.13") && !run.out.contains("7443"), "{}", run.out);
    std::fs::write(&path, &run.out).unwrap();
    assert_eq!(check(&path).exits_with(0).out, run.out);
}

#[test]
fn virtual_server_without_servers_of_its_family_is_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cplb.yaml");
    let text = format!(
        "{NATIVE}  vrrpInstances: [{{virtualIPs: ['fd00::100/64']}}]\n  virtualServers: [{{ipAddress: 'fd00::100'}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let with = |backend: &str| {
        let arguments = ["check", "--backend", backend, "--config"].map(OsStr::new);
        cplb(arguments.into_iter().chain([path.as_os_str()])).exits_with(0)
    };
    with("10.0.0.11").prints(&[
        "cplb.yaml:5:32: warning: no server of kube-apiserver has the family of fd00::100",
        "IPv6 addresses",
    ]);
    assert!(!with("fd00::11").err.contains("has the family"));
    assert!(!check(&path).exits_with(0).err.contains("has the family"));
}

#[test]
fn check_warns_about_settings_that_run_ignores() {
    let text = format!(
        "{NATIVE}  services:\n  - {{name: api, port: 6443, backends: {{kubernetes: {{}}}}}}\n  \
         - {{name: other, port: 8132}}\n"
    );
    check_text(&text).exits_with(0).prints(&["warning: no backend is configured for other", "--kubeconfig"]);
    let sound = check_text(&format!("{NATIVE}  backends: {{static: [10.0.0.11]}}\n")).exits_with(0);
    assert_eq!(sound.err, "");
}

#[test]
fn warnings_are_errors_with_strict() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cplb.yaml");
    let strict = |text: &str| {
        std::fs::write(&path, text).unwrap();
        cplb([OsStr::new("check"), OsStr::new("--strict"), OsStr::new("--config"), path.as_os_str()])
    };
    strict(&format!("{NATIVE}  backends: {{static: [10.0.0.11]}}\n")).exits_with(0);
    let warned = strict(&format!("{NATIVE}  services: [{{name: other, port: 8132}}]\n")).exits_with(65);
    assert_eq!(warned.out, "");
    warned.prints(&["warning: no backend is configured", "cplb: 1 warning, with --strict"]);
}

#[test]
fn a_wrong_log_level_is_named() {
    let run = cplb(["run", "--config", "none.yaml", "--log-level", "info,vrrp=loud"]).exits_with(64);
    run.prints(&["--log-level", "write error, warn, info, debug, trace or off"]);
}

#[test]
fn k0s_files_default_to_discovery_with_the_k0s_kubeconfig() {
    const FOUND: &str = "kubernetes:\n      kubeconfig: /var/lib/k0s/pki/admin.conf\n";
    let path = examples().join("k0s-userspace.yaml");
    let check = |more: &[&str]| {
        let arguments = [OsStr::new("check"), OsStr::new("--config"), path.as_os_str()];
        cplb(arguments.into_iter().chain(more.iter().map(OsStr::new))).exits_with(0)
    };
    let alone = check(&[]);
    assert!(alone.out.contains(FOUND) && !alone.err.contains("backend"), "{} {}", alone.out, alone.err);
    assert!(check(&["--backend", "10.0.0.11"]).out.contains(FOUND), "beside what is listed");
    let elsewhere = check(&["--kubeconfig", "/etc/cplb/kubeconfig"]);
    assert!(elsewhere.out.contains("kubeconfig: /etc/cplb/kubeconfig\n"), "{}", elsewhere.out);
    let native = check_text(&format!("{NATIVE}  vrrpInstances: [{{virtualIPs: [10.0.0.100/24]}}]\n"));
    native.exits_with(0).prints(&["warning: no backend is configured for kube-apiserver"]);
}

#[test]
fn run_refuses_an_invalid_file_with_the_errors_of_check() {
    let path = examples().join("k0sctl-misplaced-network.yaml");
    cplb([OsStr::new("run"), OsStr::new("--config"), path.as_os_str()])
        .exits_with(DATA)
        .prints(&[":21:9: error", "config.spec.network"]);
}

#[test]
fn file_text_is_escaped_in_the_report() {
    let spec = "  \"a\\nf.yaml:1:1: error: forged\\u001b[2J\\u202e\": 1\n";
    let run = check_text(&format!("{NATIVE}{spec}  backends: {{static: [10.0.0.11]}}\n")).exits_with(DATA);
    assert!(!run.err.contains(['\u{1b}', '\u{202e}']), "{:?}", run.err);
    assert!(run.err.lines().all(|line| !line.starts_with("f.yaml:1:1")), "{}", run.err);
    run.prints(&[r"`a\nf.yaml:1:1: error: forged\u{1b}[2J\u{202e}`"]);
}

#[test]
fn unresolvable_backend_name_is_a_warning() {
    let start = Instant::now();
    let run = check_text(&format!("{NATIVE}  backends: {{static: [10.0.0.11, controller.invalid]}}\n"));
    run.exits_with(0).prints(&[
        ":4:34: warning: the backend name controller.invalid cannot be resolved on this machine:",
        "[backends.static[1]]",
    ]);
    assert!(start.elapsed() < Duration::from_secs(5), "a dead name server is not waited for");
}
