//! Reading JSON that a stranger sent: size and nesting are judged before anything is built from it.

use serde::{Deserialize, Serialize};
use serde_json::error::Category;

/// Deepest nesting read. Our own messages need two levels; the rest is room for newer peers.
const MAX_DEPTH: usize = 32;

/// Why a JSON text was refused. Never holds a value of the text, which may be a secret or payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Longer than its kind may be.
    #[error("{len} bytes of JSON where at most {max} are allowed")]
    TooLong {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Nested deeper than anything we know.
    #[error("JSON nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// No JSON, a missing or doubled key, or a value of the wrong type.
    #[error("{what} at column {column}")]
    Malformed {
        /// What is wrong, with the key where that is known.
        what: String,
        /// Byte position, from 1.
        column: usize,
    },
}

/// Reads one JSON object of at most `max` bytes. Unknown keys are for the type to ignore or refuse;
/// doubled known keys and trailing text are errors.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], max: usize) -> Result<T, JsonError> {
    if text.len() > max {
        return Err(JsonError::TooLong {
            len: text.len(),
            max,
        });
    }
    if too_deep(text) {
        return Err(JsonError::TooDeep);
    }
    let malformed = |what: &str, column| JsonError::Malformed {
        what: what.to_owned(),
        column,
    };
    // Of what it ignores, the parser would not look at the encoding.
    let text = std::str::from_utf8(text)
        .map_err(|error| malformed("no valid JSON", error.valid_up_to() + 1))?;
    // And it would take a bare list of the values of all keys.
    if !text.trim_start().starts_with('{') {
        return Err(malformed("no JSON object", 1));
    }
    serde_json::from_str(text).map_err(|error| describe(&error))
}

/// Writes one JSON text of at most `max` bytes.
pub(crate) fn write<T: Serialize>(value: &T, max: usize) -> Result<Vec<u8>, JsonError> {
    let text = serde_json::to_vec(value).map_err(|error| describe(&error))?;
    if text.len() > max {
        return Err(JsonError::TooLong {
            len: text.len(),
            max,
        });
    }
    Ok(text)
}

/// serde's own message quotes the offending value, so only those that quote nothing but a key are
/// passed on.
fn describe(error: &serde_json::Error) -> JsonError {
    let message = error.to_string();
    let what = match error.classify() {
        Category::Eof => "unfinished JSON".to_owned(),
        Category::Data
            if message.starts_with("missing field") || message.starts_with("duplicate field") =>
        {
            message
                .split(" at line ")
                .next()
                .unwrap_or_default()
                .to_owned()
        }
        Category::Data => "a value of the wrong type or out of its range".to_owned(),
        Category::Syntax | Category::Io => "no valid JSON".to_owned(),
    };
    JsonError::Malformed {
        what,
        column: error.column(),
    }
}

fn too_deep(text: &[u8]) -> bool {
    let opens = |byte: &&u8| matches!(byte, b'{' | b'[');
    // Nearly every text ends here: it has fewer brackets than it may have levels.
    if text.iter().filter(opens).count() <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Small {
        n: u64,
    }

    fn error(text: &str) -> String {
        parse::<Small>(text.as_bytes(), 1 << 20)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn unknown_keys_are_ignored() {
        let text = br#"{"later":{"a":[1,{"b":"]]}}\""}]},"n":7}"#;
        assert_eq!(parse::<Small>(text, 100), Ok(Small { n: 7 }));
    }

    #[test]
    fn nesting_is_bounded_even_where_ignored() {
        let deep = format!(
            r#"{{"n":1,"x":{}{}}}"#,
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert_eq!(
            parse::<Small>(deep.as_bytes(), 1 << 20),
            Err(JsonError::TooDeep)
        );
        let wide = format!(r#"{{"n":1,"x":[{}[]]}}"#, "[],".repeat(1000));
        assert_eq!(parse::<Small>(wide.as_bytes(), 1 << 20), Ok(Small { n: 1 }));
        let quoted = format!(r#"{{"n":1,"x":"{}"}}"#, "[".repeat(100));
        assert_eq!(
            parse::<Small>(quoted.as_bytes(), 1 << 20),
            Ok(Small { n: 1 })
        );
    }

    #[test]
    fn hostile_values_are_errors() {
        assert_eq!(
            error(r#"{"n":1,"n":1}"#),
            "duplicate field `n` at column 10"
        );
        assert!(error("{}").starts_with("missing field `n`"));
        assert!(error(r#"{"n":1"#).starts_with("unfinished JSON"));
        for text in [r#"{"n":NaN}"#, r#"{"n":1}x"#, "", "\u{feff}{}", "{'n':1}"] {
            let error = error(text);
            assert!(error.contains("JSON"), "{text}: {error}");
        }
        for value in [
            "-1",
            "18446744073709551616",
            "1.0",
            "1e3",
            "null",
            "true",
            "[1]",
        ] {
            let error = error(&format!(r#"{{"n":{value}}}"#));
            assert!(
                error.starts_with("a value of the wrong type"),
                "{value}: {error}"
            );
        }
    }

    #[test]
    fn text_is_utf_8_even_where_ignored() {
        let error = parse::<Small>(b"{\"n\":7,\"later\":\"\xff\"}", 100).unwrap_err();
        assert_eq!(error.to_string(), "no valid JSON at column 17");
    }

    #[test]
    fn a_list_of_values_is_no_object() {
        assert_eq!(error("[7]"), "no JSON object at column 1");
        assert_eq!(parse::<Small>(b" \n{\"n\":7}", 100), Ok(Small { n: 7 }));
    }

    #[test]
    fn errors_never_quote_values() {
        assert!(!error(r#"{"n":"hunter2"}"#).contains("hunter2"));
        assert!(!error(r#"{"n":"missing field"}"#).starts_with("missing field"));
    }

    #[test]
    fn length_is_judged_first() {
        assert_eq!(
            parse::<Small>(b"{{{{", 3),
            Err(JsonError::TooLong { len: 4, max: 3 })
        );
    }
}
