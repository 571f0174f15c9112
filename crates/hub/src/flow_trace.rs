//! What the spans of a client's flow say of it.

use std::net::SocketAddr;
use std::sync::Arc;

use nowconnect_link::endpoint::Summary;
use nowconnect_link::relayed::Passage;
use nowconnect_link::trace::{CLIENT, Kind, PEER, Trace, Tracer, address};
use nowconnect_proto::frame::{Open, OpenMode};
use nowconnect_proto::{Cid, Reason};

/// A client was accepted from `peer`: itself, or a balancer that will say who it is.
pub(crate) fn accepted(
    tracer: &Tracer,
    listener: &Arc<str>,
    connector: &Arc<str>,
    peer: SocketAddr,
) -> Option<Box<Trace>> {
    let mut trace = tracer.begin("flow", Kind::Server)?;
    trace.set_whole("network.transport", "tcp");
    trace.set_whole("nowconnect.listener", listener);
    trace.set_whole("nowconnect.connector", connector);
    for (key, value) in address(PEER, peer) {
        trace.set_whole(key, value);
    }
    trace.stage("accept", Kind::Internal);
    Some(trace)
}

/// It is known who the client is, and will be judged.
pub(crate) fn known(trace: &mut Trace, client: SocketAddr) {
    for (key, value) in address(CLIENT, client) {
        trace.set_whole(key, value);
    }
    trace.stage("admit", Kind::Internal);
}

/// It may come in, and has a name.
pub(crate) fn named(trace: &mut Trace, cid: Cid) {
    trace.set_whole("nowconnect.cid", cid.to_string());
}

/// It ended without having become a flow.
pub(crate) fn turned_away(trace: Option<Box<Trace>>, why: &'static str) {
    if let Some(mut trace) = trace {
        trace.set_whole("nowconnect.reason", why);
        trace.fail(why);
    }
}

/// The flow has ended.
pub(crate) fn closed(trace: &mut Trace, summary: &Summary) {
    let reason = summary.reason();
    if trace.is_in("relay") {
        trace.set("nowconnect.bytes_c2a", summary.bytes_c2a);
        trace.set("nowconnect.bytes_a2c", summary.bytes_a2c);
        trace.set("nowconnect.reason", reason.name());
    }
    trace.set_whole("nowconnect.reason", reason.name());
    if reason != Reason::Finished {
        trace.fail(reason.name());
    }
    trace.end();
}

/// It is on its way to an agent: for the first time, or elsewhere than before.
pub(crate) fn sent(trace: &mut Trace, agent_id: &Arc<str>, hub: Option<&Arc<str>>, epoch: u64) {
    let is_new = !trace.is_in("relay");
    if is_new && !trace.is_in("open") {
        trace.stage("open", Kind::Client);
    }
    let mut at = vec![
        ("nowconnect.agent.id", agent_id.into()),
        ("nowconnect.epoch", epoch.into()),
    ];
    at.extend(hub.map(|hub| ("nowconnect.owner", hub.into())));
    trace.event(if is_new { "offered" } else { "path_changed" }, at);
}

/// An agent has connected it to its target.
pub(crate) fn opened(
    trace: &mut Trace,
    agent_id: Option<&str>,
    owner: Option<&str>,
    epoch: Option<u64>,
) {
    for (key, text) in [
        ("nowconnect.agent.id", agent_id),
        ("nowconnect.owner", owner),
    ] {
        if let Some(text) = text {
            trace.set_whole(key, text);
        }
    }
    if let Some(epoch) = epoch {
        trace.set_whole("nowconnect.epoch", epoch);
    }
    trace.stage("relay", Kind::Internal);
}

/// A flow of another hub is passed on to an agent of this one.
pub(crate) fn passes(trace: &mut Trace, open: &Open, agent_id: &Arc<str>) {
    trace.set("nowconnect.connector", &*open.connector);
    trace.set("nowconnect.agent.id", agent_id);
    if let Ok(client) = open.client.parse() {
        for (key, value) in address(CLIENT, client) {
            trace.set(key, value);
        }
    }
    if open.mode != OpenMode::New {
        trace.event("resumed", []);
    }
}

/// It is passed on no longer.
pub(crate) fn passed(trace: &mut Trace, passage: &Passage) {
    trace.set("nowconnect.bytes_c2a", passage.bytes_c2a);
    trace.set("nowconnect.bytes_a2c", passage.bytes_a2c);
    trace.set("nowconnect.reason", passage.reason.name());
    if passage.reason != Reason::Finished {
        trace.fail(passage.reason.name());
    }
    trace.end();
}
