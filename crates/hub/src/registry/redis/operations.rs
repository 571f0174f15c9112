//! What is asked of Redis, typed: every answer is checked before it is believed.

use std::collections::HashMap;
use std::sync::Arc;

use nowconnect_proto::hello::is_name;
use redis::{Cmd, Value};

use super::super::routes::Entry;
use super::super::tables::{MAX_AGENTS, MAX_HUBS};
use super::super::wire::{self, Changes, MAX_EPOCH, Notice, Stamp};
use super::super::{Claim, ClaimError, Owner, epoch, rivalry};
use super::fault::Fault;
use super::link::Link;
use super::script::{CLAIM, HOLD, HUBS, LEAVE, PROOF, Script, TABLE};

/// How long an agent's record lives after its last claim. Longer than any epoch can be ahead of the
/// clock, which keeps later ones above it when the record is gone.
const RECORD_MS: u64 = 3 * 24 * 3600 * 1000;
/// How long a table lives that its hub does not renew.
const TABLE_MS: u64 = 15_000;
/// After what silence a hub is no longer looked for.
const HUB_MS: u64 = 60_000;
/// How long a new owner counts as living although nobody has heard of it yet.
const FRESH_MS: u64 = 1_000;
/// How long a proof of possession is remembered; a hub accepts none for longer, whatever its clock.
const PROOF_MS: u64 = 120_000;
/// How long a share of the proofs lives that nobody is shown one of.
const SHARE_MS: u64 = 30 * 24 * 3600 * 1000;
/// The proofs are spread over so many keys, and these over the nodes of a cluster: each tells since
/// when its own node has forgotten nothing.
const SHARES: u8 = 16;
/// Every hub that shows signs of life.
const HUBS_KEY: &str = "nowconnect:hubs";
/// Fields of a table that are no agents, whose names never begin like that.
const NONCE: &str = "#nonce";
const VERSION: &str = "#version";

/// A hub's table as it is to be written.
pub(super) struct Write<'a> {
    pub(super) hub: &'a str,
    /// Its state from now on.
    pub(super) stamp: &'a Stamp,
    pub(super) over: Over,
    pub(super) changes: &'a Changes,
    pub(super) notice: Option<&'a Notice>,
}

/// What a [`Write`] takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// This version of the same table, and no other.
    Version(u64),
    /// All that earlier starts of the hub wrote, and this one.
    Own,
    /// Whatever there is.
    Anything,
}

/// What became of a [`Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Done,
    /// The table is not what was written last.
    Stale,
    /// A later start of a hub of this name has it.
    Conflict,
}

impl Link {
    /// Asks for a claim at `hub` to be granted. `known` is the owner whose tunnels this hub knows of,
    /// `floor` the highest epoch that it remembers.
    pub(super) async fn claim(
        &self,
        hub: &str,
        claim: &Claim,
        known: Option<Owner>,
        floor: u64,
    ) -> Result<Result<u64, ClaimError>, Fault> {
        let (known_epoch, known_instance) = match known {
            Some(owner) => (owner.epoch.to_string(), owner.instance.to_string()),
            None => Default::default(),
        };
        let held = claim.epoch_held.map(|held| held.to_string());
        let args = [
            claim.instance.to_string(),
            held.unwrap_or_default(),
            claim.epoch_seen.to_string(),
            floor.to_string(),
            known_epoch,
            known_instance,
            RECORD_MS.to_string(),
            epoch::HEADROOM.as_millis().to_string(),
            rivalry::MOST.to_string(),
            rivalry::WINDOW.as_millis().to_string(),
            hub.to_owned(),
            FRESH_MS.to_string(),
        ];
        let key = record_key(&claim.agent_id);
        let answer = self.call(&CLAIM, &key, &args).await?;
        let parts = match &answer {
            Value::Array(parts) => parts.as_slice(),
            _ => &[],
        };
        if let [Value::BulkString(verdict), Value::BulkString(number)] = parts {
            let epoch = std::str::from_utf8(number).ok();
            let epoch = epoch.and_then(|epoch| epoch.parse::<u64>().ok());
            match (verdict.as_slice(), epoch) {
                (b"conflict", _) => return Ok(Err(ClaimError::Conflict)),
                (b"joined" | b"granted", Some(epoch)) if (1..MAX_EPOCH).contains(&epoch) => {
                    return Ok(Ok(epoch));
                }
                _ => {}
            }
        }
        Err(self.misunderstood("to a claim"))
    }

