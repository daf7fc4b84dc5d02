//! Writes to standard output and standard error, whose readers may stop reading at any time.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::exit::{Failure, Kind};

/// The state of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdout {
    Open,
    /// The reader has closed the pipe, as `head` does after its last line: no failure.
    Closed,
}

/// Writes `text` and the end of the line to standard output.
pub(crate) fn print(text: &str) -> Result<Stdout, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Stdout::Open),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Stdout::Closed),
        Err(error) => Err(Failure::new(Kind::System, format_args!("cannot write: {error}"))),
    }
}

/// A message is dropped if standard error does not accept it within this time.
const STDERR_TIMEOUT: Duration = Duration::from_millis(500);

/// Writes a line to standard error. Failures are ignored: there is no other place to report them.
pub(crate) fn print_error(text: impl Display) {
    let stderr = io::stderr();
    let mut watched = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut watched, PollTimeout::try_from(STDERR_TIMEOUT).unwrap_or(PollTimeout::ZERO)) != Ok(0) {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Waits for `time`, or until the reader closes standard output.
pub(crate) fn wait(time: Duration) -> Stdout {
    let stdout = io::stdout();
    // No events are requested: POLLERR and POLLHUP are always reported.
    let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut watched, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
        Ok(1..) => Stdout::Closed,
        Ok(_) => Stdout::Open,
        Err(_) => {
            std::thread::sleep(time);
            Stdout::Open
        }
    }
}
