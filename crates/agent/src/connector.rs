//! Keeps a tunnel to some hub, for ever.
//!
//! One tunnel is wanted. When a hub says GOAWAY the next one is made while the old one still
//! carries its flows. When a tunnel is lost, its flows wait without a path for the next one. Nobody
//! is hammered: delays have full jitter, and a tunnel must live for a while before its end counts
//! as a new incident.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_link::dial::WsUrl;
use nowconnect_link::session::LinkClosed;
use nowconnect_proto::backoff::Backoff;
use nowconnect_proto::hello::{Body, TokenAck, Update, UpdateAck};
use nowconnect_proto::{Frame, Reason};
use nowconnect_settings::Watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::AgentConfig;
use crate::failure::rest_after;
use crate::health::Readiness;
use crate::metrics::Metrics;
use crate::round::{self, Won};
use crate::token;
use crate::tunnel::{Control, Tunnel, Tunnels};

/// Bound of the first delay after a tunnel that had lived.
const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// Bound of every later delay.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Bound of a delay while flows wait for a path, so that several attempts fit into their grace, and
/// of the first delay after a tunnel, since a hub was there a moment ago.
const BACKOFF_URGENT: Duration = Duration::from_secs(5);
/// How often the token file is looked at.
const TOKEN_PERIOD: Duration = Duration::from_secs(1);

/// The task that makes tunnels and listens to what hubs say about them.
#[derive(Debug)]
pub(crate) struct Connector {
    tunnels: Arc<Tunnels>,
    config: watch::Receiver<Arc<AgentConfig>>,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    token_file: Watcher,
    backoff: Backoff,
    started: Instant,
    /// Which of the URLs to try first: the one that worked last.
    preferred: usize,
    /// How the last tunnel ended.
    last_end: Option<&'static str>,
}

/// Why a tunnel is not the current one any more.
enum End {
    /// It is gone.
    Lost(LinkClosed),
    /// Its hub wants us elsewhere; until then it carries its flows.
    Leaving(Reason),
    /// The agent stops.
    Stopped,
}

impl Connector {
    pub(crate) fn new(
        tunnels: Arc<Tunnels>,
        config: watch::Receiver<Arc<AgentConfig>>,
        readiness: Arc<Readiness>,
        stop: CancellationToken,
    ) -> Self {
        let token_file = config.borrow().tunnel.token_file.clone();
        Self {
            metrics: Arc::clone(&tunnels.metrics),
            tunnels,
            config,
            readiness,
            stop,
            token_file: Watcher::new([token_file], TOKEN_PERIOD),
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
            started: Instant::now(),
            preferred: 0,
            last_end: None,
        }
    }

    /// Keeps a tunnel until the agent stops; then tells the hub, and leaves the link to its flows.
    pub(crate) async fn run(mut self, drain: watch::Receiver<Duration>) {
        let stop = self.stop.clone();
        while let Some((mut tunnel, url)) = stop.run_until_cancelled(self.establish()).await {
            let up = self.readiness.tunnel_up();
            let end = self.serve(&mut tunnel).await;
            drop(up);
            self.backoff.note_lost(self.started.elapsed());
            let reason = match end {
                End::Stopped => {
                    tunnel.link.go_away(Reason::Shutdown, *drain.borrow());
                    return self.leave(tunnel, url, Reason::Shutdown);
                }
                End::Lost(closed) => {
                    log_down(&url, &closed);
                    closed.reason
                }
                End::Leaving(reason) => {
                    self.preferred += 1;
                    self.leave(tunnel, url, reason);
                    reason
                }
            };
            self.last_end = Some(end_label(reason));
            if let Some(rest) = rest_after(reason) {
                self.backoff.note_retry_after(rest);
            }
            stop.run_until_cancelled(self.rest(true)).await;
        }
    }

    /// Tries hubs until one has acknowledged a tunnel.
    async fn establish(&mut self) -> (Tunnel, WsUrl) {
        loop {
            let config = Arc::clone(&self.config.borrow_and_update());
            self.token_file.watch([config.tunnel.token_file.clone()]);
            match round::run(&self.tunnels, &config, self.preferred).await {
                Ok(Won { tunnel, url, at }) => {
                    self.preferred = at;
                    self.note_up(&tunnel, &url, &config);
                    return (tunnel, url);
                }
                Err(retry_after) => self.backoff.note_retry_after(retry_after),
            }
            self.rest(false).await;
        }
    }

    fn note_up(&mut self, tunnel: &Tunnel, url: &WsUrl, config: &AgentConfig) {
        self.backoff.note_connected(self.started.elapsed());
        if let Some(reason) = self.last_end.take() {
            self.metrics
                .reconnects
                .with([&config.tunnel.agent_id, reason])
                .inc();
        }
        tracing::info!(
            event = "tunnel_up", %url, hub = tunnel.ack.hub, epoch = tunnel.ack.epoch,
            protocol = if tunnel.link.is_v1() { 1 } else { 2 },
            connectors = tunnel.connectors.join(",")
        );
    }