    /// Lets the agent's record know of this owner.
    pub(super) async fn hold(&self, agent_id: &str, owner: Owner) -> Result<(), Fault> {
        let args = [
            owner.epoch.to_string(),
            owner.instance.to_string(),
            RECORD_MS.to_string(),
        ];
        self.call(&HOLD, &record_key(agent_id), &args).await?;
        Ok(())
    }

    /// Remembers that a proof was shown; `false` when it was before, `None` when that may have been
    /// forgotten.
    pub(super) async fn note_proof(&self, proof: &str) -> Result<Option<bool>, Fault> {
        let share = proof.bytes().fold(0, u8::wrapping_add) % SHARES;
        let key = format!("nowconnect:{{proofs:{share}}}");
        let args = [proof.to_owned(), PROOF_MS.to_string(), SHARE_MS.to_string()];
        match self.call(&PROOF, &key, &args).await? {
            Value::BulkString(answer) if answer == b"new" => Ok(Some(true)),
            Value::BulkString(answer) if answer == b"known" => Ok(Some(false)),
            Value::BulkString(answer) if answer == b"young" => Ok(None),
            _ => Err(self.misunderstood("to a proof")),
        }
    }

    /// Writes or renews this hub's table.
    pub(super) async fn write(&self, write: &Write<'_>) -> Result<Written, Fault> {
        let mut args = vec![
            write.stamp.nonce.to_string(),
            match write.over {
                Over::Version(version) => version.to_string(),
                Over::Own => String::new(),
                Over::Anything => "!".to_owned(),
            },
            write.stamp.version.to_string(),
            TABLE_MS.to_string(),
            self.channel.clone(),
            write.notice.map(Notice::write).unwrap_or_default(),
        ];
        for (id, entry) in write.changes {
            args.push(id.to_string());
            args.push(entry.as_ref().map(wire::write_entry).unwrap_or_default());
        }
        match self.call(&TABLE, &table_key(write.hub), &args).await? {
            Value::BulkString(answer) if answer == b"ok" => Ok(Written::Done),
            Value::BulkString(answer) if answer == b"stale" => Ok(Written::Stale),
            Value::BulkString(answer) if answer == b"conflict" => Ok(Written::Conflict),
            _ => Err(self.misunderstood("to a change")),
        }
    }

    /// Removes this hub's table.
    pub(super) async fn leave(&self, notice: &Notice) -> Result<(), Fault> {
        let args = [
            notice.stamp.nonce.to_string(),
            self.channel.clone(),
            notice.write(),
        ];
        self.call(&LEAVE, &table_key(&notice.hub), &args).await?;
        let mut command = redis::cmd("ZREM");
        command.arg(HUBS_KEY).arg(&*notice.hub);
        self.ask(HUBS_KEY, &command).await?;
        Ok(())
    }

    /// Signs `hub` in, if any, and returns all hubs.
    pub(super) async fn hubs(&self, hub: Option<&str>) -> Result<Vec<Arc<str>>, Fault> {
        let args = [
            hub.unwrap_or_default().to_owned(),
            HUB_MS.to_string(),
            MAX_HUBS.to_string(),
        ];
        let Value::Array(hubs) = self.call(&HUBS, HUBS_KEY, &args).await? else {
            return Err(self.misunderstood("to a question for hubs"));
        };
        let hubs = hubs.iter().take(MAX_HUBS).filter_map(text);
        Ok(hubs.filter(|hub| is_name(hub)).map(Arc::from).collect())
    }

