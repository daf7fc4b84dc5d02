//! The `main` of test binaries with `harness = false`.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::{
    Entered, Tool, enter, guest,
    guest::{GuestUse, SharedGuests},
    is_initial_root,
    scheduler::{GUESTS, Scheduler, TestGroup},
};

/// Number of tests that run at the same time. Most of them wait for timers of the protocols under test, each in its own
/// LAN: six of them keep two processors busy for half of the time.
const PARALLEL_TESTS: usize = 6;

/// The machine whose kernel a test needs.
#[derive(Debug, Clone, Copy)]
enum Machine {
    This,
    Guest(GuestUse),
}

/// A test that runs inside of [`enter`]'s namespaces. It fails by panicking.
#[must_use]
pub struct Test {
    name: String,
    tools: Vec<Tool>,
    files: Vec<PathBuf>,
    realtime: bool,
    machine: Machine,
    alone: bool,
    body: Box<dyn FnOnce() + Send>,
}

impl Test {
    /// Creates a test of this name.
    pub fn new(name: impl Into<String>, body: impl FnOnce() + Send + 'static) -> Self {
        Self {
            name: name.into(),
            tools: Vec::new(),
            files: Vec::new(),
            realtime: false,
            machine: Machine::This,
            alone: false,
            body: Box::new(body),
        }
    }

    /// Makes the test one of a suite: its name begins with the suite's and `::`.
    pub fn of(mut self, suite: &str) -> Self {
        self.name = format!("{suite}::{}", self.name);
        self
    }

    /// Lists the programs that the test uses. Where one is missing, the test fails with the command that installs it.
    pub fn needs(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// The test needs real-time scheduling, thus root of the initial user namespace, and runs [`Self::alone`]. For
    /// other users [`main`] leaves the test out, and prints the number of such tests.
    pub fn needs_root_realtime(mut self) -> Self {
        self.realtime = true;
        self.alone()
    }

    /// The test runs in a [`guest`], because this machine's kernel may lack a feature that it needs. All such tests of
    /// a binary share two guests; each runs in its own process and namespaces.
    pub fn in_guest(mut self) -> Self {
        self.machine = Machine::Guest(GuestUse::Shared);
        self
    }

    /// The test runs in a [`guest`] in which no other test has run or will, because it changes the kernel for all
    /// namespaces or needs it unused. A boot takes a few seconds.
    pub fn in_own_guest(mut self) -> Self {
        self.machine = Machine::Guest(GuestUse::Own);
        self
    }

    /// The test runs while no other test of its binary does: it measures real-time behaviour, or changes files and limits
    /// that all tests of the process share.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Lists files that the test reads or runs, by absolute path, to be copied into the guest.
    pub fn files<P: Into<PathBuf>>(mut self, files: impl IntoIterator<Item = P>) -> Self {
        self.files.extend(files.into_iter().map(Into::into));
        self
    }

    /// The guest that the test runs in, unless this process runs it.
    fn guest(&self) -> Option<GuestUse> {
        match self.machine {
            Machine::Guest(guest_use) if !guest::is_guest() => Some(guest_use),
            Machine::Guest(_) | Machine::This => None,
        }
    }

    fn group(&self) -> TestGroup {
        match (self.alone, self.guest()) {
            (true, _) => TestGroup::Alone,
            (false, Some(_)) => TestGroup::Guest,
            (false, None) => TestGroup::Host,
        }
    }

    fn into_trial(self, guests: &Arc<SharedGuests>, scheduler: &Arc<Scheduler>) -> Trial {
        let (group, scheduler) = (self.group(), Arc::clone(scheduler));
        let elsewhere = self.guest().map(|guest_use| (guest_use, Arc::clone(guests)));
        let missing: Vec<Tool> = self.tools.into_iter().filter(|tool| tool.path().is_err()).collect();
        let (name, body) = (self.name.clone(), self.body);
        Trial::test(self.name, move || {
            if !missing.is_empty() {
                return Err(Failed::from(missing_tools(&missing)));
            }
            scheduler.run(group, || {
                let Some((guest_use, guests)) = elsewhere else {
                    body();
                    return Ok(());
                };
                guests.run_test(&name, guest_use).map_err(Failed::from)
            })
        })
    }
}

/// Runs tests with the command line of libtest (filters, `--list`, `--exact`, `--skip` …), inside of [`enter`]'s
/// namespaces. Six tests run side by side unless `--test-threads` says otherwise; those in a guest come
/// later, two at a time, and those that are [`Test::alone`] last.
///
///     fn main() -> std::process::ExitCode {
///         testbed::main(vec![testbed::Test::new("nothing_happens", || {})])
///     }
#[must_use]
pub fn main(tests: Vec<Test>) -> ExitCode {
    guest::run_if_init();
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        match enter() {
            Ok(Entered::Inside) => {}
            Ok(Entered::Finished(code)) => return code,
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let (mut present, absent): (Vec<_>, Vec<_>) =
        tests.into_iter().partition(|test| !test.realtime || is_initial_root());
    if !absent.is_empty() {
        eprintln!("{} real-time tests need root; run by .ci/run as root", absent.len());
    }
    arguments.test_threads.get_or_insert(PARALLEL_TESTS.min(present.len().max(1)));
    // Stable: a binary lists its longest tests first, so that none of them starts when the others have ended.
    present.sort_by_key(Test::group);
    let in_guest = || present.iter().filter(|test| matches!(test.machine, Machine::Guest(_)));
    let builder = guest::Guest::builder()
        .tools(in_guest().flat_map(|test| test.tools.iter().copied()))
        .files(in_guest().flat_map(|test| test.files.iter()));
    let guests = Arc::new(SharedGuests::new(&builder, GUESTS));
    let scheduler = Arc::default();
    let trials = present.into_iter().map(|test| test.into_trial(&guests, &scheduler)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The conclusion may end the process without unwinding.
    drop(guests);
    conclusion.exit_code()
}

fn missing_tools(tools: &[Tool]) -> String {
    tools.iter().fold(String::new(), |mut text, tool| {
        let _ = writeln!(text, "{tool} is missing; install it with: {}", tool.install_line());
        text
    })
}