    /// Waits before the next attempt, unless there is news that may make it succeed.
    async fn rest(&mut self, just_lost: bool) {
        let urgent = just_lost || !self.tunnels.flows.is_empty();
        let most = if urgent { BACKOFF_URGENT } else { BACKOFF_MAX };
        let delay = self.backoff.next_within(rand::random(), most);
        tracing::debug!(event = "tunnel_retry", in_ms = delay.as_millis());
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = self.token_file.changed() => tracing::info!(event = "token_file_changed"),
            Ok(()) = self.config.changed() => {}
        }
    }

    /// Looks after the current tunnel until it is the current one no longer.
    async fn serve(&mut self, tunnel: &mut Tunnel) -> End {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return End::Stopped,
                closed = &mut tunnel.driver => return End::Lost(closed.unwrap_or_else(|error| {
                    LinkClosed { reason: Reason::Unspecified, detail: error.to_string() }
                })),
                Some(control) = tunnel.controls.recv() => {
                    if let Some(end) = heed(tunnel, control) {
                        return end;
                    }
                }
                _ = self.token_file.changed() => self.present_token(tunnel).await,
                Ok(()) = self.config.changed() => self.apply(tunnel),
            }
        }
    }

    async fn present_token(&self, tunnel: &mut Tunnel) {
        let config = Arc::clone(&self.config.borrow());
        match token::read(&config.tunnel.token_file).await {
            Ok(token) if token == tunnel.token => {}
            Ok(token) => {
                if let Ok(body) = token.encode() {
                    tunnel.link.send(Frame::Token(body.into()));
                }
                tunnel.token = token;
            }
            Err(error) => tracing::warn!(event = "token_unreadable", %error),
        }
    }

    /// A configuration that took effect elsewhere already: what the hub must hear of it.
    fn apply(&mut self, tunnel: &mut Tunnel) {
        let config = Arc::clone(&self.config.borrow_and_update());
        self.token_file.watch([config.tunnel.token_file.clone()]);
        let connectors = self.tunnels.flows.targets().names();
        if connectors != tunnel.connectors {
            tunnel.connectors.clone_from(&connectors);
            if let Ok(body) = (Update { connectors }).encode() {
                tunnel.link.send(Frame::Update(body.into()));
            }
        }
    }

    /// Leaves an old tunnel to its flows, until its hub closes it or the agent has no more time.
    fn leave(&self, mut tunnel: Tunnel, url: WsUrl, reason: Reason) {
        tracing::info!(event = "tunnel_leaving", %url, hub = tunnel.ack.hub, %reason);
        let stop = self.tunnels.links.token();
        self.tunnels.links.spawn("leaving tunnel", async move {
            let closed = tokio::select! {
                biased;
                closed = &mut tunnel.driver => closed,
                () = stop.cancelled() => {
                    tunnel.link.close(Reason::Shutdown);
                    (&mut tunnel.driver).await
                }
            };
            if let Ok(closed) = closed {
                log_down(&url, &closed);
            }
        });
    }
}

/// What a hub said about its tunnel; the tunnel may be over with that.
fn heed(tunnel: &Tunnel, control: Control) -> Option<End> {
    let hub = &tunnel.ack.hub;
    match control {
        // These are followed by the end of the link, and to be faster than that would only repeat
        // the cause.
        Control::GoAway(Reason::Superseded | Reason::IdentityConflict | Reason::AuthFailed, _) => {}
        Control::GoAway(reason, deadline) => {
            tracing::info!(event = "goaway", hub, %reason, deadline_ms = deadline.as_millis());
            return Some(End::Leaving(reason));
        }
        Control::Token(TokenAck::Renewed { expires_at }) => {
            tracing::info!(event = "token_renewed", hub, expires_at);
        }
        Control::Token(TokenAck::Refused { error }) => {
            tracing::warn!(event = "token_refused", hub, error);
        }
        Control::Update(UpdateAck { accepted, rejected }) => {
            tracing::info!(
                event = "connectors_updated",
                hub,
                accepted = accepted.join(",")
            );
            for one in rejected {
                tracing::warn!(
                    event = "connector_rejected",
                    hub,
                    connector = one.name,
                    reason = one.reason
                );
            }
        }
    }
    None
}

fn log_down(url: &WsUrl, closed: &LinkClosed) {
    tracing::warn!(event = "tunnel_down", %url, reason = %closed.reason, error = closed.detail);
}

/// Label of `nowconnect_tunnel_reconnects_total{reason}`: the same words as the hub's.
fn end_label(reason: Reason) -> &'static str {
    match reason {
        Reason::PingTimeout | Reason::WriteStalled => "ping_timeout",
        Reason::ConnectionLost => "io_error",
        Reason::ProtocolError => "protocol_error",
        Reason::Superseded | Reason::IdentityConflict => "superseded",
        Reason::TokenExpired => "token_expired",
        Reason::Draining | Reason::Shutdown => "drained",
        _ => "closed",
    }
}
