//! How a hub tells others of its agents: what the tables of the shared registry hold and what its
//! notifications say. JSON, so that later versions can say more; unknown keys are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) use nowconnect_proto::hello::MAX_EPOCH;
use nowconnect_proto::hello::{Instance, MAX_CONNECTORS, is_name};
use serde::{Deserialize, Serialize};

use super::Owner;
use super::routes::Entry;
use crate::strict_json::object;
use crate::token_id::is_token_id;

/// Longest notification that is read or written, in bytes. A change that does not fit is told of
/// without its content.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;
/// Longest entry of one agent that is read, in bytes.
const MAX_ENTRY: usize = 64 * 1024;
/// Longest nonce that is read.
const MAX_NONCE: usize = 64;

#[derive(Serialize, Deserialize)]
struct EntryBody {
    epoch: u64,
    instance: Instance,
    connectors: Vec<String>,
    /// For records alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Hubs that do not know it route to these as if they were well, which is what all do when there
    /// is no other way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ailing: Vec<String>,
}

/// One agent as a table holds it.
pub(super) fn write_entry(entry: &Entry) -> String {
    serde_json::to_string(&body(entry)).unwrap_or_default()
}

/// Reads an agent of a table; `None` when it is not fit for use.
pub(super) fn read_entry(agent_id: &str, json: &[u8]) -> Option<Entry> {
    if json.len() > MAX_ENTRY || !is_name(agent_id) {
        return None;
    }
    entry(object(json).ok()?)
}

fn body(entry: &Entry) -> EntryBody {
    EntryBody {
        epoch: entry.owner.epoch,
        instance: entry.owner.instance,
        connectors: entry.connectors.to_vec(),
        token: entry.token.as_deref().map(str::to_owned),
        ailing: entry.ailing.to_vec(),
    }
}

fn entry(body: EntryBody) -> Option<Entry> {
    let EntryBody {
        epoch,
        instance,
        connectors,
        token,
        ailing,
    } = body;
    // A name that is told twice would be taken back once.
    let mut named = BTreeSet::new();
    let fit = (1..MAX_EPOCH).contains(&epoch)
        && connectors.len() <= MAX_CONNECTORS
        && connectors
            .iter()
            .all(|name| is_name(name) && named.insert(name));
    if !fit {
        return None;
    }
    let told: BTreeSet<_> = ailing.into_iter().collect();
    let ailing = connectors.iter().filter(|name| told.contains(*name));
    Some(Entry {
        owner: Owner { epoch, instance },
        ailing: ailing.cloned().collect(),
        connectors: connectors.into(),
        token: token.filter(|token| is_token_id(token)).map(Into::into),
    })
}

/// One state of a hub's table: which start of the hub wrote it, and how often it had changed then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) nonce: Arc<str>,
    pub(super) version: u64,
}

impl Stamp {
    /// A stamp that was read; `None` when it is not fit for use.
    pub(super) fn read(nonce: &[u8], version: &[u8]) -> Option<Self> {
        let nonce = std::str::from_utf8(nonce).ok()?;
        let version = std::str::from_utf8(version).ok()?.parse().ok()?;
        let fit = (1..=MAX_NONCE).contains(&nonce.len());
        fit.then(|| Self {
            nonce: nonce.into(),
            version,
        })
    }
}

/// What became of some agents of a hub; `None` in it: gone.
pub(super) type Changes = Vec<(Arc<str>, Option<Entry>)>;

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) hub: Arc<str>,
    /// The state of its table from now on.
    pub(super) stamp: Stamp,
    pub(super) news: News,
}

/// What a notification tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// What changed since the version before.
    Changed(Changes),
    /// More than is told: the table is to be read.
    Rewritten,
    /// The hub has left.
    Left,
}

#[derive(Serialize, Deserialize)]
struct NoticeBody {
    hub: String,
    nonce: String,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agents: Option<BTreeMap<String, Option<EntryBody>>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left: bool,
}

impl Notice {
    /// As it is sent. Changes that are too long are not in it.
    pub(super) fn write(&self) -> String {
        let agents = match &self.news {
            News::Changed(changes) => {
                let told = changes
                    .iter()
                    .map(|(id, entry)| (id.to_string(), entry.as_ref().map(body)));
                Some(told.collect())
            }
            _ => None,
        };
        let mut notice = NoticeBody {
            hub: self.hub.to_string(),
            nonce: self.stamp.nonce.to_string(),
            version: self.stamp.version,
            agents,
            left: self.news == News::Left,
        };
        let text = serde_json::to_string(&notice).unwrap_or_default();
        if text.len() <= MAX_MESSAGE {
            return text;
        }
        notice.agents = None;
        serde_json::to_string(&notice).unwrap_or_default()
    }

