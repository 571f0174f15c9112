//! Which protocol version a link speaks: frames in, messages out, and the other way round.

use std::collections::VecDeque;

use bytes::Bytes;
use nowconnect_proto::frame::{self, Frame, FrameError};
use nowconnect_proto::json_v1::V1Error;
use nowconnect_proto::json_v1::bridge::{Bridge, Event, Exchange};

use crate::outgoing::Outgoing;
use crate::ws::{Opcode, Utf8Bytes};

/// The protocol version of one link.
#[derive(Debug)]
pub enum Wire {
    /// Binary frames.
    V2 {
        /// Largest payload taken in one DATA frame, in bytes.
        max_payload: usize,
    },
    /// JSON texts, translated.
    V1(Box<V1>),
}

/// Version 1 and what its translation yields.
#[derive(Debug)]
pub struct V1 {
    bridge: Bridge,
    exchange: Exchange,
}

/// A message that is no frame.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Bytes are not frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A text is no message of version 1.
    #[error(transparent)]
    V1(#[from] V1Error),
    /// A text where version 2 has frames, or bytes where version 1 has texts.
    #[error("a {0} message, which this protocol version does not have")]
    Kind(&'static str),
}

impl WireError {
    /// Label of `nowconnect_protocol_errors_total{kind}`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Frame(error) => error.name(),
            Self::V1(_) => "json",
            Self::Kind(_) => "wrong_message_type",
        }
    }
}

impl Wire {
    /// Version 1, spoken through `bridge`.
    #[must_use]
    pub fn v1(bridge: Bridge) -> Self {
        Self::V1(Box::new(V1 {
            bridge,
            exchange: Exchange::default(),
        }))
    }

    /// Whether this is version 1.
    #[must_use]
    pub fn is_v1(&self) -> bool {
        matches!(self, Self::V1(_))
    }

    /// Puts `frame` on its way; what the translation answers in the peer's place goes to `back`.
    pub(crate) fn send(
        &mut self,
        frame: Frame,
        now_ms: u64,
        out: &mut Outgoing,
        back: &mut VecDeque<Frame>,
    ) {
        match self {
            Self::V2 { .. } => out.push(&frame),
            Self::V1(v1) => {
                v1.bridge.send(frame, now_ms, &mut v1.exchange);
                v1.pass_on(out, back);
            }
        }
    }

    /// Takes the next frame off a binary message; `None` when it is used up. Frames that were skipped
    /// are added to `skipped`.
    pub(crate) fn binary(
        &self,
        message: &mut Bytes,
        skipped: &mut u64,
    ) -> Result<Option<Frame>, WireError> {
        match self {
            Self::V2 { max_payload } => Ok(frame::decode_next(message, *max_payload, skipped)?),
            Self::V1(_) => Err(WireError::Kind("binary")),
        }
    }

    /// Translates a text; its frames go to `frames`. Returns the label of an offence that does not
    /// end the link.
    pub(crate) fn text(
        &mut self,
        text: &Utf8Bytes,
        out: &mut Outgoing,
        frames: &mut VecDeque<Frame>,
    ) -> Result<Option<&'static str>, WireError> {
        let Self::V1(v1) = self else {
            return Err(WireError::Kind("text"));
        };
        v1.bridge.receive(text.as_bytes(), &mut v1.exchange)?;
        Ok(v1.pass_on(out, frames))
    }

    /// When [`Wire::on_time`] is due, in milliseconds.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        match self {
            Self::V2 { .. } => None,
            Self::V1(v1) => v1.bridge.deadline_ms(),
        }
    }

    pub(crate) fn on_time(
        &mut self,
        now_ms: u64,
        out: &mut Outgoing,
        frames: &mut VecDeque<Frame>,
    ) {
        if let Self::V1(v1) = self {
            v1.bridge.on_time(now_ms, &mut v1.exchange);
            v1.pass_on(out, frames);
        }
    }
}

impl V1 {
    fn pass_on(
        &mut self,
        out: &mut Outgoing,
        frames: &mut VecDeque<Frame>,
    ) -> Option<&'static str> {
        for text in self.exchange.texts.drain(..) {
            out.push_message(Opcode::Text, text.as_bytes());
        }
        frames.extend(self.exchange.frames.drain(..));
        self.exchange
            .events
            .drain(..)
            .fold(None, |offence, event| match event {
                Event::ProtocolError(kind) => Some(kind),
                Event::QueueOverflow(_) => offence,
            })
    }
}
