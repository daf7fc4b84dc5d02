//! Errors that end the process, and their exit codes after `sysexits.h`.

use std::fmt;
use std::process::ExitCode;

use cplb_config::escaped;

/// The reason of an exit, which an init system or a script reads from the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `EX_USAGE`: the command line is wrong.
    Usage = 64,
    /// `EX_DATAERR`: the configuration is wrong; starting again will not help.
    Config = 65,
    /// `EX_NOINPUT`: a file that was named cannot be read.
    NoInput = 66,
    /// `EX_UNAVAILABLE`: the system lacks something the configuration cannot do without.
    Unavailable = 69,
    /// `EX_SOFTWARE`: a defect of cplb.
    Internal = 70,
    /// `EX_OSERR`: the system refused a call that normally works.
    System = 71,
    /// `EX_CANTCREAT`: a directory, socket or file of cplb cannot be created.
    CannotCreate = 73,
    /// `EX_TEMPFAIL`: another process holds a resource that cplb needs, or takes too long, or a handover was refused; later
    /// it may be different.
    Temporary = 75,
    /// `EX_NOPERM`: privileges are missing.
    Permission = 77,
}

/// A failure with its remedy.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    help: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        let text = message.to_string();
        // A report about a configuration has lines of its own, in which the quoted texts are escaped already.
        let message = if kind == Kind::Config { text } else { escaped_lines(&text) };
        Self { kind, message, help: None }
    }

    /// Adds the remedy, for the operator.
    pub(crate) fn help(mut self, help: impl fmt::Display) -> Self {
        self.help = Some(help.to_string());
        self
    }

    /// The message without the help.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The first line of the message.
    pub(crate) fn summary(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

/// Escapes each line: messages quote files, programs and the system.
pub(crate) fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
