//! Durations on the command line: `90s`, `15m`, `24h`, `30d`, `250ms`.

use std::time::Duration;

/// Reads a number with its unit; a bare number is refused because nobody agrees on its unit.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "ms" => None,
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => return Err("write a number and a unit: 250ms, 90s, 15m, 24h or 30d".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "the number is missing or too large")?;
    match seconds_per_unit {
        None => Ok(Duration::from_millis(number)),
        Some(seconds) => number
            .checked_mul(seconds)
            .map(Duration::from_secs)
            .ok_or_else(|| "the number is too large".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_required_and_understood() {
        for (text, seconds) in [
            ("90s", 90),
            ("15m", 900),
            ("24h", 86_400),
            ("30d", 2_592_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        for text in [
            "",
            "5",
            "h",
            "-1s",
            "1.5h",
            "1 h",
            "99999999999999999999s",
            "999999999999999999d",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
