//! What is asked and what was allowed, about one kind of client. There is a desk for those of this
//! hub and one for those of others, so that no other hub can keep the clients of this one waiting, or
//! have them forgotten.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, watch};

use super::Question;
use super::cache::Cache;
use super::outcome::Outcome;

/// Questions that are asked at a time.
pub(super) const MOST_ASKED: usize = 32;
/// Questions that are asked or wait for a place. Beyond, there is no answer.
const MOST_OPEN: usize = 8192;

/// Where the outcome of a question appears.
pub(super) type Outlook = watch::Receiver<Option<Outcome>>;

/// What is known about a question.
pub(super) enum Known {
    Allowed,
    /// Somebody asks it already.
    Asked(Outlook),
    /// The caller is to ask it, to tell the outcome, and to [leave](Desk::leave).
    Unasked(watch::Sender<Option<Outcome>>, Outlook),
    /// Too many wait.
    Full,
}

#[derive(Debug)]
pub(super) struct Desk {
    places: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    allowed: Cache,
    asked: HashMap<Question, Outlook>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            places: Semaphore::new(MOST_ASKED),
            state: Mutex::default(),
        }
    }
}

impl Desk {
    /// For how long the question is still allowed without being asked.
    pub(super) fn left(&self, question: &Question) -> Option<Duration> {
        self.state.lock().allowed.left(question, Instant::now())
    }

    pub(super) fn look_up(&self, question: &Question) -> Known {
        let mut state = self.state.lock();
        if state.allowed.left(question, Instant::now()).is_some() {
            return Known::Allowed;
        }
        if let Some(asked) = state.asked.get(question) {
            return Known::Asked(asked.clone());
        }
        if state.asked.len() >= MOST_OPEN {
            return Known::Full;
        }
        let (told, outlook) = watch::channel(None);
        state.asked.insert(question.clone(), outlook.clone());
        Known::Unasked(told, outlook)
    }

    /// Waits for a turn to ask.
    pub(super) async fn place(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.places.acquire().await
    }

    pub(super) fn allow(&self, question: Question, ttl: Duration) {
        let mut state = self.state.lock();
        state.allowed.allow(question, ttl, Instant::now());
    }

    /// The question is not being asked any more: whoever wants to know from now on asks anew.
    pub(super) fn leave(&self, question: &Question) {
        self.state.lock().asked.remove(question);
    }
}
