//! A netlink socket with the model of the kernel behind it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::BufMut;
use netlink_proto::sys::{AsyncSocket, SocketAddr};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;

use super::kernel::{ENOENT, FakeKernel};
use crate::wire::{Command, Reply, Request};

const CONTROLLER: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const MULTIPART: u16 = 2;
const INTERRUPTED: u16 = 16;
const DUMP: u16 = 0x300;
const ENOBUFS: i32 = 105;

/// The far end of the socket, for the test to look at and to tamper with.
#[derive(Default)]
pub(crate) struct FarEnd {
    pub(crate) kernel: FakeKernel,
    /// The number of the family, if the module is loaded.
    pub(crate) family: Option<u16>,
    /// Datagrams whose answers get lost.
    pub(crate) lose: usize,
    /// Dumps that are interrupted.
    pub(crate) interrupt: usize,
    /// `true` if it forgets to acknowledge that a daemon is stopped.
    pub(crate) forgetful: bool,
    /// `true` if it answers at all.
    pub(crate) silent: bool,
    /// `true` if the socket fails when it is read.
    pub(crate) broken: bool,
    /// Refuses everything with this number.
    pub(crate) refuse: Option<i32>,
    /// Answers queries with these bytes behind the header.
    pub(crate) garbage: Option<Vec<u8>>,
    /// The requests of each datagram.
    pub(crate) datagrams: Vec<Vec<Request>>,
    /// The most answers that waited to be read.
    pub(crate) most_queued: usize,
    queue: VecDeque<io::Result<Vec<u8>>>,
    waker: Option<Waker>,
}

pub(crate) struct FakeSocket {
    socket: Socket,
    far: Arc<Mutex<FarEnd>>,
}

impl FakeSocket {
    pub(crate) fn with_family(family: Option<u16>) -> (Self, Arc<Mutex<FarEnd>>) {
        let far = Arc::new(Mutex::new(FarEnd { family, ..FarEnd::default() }));
        let socket = Socket::new(NETLINK_GENERIC).expect("a socket");
        (Self { socket, far: Arc::clone(&far) }, far)
    }

    fn far(&self) -> MutexGuard<'_, FarEnd> {
        self.far.lock().unwrap()
    }
}

impl AsyncSocket for FakeSocket {
    fn socket_ref(&self) -> &Socket {
        &self.socket
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn new(_: isize) -> io::Result<Self> {
        Ok(Self::with_family(None).0)
    }

    fn poll_send(&self, _: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<usize>> {
        self.far().take(datagram);
        Poll::Ready(Ok(datagram.len()))
    }

    fn poll_send_to(
        &self,
        context: &mut Context<'_>,
        datagram: &[u8],
        _: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, datagram)
    }

    fn poll_recv<B: BufMut>(&self, context: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        let mut far = self.far();
        if far.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match far.queue.pop_front() {
            None => {
                far.waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(datagram) => Poll::Ready(datagram.map(|bytes| buffer.put_slice(&bytes))),
        }
    }

    fn poll_recv_from<B: BufMut>(
        &self,
        context: &mut Context<'_>,
        buffer: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        self.poll_recv(context, buffer).map_ok(|()| SocketAddr::new(0, 0))
    }

    fn poll_recv_from_full(&self, context: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let mut buffer = Vec::new();
        self.poll_recv(context, &mut buffer).map_ok(|()| (buffer, SocketAddr::new(0, 0)))
    }
}

impl FarEnd {
    /// Makes reading the socket fail.
    pub(crate) fn break_down(&mut self) {
        self.broken = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn take(&mut self, mut datagram: &[u8]) {
        if self.silent {
            return;
        }
        let before = self.queue.len();
        let mut requests = Vec::new();
        while !datagram.is_empty() {
            let length = u32::from_ne_bytes(datagram[..4].try_into().unwrap()) as usize;
            let (message, rest) = datagram.split_at(length.next_multiple_of(4));
            datagram = rest;
            let answers = self.answer(message, &mut requests);
            self.queue.extend(answers.into_iter().map(Ok));
        }
        self.datagrams.push(requests);
        if self.lose > 0 {
            self.lose -= 1;
            self.queue.truncate(before);
            self.queue.push_back(Err(io::Error::from_raw_os_error(ENOBUFS)));
        }
        self.most_queued = self.most_queued.max(self.queue.len());
        self.wake();
    }

    fn answer(&mut self, message: &[u8], requests: &mut Vec<Request>) -> Vec<Vec<u8>> {
        let u16_at = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        let (family, flags, sequence) = (u16_at(4), u16_at(6), &message[8..12]);
        let (command, body) = (message[16], &message[20..]);
        let frame = |kind: u16, flags: u16, body: &[u8]| {
            let length = u32::try_from(16 + body.len()).unwrap();
            let header =
                [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), sequence, &[0; 4]];
            [header.concat(), body.to_vec()].concat()
        };
        let confirmed =
            |errno: i32| frame(NLMSG_ERROR, 0, &[&(-errno).to_ne_bytes()[..], &message[..16]].concat());
        if let Some(errno) = self.refuse {
            return vec![confirmed(errno)];
        }
        if family == CONTROLLER {
            let Some(id) = self.family else { return vec![confirmed(ENOENT)] };
            let mut described = vec![1, 2, 0, 0, 9, 0, 2, 0, b'I', b'P', b'V', b'S', 0, 0, 0, 0, 6, 0, 1, 0];
            described.extend([&id.to_ne_bytes()[..], &[0; 2]].concat());
            return vec![frame(CONTROLLER, 0, &described), confirmed(0)];
        }
        if Some(family) != self.family {
            return vec![confirmed(ENOENT)];
        }
        let request = Request::decode(Command(command), body).expect("a request");
        requests.push(request.clone());
        let replies = match self.kernel.handle(&request) {
            Ok(_) if self.forgetful && matches!(request, Request::DeleteDaemon(_)) => return Vec::new(),
            Ok(replies) => replies,
            Err(errno) => return vec![confirmed(errno)],
        };
        let mut reply_flags = if flags & DUMP == DUMP { MULTIPART } else { 0 };
        if reply_flags != 0 && self.interrupt > 0 {
            self.interrupt -= 1;
            reply_flags |= INTERRUPTED;
        }
        let mut answers = Vec::new();
        for content in replies {
            let reply = Reply::from(content);
            let mut body = vec![reply.command().0, 1, 0, 0];
            match &self.garbage {
                Some(garbage) => body.extend(garbage),
                None => reply.encode(&mut body),
            }
            answers.push(frame(family, reply_flags, &body));
        }
        answers.push(if reply_flags == 0 { confirmed(0) } else { frame(NLMSG_DONE, reply_flags, &[0; 4]) });
        answers
    }
}
