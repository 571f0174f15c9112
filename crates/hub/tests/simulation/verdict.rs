//! What must hold, at every end of a flow and at the end of everything.

use std::collections::BTreeSet;

use nowconnect_proto::Reason;
use nowconnect_proto::flow::Ending;

use crate::net::{FlowName, Kind};
use crate::world::{AGENTS, HUBS, World};

/// How often what happened.
#[derive(Default, Debug)]
pub(crate) struct Tally {
    pub(crate) clients: u64,
    pub(crate) finished: u64,
    pub(crate) reset: u64,
    pub(crate) resumed: u64,
    pub(crate) relayed: u64,
    pub(crate) expired: u64,
    pub(crate) conflicts: u64,
    pub(crate) stale_epochs: u64,
    pub(crate) overtaken: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.clients += other.clients;
        self.finished += other.finished;
        self.reset += other.reset;
        self.resumed += other.resumed;
        self.relayed += other.relayed;
        self.expired += other.expired;
        self.conflicts += other.conflicts;
        self.stale_epochs += other.stale_epochs;
        self.overtaken += other.overtaken;
    }

    /// A simulation in which nothing goes on proves nothing.
    pub(crate) fn check_that_something_happened(&self) {
        assert!(self.finished * 3 > self.clients, "{self:?}");
        assert!(self.resumed > 0 && self.relayed > 0, "{self:?}");
    }
}

impl World {
    /// A flow's end is over.
    pub(crate) fn judge_ending(&mut self, name: FlowName, ending: Option<Ending>) {
        let reason = match ending {
            Some(Ending::Finished) => return,
            Some(Ending::Local(reason) | Ending::Remote(reason)) => reason,
            None => panic!("flow {name} is forgotten and has not ended"),
        };
        self.tally.reset += 1;
        let blamed = matches!(
            reason,
            Reason::ProtocolError
                | Reason::BeyondCredit
                | Reason::AfterFin
                | Reason::OffsetGap
                | Reason::BadAck
                | Reason::Denied
        );
        assert!(!blamed, "flow {name} ends with {reason}");
    }

    /// The client's end finished in good order.
    pub(crate) fn judge_finished(&mut self, name: FlowName) {
        self.tally.finished += 1;
        let truth = &self.flows[&name];
        assert_eq!(
            truth.client_read,
            (truth.target_brings, true),
            "flow {name}, back"
        );
        if truth.fed.is_some() || truth.brings > 0 {
            assert_eq!(
                truth.target_read,
                (truth.brings, true),
                "flow {name}, there"
            );
        }
    }

    /// Everything has come to rest.
    pub(crate) fn judge(&self) {
        for (name, passing) in &self.relays {
            self.note(|| format!("left: relay {name}: {:?} {}", passing.relay, passing.room));
        }
        for agent in &self.agents {
            for served in agent.flows.values() {
                self.note(|| format!("left: {:?} {:?}", served.end.flow, served.end.at));
            }
        }
        for (number, hub) in self.hubs.iter().enumerate() {
            let left = hub
                .flows
                .values()
                .map(|client| (&client.end.flow, client.end.at));
            let left: Vec<_> = left.collect();
            assert!(left.is_empty(), "hub-{number} keeps {left:?}");
        }
        for (number, agent) in self.agents.iter().enumerate() {
            let left: Vec<_> = agent.flows.keys().collect();
            assert!(left.is_empty(), "process {number} keeps flows {left:?}");
        }
        let left: Vec<_> = self.relays.keys().collect();
        assert!(left.is_empty(), "relays {left:?} are kept");
        for (number, conn) in self.conns.iter().enumerate() {
            let left = conn.flows[0].len() + conn.flows[1].len();
            assert_eq!(left, 0, "connection {number} carries what nobody knows");
        }
        assert_eq!(self.living_conns(Kind::Mesh), HUBS * (HUBS - 1), "links");
        let tunnels = self.first.map(|first| if first { 1 } else { HUBS });
        assert_eq!(
            self.living_conns(Kind::Tunnel),
            tunnels.iter().sum::<usize>(),
            "tunnels"
        );
        for id in 0..AGENTS.len() {
            self.judge_agent(id);
        }
    }

    /// One process has the id, every hub has its tunnel, and every other one knows.
    fn judge_agent(&self, id: usize) {
        let (name, _) = AGENTS[id];
        let living = self.living(id);
        let agent = self.agents.iter().position(|agent| living == [agent.proc]);
        let agent = agent.expect("one process");
        let owner = (self.agents[agent].instance, self.held(agent));
        let holders: Vec<_> = (0..HUBS)
            .filter(|hub| !self.holders(*hub, name).is_empty())
            .collect();
        assert_eq!(
            holders.len(),
            if self.first[id] { 1 } else { HUBS },
            "{name}"
        );
        for hub in 0..HUBS {
            if holders.contains(&hub) {
                assert_eq!(self.holders(hub, name), [owner], "{name} at hub-{hub}");
            }
            let routes = self.hubs[hub].directory.all().into_iter();
            let routes = routes.filter(|route| *route.agent_id == *name);
            let told: BTreeSet<_> = routes
                .map(|route| (route.hub.to_string(), route.instance.0, route.epoch))
                .collect();
            let others = holders.iter().filter(|other| **other != hub);
            let truth: BTreeSet<_> = others
                .map(|other| (format!("hub-{other}"), owner.0.0, owner.1))
                .collect();
            // A hub that had tunnels of a later process, which is gone, does not go by what others
            // say of the earlier one until that comes to it or they have it no more.
            let directory = &self.hubs[hub].directory;
            let remembers = self.first[id] && directory.is_superseded(name, owner.0);
            if !(remembers && told.is_empty()) {
                assert_eq!(told, truth, "routes of hub-{hub} to {name}");
            }
        }
    }
}
