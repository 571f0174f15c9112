//! What goes wrong with Redis.

use nowconnect_link::dial::DialError;
use nowconnect_link::tls::TlsError;
use redis::RedisError;

use crate::config::redis_url::Node;

/// Most of a server's own words that are repeated.
const MAX_WORDS: usize = 200;

/// Why something was not done. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("ha.redis_url is not understood")]
    Url,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("{node}: no answer within {after_ms} ms")]
    Late { node: Node, after_ms: u128 },
    #[error("{node}: {}", words(source))]
    Server { node: Node, source: RedisError },
    #[error("{node}: an answer that is not understood: {what}")]
    Answer { node: Node, what: &'static str },
    #[error("{node} is not a master")]
    NotMaster { node: Node },
    #[error("no Sentinel knows a master `{0}`")]
    NoMaster(String),
    #[error("no node of the cluster serves slot {0}")]
    NoSlot(u16),
    #[error("the connection was lost")]
    Lost,
    #[error("the Sentinels have another master")]
    Moved,
}

impl Fault {
    /// Whether a server answered with an error of this code.
    pub(super) fn is_code(&self, code: &str) -> bool {
        matches!(self, Self::Server { source, .. } if source.code() == Some(code))
    }
}

/// What a server says before it repeats what it was asked, which may have been a login.
const REPEATS: &str = "with args";

/// What the error says, fit for a line of a log.
fn words(error: &RedisError) -> String {
    let text = error.to_string();
    let own = text.split(REPEATS).next().unwrap_or_default();
    let plain = own.chars().filter(|c| !c.is_control());
    plain.take(MAX_WORDS).collect()
}
