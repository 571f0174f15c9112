//! Text that must not be shown.

use std::fmt;

use zeroize::Zeroizing;

/// What stands in for a secret.
pub(crate) const MASK: &str = "***";

/// A secret: `Debug`, `Display` and `Serialize` show `***`, and its memory is overwritten when it is
/// dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself; keep it out of logs and errors.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

/// `url` with its password and every query value masked: `redis://user:***@host/0?db=***`.
///
/// Made for showing, so it errs on the side of masking: without a `:` all of the user part is
/// hidden, and the last `@` before the path ends it. Text that is no URL is masked whole.
pub fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return MASK.to_owned();
    };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let mut masked = format!("{scheme}://");
    // A password may hold an unescaped slash, so everything up to the last `@` is its.
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            match user.split_once(':') {
                Some((name, _)) => masked.push_str(&format!("{name}:{MASK}@")),
                None => masked.push_str(&format!("{MASK}@")),
            }
            masked.push_str(host);
        }
        None => masked.push_str(rest),
    }
    for (i, pair) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        masked.push(if i == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, _)) => masked.push_str(&format!("{name}={MASK}")),
            None => masked.push_str(MASK),
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_masked() {
        for (url, shown) in [
            ("redis://shared_redis:6379/0", "redis://shared_redis:6379/0"),
            ("redis://user:pa:ss@host:1/0", "redis://user:***@host:1/0"),
            ("rediss://:p/a@ss@host", "rediss://:***@host"),
            ("http://token@proxy:3128", "http://***@proxy:3128"),
            ("redis://h/0?password=p&tls", "redis://h/0?password=***&***"),
            ("hunter2", "***"),
        ] {
            assert_eq!(mask_url(url), shown);
        }
    }

    #[test]
    fn a_secret_is_never_formatted() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "*** *** Some(***)"
        );
        assert_eq!(secret.expose(), "hunter2");
    }
}