    /// Reads what was sent; `None` when it is not fit for use. Entries that are not make it one
    /// that does not tell what changed.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        if json.len() > MAX_MESSAGE {
            return None;
        }
        let body: NoticeBody = object(json).ok()?;
        let stamp = Stamp {
            nonce: body.nonce.into(),
            version: body.version,
        };
        if !is_name(&body.hub) || stamp.nonce.len() > MAX_NONCE {
            return None;
        }
        let changes = body.agents.and_then(|agents| {
            let told = agents.into_iter().map(|(id, body)| {
                let entry = match body {
                    Some(body) => Some(entry(body)?),
                    None => None,
                };
                is_name(&id).then(|| (id.into(), entry))
            });
            told.collect()
        });
        let news = match changes {
            _ if body.left => News::Left,
            Some(changes) => News::Changed(changes),
            None => News::Rewritten,
        };
        Some(Self {
            hub: body.hub.into(),
            stamp,
            news,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(epoch: u64, connectors: &[&str]) -> Entry {
        Entry {
            owner: Owner {
                epoch,
                instance: Instance(7),
            },
            connectors: connectors.iter().map(|name| (*name).to_owned()).collect(),
            token: Some("t-1".into()),
            ailing: connectors
                .iter()
                .skip(1)
                .map(|name| (*name).to_owned())
                .collect(),
        }
    }

    fn notice(news: News) -> Notice {
        let nonce = "n".into();
        Notice {
            hub: "hub-a".into(),
            stamp: Stamp { nonce, version: 4 },
            news,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let told = entry(5, &["ldap", "pg"]);
        let json = write_entry(&told);
        assert_eq!(read_entry("site-1", json.as_bytes()), Some(told.clone()));
        let changes = vec![("gone".into(), None), ("site-1".into(), Some(told))];
        for news in [News::Changed(changes), News::Rewritten, News::Left] {
            let sent = notice(news);
            assert_eq!(Notice::read(sent.write().as_bytes()), Some(sent));
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let json =
            br#"{"epoch":1,"instance":"00000000000000000000000000000001","connectors":[],"x":{}}"#;
        assert!(read_entry("a", json).is_some_and(|entry| entry.token.is_none()));
        let json = br#"{"epoch":1,"instance":"00000000000000000000000000000001","connectors":["a"],"ailing":["b","a","b","a"]}"#;
        let read = read_entry("a", json).expect("fit");
        assert_eq!(*read.ailing, ["a"], "only what is exported, and no more");
        let json = br#"{"hub":"h","nonce":"n","version":1,"agents":{},"weather":"fine"}"#;
        let news = News::Changed(Vec::new());
        assert_eq!(Notice::read(json).map(|notice| notice.news), Some(news));
    }

    #[test]
    fn too_much_to_tell_is_not_told() {
        let long: Vec<_> = (0..200).map(|n| format!("{n:0>128}")).collect();
        let long: Vec<_> = long.iter().map(String::as_str).collect();
        let change = |id: &str| (id.into(), Some(entry(1, &long)));
        let sent = notice(News::Changed(vec![change("a"), change("b"), change("c")]));
        let read = Notice::read(sent.write().as_bytes());
        assert_eq!(read, Some(notice(News::Rewritten)));
    }

    #[test]
    fn what_is_not_fit_is_refused() {
        let long = "x".repeat(MAX_MESSAGE);
        for json in [
            "",
            "[]",
            "{}",
            r#"{"epoch":0,"instance":"00000000000000000000000000000001","connectors":[]}"#,
            r#"{"epoch":9007199254740991,"instance":"00000000000000000000000000000001","connectors":[]}"#,
            r#"{"epoch":1,"instance":"1","connectors":[]}"#,
            r#"{"epoch":1,"instance":"00000000000000000000000000000001","connectors":["a b"]}"#,
            r#"{"epoch":1,"instance":"00000000000000000000000000000001","connectors":["a","b","a"]}"#,
            &long,
        ] {
            assert_eq!(read_entry("a", json.as_bytes()), None, "{json:.60}");
        }
        let nameless = br#"{"hub":"h h","nonce":"n","version":1}"#;
        assert_eq!(Notice::read(nameless), None);
        let unfit = br#"{"hub":"h","nonce":"n","version":1,"agents":{"a b":null}}"#;
        assert_eq!(
            Notice::read(unfit).map(|read| read.news),
            Some(News::Rewritten)
        );
        assert_eq!(Stamp::read(&[b'n'; 65], b"1"), None);
        assert_eq!(Stamp::read(b"n", b"-1"), None);
    }

    proptest! {
        #[test]
        fn nothing_panics(json in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Notice::read(&json), read_entry("a", &json), Stamp::read(&json, &json));
        }
    }
}
