//! The `main` of test binaries with `harness = false`.

use std::{fmt::Write as _, process::ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{Ground, Tool, enter, is_initial_root};

/// A test that runs inside of [`enter`]'s namespaces. It fails by panicking.
#[must_use]
pub struct Test {
    name: String,
    tools: Vec<Tool>,
    realtime: bool,
    body: Box<dyn FnOnce() + Send>,
}

impl Test {
    /// A test of this name.
    pub fn new(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Self {
        Self { name: name.into(), tools: Vec::new(), realtime: false, body: Box::new(body) }
    }

    /// The test uses these programs. Where one is missing, it fails with the command that installs it.
    pub fn needs(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// The test needs real-time scheduling, thus root of the initial user namespace. For anybody else it does not
    /// exist, and [`main`] says how many such tests there are.
    pub fn needs_root_realtime(mut self) -> Self {
        self.realtime = true;
        self
    }

    fn into_trial(self) -> Trial {
        let missing: Vec<Tool> = self.tools.into_iter().filter(|tool| tool.path().is_err()).collect();
        let body = self.body;
        Trial::test(self.name, move || {
            if missing.is_empty() {
                body();
                return Ok(());
            }
            Err(Failed::from(missing_tools(&missing)))
        })
    }
}

/// Runs tests with the command line of libtest (filters, `--list`, `--exact`, `--skip` …), inside of [`enter`]'s
/// namespaces. Tests run one at a time unless `--test-threads` says otherwise, because their timing matters and
/// each of them is a whole LAN.
///
///     fn main() -> std::process::ExitCode {
///         testbed::main(vec![testbed::Test::new("nothing_happens", || {})])
///     }
#[must_use]
pub fn main(tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        match enter() {
            Ok(Ground::Inside) => {}
            Ok(Ground::Finished(code)) => return code,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let (present, absent): (Vec<_>, Vec<_>) =
        tests.into_iter().partition(|test| !test.realtime || is_initial_root());
    if !absent.is_empty() {
        eprintln!("{} real-time tests need root; run by .ci/run as root", absent.len());
    }
    arguments.test_threads.get_or_insert(1);
    libtest_mimic::run(&arguments, present.into_iter().map(Test::into_trial).collect()).exit_code()
}

fn missing_tools(tools: &[Tool]) -> String {
    tools.iter().fold(String::new(), |mut text, tool| {
        let _ = writeln!(text, "{tool} is missing; install it with: {}", tool.install_line());
        text
    })
}
