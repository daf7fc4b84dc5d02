//! Writes for whoever reads standard output and standard error, who may stop reading at any time.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::exit::{Failure, Kind};

/// Whether somebody still reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Listens,
    /// The other end of the pipe is closed, as `head` does when it has seen enough: no failure.
    Gone,
}

/// Writes `text` and the end of the line to standard output.
pub(crate) fn print(text: &str) -> Result<Reader, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Listens),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::new(Kind::System, format_args!("cannot write: {error}"))),
    }
}

/// A reader that does not make room within this time is not waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Writes a line to standard error. What cannot be written there can be told nowhere.
pub(crate) fn complain(text: impl Display) {
    let stderr = io::stderr();
    let mut watched = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut watched, PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO)) != Ok(0) {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Waits for `time`, or until nobody reads standard output any more.
pub(crate) fn wait(time: Duration) -> Reader {
    let stdout = io::stdout();
    // Asks for nothing: that the reader is gone is told unasked.
    let mut watched = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut watched, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
        Ok(1..) => Reader::Gone,
        Ok(_) => Reader::Listens,
        Err(_) => {
            std::thread::sleep(time);
            Reader::Listens
        }
    }
}