    /// The state of a hub's table; `None` when there is none.
    pub(super) async fn stamp(&self, hub: &str) -> Result<Option<Stamp>, Fault> {
        let key = table_key(hub);
        let mut command = redis::cmd("HMGET");
        command.arg(&key).arg(NONCE).arg(VERSION);
        let answer = tolerate(self.ask(&key, &command).await)?;
        let Value::Array(parts) = answer else {
            return Ok(None);
        };
        let [Value::BulkString(nonce), Value::BulkString(version)] = parts.as_slice() else {
            return Ok(None);
        };
        Ok(Stamp::read(nonce, version))
    }

    /// A hub's table; `None` when there is none. Entries that are not fit for use are left out.
    pub(super) async fn read(
        &self,
        hub: &str,
    ) -> Result<Option<(Stamp, HashMap<Arc<str>, Entry>)>, Fault> {
        let key = table_key(hub);
        let size = self.ask(&key, redis::cmd("HLEN").arg(&key)).await;
        let Value::Int(size @ 1..) = tolerate(size)? else {
            return Ok(None);
        };
        if usize::try_from(size).map_or(true, |size| size > MAX_AGENTS + 2) {
            return Err(self.misunderstood("more agents than a hub can have"));
        }
        let answer = self.ask(&key, redis::cmd("HGETALL").arg(&key)).await;
        let Value::Map(fields) = tolerate(answer)? else {
            return Ok(None);
        };
        Ok(table(&fields))
    }

    /// The server's clock, in microseconds of Unix time.
    pub(super) async fn clock(&self) -> Result<u64, Fault> {
        let answer = self.ask(HUBS_KEY, &redis::cmd("TIME")).await?;
        let parts = match &answer {
            Value::Array(parts) => parts.iter().filter_map(text),
            _ => return Err(self.misunderstood("to a question for the time")),
        };
        let parts: Vec<u64> = parts.filter_map(|part| part.parse().ok()).collect();
        match parts.as_slice() {
            [seconds, micros] => Ok(seconds.saturating_mul(1_000_000).saturating_add(*micros)),
            _ => Err(self.misunderstood("to a question for the time")),
        }
    }

    async fn call(&self, script: &Script, key: &str, args: &[String]) -> Result<Value, Fault> {
        let command = |verb: &str, script: &str| -> Cmd {
            let mut command = redis::cmd(verb);
            command.arg(script).arg(1).arg(key).arg(args);
            command
        };
        let answer = self.ask(key, &command("EVALSHA", script.hash())).await;
        match answer {
            Err(fault) if fault.is_code("NOSCRIPT") => {
                self.ask(key, &command("EVAL", script.text())).await
            }
            answer => answer,
        }
    }

    fn misunderstood(&self, what: &'static str) -> Fault {
        Fault::Answer {
            node: self.node().clone(),
            what,
        }
    }
}

/// A key that holds something else than it should is as good as none.
fn tolerate(answer: Result<Value, Fault>) -> Result<Value, Fault> {
    match answer {
        Err(fault) if fault.is_code("WRONGTYPE") => Ok(Value::Nil),
        answer => answer,
    }
}

/// A table from its fields; `None` when there is no stamp in it. Entries that are not fit for use
/// are left out.
pub(in crate::registry) fn table(
    fields: &[(Value, Value)],
) -> Option<(Stamp, HashMap<Arc<str>, Entry>)> {
    let (mut nonce, mut version, mut agents) = (None, None, HashMap::new());
    for (field, value) in fields {
        let (Some(field), Value::BulkString(value)) = (text(field), value) else {
            continue;
        };
        match field {
            NONCE => nonce = Some(value),
            VERSION => version = Some(value),
            id => {
                let entry = wire::read_entry(id, value);
                agents.extend(entry.map(|entry| (Arc::from(id), entry)));
            }
        }
    }
    let stamp = Stamp::read(nonce?, version?)?;
    Some((stamp, agents))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn record_key(agent_id: &str) -> String {
    format!("nowconnect:{{agent:{agent_id}}}")
}

fn table_key(hub: &str) -> String {
    format!("nowconnect:{{hub:{hub}}}")
}
