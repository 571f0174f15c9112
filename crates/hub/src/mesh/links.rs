//! Which hubs this one is linked with, in both directions, and who is who.
//!
//! A replica id is a claim. The host of the URL that was dialed, and the names in a certificate, are
//! proven: two that disagree about who answers to a replica id are not both let in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use nowconnect_link::session::Link;
use nowconnect_proto::hello::Instance;
use parking_lot::Mutex;

use super::failure::Conflict;
use super::peer::Peer;

/// The links that stand.
#[derive(Default)]
pub(super) struct Links(Mutex<Standing>);

#[derive(Default)]
struct Standing {
    outbound: HashMap<Arc<str>, Outward>,
    inbound: HashMap<Arc<str>, Inward>,
}

/// A link that we dialed and that takes flows.
struct Outward {
    link: Arc<Link>,
    label: Arc<str>,
    host: Arc<str>,
    answers: bool,
    /// The peer's high availability is off.
    idle: bool,
}

/// A hub that was dialed, before it is known whether it is who it says.
pub(super) struct Dialed<'a> {
    /// Its replica id.
    pub(super) hub: &'a Arc<str>,
    pub(super) label: &'a Arc<str>,
    /// The host of its URL.
    pub(super) host: Arc<str>,
    /// Whether it answers questions.
    pub(super) answers: bool,
}

/// A link that a peer dialed.
#[derive(Clone)]
pub(super) struct Inward {
    pub(super) link: Arc<Link>,
    pub(super) peer: Arc<Peer>,
    pub(super) claim: Claim,
    pub(super) since: SystemTime,
}

/// Who a hub that dials says it is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) hub: Arc<str>,
    /// This start of its process.
    pub(super) instance: Option<Instance>,
    /// The URL by which it has dialed us.
    pub(super) via: String,
    /// Those of our peers' hosts that it has proven to be.
    pub(super) proven: Vec<Arc<str>>,
}

impl Links {
    /// The link that we dialed to `hub`, if it takes flows.
    pub(super) fn outbound(&self, hub: &str) -> Option<Arc<Link>> {
        let standing = self.0.lock();
        let link = &standing.outbound.get(hub)?.link;
        link.takes_flows().then(|| link.clone())
    }

    /// Whether there is a link to `hub` that carries flows, new ones or not.
    pub(super) fn carries(&self, hub: &str) -> bool {
        let standing = self.0.lock();
        let mut outward = standing.outbound.get(hub).into_iter();
        outward.any(|one| !one.link.is_closed())
    }

    /// Whether `link` is the one that flows to `hub` resume on.
    pub(super) fn is_current(&self, hub: &str, link: &Arc<Link>) -> bool {
        let standing = self.0.lock();
        let mut outward = standing.outbound.get(hub).into_iter();
        outward.any(|one| Arc::ptr_eq(&one.link, link))
    }

    /// The peer has told that its high availability is off.
    pub(super) fn note_idle(&self, hub: &str, link: &Arc<Link>) {
        let mut standing = self.0.lock();
        let outward = standing.outbound.get_mut(hub);
        if let Some(one) = outward.filter(|one| Arc::ptr_eq(&one.link, link)) {
            one.idle = true;
        }
    }

    /// The link that we dialed to `hub`, if it is there for flows that cross already: all links are
    /// where high availability is off here, else those to a hub where it is.
    pub(super) fn leftover(&self, hub: &str, is_on: bool) -> Option<Arc<Link>> {
        let standing = self.0.lock();
        let outward = standing.outbound.get(hub)?;
        let link = &outward.link;
        (!link.is_closed() && (!is_on || outward.idle)).then(|| link.clone())
    }

    /// Whether there is any such link.
    pub(super) fn has_leftover(&self, is_on: bool) -> bool {
        let standing = self.0.lock();
        let mut outward = standing.outbound.values();
        outward.any(|one| !is_on || one.idle)
    }

    /// A link over which `hub` can be asked, whoever dialed it, and whether it answers.
    pub(super) fn to_ask(&self, hub: &str) -> Option<(Arc<Link>, bool)> {
        let standing = self.0.lock();
        let outward = standing.outbound.get(hub);
        let outward = outward.map(|one| (&one.link, one.answers));
        let inward = standing.inbound.get(hub);
        let inward = inward.map(|one| (&one.link, one.peer.answers));
        let mut links = outward.into_iter().chain(inward);
        let (link, answers) = links.find(|(link, _)| !link.is_closed())?;
        Some((link.clone(), answers))
    }

