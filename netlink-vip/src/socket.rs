//! The socket for requests. The kernel handles an rtnetlink request inside `send`, so the answer is there when it
//! returns: one request at a time, in order, without a runtime.
//!
//! Leases are written with it, so it is no handle of `rtnetlink`, which hands each request to a task and waits for it:
//! a request takes 6 µs here and 10 µs there on an idle machine, and there the real-time thread also waits for the
//! scheduling of that task. That handle moreover drops an answer in which one attribute cannot be read, does not tell a
//! dump that changed on the way, and loses the kernel's text beside an error number.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DoneBuffer, ErrorBuffer, NLM_F_ACK_TLVS, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, parse_string,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike};

use crate::wire::decode::{self, Message};

/// The kernel fills at most 32 KiB of a dump into one read.
const READ_SIZE: usize = 32 * 1024;
/// A dump that the tables changed under is taken again this often.
const DUMP_ATTEMPTS: usize = 4;
/// Answers are immediate; this bounds the wait should one ever be lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Length of `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG` of `netlink.h`.
const ERROR_TEXT: u16 = 1;

/// Failure of a request to the kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// It refused, perhaps with a sentence.
    #[error("the kernel refused: {errno}{}", .message.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The error number.
        errno: Errno,
        /// The kernel's own words, if it sent any.
        message: Option<String>,
    },
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(Errno),
    /// No complete answer came.
    #[error("no usable answer from the kernel")]
    NoAnswer,
}

impl KernelError {
    /// The error number, if the kernel refused.
    pub fn refused(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// One netlink socket, used by one caller at a time.
pub(crate) struct RequestSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl RequestSocket {
    /// Opens a socket of a netlink protocol in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let timeout = TimeVal::microseconds(i64::try_from(ANSWER_TIMEOUT.as_micros()).unwrap_or(i64::MAX));
        setsockopt(&socket, ReceiveTimeout, &timeout)?;
        // All three are conveniences of newer kernels: error texts, short error messages, filtered dumps.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0, buffer: vec![0; READ_SIZE] })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn transact(&mut self, encode: impl FnOnce(u32) -> Vec<u8>) -> Result<(), KernelError> {
        let sequence = self.send(encode)?;
        let mut result = Err(KernelError::NoAnswer);
        self.receive(sequence, |message| match message.message_type() {
            NLMSG_ERROR => {
                result = acknowledgement(message);
                true
            }
            _ => false,
        })?;
        result
    }

    /// Sends a dump request and collects what `read` makes of the messages. A table that changes meanwhile is read
    /// again, because the kernel then may have left entries out; one that does not stop changing is taken as it is,
    /// because an event of each change follows anyway.
    pub(crate) fn dump<T>(
        &mut self,
        encode: impl Fn(u32) -> Vec<u8>,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let mut items = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(&encode)?;
            items.clear();
            let mut interrupted = false;
            let mut result = Ok(());
            self.receive(sequence, |message| {
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_DONE => result = done(message),
                    NLMSG_ERROR => result = acknowledgement(message),
                    _ => {
                        items.extend(read(message));
                        return false;
                    }
                }
                true
            })?;
            result?;
            if !interrupted {
                break;
            }
        }
        Ok(items)
    }

    fn send(&mut self, encode: impl FnOnce(u32) -> Vec<u8>) -> Result<u32, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = encode(self.sequence);
        loop {
            match self.socket.send(&request, 0) {
                Ok(_) => return Ok(self.sequence),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(KernelError::Socket(errno_of(&error))),
            }
        }
    }

    /// Feeds the answers to `sequence` to `take` until it says that it has the last one.
    fn receive(
        &mut self,
        sequence: u32,
        mut take: impl FnMut(&Message<'_>) -> bool,
    ) -> Result<(), KernelError> {
        loop {
            let length = match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(KernelError::NoAnswer),
                Err(error) => return Err(KernelError::Socket(errno_of(&error))),
            };
            for message in decode::messages(&self.buffer[..length.min(READ_SIZE)]) {
                let Ok(message) = message else { return Err(KernelError::NoAnswer) };
                // Late answers to a request that was given up are passed over.
                if message.sequence_number() == sequence && take(&message) {
                    return Ok(());
                }
            }
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}

fn acknowledgement(message: &Message<'_>) -> Result<(), KernelError> {
    let error = ErrorBuffer::new_checked(message.payload()).map_err(|_| KernelError::NoAnswer)?;
    let Some(code) = error.code() else { return Ok(()) };
    // With short acknowledgements the attributes follow the error number and the header of the request.
    let has_texts = message.flags() & NLM_F_ACK_TLVS != 0;
    let mut texts = decode::nlas(error.payload(), MESSAGE_HEADER).filter(|_| has_texts);
    let text = texts.find(|nla| nla.kind() == ERROR_TEXT).and_then(|nla| parse_string(nla.value()).ok());
    Err(refused(code.get(), text.filter(|text| !text.is_empty())))
}

fn done(message: &Message<'_>) -> Result<(), KernelError> {
    match DoneBuffer::new_checked(message.payload()).map_or(0, |done| done.code()) {
        code if code < 0 => Err(refused(code, None)),
        _ => Ok(()),
    }
}

fn refused(code: i32, message: Option<String>) -> KernelError {
    KernelError::Refused { errno: Errno::from_raw(code.saturating_neg()), message }
}
