//! `ha.redis_url`: where the shared registry is.

use std::fmt;

/// Port of a server that the URL names without one.
const SERVER_PORT: u16 = 6379;
/// The same for a Sentinel.
const SENTINEL_PORT: u16 = 26379;
/// What Sentinels call their master unless told otherwise.
const DEFAULT_MASTER: &str = "mymaster";
/// Servers that a URL may name.
const MAX_NODES: usize = 32;

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// How the servers are organised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One server, or whatever stands in for one at its address.
    Standalone,
    /// Sentinels that know the master of this name.
    Sentinel { master: String },
    /// Redis Cluster.
    Cluster,
}

/// A URL taken apart. Holds the password: never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    /// Servers, Sentinels or members of the cluster; at least one.
    pub(crate) nodes: Vec<Node>,
    pub(crate) tls: bool,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) db: i64,
    /// User and password for Sentinels, which do not share those of the servers.
    pub(crate) sentinel_user: Option<String>,
    pub(crate) sentinel_password: Option<String>,
}

impl Target {
    /// Takes `scheme://[user[:password]@]host[:port][,...][/[master/]db][?...]` apart; `None` for
    /// anything else.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match base {
            "redis" => false,
            "rediss" => true,
            _ => return None,
        };
        // A password may hold what else would end it, so the last `@` does.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (kind, db) = match kind {
            "" => (Kind::Standalone, path),
            "cluster" => (Kind::Cluster, path),
            "sentinel" => {
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                let master = some(master)?.unwrap_or_else(|| DEFAULT_MASTER.to_owned());
                (Kind::Sentinel { master }, db)
            }
            _ => return None,
        };
        let port = match kind {
            Kind::Sentinel { .. } => SENTINEL_PORT,
            _ => SERVER_PORT,
        };
        let nodes: Vec<_> = hosts
            .split(',')
            .map(|host| node(host, port))
            .collect::<Option<_>>()?;
        let alone = kind == Kind::Standalone;
        if nodes.len() > MAX_NODES || (alone && nodes.len() > 1) {
            return None;
        }
        let (user, password) = credentials.map_or(Some((None, None)), login)?;
        let parameter = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let found = pairs.into_iter().find(|(key, _)| *key == name);
            found.map_or(Some(None), |(_, value)| some(value))
        };
        Some(Self {
            kind,
            nodes,
            tls,
            user,
            password,
            db: if db.is_empty() { 0 } else { db.parse().ok()? },
            sentinel_user: parameter("sentinel_user")?,
            sentinel_password: parameter("sentinel_password")?,
        })
    }

    /// All nodes, from any of them on.
    pub(crate) fn shuffled(&self) -> impl Iterator<Item = &Node> {
        let first = rand::random_range(0..self.nodes.len());
        let (before, from) = self.nodes.split_at(first);
        from.iter().chain(before)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("kind", &self.kind)
            .field("nodes", &self.nodes)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

fn node(text: &str, port: u16) -> Option<Node> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let port = match rest {
                "" => port,
                rest => rest.strip_prefix(':')?.parse().ok()?,
            };
            (host, port)
        }
        None => match text.split_once(':') {
            Some((host, number)) => (host, number.parse().ok()?),
            None => (text, port),
        },
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
    let valid = !host.is_empty() && host.chars().all(plain);
    valid.then(|| Node {
        host: host.to_owned(),
        port,
    })
}

/// User and password of `user[:password]`.
fn login(credentials: &str) -> Option<(Option<String>, Option<String>)> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    Some((some(user)?, some(password)?))
}

/// Decoded, with an empty text as none; `None` when it cannot be decoded.
fn some(text: &str) -> Option<Option<String>> {
    let text = decode(text)?;
    Some((!text.is_empty()).then_some(text))
}

/// Percent-decodes (RFC 3986 section 2.1). A `%` that begins no such code stands for itself, as in
/// a password that nobody encoded.
fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let code = code
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(code.unwrap_or(byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Target {
        Target::parse(url).unwrap_or_else(|| panic!("{url}"))
    }

    fn nodes(target: &Target) -> String {
        let nodes: Vec<_> = target.nodes.iter().map(Node::to_string).collect();
        nodes.join(" ")
    }

    #[test]
    fn every_form_is_understood() {
        let plain = parse("redis://shared_redis:6379/3");
        assert_eq!((nodes(&plain).as_str(), plain.db), ("shared_redis:6379", 3));
        assert!(plain.kind == Kind::Standalone && !plain.tls && plain.password.is_none());
        let tls = parse("rediss://hub:p%40s/s@[::1]");
        assert_eq!(nodes(&tls), "[::1]:6379");
        assert!(tls.tls && tls.user.as_deref() == Some("hub"));
        assert_eq!(tls.password.as_deref(), Some("p@s/s"));
        let password = parse("redis://:100%@h/0?x=1");
        assert_eq!(password.password.as_deref(), Some("100%"));
        assert_eq!(password.user, None);
        let sentinel =
            parse("redis+sentinel://u:p@s1,s2:5000/main/2?sentinel_user=w&sentinel_password=q%26");
        assert_eq!(nodes(&sentinel), "s1:26379 s2:5000");
        let master = "main".to_owned();
        assert_eq!((sentinel.kind, sentinel.db), (Kind::Sentinel { master }, 2));
        assert_eq!(sentinel.sentinel_user.as_deref(), Some("w"));
        assert_eq!(sentinel.sentinel_password.as_deref(), Some("q&"));
        let master = DEFAULT_MASTER.to_owned();
        assert_eq!(parse("redis+sentinel://s").kind, Kind::Sentinel { master });
        let cluster = parse("rediss+cluster://a:1,b:2,c");
        assert_eq!(nodes(&cluster), "a:1 b:2 c:6379");
    }

    #[test]
    fn anything_else_is_not() {
        for url in [
            "redis:h",
            "http://h",
            "redis+x://h",
            "redis://",
            "redis://@/0",
            "redis://:6379",
            "redis:///0",
            "redis://a,b",
            "redis://h:99999",
            "redis://h/x",
            "redis+cluster://a,,b",
            "redis://[::1",
            "redis://h%ff\u{7f}",
        ] {
            assert!(Target::parse(url).is_none(), "{url}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", parse("redis://user:hunter2@h"));
        assert!(
            !shown.contains("hunter2") && !shown.contains("user"),
            "{shown}"
        );
    }
}
