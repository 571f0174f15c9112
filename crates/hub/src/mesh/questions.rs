//! What hubs ask each other: QUERY and ANSWER, on links in either direction.
//!
//! A question goes to the hub at the other end of a link and no further. An answer counts only when
//! it comes over the link that the question went out on.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nowconnect_link::session::Link;
use nowconnect_proto::bucket::Bucket;
use nowconnect_proto::frame::{MAX_JSON_BODY, QUERY_NUMBER_LEN};
use nowconnect_proto::{Frame, Reason};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Mesh;

/// Bytes of the longest question.
const MAX_QUESTION: usize = 4096;
/// Bytes of the longest answer, all its pieces together.
pub(crate) const MAX_ANSWER: usize = 2 * 1024 * 1024;
/// Bytes of one piece: pings and credits have to wait for no more than a few of them.
const PIECE: usize = 32 * 1024;
/// Questions of one link that are being answered at a time.
const AT_A_TIME: usize = 16;
/// Questions of one link that are answered in a second.
const A_SECOND: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// Frames that may wait for a hub that asks and does not read: no more is answered then.
const MOST_UNSENT: usize = 2 * MAX_ANSWER / PIECE;
/// Questions of this hub that wait for their answers.
const WAITING: usize = 1024;

const _: () = assert!(PIECE + QUERY_NUMBER_LEN <= MAX_JSON_BODY);

/// Why a hub did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// There is no link with it.
    #[error("there is no link with it")]
    LinkDown,
    /// It does not know the question: its version is older.
    #[error("its version does not answer other hubs; ask it itself")]
    Unsupported,
    /// It took too long.
    #[error("it did not answer in time")]
    Timeout,
    /// The link was lost before it answered.
    #[error("the link was lost before it answered")]
    LinkLost,
    /// The answer is longer than any may be.
    #[error("its answer is too long")]
    TooLong,
    /// Too much waits to be answered already.
    #[error("too many questions wait for answers")]
    Busy,
}

impl Unanswered {
    /// A word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::LinkDown => "link_down",
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::LinkLost => "link_lost",
            Self::TooLong => "too_long",
            Self::Busy => "busy",
        }
    }
}

/// Questions that wait for their answers.
#[derive(Default)]
pub(super) struct Asked {
    last: AtomicU32,
    waiting: Mutex<HashMap<u32, Waiting>>,
}

struct Waiting {
    link: Weak<Link>,
    pieces: Vec<u8>,
    done: oneshot::Sender<Result<Bytes, Unanswered>>,
}

/// Takes a question out of those that wait, whatever became of it.
struct Place<'a>(&'a Asked, u32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

impl Asked {
    fn enter(
        &self,
        link: &Arc<Link>,
    ) -> Result<(Place<'_>, oneshot::Receiver<Result<Bytes, Unanswered>>), Unanswered> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING {
            return Err(Unanswered::Busy);
        }
        let question = Waiting {
            link: Arc::downgrade(link),
            pieces: Vec::new(),
            done,
        };
        waiting.insert(number, question);
        Ok((Place(self, number), answer))
    }

    /// A piece of an answer came. One that nobody waits for any more is late, and no offence.
    fn take_in(&self, link: &Arc<Link>, number: u32, more: bool, piece: &[u8]) {
        let mut waiting = self.waiting.lock();
        let Some(question) = waiting.get_mut(&number) else {
            return;
        };
        if !std::ptr::eq(question.link.as_ptr(), Arc::as_ptr(link)) {
            return;
        }
        let too_long = question.pieces.len() + piece.len() > MAX_ANSWER;
        if !too_long {
            question.pieces.extend_from_slice(piece);
        }
        if (too_long || !more)
            && let Some(question) = waiting.remove(&number)
        {
            let answer = match too_long {
                true => Err(Unanswered::TooLong),
                false => Ok(question.pieces.into()),
            };
            let _ = question.done.send(answer);
        }
    }
}

impl Mesh {
    /// Asks `hub`, a replica id, and waits for its answer at most so long. Cancel safe.
    ///
    /// # Errors
    /// There is none; see [`Unanswered`].
    pub async fn ask(
        &self,
        hub: &str,
        question: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Unanswered> {
        let (link, answers) = self.links.to_ask(hub).ok_or(Unanswered::LinkDown)?;
        if !answers {
            return Err(Unanswered::Unsupported);
        }
        if question.len() > MAX_QUESTION {
            return Err(Unanswered::TooLong);
        }
        let (place, answer) = self.asked.enter(&link)?;
        link.send(Frame::Query {
            number: place.1,
            body: question,
        });
        match timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            _ if link.is_closed() => Err(Unanswered::LinkLost),
            _ => Err(Unanswered::Timeout),
        }
    }
}

/// The hub at the other end of a link, as one that asks.
#[derive(Debug)]
pub(super) struct Asker {
    hub: Arc<str>,
    running: Arc<AtomicUsize>,
    rate: Mutex<Bucket>,
    since: Instant,
}

impl Asker {
    pub(super) fn new(hub: &Arc<str>) -> Self {
        Self {
            hub: hub.clone(),
            running: Arc::default(),
            rate: Mutex::default(),
            since: Instant::now(),
        }
    }

    /// Takes a place for a question that came over `link`; says whether there was none left.
    fn enter(&self, link: &Link) -> (Slot, bool) {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(self.running.clone());
        let is_too_many = before >= AT_A_TIME
            || link.unsent() >= MOST_UNSENT
            || self
                .rate
                .lock()
                .take(self.since.elapsed(), A_SECOND)
                .is_err();
        (slot, is_too_many)
    }
}

/// One of the questions that a link may have open at a time.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A question of another hub.
#[derive(Debug)]
pub struct Question {
    /// The hub that asks, a replica id that it has proven.
    pub hub: Arc<str>,
    /// What it asks.
    pub body: Bytes,
    /// As many are answered as may be: say so, and do nothing else about it.
    pub is_too_many: bool,
    number: u32,
    link: Arc<Link>,
    _slot: Slot,
}

impl Question {
    /// Answers it. An answer that is too long is none.
    pub fn answer(self, answer: Bytes) {
        let mut rest = answer;
        if rest.len() > MAX_ANSWER {
            tracing::warn!(event = "mesh_answer_too_long", hub = %self.hub, bytes = rest.len());
            return;
        }
        loop {
            let body = rest.split_to(rest.len().min(PIECE));
            let more = !rest.is_empty();
            self.link.send(Frame::Answer {
                number: self.number,
                more,
                body,
            });
            if !more {
                return;
            }
        }
    }
}

/// Follows QUERY and ANSWER. A link that brings another `frame`, or too long a question, is closed.
pub(super) fn heed(mesh: &Weak<Mesh>, link: &Arc<Link>, asker: &Asker, frame: Frame) {
    let Some(mesh) = mesh.upgrade() else {
        return;
    };
    match frame {
        Frame::Answer { number, more, body } => mesh.asked.take_in(link, number, more, &body),
        Frame::Query { number, body } if body.len() <= MAX_QUESTION => {
            let (slot, is_too_many) = asker.enter(link);
            let question = Question {
                hub: asker.hub.clone(),
                body,
                is_too_many,
                number,
                link: link.clone(),
                _slot: slot,
            };
            mesh.tell(|events| events.on_question(question));
        }
        _ => {
            mesh.count_offence(link, "unexpected_frame");
            link.close(Reason::ProtocolError);
        }
    }
}
