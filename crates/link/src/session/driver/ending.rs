//! How a link ends: by an error, by a goodbye, or because its task is dropped.

use std::sync::atomic::Ordering;

use nowconnect_proto::Reason;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Driver, LinkClosed};
use crate::session::CarrierError;

/// How long a closing link may take to say goodbye, in microseconds.
const CLOSE_LINGER: u64 = 1_000_000;

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn failed(&mut self, error: &CarrierError, now: u64) {
        let kind = match error {
            CarrierError::Wire(error) => Some(error.name()),
            CarrierError::Ws(_) => Some("websocket"),
            CarrierError::Flood => Some("flood"),
            CarrierError::Io(_) | CarrierError::Closed(_) => None,
        };
        if let Some(kind) = kind {
            self.events.on_protocol_error(&self.link, kind);
        }
        let closed = self.lost(error);
        if matches!(error, CarrierError::Io(_)) {
            self.input_over = true;
            self.closing = Some((closed, now));
        } else {
            self.close(closed, now);
        }
    }

    pub(super) fn lost(&self, error: &CarrierError) -> LinkClosed {
        let reason = match error {
            CarrierError::Ws(_) | CarrierError::Wire(_) => Reason::ProtocolError,
            CarrierError::Flood => Reason::Flood,
            CarrierError::Io(_) => self.peer_reason.unwrap_or(Reason::ConnectionLost),
            CarrierError::Closed(reason) => match reason.as_deref().map(Reason::from_name) {
                None | Some(Reason::Unspecified) => self.peer_reason.unwrap_or(Reason::PeerClosed),
                Some(reason) => reason,
            },
        };
        LinkClosed {
            reason,
            detail: error.to_string(),
        }
    }

    /// Says goodbye and reads no more.
    pub(super) fn close(&mut self, closed: LinkClosed, now: u64) {
        self.input_over = true;
        if self.closing.is_none() {
            self.carrier.push_close(closed.reason);
            self.closing = Some((closed, now + CLOSE_LINGER));
        }
    }
}

impl<S> Driver<S> {
    /// Closes the link for everybody; its flows wait for another.
    pub(super) fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(meter) = &self.carrier.meter {
            // Whoever looks for another path may keep the link for long.
            meter.waiting(0, 0);
        }
        let mut woken = std::mem::take(&mut self.woken);
        {
            let mut queue = self.link.queue.lock();
            queue.closed = true;
            woken.append(&mut queue.ready);
            queue.owing.clear();
            queue.control.clear();
        }
        let flows = std::mem::take(&mut *self.link.flows.lock());
        self.link.active.store(0, Ordering::Relaxed);
        for flow in flows.into_values() {
            flow.path_lost(&self.link, !self.link.is_v1());
        }
        for flow in woken {
            flow.pass_on(&self.link);
        }
    }
}
