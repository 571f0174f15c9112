//! A way for a probe through an agent's tunnel: an ordinary flow whose client is this hub itself.
//!
//! The engine moves bytes between a tunnel and a TCP socket, so the probe holds the other end of such
//! a socket, over loopback. What carries clients is thereby what is probed, byte for byte.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use nowconnect_link::counters::{Engine, FlowCounters};
use nowconnect_link::endpoint::{FlowEvents, Label, SocketFlow, Summary};
use nowconnect_proto::frame::PROBE_LISTENER;
use nowconnect_proto::{Cid, Reason};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::fault::Fault;
use crate::tunnels::Session;

/// How long a target may take to close its side when the probe has closed its own.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long an agent may take to confirm that the flow has ended.
const CONFIRMATION: Duration = Duration::from_secs(2);

/// A flow with this hub as its client.
pub(super) struct Passage {
    /// The probe's end.
    pub(super) near: TcpStream,
    flow: Arc<SocketFlow>,
    news: watch::Receiver<News>,
    /// Whether the agent says that a target has accepted. Version 1 has only a word for the contrary;
    /// what a target says, and some seconds of silence, count as one.
    pub(super) answers_opens: bool,
}

/// What has become of the flow.
#[derive(Clone, Copy, Default)]
struct News {
    opened: bool,
    ended: Option<Reason>,
    over: bool,
}

impl Passage {
    /// Opens a flow of `connector` to exactly this agent, past all that stands before clients.
    ///
    /// # Errors
    /// This hub has no sockets left, or the tunnel has just ended; nothing about the target.
    pub(super) async fn open(
        session: &Session,
        connector: &Arc<str>,
        engine: &Arc<Engine>,
    ) -> Result<Self, Fault> {
        let (near, far) = loopback().await.map_err(|error| {
            Fault::of_path(
                "local",
                format!("this hub cannot open a socket for it: {error}"),
            )
        })?;
        let label = Label {
            connector: connector.clone(),
            listener: PROBE_LISTENER.into(),
            client: "".into(),
            destination: "".into(),
        };
        let (sender, news) = watch::channel(News::default());
        let events = Arc::new(Ear(sender));
        let (cid, counters) = (Cid::generate(), FlowCounters::default());
        let flow = SocketFlow::origin(cid, label, far, engine, counters, events);
        let link = session.link();
        link.attach(&flow, session.epoch()).map_err(Fault::of_end)?;
        Ok(Self {
            near,
            flow,
            news,
            answers_opens: !link.is_v1(),
        })
    }

    /// Waits for the agent's word that the target has accepted.
    ///
    /// # Errors
    /// The target cannot be reached, or the tunnel was lost.
    pub(super) async fn accepted(&mut self) -> Result<(), Fault> {
        let news = self
            .news
            .wait_for(|news| news.opened || news.ended.is_some());
        match news.await.map(|news| *news) {
            Ok(News { opened: true, .. }) => Ok(()),
            Ok(News { ended, .. }) => Err(Fault::of_end(ended.unwrap_or(Reason::Unspecified))),
            Err(_) => Err(Fault::of_end(Reason::Unspecified)),
        }
    }

    /// `fault`, or why the flow ended, which may be what was behind it.
    pub(super) fn explain(&self, fault: Fault) -> Fault {
        match self.news.borrow().ended {
            None | Some(Reason::Finished) => fault,
            Some(reason) => Fault::of_end(reason),
        }
    }

    /// Ends the flow: in order when the probe has had its answer, as a reset otherwise.
    pub(super) async fn close(mut self, in_order: bool) {
        if in_order && self.near.shutdown().await.is_ok() {
            let finished = self.news.wait_for(|news| news.over);
            if matches!(timeout(FAREWELL, finished).await, Ok(Ok(_))) {
                return;
            }
        }
        self.flow.abort(Reason::SocketReset);
        let confirmed = self.news.wait_for(|news| news.over);
        if !matches!(timeout(CONFIRMATION, confirmed).await, Ok(Ok(_))) {
            self.flow.expire(Reason::SocketReset);
        }
    }
}

/// Two ends of one connection within this machine.
async fn loopback() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let own = near.local_addr()?;
    // Somebody else on this machine may have been faster.
    loop {
        let (far, from) = listener.accept().await?;
        if from == own {
            near.set_nodelay(true)?;
            far.set_nodelay(true)?;
            return Ok((near, far));
        }
    }
}

/// Hears what becomes of the flow.
struct Ear(watch::Sender<News>);

impl FlowEvents for Ear {
    fn opened(&self, _: &Arc<SocketFlow>) {
        self.0.send_modify(|news| news.opened = true);
    }

    fn refused(&self, _: &Arc<SocketFlow>, _: Reason) -> bool {
        // The question is about this agent and no other.
        false
    }

    fn path_lost(&self, flow: &Arc<SocketFlow>) {
        flow.expire(Reason::ConnectionLost);
    }

    fn closed(&self, _: &Arc<SocketFlow>, summary: Summary) {
        let reason = summary.reason();
        self.0.send_modify(|news| news.ended = Some(reason));
    }

    fn over(&self, _: &Arc<SocketFlow>) {
        self.0.send_modify(|news| news.over = true);
    }
}
