//! The guests that the tests of one binary share.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use super::{Guest, GuestBuilder, GuestCommand, GuestEnd, GuestError};

/// Guests for tests that run at the same time; each is booted for the first test that finds no other one unused.
#[derive(Debug)]
pub(crate) struct SharedGuests(Mutex<Vec<SharedGuest>>);

impl SharedGuests {
    /// This many guests, all with the same content.
    pub(crate) fn new(builder: &GuestBuilder, count: usize) -> Self {
        Self(Mutex::new((0..count).map(|_| SharedGuest::NotBooted(Some(builder.clone()))).collect()))
    }

    /// Runs one test of this binary, by its exact name, in an unused guest.
    pub(crate) fn run_test(&self, name: &str) -> Result<(), String> {
        let unused = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guest = unused().pop().ok_or("more tests run at the same time than there are guests")?;
        let result = guest.run_test(name);
        unused().push(guest);
        result
    }
}

#[derive(Debug)]
enum SharedGuest {
    NotBooted(Option<GuestBuilder>),
    Running(Box<Guest>),
    /// It could not be booted, or was lost: no further test can run.
    Lost(String),
}

impl SharedGuest {
    fn run_test(&mut self, name: &str) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command =
            GuestCommand::new(program).args(["--exact", name, "--nocapture", "--test-threads=1"]);
        for (variable, value) in std::env::vars().filter(|(variable, _)| is_for_tests(variable)) {
            command = command.env(variable, value);
        }
        let guest = self.guest()?;
        let end = guest.run(&command, |bytes| {
            // A test's outcome does not depend on whether its output can be written.
            let _ = io::stderr().write_all(bytes);
        });
        match end {
            Ok(GuestEnd::Exited(0)) => Ok(()),
            Ok(GuestEnd::Exited(code)) => Err(format!("the test ended with code {code} in the guest")),
            Ok(GuestEnd::Overdue) => Err("the test was killed in the guest: its time was over".to_owned()),
            Err(error) => Err(self.mark_lost(&error)),
        }
    }

    fn guest(&mut self) -> Result<&mut Guest, String> {
        if let Self::NotBooted(builder) = self {
            match builder.take().unwrap_or_default().boot() {
                Ok(guest) => {
                    eprintln!("guest up in {:?}", guest.booted_in());
                    *self = Self::Running(Box::new(guest));
                }
                Err(error) => return Err(self.mark_lost(&error)),
            }
        }
        match self {
            Self::Running(guest) => Ok(guest),
            Self::Lost(reason) => Err(format!("an earlier test had no guest: {reason}")),
            Self::NotBooted(_) => Err("there is no guest".to_owned()),
        }
    }

    fn mark_lost(&mut self, error: &GuestError) -> String {
        let reason = error.to_string();
        if !matches!(error, GuestError::NotStarted(_)) {
            *self = Self::Lost(reason.split(';').next().unwrap_or_default().to_owned());
        }
        reason
    }
}

/// Returns whether a variable configures tests, such as `PROPTEST_CASES`, `RUST_BACKTRACE` and our own `CPLB_BIN`.
#[must_use]
pub fn is_for_tests(variable: &str) -> bool {
    let ours = variable.starts_with("CPLB_") && !["CPLB_GUEST", "CPLB_TESTBED_PARENT"].contains(&variable);
    ours || ["RUST_", "PROPTEST_", "INSTA_", "CARGO_"].iter().any(|prefix| variable.starts_with(prefix))
}
