//! What is run in a guest, and how it ends.

use std::{path::PathBuf, time::Duration};

use super::wire::Request;

/// A program to run in a guest, as root, with an empty environment except for what is given.
#[derive(Debug, Clone)]
#[must_use]
pub struct GuestCommand {
    pub(super) request: Request,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEnd {
    /// With this code, or with 128 and the number of a signal.
    Exited(i32),
    /// It was killed because its time was over.
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

    /// Its arguments.
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.request.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.environment.push((name.into(), value.into()));
        self
    }

    /// The directory it runs in, which is made.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.request.directory = directory.into();
        self
    }

    /// How long it may take, in whole seconds; ten minutes unless told.
    pub fn within(mut self, limit: Duration) -> Self {
        self.request.seconds = limit.as_secs().max(1);
        self
    }
}
