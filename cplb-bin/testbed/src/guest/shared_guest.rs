//! The guests that the tests of one binary share.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{Guest, GuestBuilder, GuestCommand, GuestEnd, GuestError};

/// The time limit of a test in a guest. The longest takes half a minute on an idle machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(240);

/// Environment variable of a test that has its guest for itself.
pub(super) const OWN_GUEST: &str = "CPLB_OWN_GUEST";

/// The relation of a test to its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GuestUse {
    /// Other tests run in it before and after.
    Shared,
    /// It is booted for the test.
    Own,
}

/// Guests for tests that run at the same time; each is booted for the first test that finds no other one unused.
#[derive(Debug)]
pub(crate) struct SharedGuests(Mutex<Vec<SharedGuest>>);

impl SharedGuests {
    /// This many guests, all with the same content.
    pub(crate) fn new(builder: &GuestBuilder, count: usize) -> Self {
        let guest = || SharedGuest { builder: builder.clone(), guest: None, unbootable: None };
        Self(Mutex::new((0..count).map(|_| guest()).collect()))
    }

    /// Runs one test of this binary, by its exact name, in an unused guest.
    pub(crate) fn run_test(&self, name: &str, guest_use: GuestUse) -> Result<(), String> {
        let unused = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut guest = unused().pop().ok_or("more tests run at the same time than there are guests")?;
        let result = guest.run_test(name, guest_use);
        unused().push(guest);
        result
    }
}

#[derive(Debug)]
struct SharedGuest {
    builder: GuestBuilder,
    guest: Option<Box<Guest>>,
    /// The reason why no guest boots: no further test can run.
    unbootable: Option<String>,
}

impl SharedGuest {
    fn run_test(&mut self, name: &str, guest_use: GuestUse) -> Result<(), String> {
        if guest_use == GuestUse::Own {
            self.guest = None;
        }
        let end = again_if_lost(|| self.run_once(name, guest_use)).map_err(|error| error.to_string())?;
        // A test that failed may leave something that the next test is not made for, such as a missing module.
        if guest_use == GuestUse::Own || end != GuestEnd::Exited(0) {
            self.guest = None;
        }
        match end {
            GuestEnd::Exited(0) => Ok(()),
            GuestEnd::Exited(code) => Err(format!("the test ended with code {code} in the guest")),
            GuestEnd::Overdue => Err(format!("the test was killed in the guest after {TEST_TIMEOUT:?}")),
        }
    }

    fn run_once(&mut self, name: &str, guest_use: GuestUse) -> Result<GuestEnd, TestError> {
        let program = std::env::current_exe().map_err(GuestError::Emulator)?;
        let mut command = GuestCommand::new(program)
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .within(TEST_TIMEOUT);
        for (variable, value) in std::env::vars().filter(|(variable, _)| is_for_tests(variable)) {
            command = command.env(variable, value);
        }
        if guest_use == GuestUse::Own {
            command = command.env(OWN_GUEST, "yes");
        }
        let result = self.guest()?.run(&command, |bytes| {
            // A test's outcome does not depend on whether its output can be written.
            let _ = io::stderr().write_all(bytes);
        });
        if matches!(result, Err(GuestError::Lost { .. })) {
            self.guest = None;
        }
        Ok(result?)
    }

    fn guest(&mut self) -> Result<&mut Guest, TestError> {
        if let Some(reason) = &self.unbootable {
            return Err(TestError::NoGuest(reason.clone()));
        }
        let guest = match self.guest.take() {
            Some(guest) => guest,
            None => Box::new(self.boot().map_err(TestError::NotBooted)?),
        };
        Ok(self.guest.insert(guest))
    }

    fn boot(&mut self) -> Result<Guest, GuestError> {
        let booted = again_if_lost(|| self.builder.clone().boot());
        match &booted {
            Ok(guest) => eprintln!("guest up in {:?}", guest.booted_in()),
            Err(error) => {
                self.unbootable = error.to_string().split(';').next().map(str::to_owned);
            }
        }
        booted
    }
}

#[derive(Debug, thiserror::Error)]
enum TestError {
    #[error("an earlier test had no guest: {0}")]
    NoGuest(String),
    /// Two attempts have failed.
    #[error("no guest boots: {0}")]
    NotBooted(#[source] GuestError),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

trait MayBeLost: std::fmt::Display {
    fn is_lost(&self) -> bool;
}

impl MayBeLost for GuestError {
    fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

impl MayBeLost for TestError {
    fn is_lost(&self) -> bool {
        matches!(self, Self::Guest(error) if error.is_lost())
    }
}

/// Does something once more, in another guest, if the emulated machine failed: it hangs in part, which its own check shows,
/// or stopped. A test that fails or takes too long in a guest that works has failed.
fn again_if_lost<T, E: MayBeLost>(mut run: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    run().or_else(|error| {
        if !error.is_lost() {
            return Err(error);
        }
        eprintln!("once more, in another guest, because {error}");
        run()
    })
}

/// Returns whether a variable configures tests, such as `PROPTEST_CASES`, `RUST_BACKTRACE` and our own `CPLB_BIN`.
#[must_use]
pub fn is_for_tests(variable: &str) -> bool {
    let ours = variable.starts_with("CPLB_") && !["CPLB_GUEST", "CPLB_TESTBED_PARENT"].contains(&variable);
    ours || ["RUST_", "PROPTEST_", "INSTA_", "CARGO_"].iter().any(|prefix| variable.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(results: &[Result<(), GuestError>]) -> (usize, bool) {
        let mut results = results.iter();
        let count = results.len();
        let end = again_if_lost(|| match results.next() {
            Some(Ok(())) => Ok(()),
            Some(Err(GuestError::Lost { .. })) => Err(lost()),
            Some(Err(_)) | None => Err(GuestError::NotStarted("a program".to_owned())),
        });
        (count - results.len(), end.is_ok())
    }

    fn lost() -> GuestError {
        GuestError::Lost { what: "hangs".to_owned(), console: String::new() }
    }

    #[test]
    fn only_what_a_guest_lost_is_done_again_and_only_once() {
        assert_eq!(attempts(&[Ok(()), Ok(())]), (1, true));
        assert_eq!(attempts(&[Err(lost()), Ok(()), Ok(())]), (2, true));
        assert_eq!(attempts(&[Err(lost()), Err(lost()), Ok(())]), (2, false));
        assert_eq!(attempts(&[Err(GuestError::NotStarted(String::new())), Ok(())]), (1, false));
    }
}
