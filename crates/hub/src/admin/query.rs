//! What the query of a request asks for.

use std::collections::BTreeMap;

use super::route::Route;

/// Items in one answer, at most and unless told otherwise.
const LIMIT: (usize, usize) = (1000, 100);
/// Bytes of the longest value.
const MAX_VALUE: usize = 128;

/// Which hubs an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Cluster,
    Hub,
}

/// A query that its route understands.
#[derive(Debug, Default)]
pub(super) struct Query(BTreeMap<&'static str, String>);

impl Query {
    /// Reads `limit=50&connector=ldap`, every part optional.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn parse(query: &str, route: Route<'_>) -> Result<Self, String> {
        let mut known = route.keys().to_vec();
        if route.is_of_cluster() {
            known.push("scope");
        }
        let mut values = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(key) = known.iter().find(|known| **known == key) else {
                return Err(match known.is_empty() {
                    true => "this path takes no query".to_owned(),
                    false => format!("the keys are {}", known.join(", ")),
                });
            };
            let value = decode(value).filter(|value| value.len() <= MAX_VALUE);
            let value = value.ok_or_else(|| format!("{key} is too long, or not text"))?;
            values.insert(*key, value);
        }
        let query = Self(values);
        query.check()?;
        Ok(query)
    }

    fn check(&self) -> Result<(), String> {
        self.number("limit", 1, LIMIT.0 as u64)?;
        self.number("since", 0, u64::MAX)?;
        let words: [(_, &[&str]); 2] = [
            ("scope", &["cluster", "hub"]),
            ("state", &["opening", "open", "waiting"]),
        ];
        for (key, known) in words {
            if self.get(key).is_some_and(|value| !known.contains(&value)) {
                return Err(format!("{key} must be one of {}", known.join(", ")));
            }
        }
        Ok(())
    }

    /// The value of `key`; an empty one is none.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// Whether `value` is what was asked for under `key`, or nothing was.
    pub(super) fn wants(&self, key: &str, value: Option<&str>) -> bool {
        self.get(key).is_none_or(|wanted| value == Some(wanted))
    }

    pub(super) fn scope(&self) -> Scope {
        match self.get("scope") {
            Some("hub") => Scope::Hub,
            _ => Scope::Cluster,
        }
    }

    /// Items in one answer.
    pub(super) fn limit(&self) -> usize {
        let limit = self.get("limit").and_then(|limit| limit.parse().ok());
        limit.unwrap_or(LIMIT.1)
    }

    /// Milliseconds since 1970, the time after which things are wanted.
    pub(super) fn since(&self) -> u64 {
        let since = self.get("since").and_then(|since| since.parse().ok());
        since.unwrap_or(0)
    }

    fn number(&self, key: &str, least: u64, most: u64) -> Result<(), String> {
        let Some(value) = self.0.get(key) else {
            return Ok(());
        };
        match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(()),
            _ => Err(format!("{key} must be a number from {least} to {most}")),
        }
    }

    /// The query for another hub, about itself alone.
    pub(super) fn for_a_peer(&self) -> String {
        let pairs = self.0.iter().filter(|(key, _)| **key != "scope");
        let pairs = pairs.map(|(key, value)| format!("{key}={}", encode(value)));
        pairs.collect::<Vec<_>>().join("&")
    }
}

fn encode(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    let bytes = value.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    bytes.collect()
}

/// Undoes percent encoding (RFC 3986 section 2.1).
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows(query: &str) -> Result<Query, String> {
        Query::parse(query, Route::Flows)
    }

    #[test]
    fn queries_are_read_and_bounded() {
        let query = flows("").expect("good");
        assert_eq!((query.limit(), query.scope()), (100, Scope::Cluster));
        assert!(query.wants("connector", None));
        let query = flows("limit=2&scope=hub&connector=ldap&client=%5B::1%5D:5").expect("good");
        assert_eq!((query.limit(), query.scope()), (2, Scope::Hub));
        assert!(query.wants("connector", Some("ldap")) && query.wants("agent", None));
        assert!(!query.wants("connector", Some("pg")) && !query.wants("connector", None));
        assert_eq!(query.get("client"), Some("[::1]:5"));
        for bad in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit",
            "x=1",
            "offset=1",
            "scope=all",
            "state=odd",
            "cid=%4",
            "cid=%ff",
            &format!("cid={}", "a".repeat(129)),
        ] {
            assert!(flows(bad).is_err(), "{bad}");
        }
        assert!(Query::parse("limit=1", Route::Mesh).is_err());
        assert!(Query::parse("scope=hub", Route::Config).is_err());
    }

    #[test]
    fn a_peer_is_asked_the_same_about_itself() {
        let query = flows("client=%5B::1%5D:5&scope=cluster&limit=7").expect("good");
        let again = flows(&query.for_a_peer()).expect("good");
        assert_eq!(again.get("client"), Some("[::1]:5"));
        assert_eq!((again.limit(), again.get("scope")), (7, None));
    }
}
