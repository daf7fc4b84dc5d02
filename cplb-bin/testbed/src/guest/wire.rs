//! The protocol between host and guest on the guest's second serial port.
//!
//! The host sends one [`Request`] at a time, as a line of JSON. The guest answers with [`Frame`]s: the program's
//! output, in pieces, and then its end.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// Longest piece of output in one frame, bytes.
pub(super) const PIECE: usize = 4096;

/// A program to run in the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) directory: PathBuf,
    /// Time limit, after which the program is killed.
    pub(super) seconds: u64,
}

/// A message of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// The guest has started and accepts requests.
    Ready,
    /// A piece of the output of the program, standard output and error as they come.
    Output(Vec<u8>),
    /// The program ended with this code, or with 128 and the number of a signal.
    Ended(i32),
    /// The program was killed at its time limit.
    Overdue {
        /// The guest itself works.
        guest_works: bool,
    },
    /// The program could not be started.
    NotStarted(String),
}

impl Frame {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Ready => writeln!(to, "ready 0")?,
            Self::Output(bytes) => {
                writeln!(to, "output {}", bytes.len())?;
                to.write_all(bytes)?;
            }
            Self::Ended(code) => writeln!(to, "ended {code}")?,
            Self::Overdue { guest_works } => writeln!(to, "overdue {}", i32::from(*guest_works))?,
            Self::NotStarted(reason) => {
                writeln!(to, "not-started {}", reason.len())?;
                to.write_all(reason.as_bytes())?;
            }
        }
        to.flush()
    }

    /// The next frame; `None` at the end of the stream.
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("the guest sent {line:?}"));
        let (word, number) = line.trim_end().split_once(' ').ok_or_else(malformed)?;
        let number: i32 = number.parse().map_err(|_| malformed())?;
        let mut bytes = |limit: usize| {
            let length =
                usize::try_from(number).ok().filter(|length| *length <= limit).ok_or_else(malformed)?;
            let mut bytes = vec![0; length];
            from.read_exact(&mut bytes).map(|()| bytes)
        };
        Ok(Some(match word {
            "ready" => Self::Ready,
            "output" => Self::Output(bytes(PIECE)?),
            "ended" => Self::Ended(number),
            "overdue" => Self::Overdue { guest_works: number == 1 },
            "not-started" => Self::NotStarted(String::from_utf8_lossy(&bytes(PIECE)?).into_owned()),
            _ => return Err(malformed()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_frames_decode_to_themselves() {
        let frames = [
            Frame::Ready,
            Frame::Output(b"two\nlines\n\x00\xff".to_vec()),
            Frame::NotStarted("no such file".to_owned()),
            Frame::Overdue { guest_works: true },
            Frame::Overdue { guest_works: false },
            Frame::Ended(-1),
        ];
        let mut port = Vec::new();
        for frame in &frames {
            frame.write(&mut port).unwrap();
        }
        let mut port = port.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut port).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut port).unwrap(), None);
    }

    #[test]
    fn malformed_frames_are_errors() {
        for noise in ["hello\n", "output -1\n", "output 99999\n", "output 4\nab", "x 1\n"] {
            assert!(Frame::read(&mut noise.as_bytes()).is_err(), "{noise:?}");
        }
    }
}
