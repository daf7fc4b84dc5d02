//! Questions and answers on the socket.
//!
//! The kernel carries out all messages of a datagram, in order, before the call that sends it returns, and queues an
//! acknowledgement of each. So commands go out in batches of one datagram, and as many are under way at a time as
//! there is room in the receive buffer to acknowledge. A dump fills what is left of the buffer by itself and goes on
//! when it is read; a socket can have one at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use netlink_packet_core::{NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload};
use netlink_proto::sys::SocketAddr;
use nix::errno::Errno;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;

use super::connection::Handle;
use super::error::RequestError;
use super::raw::Raw;

/// Messages that may be under way at a time, where the receive buffer has its usual size, 208 KiB. More would make
/// nothing faster.
const MAX_IN_FLIGHT: usize = 64;
/// Fewer would not do: some messages travel in pairs.
const MIN_IN_FLIGHT: usize = 2;
/// Most memory of the receive buffer that an acknowledgement takes, which is more than its length.
const ACKNOWLEDGEMENT: usize = 1280;

/// Answer of the kernel to one message.
pub(super) struct Answer {
    pub(super) result: Result<(), Errno>,
    pub(super) replies: Vec<Raw>,
}

type Replies = Pin<Box<dyn Stream<Item = NetlinkMessage<Raw>> + Send>>;

/// The shared end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    handle: Handle,
    /// Most messages that may be under way at a time.
    pub(super) in_flight: usize,
    room: Arc<Semaphore>,
    dumping: Arc<Mutex<()>>,
    pub(super) timeout: Duration,
}

impl Exchange {
    /// Half of the receive buffer is for acknowledgements, the rest is left to a dump.
    pub(super) fn new(handle: Handle, timeout: Duration) -> Self {
        let fitting = handle.receive_buffer / 2 / ACKNOWLEDGEMENT;
        let in_flight = fitting.clamp(MIN_IN_FLIGHT, MAX_IN_FLIGHT);
        let (room, dumping) = (Arc::new(Semaphore::new(in_flight)), Arc::new(Mutex::new(())));
        Self { handle, in_flight, room, dumping, timeout }
    }

    /// Sends at most [`Exchange::in_flight`] messages that ask for an acknowledgement, and returns as many answers in
    /// the same order.
    pub(super) async fn batch(
        &self,
        messages: Vec<NetlinkMessage<Raw>>,
    ) -> Result<Vec<Answer>, RequestError> {
        let count = messages.len();
        let sent = async {
            let _room = self.room(count).await?;
            self.exchange(messages, |replies| collect_answers(replies, count)).await
        };
        self.in_time(sent).await
    }

    /// Sends one message to which the kernel may forget the answer, and one behind it that it answers in any case:
    /// when that answer is there, the other will not come any more.
    pub(super) async fn unsure(
        &self,
        message: NetlinkMessage<Raw>,
        barrier: NetlinkMessage<Raw>,
    ) -> Result<Option<Answer>, RequestError> {
        let sent = async {
            let _room = self.room(2).await?;
            self.exchange(vec![message, barrier], collect_before_reply).await
        };
        self.in_time(sent).await
    }

    /// Sends a dump and returns what it consists of.
    pub(super) async fn dump(&self, message: NetlinkMessage<Raw>) -> Result<Vec<Raw>, RequestError> {
        let sent = async {
            let _turn = self.dumping.lock().await;
            self.exchange(vec![message], collect_dump).await
        };
        self.in_time(sent).await
    }

    async fn room(&self, messages: usize) -> Result<SemaphorePermit<'_>, RequestError> {
        let permits = u32::try_from(messages.min(self.in_flight)).unwrap_or(u32::MAX);
        self.room.acquire_many(permits).await.map_err(|_| RequestError::Closed)
    }

    async fn in_time<T>(
        &self,
        sent: impl Future<Output = Result<T, RequestError>>,
    ) -> Result<T, RequestError> {
        timeout(self.timeout, sent).await.unwrap_or(Err(RequestError::TimedOut(self.timeout)))
    }

    async fn exchange<T, F>(
        &self,
        messages: Vec<NetlinkMessage<Raw>>,
        collect: impl FnOnce(Replies) -> F,
    ) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, RequestError>>,
    {
        let mut overruns = self.handle.overruns.clone();
        overruns.mark_unchanged();
        let replies = self.handle.requests.request_batch(messages, SocketAddr::new(0, 0));
        let replies: Replies = Box::pin(replies.map_err(|_| RequestError::Closed)?);
        tokio::select! {
            biased;
            collected = collect(replies) => collected,
            lost = lost(&mut overruns) => Err(lost),
        }
    }
}

/// Waits until answers are lost; it is unknown to which requests they belong.
async fn lost(overruns: &mut watch::Receiver<u64>) -> RequestError {
    match overruns.changed().await {
        Ok(()) => RequestError::Overrun,
        Err(_) => RequestError::Closed,
    }
}

/// The kernel answers in the order of the messages, whose numbers follow each other.
async fn collect_answers(mut replies: Replies, count: usize) -> Result<Vec<Answer>, RequestError> {
    let mut answers: Vec<Answer> = Vec::with_capacity(count);
    let mut pending = Vec::new();
    while answers.len() < count {
        let message = replies.next().await.ok_or(RequestError::Closed)?;
        match message.payload {
            NetlinkPayload::InnerMessage(raw) => pending.push(raw),
            NetlinkPayload::Error(error) => {
                let result = error.code.map_or(Ok(()), |code| Err(errno(code.get())));
                answers.push(Answer { result, replies: std::mem::take(&mut pending) });
            }
            NetlinkPayload::Overrun(_) => return Err(RequestError::Overrun),
            _ => {}
        }
    }
    Ok(answers)
}

/// The answer before a reply, if there is one. The message itself has an acknowledgement at most.
async fn collect_before_reply(mut replies: Replies) -> Result<Option<Answer>, RequestError> {
    let mut answer = None;
    loop {
        let message = replies.next().await.ok_or(RequestError::Closed)?;
        match message.payload {
            NetlinkPayload::InnerMessage(_) => return Ok(answer),
            NetlinkPayload::Error(error) if answer.is_none() => {
                let result = error.code.map_or(Ok(()), |code| Err(errno(code.get())));
                answer = Some(Answer { result, replies: Vec::new() });
            }
            // The one behind it is refused.
            NetlinkPayload::Error(_) => return Ok(answer),
            NetlinkPayload::Overrun(_) => return Err(RequestError::Overrun),
            _ => {}
        }
    }
}

async fn collect_dump(mut replies: Replies) -> Result<Vec<Raw>, RequestError> {
    let (mut found, mut interrupted) = (Vec::new(), false);
    loop {
        let message = replies.next().await.ok_or(RequestError::Closed)?;
        interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(raw) => found.push(raw),
            NetlinkPayload::Done(done) if done.code != 0 => return Err(RequestError::of(errno(done.code))),
            NetlinkPayload::Done(_) if interrupted => return Err(RequestError::Interrupted),
            NetlinkPayload::Done(_) => return Ok(found),
            NetlinkPayload::Error(error) => {
                let code = error.code.map_or(0, std::num::NonZero::get);
                return Err(RequestError::of(errno(code)));
            }
            NetlinkPayload::Overrun(_) => return Err(RequestError::Overrun),
            _ => {}
        }
    }
}

/// The kernel's codes are negative.
fn errno(code: i32) -> Errno {
    Errno::from_raw(code.checked_neg().unwrap_or(i32::MAX))
}
