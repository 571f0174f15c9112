//! Reads JSON from others, where serde_json by itself is lenient: it does not look at the encoding of
//! what it ignores, and takes a bare list of the values of all keys for an object, so that `[true]`
//! would be a decision.

use serde::Deserialize;
use serde::de::Error as _;

/// Reads one JSON object in UTF-8.
///
/// # Errors
/// It is something else, or not what `T` wants. The message may quote it.
pub(crate) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, serde_json::Error> {
    let text = std::str::from_utf8(json).map_err(|_| serde_json::Error::custom("not UTF-8"))?;
    match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text),
        false => Err(serde_json::Error::custom("not a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_in_utf_8_are_read() {
        #[derive(Deserialize)]
        struct Answer {
            allow: bool,
        }
        let read = |json: &[u8]| object::<Answer>(json).map(|answer| answer.allow);
        assert!(read(b" {\"allow\":true,\"x\":\"\xc3\xa4\"}").is_ok_and(|allow| allow));
        for json in [
            &b"[true]"[..],
            b"{\"allow\":true,\"x\":\"\xe4\"}",
            b"true",
            b"",
        ] {
            assert!(read(json).is_err());
        }
    }
}
