//! A WebSocket that speaks one of the two protocol versions, before and without the driver: the
//! handshake is a few frames in order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use nowconnect_proto::frame::MAX_JSON_BODY;
use nowconnect_proto::hello::{Body, HelloError};
use nowconnect_proto::{Frame, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use crate::meter::Meter;
use crate::outgoing::Outgoing;
use crate::read_size::ReadSize;
use crate::wire::{Wire, WireError};
use crate::ws::{Decoder, Limits, Mask, Message, Opcode, Role, WsError};

/// A read is not worth a system call with less room than this.
const LEAST_READ: usize = 16 * 1024;

/// What a peer may say that moves nothing before the driver counts it, in messages or frames.
const MOST_IDLE: u64 = 1_000;

/// Longest WebSocket message taken where DATA frames carry up to `max_payload` bytes.
fn limits(max_payload: usize, v1: bool) -> Limits {
    // Base64 adds a third; a message of version 2 may hold small frames beside a large one.
    let payload = if v1 {
        max_payload / 3 * 4 + 4
    } else {
        max_payload
    };
    let longest = payload.max(MAX_JSON_BODY) + 32 * 1024;
    Limits {
        max_frame: longest,
        max_message: longest,
    }
}

/// Why a WebSocket yields no more frames.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The connection failed or ended.
    #[error("connection lost: {}", ending(.0))]
    Io(#[from] io::Error),
    /// The peer broke RFC 6455 or a limit.
    #[error("WebSocket: {0}")]
    Ws(#[from] WsError),
    /// The peer sent what is no frame.
    #[error("protocol: {0}")]
    Wire(#[from] WireError),
    /// The peer said so much that moves nothing that no frame is to be expected.
    #[error("more than {MOST_IDLE} messages that move nothing")]
    Flood,
    /// The peer closed the WebSocket in order.
    #[error("closed by the peer{}", .0.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Closed(Option<String>),
}

/// TLS has a sentence and a web address for an end without a goodbye, sockets "unexpected end of file".
fn ending(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side, or something in between, ended it".into(),
        _ => error.to_string(),
    }
}

/// Why an introduction was not answered by one.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// The other side gave a reason.
    #[error("refused: {0}")]
    Refused(Reason),
    /// Another frame came where the answer was due.
    #[error("{0} where HELLO_ACK was due")]
    Unexpected(&'static str),
    /// There will be no more frames.
    #[error(transparent)]
    Carrier(#[from] CarrierError),
}

/// Why nobody was introduced.
#[derive(Debug, thiserror::Error)]
pub enum NoHello {
    /// Another frame came first.
    #[error("{0} where HELLO was due")]
    Unexpected(&'static str),
    /// What the introduction says, or the answer to it, makes no sense.
    #[error("HELLO: {0}")]
    Hello(#[from] HelloError),
    /// There will be no frames.
    #[error(transparent)]
    Carrier(#[from] CarrierError),
}

impl NoHello {
    /// What the other side is told.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Carrier(CarrierError::Io(_)) => Reason::ConnectionLost,
            Self::Carrier(CarrierError::Closed(_)) => Reason::PeerClosed,
            Self::Carrier(CarrierError::Flood) => Reason::Flood,
            Self::Carrier(_) | Self::Unexpected(_) | Self::Hello(_) => Reason::ProtocolError,
        }
    }
}

/// The WebSocket of one link.
pub struct Carrier<S> {
    pub(super) io: S,
    decoder: Decoder,
    input: BytesMut,
    read_size: ReadSize,
    /// How the input ended, behind what was read last.
    input_end: Option<io::Error>,
    /// A binary message that still holds frames.
    message: Bytes,
    pub(super) frames: VecDeque<Frame>,
    pub(super) out: Outgoing,
    pub(super) wire: Wire,
    /// The latest ping of the WebSocket that waits for its pong; older ones need none (RFC 6455
    /// section 5.5.3).
    ws_ping: Option<Bytes>,
    /// What a pong of the WebSocket brought.
    pub(super) ws_pong: Option<u64>,
    /// Bytes received that the meter does not know of.
    pub(super) received: usize,
    pub(super) meter: Option<Arc<dyn Meter>>,
    /// Offences that do not end the link, of the messages taken since they were last looked at.
    pub(super) offences: Vec<&'static str>,
    /// What moved nothing, since it was last looked at: empty messages, pieces of messages, control
    /// messages of the WebSocket, frames of unknown types.
    pub(super) idle: u64,
    /// How the peer broke the WebSocket.
    broken: Option<WsError>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier<S> {
    /// Takes over a connection after its upgrade. `role` is ours in the WebSocket, `leftover` what
    /// was read behind the handshake, and `max_payload` the largest DATA payload that is taken.
    #[must_use]
    pub fn new(
        io: S,
        leftover: BytesMut,
        role: Role,
        mask: Mask,
        wire: Wire,
        max_payload: usize,
    ) -> Self {
        Self {
            io,
            decoder: Decoder::new(role, limits(max_payload, wire.is_v1())),
            input: leftover,
            read_size: ReadSize::new(),
            input_end: None,
            message: Bytes::new(),
            frames: VecDeque::new(),
            out: Outgoing::new(mask),
            wire,
            ws_ping: None,
            ws_pong: None,
            received: 0,
            meter: None,
            offences: Vec::new(),
            idle: 0,
            broken: None,
        }
    }

    /// Whether the peer speaks version 1.
    #[must_use]
    pub fn is_v1(&self) -> bool {
        self.wire.is_v1()
    }

    /// The next frame. Cancel-safe. The caller sets the deadline.
    ///
    /// # Errors
    /// There will be no more frames, or too much else comes: nothing is written meanwhile, so that
    /// answers would pile up.
    pub async fn receive(&mut self) -> Result<Frame, CarrierError> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn send(&mut self, frame: Frame) -> io::Result<()> {
        self.queue(frame);
        self.flush().await
    }

    /// Says HELLO with `hello` as its body and waits for HELLO_ACK; returns that one's body. The caller
    /// sets the deadline.
    ///
    /// # Errors
    /// See [`GreetError`].
    pub async fn greet(&mut self, hello: Bytes) -> Result<Bytes, GreetError> {
        let sent = self.send(Frame::Hello(hello)).await;
        sent.map_err(CarrierError::Io)?;
        match self.receive().await {
            Ok(Frame::HelloAck(body)) => Ok(body),
            Ok(Frame::GoAway { reason, .. }) => Err(GreetError::Refused(reason)),
            Ok(other) => Err(GreetError::Unexpected(other.name())),
            Err(CarrierError::Closed(Some(word)))
                if Reason::from_name(&word) != Reason::Unspecified =>
            {
                Err(GreetError::Refused(Reason::from_name(&word)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for HELLO, which comes first, and reads its body. The caller sets the deadline.
    ///
    /// # Errors
    /// See [`NoHello`].
    pub async fn receive_hello<H: Body>(&mut self) -> Result<H, NoHello> {
        match self.receive().await? {
            Frame::Hello(body) => Ok(H::decode(&body)?),
            other => Err(NoHello::Unexpected(other.name())),
        }
    }

    /// Leaves one frame to whoever writes next: this carrier's [`send`](Self::send), or the driver
    /// of the link that it becomes, before anything else.
    pub fn queue(&mut self, frame: Frame) {
        self.put(frame, 0);
    }

    /// Puts a frame behind those that wait to be written.
    pub(super) fn put(&mut self, frame: Frame, now_ms: u64) {
        if let Some(meter) = &self.meter {
            meter.frame_out(&frame);
        }
        self.wire
            .send(frame, now_ms, &mut self.out, &mut self.frames);
    }

    /// Closes in order, with the reason.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn close(&mut self, reason: Reason) -> io::Result<()> {
        self.push_close(reason);
        self.flush().await?;
        poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.out.poll_write(&mut self.io, cx, &mut 0)).await
    }

    /// Says goodbye: GOAWAY and the WebSocket's close.
    pub(super) fn push_close(&mut self, reason: Reason) {
        let code = match reason {
            Reason::Draining | Reason::Shutdown => 1001,
            Reason::ProtocolError => 1002,
            Reason::AuthFailed
            | Reason::TokenExpired
            | Reason::TokenRevoked
            | Reason::IdentityConflict
            | Reason::Flood
            | Reason::Denied => 1008,
            _ => 1000,
        };
        let goodbye = Frame::GoAway {
            reason,
            deadline_ms: 0,
        };
        self.put(goodbye, 0);
        let code = self.broken.map_or(code, |error| error.close_code());
        self.out.push_close(code, reason.name());
    }

    /// Puts the answers and pings of the WebSocket itself on their way.
    pub(super) fn push_ws_control(&mut self) {
        if let Some(ping) = self.ws_ping.take() {
            self.out.push_message(Opcode::Pong, &ping);
        }
    }

    /// Puts what the link itself has to say on its way, unless the peer does not listen.
    pub(super) fn take_control(&mut self, waiting: &mut VecDeque<Frame>, now: u64) {
        while !self.out.is_flooded()
            && let Some(frame) = waiting.pop_front()
        {
            self.put(frame, now / 1000);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, CarrierError>> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Poll::Ready(Ok(frame));
            }
            if self.idle + self.offences.len() as u64 > MOST_IDLE {
                return Poll::Ready(Err(CarrierError::Flood));
            }
            ready!(self.poll_read(cx))?;
        }
    }

    /// Reads what there is, as far as there is room: TLS yields a record at a time, and what is
    /// handed on together costs less. Only to be called when [`Carrier::next_frame`] has no more.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CarrierError>> {
        if let Some(end) = self.input_end.take() {
            return Poll::Ready(Err(end.into()));
        }
        self.make_room();
        let had = self.input.len();
        let is_full = |input: &BytesMut| input.len() == input.capacity();
        let end = loop {
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
                Poll::Ready(Ok(0)) => break Some(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Ok(_)) if is_full(&self.input) => break None,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => break Some(error),
                Poll::Pending => break None,
            }
        };
        let read = self.input.len() - had;
        match end {
            Some(end) if read == 0 => return Poll::Ready(Err(end.into())),
            None if read == 0 => return Poll::Pending,
            end => self.input_end = end,
        }
        self.received += read;
        if self.read_size.note(read, is_full(&self.input)) {
            let mut smaller = BytesMut::with_capacity(self.read_size.get());
            smaller.extend_from_slice(&self.input);
            self.input = smaller;
        }
        Poll::Ready(Ok(()))
    }

    fn make_room(&mut self) {
        let (len, room) = (self.input.len(), self.input.capacity() - self.input.len());
        let least = LEAST_READ.max(self.decoder.missing(&self.input));
        // An empty buffer that nobody refers to is had again as a whole, for nothing.
        if len == 0 || room < least {
            let more = self.read_size.get().saturating_sub(len);
            self.input.reserve(more.max(least));
        }
    }

    /// The next frame of what was read.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, CarrierError> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(Some(frame));
            }
            if !self.message.is_empty() {
                let next = self.wire.binary(&mut self.message, &mut self.idle)?;
                if let Some(frame) = next {
                    return Ok(Some(frame));
                }
                continue;
            }
            let decoded = self.decoder.decode(&mut self.input);
            self.idle += self.decoder.take_pieces();
            self.broken = decoded.as_ref().err().copied();
            match decoded? {
                None => return Ok(None),
                Some(Message::Binary(message)) => {
                    if self.wire.is_v1() {
                        return Err(WireError::Kind("binary").into());
                    }
                    self.idle += u64::from(message.is_empty());
                    self.message = message;
                }
                Some(Message::Text(text)) => {
                    let offence = self.wire.text(&text, &mut self.out, &mut self.frames)?;
                    self.offences.extend(offence);
                }
                Some(Message::Ping(payload)) => {
                    self.idle += 1;
                    self.ws_ping = Some(payload);
                }
                Some(Message::Pong(payload)) => {
                    self.idle += 1;
                    self.ws_pong = payload.as_ref().try_into().ok().map(u64::from_be_bytes);
                }
                Some(Message::Close(close)) => {
                    let reason = close.map(|close| close.reason.to_string());
                    return Err(CarrierError::Closed(
                        reason.filter(|reason| !reason.is_empty()),
                    ));
                }
            }
        }
    }
}
