//! Which flows somebody wants to see.

/// Flows in one answer, at most and unless told otherwise.
const LIMIT: (usize, usize) = (1000, 100);

/// A part of a list, and what its items must have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) limit: usize,
    pub(super) offset: usize,
    pub(super) connector: Option<String>,
    pub(super) agent: Option<String>,
}

impl Page {
    /// Reads `limit=50&offset=100&connector=ldap&agent=site-1`, every part optional.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut page = Self {
            limit: LIMIT.1,
            offset: 0,
            connector: None,
            agent: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "limit" => page.limit = number(key, value, 1, LIMIT.0)?,
                "offset" => page.offset = number(key, value, 0, usize::MAX)?,
                // Names have no characters that a query would have to escape.
                "connector" => page.connector = Some(value.to_owned()),
                "agent" => page.agent = Some(value.to_owned()),
                _ => return Err("the keys are limit, offset, connector and agent".into()),
            }
        }
        Ok(page)
    }

    /// Whether a flow of `connector`, held by `agent`, is wanted.
    pub(super) fn wants(&self, connector: &str, agent: Option<&str>) -> bool {
        self.connector.as_deref().is_none_or(|c| c == connector)
            && (self.agent.is_none() || self.agent.as_deref() == agent)
    }
}

fn number(key: &str, value: &str, least: usize, most: usize) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{key} must be a number from {least} to {most}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_bounded() {
        let page = Page::parse("").expect("a page");
        assert_eq!((page.limit, page.offset), (100, 0));
        assert!(page.wants("ldap", None));
        let page = Page::parse("limit=2&offset=4&connector=ldap&agent=a").expect("a page");
        assert_eq!((page.limit, page.offset), (2, 4));
        assert!(page.wants("ldap", Some("a")));
        assert!(!page.wants("ldap", None) && !page.wants("pg", Some("a")));
        for query in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "offset=-1",
            "limit",
            "x=1",
        ] {
            assert!(Page::parse(query).is_err(), "{query}");
        }
    }
}
