//! A program to run in a guest, and its end.

use std::{path::PathBuf, time::Duration};

use super::wire::Request;

/// A program to run in a guest, as root, with no other environment than is given here.
#[derive(Debug, Clone)]
#[must_use]
pub struct GuestCommand {
    pub(super) request: Request,
}

/// The end of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEnd {
    /// The program exited with this code, or with 128 and the number of a signal.
    Exited(i32),
    /// The program was killed at its time limit.
    Overdue,
}

impl GuestCommand {
    /// A program by its absolute path, which must be in the guest.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let request = Request {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: "/root".into(),
            seconds: 600,
        };
        Self { request }
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.request.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.environment.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory, which is created.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.request.directory = directory.into();
        self
    }

    /// Sets the time limit, in whole seconds; the default is ten minutes.
    pub fn within(mut self, limit: Duration) -> Self {
        self.request.seconds = limit.as_secs().max(1);
        self
    }
}
