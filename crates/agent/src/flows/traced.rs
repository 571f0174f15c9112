//! A flow whose spans are recorded: its dial, and what is relayed.

use std::sync::Arc;

use nowconnect_link::endpoint::{FlowEvents, SocketFlow, Summary};
use nowconnect_link::trace::{CLIENT, Kind, PEER, Trace, address};
use nowconnect_proto::Reason;
use nowconnect_proto::frame::Open;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::Flows;
use crate::config::Target;

/// Tells of a flow both to whoever owns it and in its trace.
pub(super) struct Traced {
    flows: Arc<Flows>,
    trace: Mutex<Box<Trace>>,
}

impl Traced {
    /// The flow is about to be connected to `target`.
    pub(super) fn new(
        flows: Arc<Flows>,
        mut trace: Box<Trace>,
        open: &Open,
        target: &Target,
    ) -> Arc<Self> {
        trace.stage("dial", Kind::Client);
        name(&mut trace, open);
        trace.set("network.transport", "tcp");
        trace.set("server.address", target.host.as_str());
        trace.set("server.port", i64::from(target.port));
        trace.set("nowconnect.epoch", open.epoch);
        let trace = Mutex::new(trace);
        Arc::new(Self { flows, trace })
    }

    /// It is connected.
    pub(super) fn connected(&self, flow: &SocketFlow, socket: &TcpStream) {
        let mut trace = self.trace.lock();
        if let Ok(peer) = socket.peer_addr() {
            for (key, value) in address(PEER, peer) {
                trace.set(key, value);
            }
        }
        trace.stage("relay", Kind::Internal);
        let label = flow.label();
        trace.set("nowconnect.cid", flow.cid().to_string());
        trace.set("nowconnect.connector", &label.connector);
    }
}

fn name(trace: &mut Trace, open: &Open) {
    trace.set("nowconnect.cid", open.cid.to_string());
    trace.set("nowconnect.connector", open.connector.as_str());
    trace.set("nowconnect.listener", open.listener.as_str());
    if let Ok(client) = open.client.parse() {
        for (key, value) in address(CLIENT, client) {
            trace.set(key, value);
        }
    }
}

impl FlowEvents for Traced {
    fn opened(&self, flow: &Arc<SocketFlow>) {
        self.flows.opened(flow);
    }

    fn refused(&self, flow: &Arc<SocketFlow>, reason: Reason) -> bool {
        self.flows.refused(flow, reason)
    }

    fn path_lost(&self, flow: &Arc<SocketFlow>) {
        self.trace.lock().event("path_lost", []);
        self.flows.path_lost(flow);
    }

    fn closed(&self, flow: &Arc<SocketFlow>, summary: Summary) {
        {
            let mut trace = self.trace.lock();
            if trace.is_in("relay") {
                trace.set("nowconnect.bytes_c2a", summary.bytes_c2a);
                trace.set("nowconnect.bytes_a2c", summary.bytes_a2c);
            }
            let reason = summary.reason();
            trace.set("nowconnect.reason", reason.name());
            if reason != Reason::Finished {
                trace.fail(reason.name());
            }
            trace.end();
        }
        self.flows.closed(flow, summary);
    }

    fn over(&self, flow: &Arc<SocketFlow>) {
        self.flows.over(flow);
    }
}
