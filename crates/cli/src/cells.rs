//! What hubs tell, as the cells of tables.

use std::fmt::Write as _;

use serde_json::Value;

use crate::logging::is_dangerous;

/// The items of a list; none if it is none.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as text that cannot steer the terminal: some of it comes from agents.
pub(crate) fn word(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.replace(is_dangerous, "?")
}

/// Those keys of an object.
pub(crate) fn row(object: &Value, keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| word(&object[*key])).collect()
}

/// `1 hub`, `2 hubs`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The same of a number that may be missing: `- hubs`.
pub(crate) fn counted(number: &Value, noun: &str) -> String {
    match number.as_u64() {
        Some(1) => format!("1 {noun}"),
        _ => format!("{} {noun}s", word(number)),
    }
}

pub(crate) fn words(value: &Value) -> String {
    let words: Vec<_> = list(value).iter().map(word).collect();
    words.join(", ")
}

/// Seconds in the two largest units that say something.
pub(crate) fn age(seconds: &Value) -> String {
    let Some(all) = seconds.as_u64() else {
        return "-".into();
    };
    let (days, hours, minutes) = (all / 86_400, all / 3600 % 24, all / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{all}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", all % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

/// Milliseconds as an age, with more detail below a minute.
pub(crate) fn age_ms(millis: &Value) -> String {
    match millis.as_u64() {
        None => "-".into(),
        Some(ms @ ..1000) => format!("{ms}ms"),
        Some(ms @ ..10_000) => format!("{:.1}s", ms as f64 / 1e3),
        Some(ms) => age(&(ms / 1000).into()),
    }
}

/// A duration in milliseconds.
pub(crate) fn ms(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(ms) if ms < 10.0 => format!("{ms:.1}ms"),
        Some(ms) => format!("{ms:.0}ms"),
    }
}

/// Bytes in a unit that suits them.
pub(crate) fn bytes(value: &Value) -> String {
    let Some(mut amount) = value.as_f64() else {
        return "-".into();
    };
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return match unit {
                "B" => format!("{amount:.0}B"),
                _ => format!("{amount:.1}{unit}"),
            };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1}TiB")
}

/// A line for each hub that did not answer.
pub(crate) fn silent(answer: &Value) -> String {
    let mut text = String::new();
    for hub in list(&answer["hubs"]) {
        if hub["answered"] == false {
            let name = match &hub["hub"] {
                Value::Null => &hub["peer"],
                name => name,
            };
            let _ = writeln!(
                text,
                "no answer from {} ({}): {}",
                word(name),
                word(&hub["reason"]),
                word(&hub["detail"])
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ages_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (3660, "1h1m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(age(&seconds.into()), text);
        }
        assert_eq!(age_ms(&7.into()), "7ms");
        assert_eq!(age_ms(&1500.into()), "1.5s");
        assert_eq!(age_ms(&61_000.into()), "1m1s");
    }

    #[test]
    fn amounts_have_units() {
        assert_eq!(ms(&json!(1.25)), "1.2ms");
        assert_eq!(ms(&json!(125)), "125ms");
        assert_eq!(bytes(&json!(1023)), "1023B");
        assert_eq!(bytes(&json!(1536)), "1.5KiB");
        assert_eq!(
            (ms(&Value::Null), bytes(&Value::Null)),
            ("-".into(), "-".into())
        );
    }

    #[test]
    fn what_an_agent_says_does_not_steer_the_terminal() {
        assert_eq!(word(&"a\u{1b}[2Jb".into()), "a?[2Jb");
        assert_eq!(words(&json!(["a", "b\n"])), "a, b?");
        assert_eq!(word(&"\u{202e}a".into()), "?a");
    }
}
