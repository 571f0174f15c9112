//! A link that stands, from its first flow to the end of its last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nowconnect_link::session::{Link, LinkClosed};
use nowconnect_proto::Reason;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Outbound, State};
use crate::mesh::Mesh;
use crate::mesh::leaving::{NO_DEADLINE, is_orderly, log_down, see_off};
use crate::mesh::orders::Order;
use crate::mesh::proof::Shown;

/// A link that stands.
pub(super) struct Up {
    pub(super) link: Arc<Link>,
    pub(super) hub: Arc<str>,
    pub(super) version: String,
    pub(super) sealed: bool,
    pub(super) answers: bool,
    pub(super) certificate: Option<Shown>,
    pub(super) driver: JoinHandle<LinkClosed>,
    pub(super) goaways: mpsc::Receiver<Reason>,
    pub(super) started: Instant,
}

/// A link that nobody looks after must not stay.
impl Drop for Up {
    fn drop(&mut self) {
        self.link.close(Reason::Unspecified);
    }
}

/// Why a link is not the current one any more.
enum End {
    Lost(LinkClosed),
    /// The peer wants no new flows on it.
    Leaving(Reason),
    /// We do not want it any more.
    Unwanted,
}

impl Outbound {
    /// Looks after the link until it is the current one no longer; returns how long to stay away.
    pub(super) async fn serve(
        self: &Arc<Self>,
        mesh: &Arc<Mesh>,
        mut up: Up,
        order: &mut watch::Receiver<Order>,
    ) -> Option<Duration> {
        self.enter(State::Established, |status| {
            status.hub = Some(up.hub.clone());
            status.link = Some(up.link.clone());
            status.certificate = up.certificate.take();
            status.error = None;
        });
        self.review(mesh);
        mesh.tell(|events| events.link_up(&up.hub));
        let end = self.until_end(mesh, &mut up, order).await;
        let closed = match end {
            End::Lost(closed) => {
                mesh.links.leave_outbound(&up.hub, &up.link);
                self.note_down(&up, &closed);
                closed
            }
            // Flows that cross already may go on over it.
            End::Leaving(reason) => {
                let detail = "the peer takes no new flows on it".to_owned();
                LinkClosed { reason, detail }
            }
            End::Unwanted => {
                mesh.links.leave_outbound(&up.hub, &up.link);
                let reason = match *order.borrow() {
                    Order::Leave(reason) => reason,
                    Order::Finish | Order::Run => Reason::NotActive,
                    Order::Close(reason) => {
                        up.link.close(reason);
                        reason
                    }
                };
                up.link.go_away(reason, NO_DEADLINE);
                let detail = "it is not wanted any more".to_owned();
                LinkClosed { reason, detail }
            }
        };
        let LinkClosed { reason, detail } = &closed;
        let colon = if detail.is_empty() { "" } else { ": " };
        self.status.lock().error = Some(format!("{reason}{colon}{detail}"));
        mesh.tell(|events| events.link_down(&up.hub, &closed));
        if !up.driver.is_finished() {
            self.see_off(mesh, up);
        }
        closed.reason.rest()
    }

    /// Waits until the link is lost, or to be left.
    async fn until_end(&self, mesh: &Mesh, up: &mut Up, order: &mut watch::Receiver<Order>) -> End {
        loop {
            tokio::select! {
                biased;
                closed = &mut up.driver => return End::Lost(or_panic(closed)),
                () = self.unwanted(mesh, order) => return End::Unwanted,
                Some(reason) = up.goaways.recv() => {
                    if reason == Reason::NotActive {
                        mesh.links.note_idle(&up.hub, &up.link);
                    }
                    // Flows that cross already are all that a hub that is off keeps a link for.
                    if *self.order.borrow() != Order::Finish {
                        return End::Leaving(reason);
                    }
                }
            }
        }
    }

    /// Leaves a link to the flows that cross it, and closes it when they have ended.
    fn see_off(self: &Arc<Self>, mesh: &Arc<Mesh>, mut up: Up) {
        let (keeper, mesh) = (self.clone(), mesh.clone());
        let tasks = mesh.tasks.clone();
        tasks.spawn("mesh_leaving", async move {
            let (link, hub, stop) = (up.link.clone(), up.hub.clone(), mesh.tasks.token());
            // Some may wait for their agent just now.
            let needed = || mesh.needs.of(&hub) > 0 && mesh.links.is_current(&hub, &link);
            let closed = tokio::select! {
                biased;
                closed = &mut up.driver => closed,
                () = see_off(&link, &stop, needed) => (&mut up.driver).await,
            };
            mesh.links.leave_outbound(&hub, &link);
            keeper.note_down(&up, &or_panic(closed));
            if keeper.crossing(&mesh).waits() {
                keeper.hurry.notify_one();
            }
        });
    }

    fn note_down(&self, up: &Up, closed: &LinkClosed) {
        if !is_orderly(closed.reason) {
            self.metrics.errors.inc();
        }
        let lived = up.started.elapsed();
        log_down("outbound", &self.label, &up.hub, closed, lived);
    }
}

fn or_panic(closed: Result<LinkClosed, tokio::task::JoinError>) -> LinkClosed {
    closed.unwrap_or_else(|error| LinkClosed {
        reason: Reason::Unspecified,
        detail: error.to_string(),
    })
}
