//! What operators let happen to an agent's tunnels.

use serde_json::{Value, json};

use super::Admin;
use crate::tunnels::Session;

/// What is to happen to an agent's tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// They are closed; a living agent comes back, and its flows go on.
    Disconnect,
    /// Their agent is told to make others elsewhere; running flows stay until they end.
    Move,
}

impl Wish {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::Move => "move",
        }
    }
}

/// Who wishes something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator<'a> {
    /// Where the request came from.
    pub(super) by: &'a str,
    /// The hub that passed it on; `None` = it came here.
    pub(super) via: Option<&'a str>,
}

impl Admin {
    /// Follows a wish for the tunnels that end here, and says for how many.
    pub(super) fn follow(&self, wish: Wish, agent_id: &str, operator: Operator<'_>) -> Value {
        let sessions = self.scope.tunnels.directory().of_agent(agent_id);
        let done = match wish {
            Wish::Disconnect => {
                for session in &sessions {
                    session.link().close(nowconnect_proto::Reason::Operator);
                }
                sessions.len()
            }
            Wish::Move => {
                // Version 1 has no word for it.
                let told = sessions.iter().filter(|session| can_be_told(session));
                told.map(|session| self.scope.tunnels.send_on(session))
                    .count()
            }
        };
        tracing::info!(
            event = "agent_order",
            action = wish.as_str(),
            agent_id = shown(agent_id),
            tunnels = done,
            peer = operator.by,
            via = operator.via,
            audit = true,
        );
        json!({ "tunnels": done, "untold": sessions.len() - done })
    }
}

fn can_be_told(session: &Session) -> bool {
    !session.link().is_v1()
}

/// As much of an id as a log line has room for.
pub(super) fn shown(agent_id: &str) -> &str {
    &agent_id[..agent_id.floor_char_boundary(64)]
}