    /// Whether any peer has dialed one.
    pub(super) fn has_inbound(&self) -> bool {
        !self.0.lock().inbound.is_empty()
    }

    /// Those that peers dialed.
    pub(super) fn inbound(&self) -> Vec<Inward> {
        self.0.lock().inbound.values().cloned().collect()
    }

    /// The label of the peer that answers to `hub` where we dialed it.
    pub(super) fn label(&self, hub: &str) -> Option<Arc<str>> {
        let standing = self.0.lock();
        standing.outbound.get(hub).map(|one| one.label.clone())
    }

    /// A link that was dialed, to the hub that calls itself so.
    pub(super) fn enter_outbound(
        &self,
        dialed: Dialed<'_>,
        link: &Arc<Link>,
    ) -> Result<(), Conflict> {
        let Dialed {
            hub,
            label,
            host,
            answers,
        } = dialed;
        let mut standing = self.0.lock();
        if let Some(other) = standing.outbound.get(hub)
            && other.label != *label
            && !other.link.is_closed()
        {
            return Err(Conflict::Dialed {
                hub: hub.clone(),
                other: other.label.clone(),
            });
        }
        if let Some(inward) = standing.inbound.get(hub)
            && inward.peer.is_other_than(std::slice::from_ref(&host))
        {
            return Err(Conflict::Certificate {
                hub: hub.clone(),
                other: inward.peer.proof.names.join(", "),
            });
        }
        let outward = Outward {
            link: link.clone(),
            label: label.clone(),
            host,
            answers,
            idle: false,
        };
        standing.outbound.insert(hub.clone(), outward);
        Ok(())
    }

    /// That link takes no flows any more.
    pub(super) fn leave_outbound(&self, hub: &str, link: &Arc<Link>) {
        let mut standing = self.0.lock();
        let same = |one: &Outward| Arc::ptr_eq(&one.link, link);
        if standing.outbound.get(hub).is_some_and(same) {
            standing.outbound.remove(hub);
        }
    }

    /// Whether a hub may be who it says it is.
    pub(super) fn judge_inbound(&self, claim: &Claim) -> Result<(), Conflict> {
        self.0.lock().judge_inbound(claim)
    }

    /// A link that a peer dialed; returns the one that it takes the place of.
    pub(super) fn enter_inbound(&self, inward: Inward) -> Result<Option<Arc<Link>>, Conflict> {
        let mut standing = self.0.lock();
        standing.judge_inbound(&inward.claim)?;
        let replaced = standing.inbound.insert(inward.peer.hub.clone(), inward);
        Ok(replaced.map(|old| old.link))
    }

    /// That link is gone.
    pub(super) fn leave_inbound(&self, hub: &str, link: &Arc<Link>) {
        let mut standing = self.0.lock();
        let same = |one: &Inward| Arc::ptr_eq(&one.link, link);
        if standing.inbound.get(hub).is_some_and(same) {
            standing.inbound.remove(hub);
        }
    }
}

impl Standing {
    fn judge_inbound(&self, claim: &Claim) -> Result<(), Conflict> {
        let hub = &claim.hub;
        let conflict = |other: String| Conflict::Certificate {
            hub: hub.clone(),
            other,
        };
        if let Some(outward) = self.outbound.get(hub)
            && !claim.proven.is_empty()
            && !claim.proven.contains(&outward.host)
        {
            return Err(conflict(outward.host.to_string()));
        }
        let Some(inward) = self.inbound.get(hub).filter(|one| one.link.takes_flows()) else {
            return Ok(());
        };
        if inward.peer.is_other_than(&claim.proven) {
            return Err(conflict(inward.peer.proof.names.join(", ")));
        }
        let same_process = claim.instance.is_some() && claim.instance == inward.claim.instance;
        if same_process && claim.via != inward.claim.via {
            return Err(Conflict::Twice {
                hub: hub.clone(),
                other: inward.claim.via.clone(),
            });
        }
        Ok(())
    }
}
