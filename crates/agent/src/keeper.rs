//! Keeps one tunnel, for ever.
//!
//! When a hub says GOAWAY the next tunnel is made while the old one still carries its flows. When a
//! tunnel is lost, its flows wait without a path for the next one. Nobody is hammered: delays have
//! full jitter, and a tunnel must live for a while before its end counts as a new incident.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_link::session::LinkClosed;
use nowconnect_proto::backoff::{Backoff, MAX_RETRY_AFTER};
use nowconnect_proto::hello::{Body, TokenAck, Update, UpdateAck};
use nowconnect_proto::{Frame, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::credential::Credential;
use crate::leaving::{leave, log_down, move_away};
use crate::renewal::renewal;
use crate::round::{self, Won};
use crate::surroundings::{BACKOFF_BASE, BACKOFF_MAX, Scope, Surroundings};
use crate::tunnel::{Control, Tunnel};

/// Bound of a delay while flows wait for a path, so that several attempts fit into their grace, and
/// of the first delay after a tunnel, since a hub was there a moment ago.
const BACKOFF_URGENT: Duration = Duration::from_secs(5);

/// The task that keeps a tunnel and listens to what its hub says about it.
#[derive(Debug)]
pub(crate) struct Keeper {
    around: Surroundings,
    scope: Scope,
    /// The token file has another content.
    token: watch::Receiver<()>,
    stop: CancellationToken,
    /// The agent stops, or this tunnel is wanted no longer.
    retire: CancellationToken,
    backoff: Backoff,
    started: Instant,
    /// Which of the URLs to try first: the one that worked last.
    preferred: usize,
    /// How long the hub wants us to stay away.
    banned: Duration,
    /// How the last tunnel ended.
    last_end: Option<&'static str>,
}

/// Why a tunnel is not the current one any more.
enum End {
    /// It is gone.
    Lost(LinkClosed),
    /// Its hub wants us elsewhere; until then it carries its flows.
    Leaving(Reason),
    /// This one takes its place.
    Renewed(Box<Tunnel>),
    /// It is wanted no longer, and another one is there.
    Retired,
    /// The agent stops.
    Stopped,
}

impl Keeper {
    pub(crate) fn new(
        around: Surroundings,
        scope: Scope,
        token: watch::Receiver<()>,
        retire: CancellationToken,
    ) -> Self {
        Self {
            stop: around.tasks.token(),
            around,
            scope,
            token,
            retire,
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
            started: Instant::now(),
            preferred: 0,
            banned: Duration::ZERO,
            last_end: None,
        }
    }

    /// Keeps a tunnel until the agent stops or the tunnel is wanted no longer; then tells the hub,
    /// and leaves the link to its flows.
    pub(crate) async fn run(mut self) {
        let retire = self.retire.clone();
        let links = self.around.tunnels.links.clone();
        let mut renewed: Option<Box<Tunnel>> = None;
        let mut up = None;
        loop {
            let mut tunnel = match renewed.take() {
                Some(tunnel) => *tunnel,
                None => match retire.run_until_cancelled(self.establish()).await {
                    Some(tunnel) => tunnel,
                    None => return,
                },
            };
            self.note_up(&tunnel);
            up.replace(self.around.readiness.tunnel_up());
            let end = self.serve(&mut tunnel).await;
            let reason = match end {
                End::Renewed(next) => {
                    move_away(&links, tunnel);
                    renewed = Some(next);
                    // What came while it was made may be news to its hub.
                    self.token.mark_changed();
                    self.around.config.mark_changed();
                    continue;
                }
                End::Retired => return move_away(&links, tunnel),
                End::Stopped => {
                    tunnel
                        .link
                        .go_away(Reason::Shutdown, *self.around.drain.borrow());
                    return leave(&links, tunnel, Reason::Shutdown);
                }
                End::Lost(closed) => {
                    log_down(&tunnel, &closed);
                    // It counts as living until then.
                    drop(tunnel);
                    closed.reason
                }
                End::Leaving(reason) => {
                    self.preferred += 1;
                    leave(&links, tunnel, reason);
                    reason
                }
            };
            up = None;
            self.backoff.note_lost(self.started.elapsed());
            self.last_end = Some(reason.name());
            self.banned = reason.rest().unwrap_or_default();
            retire.run_until_cancelled(self.rest(true)).await;
        }
    }

    /// Tries until a hub has acknowledged a tunnel.
    async fn establish(&mut self) -> Tunnel {
        loop {
            let config = Arc::clone(&self.around.config.borrow_and_update());
            self.token.mark_unchanged();
            let urls = self.scope.urls(&config);
            match round::run(&self.around.tunnels, &config, &urls, self.preferred).await {
                Ok(Won { tunnel, at }) => {
                    self.preferred = at;
                    return tunnel;
                }
                Err(retry_after) => self.banned = retry_after,
            }
            self.rest(false).await;
        }
    }

    fn note_up(&mut self, tunnel: &Tunnel) {
        self.backoff.note_connected(self.started.elapsed());
        if let Some(reason) = self.last_end.take() {
            let config = self.around.config.borrow();
            self.around
                .tunnels
                .metrics
                .reconnects
                .with([&config.tunnel.agent_id, reason])
                .inc();
        }
        tracing::info!(
            event = "tunnel_up", url = %tunnel.url, hub = tunnel.ack.hub, epoch = tunnel.ack.epoch,
            protocol = if tunnel.link.is_v1() { 1 } else { 2 },
            connectors = tunnel.connectors.join(",")
        );
    }

    /// Waits before the next attempt, unless there is news that may make it succeed, or that makes it
    /// pressing: the other tunnels are gone, or about to go.
    async fn rest(&mut self, just_lost: bool) {
        let banned = std::mem::take(&mut self.banned).min(MAX_RETRY_AFTER);
        self.backoff.note_retry_after(banned);
        let urgent = just_lost || self.around.tunnels.flows.any_waiting();
        let most = if urgent { BACKOFF_URGENT } else { BACKOFF_MAX };
        let delay = self.backoff.next_within(rand::random(), most);
        tracing::debug!(event = "tunnel_retry", in_ms = delay.as_millis());
        let began = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.around.tunnels.standing.bereft() => {
                let jitter = BACKOFF_BASE.mul_f64(rand::random());
                tokio::time::sleep(banned.saturating_sub(began.elapsed()) + jitter).await;
            }
            Ok(()) = self.token.changed() => {}
            Ok(()) = self.around.config.changed() => {}
        }
    }

    /// Looks after the current tunnel until it is the current one no longer.
    async fn serve(&mut self, tunnel: &mut Tunnel) -> End {
        let (stop, retire) = (self.stop.clone(), self.retire.clone());
        let mut renewal = std::pin::pin!(renewal(&self.around, &self.scope, tunnel));
        let spared = tunnel.stand.spared();
        let mut spared = std::pin::pin!(async {
            retire.cancelled().await;
            spared.await;
        });
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return End::Stopped,
                closed = &mut tunnel.driver => return End::Lost(closed.unwrap_or_else(|error| {
                    LinkClosed { reason: Reason::Unspecified, detail: error.to_string() }
                })),
                () = &mut spared => return End::Retired,
                Some(control) = tunnel.controls.recv() => {
                    if let Some(end) = heed(tunnel, control) {
                        return end;
                    }
                }
                next = &mut renewal => return End::Renewed(Box::new(next)),
                Ok(()) = self.token.changed() => self.present_token(tunnel).await,
                Ok(()) = self.around.config.changed() => self.apply(tunnel),
            }
        }
    }

    async fn present_token(&self, tunnel: &mut Tunnel) {
        let config = Arc::clone(&self.around.config.borrow());
        match Credential::read(&config.tunnel).await {
            // A tunnel keeps its key.
            Ok(credential) if !credential.is_same_key(&tunnel.credential) => {
                tunnel.rekeyed.notify_one();
            }
            Ok(credential) if credential.token == tunnel.credential.token => {}
            Ok(credential) => {
                tunnel.credential = credential;
                tunnel.may_prove_again = true;
                renew(tunnel, None);
            }
            Err(error) => tracing::warn!(event = "token_unreadable", %error),
        }
    }

    /// A configuration that took effect elsewhere already: what the hub must hear of it.
    fn apply(&mut self, tunnel: &mut Tunnel) {
        self.around.config.mark_unchanged();
        let connectors = self.around.tunnels.flows.targets().names();
        if connectors != tunnel.connectors {
            tunnel.connectors.clone_from(&connectors);
            if let Ok(body) = (Update { connectors }).encode() {
                tunnel.link.send(Frame::Update(body.into()));
            }
        }
    }
}

/// Shows the tunnel's token to its hub.
fn renew(tunnel: &Tunnel, nonce: Option<&str>) {
    let token = tunnel.credential.for_renewal(tunnel.url.uri(), nonce);
    match token.map(|token| token.encode()) {
        Ok(Ok(body)) => tunnel.link.send(Frame::Token(body.into())),
        Ok(Err(error)) => tracing::warn!(event = "token_unreadable", %error),
        Err(error) => tracing::warn!(event = "token_unreadable", %error),
    }
}

/// What a hub said about its tunnel; the tunnel may be over with that.
fn heed(tunnel: &mut Tunnel, control: Control) -> Option<End> {
    let hub = &tunnel.ack.hub;
    match control {
        Control::Token(TokenAck::Refused {
            nonce: Some(nonce), ..
        }) if tunnel.may_prove_again => {
            tunnel.may_prove_again = false;
            renew(tunnel, Some(&nonce));
        }
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
        Control::Token(TokenAck::Refused { error, .. }) => {
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
