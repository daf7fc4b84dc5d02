//! Errors of building and using a LAN.

use std::{io, path::PathBuf, time::Duration};

use crate::{Tool, wait::TimedOut};

/// The reason why an operation on the LAN failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A [`crate::Lan`] was asked for outside of the namespaces that [`crate::enter`] makes.
    #[error(
        "the process is not in its own namespaces: call testbed::enter() first, before any thread starts"
    )]
    NotEntered,
    /// A program that the operation runs is not installed.
    #[error("{0} is missing; install it with: {install}", install = .0.install_line())]
    MissingTool(Tool),
    /// The kernel refused a network namespace, or to move a thread into it.
    #[error("cannot {step} for {node}: {source}")]
    Namespace {
        /// The step that failed.
        step: &'static str,
        /// The node concerned.
        node: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("cannot {what}: {source}")]
    Netlink {
        /// The purpose of the request.
        what: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A kernel setting could not be read or written.
    #[error("sysctl {name}: {source}")]
    Sysctl {
        /// The setting, with dots.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file or directory could not be made, read or written.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program} as {name}: {source}")]
    Spawn {
        /// The name of the process in logs.
        name: String,
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// A program that should have succeeded did not.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program with its arguments.
        program: String,
        /// The exit status.
        status: String,
        /// The program's standard error.
        stderr: String,
    },
    /// A system call on a process, socket or thread failed.
    #[error("cannot {what}: {source}")]
    System {
        /// The operation that failed.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A process still runs although it was to end.
    #[error("{name} still runs after {timeout:?}")]
    StillRunning {
        /// The process.
        name: String,
        /// The time limit.
        timeout: Duration,
    },
    /// There is no node of that name.
    #[error("no node is called {0:?}")]
    NoSuchNode(String),
    /// The node has no interface of that name.
    #[error("{node} has no interface {interface}")]
    NoSuchInterface {
        /// The node.
        node: String,
        /// The interface.
        interface: String,
    },
    /// A condition did not come true in time.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The request is invalid.
    #[error("{0}")]
    Misuse(String),
    /// A certificate could not be made.
    #[error("cannot make a certificate for {name}: {reason}")]
    Certificate {
        /// The name in the certificate.
        name: String,
        /// The cause.
        reason: String,
    },
}

impl Error {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let what = what.into();
        move |errno| Self::System { what, source: errno.into() }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
