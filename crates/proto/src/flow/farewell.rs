//! How a flow ends, and what is left to say or to hear about it.
//!
//! An end that gives up repeats its RST on every further path, until the other one has confirmed it
//! with an RST of its own ([`Reason::UnknownFlow`]) or turned out not to know the flow.

use super::Step;
use crate::close::Reason;

/// How a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Both directions ended with FIN and everything was acknowledged.
    Finished,
    /// This end gave up.
    Local(Reason),
    /// The other end gave up.
    Remote(Reason),
}

#[derive(Debug)]
pub(super) struct Farewell {
    ending: Option<Ending>,
    word: Word,
    /// The other end confirms a reset.
    echoes: bool,
}

/// The last word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    /// None is missing: a flow that has ended can be forgotten.
    Spoken,
    /// This end gave up, and the other one is to be told.
    Due,
    /// It was told on this path, and has not confirmed it.
    Unconfirmed,
    /// The other end gave up, which is to be confirmed.
    Echo,
}

impl Farewell {
    pub(super) fn new() -> Self {
        Self {
            ending: None,
            word: Word::Spoken,
            echoes: true,
        }
    }

    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.has_ended() && self.word == Word::Spoken
    }

    /// Whether there is something to put on a path.
    pub(super) fn has_word(&self) -> bool {
        matches!(self.word, Word::Due | Word::Echo)
    }

    pub(super) fn set_echoes(&mut self, echoes: bool) {
        self.echoes = echoes;
    }

    pub(super) fn finish(&mut self) {
        self.ending = Some(Ending::Finished);
    }

    /// This end gives up; the peer, if it `knows` the flow, is to be told. Not for a flow that has
    /// ended.
    pub(super) fn give_up(&mut self, reason: Reason, knows: bool) {
        self.ending = Some(Ending::Local(reason));
        if knows {
            self.word = Word::Due;
        }
    }

    pub(super) fn forget(&mut self) {
        debug_assert!(self.has_ended());
        self.word = Word::Spoken;
    }

    /// Tells the peer on the path that there is, if there is one, and waits for no answer.
    pub(super) fn tell_once(&mut self, has_path: bool) {
        self.echoes = false;
        match self.word {
            Word::Unconfirmed => self.word = Word::Spoken,
            Word::Due if !has_path => self.word = Word::Spoken,
            _ => {}
        }
    }

    /// Another path: what was said on the last one may be lost.
    pub(super) fn repeat(&mut self) {
        if self.word == Word::Unconfirmed {
            self.word = Word::Due;
        }
    }

    pub(super) fn lose_path(&mut self) {
        self.repeat();
        match self.word {
            // Whoever gave up will hear that the flow is not known here.
            Word::Echo => self.word = Word::Spoken,
            Word::Due if !self.echoes => self.word = Word::Spoken,
            _ => {}
        }
    }

    /// What to put on the path. A flow that this end never took is not reset but `refuse`d: the
    /// origin takes that for an answer, and if it is lost, the flow may be offered again.
    pub(super) fn next_step(&mut self, refuse: bool) -> Option<Step> {
        let reason = match (self.word, self.ending) {
            (Word::Due, Some(Ending::Local(reason))) => reason,
            (Word::Echo, _) => {
                self.word = Word::Spoken;
                let reason = Reason::UnknownFlow;
                return Some(Step::Rst { reason });
            }
            _ => return None,
        };
        if refuse {
            self.word = Word::Spoken;
            return Some(Step::Refuse { reason });
        }
        self.word = if self.echoes {
            Word::Unconfirmed
        } else {
            Word::Spoken
        };
        Some(Step::Rst { reason })
    }

    /// The other end gave up, or confirms that this one did. Whether the flow ends by that.
    pub(super) fn on_rst(&mut self, reason: Reason) -> bool {
        let waits = self.echoes && reason != Reason::UnknownFlow;
        // An RST of our own that it gets, or has got, on this path is as good as an echo.
        let told = self.word == Word::Unconfirmed;
        let ends = self.end_by_peer(reason);
        self.word = if waits && !told {
            Word::Echo
        } else {
            Word::Spoken
        };
        ends
    }

    /// Nobody takes the flow, so that there is nobody to tell. Whether the flow ends by that.
    pub(super) fn on_refusal(&mut self, reason: Reason) -> bool {
        self.word = Word::Spoken;
        self.end_by_peer(reason)
    }

    fn end_by_peer(&mut self, reason: Reason) -> bool {
        let ends = !self.has_ended();
        if ends {
            self.ending = Some(Ending::Remote(reason));
        }
        ends
    }
}
