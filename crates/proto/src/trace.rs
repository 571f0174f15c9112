//! W3C Trace Context: which span of another process a flow's spans belong to.

use std::fmt;

/// Bytes of a `traceparent` of version 00.
pub(crate) const TRACEPARENT_LEN: usize = 55;

const SAMPLED: u8 = 0x01;

/// A span that is recorded, as its children in other processes name it. Flows that are not recorded
/// have none.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace; never all zero.
    pub trace_id: [u8; 16],
    /// The span; never all zero.
    pub span_id: [u8; 8],
}

impl TraceContext {
    /// Reads a `traceparent` (W3C Trace Context, section 3.2). `None` for one that is malformed, which
    /// that section has ignored, and for one that is not sampled.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        // A later version may say more, behind another dash.
        let (known, more) = text.split_at_checked(TRACEPARENT_LEN)?;
        let [version, trace_id, span_id, flags] = parts(known)?;
        let version = hex::<1>(version)?[0];
        let is_whole = match version {
            0 => more.is_empty(),
            0xff => false,
            _ => more.first().is_none_or(|next| *next == b'-'),
        };
        let context = Self {
            trace_id: hex(trace_id)?,
            span_id: hex(span_id)?,
        };
        let is_sampled = hex::<1>(flags)?[0] & SAMPLED != 0;
        let is_valid = context.trace_id != [0; 16] && context.span_id != [0; 8];
        (is_whole && is_sampled && is_valid).then_some(context)
    }
}

/// `00-<trace>-<span>-01`, in pieces.
fn parts(text: &[u8]) -> Option<[&[u8]; 4]> {
    let mut parts = text.split(|byte| *byte == b'-');
    let four = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(four)
}

/// Lower case only, as the specification wants it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id
            .iter()
            .try_for_each(|b| write!(f, "{b:02x}"))?;
        f.write_str("-")?;
        self.span_id.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
        write!(f, "-{SAMPLED:02x}")
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read() {
        let context = TraceContext::parse(GOOD).expect("valid");
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(
            context.span_id,
            [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]
        );
        let later = GOOD.replacen("00", "cc", 1);
        assert_eq!(TraceContext::parse(&later), Some(context));
        assert_eq!(TraceContext::parse(&format!("{later}-what")), Some(context));
        let more_flags = format!("{}03", &GOOD[..53]);
        assert_eq!(TraceContext::parse(&more_flags), Some(context));
    }

    #[test]
    fn what_is_malformed_or_not_sampled_is_none() {
        for (what, text) in [
            ("empty", String::new()),
            ("short", GOOD[..54].to_owned()),
            ("long", format!("{GOOD}-what")),
            ("later, without a dash", format!("cc{}0", &GOOD[2..])),
            ("forbidden version", GOOD.replacen("00", "ff", 1)),
            ("upper case", GOOD.to_uppercase()),
            ("no hex", GOOD.replace('b', "g")),
            ("no dash", GOOD.replace('-', "0")),
            ("moved dash", GOOD.replacen("-4b", "4-b", 1)),
            ("not sampled", format!("{}00", &GOOD[..53])),
            ("no trace", format!("00-{}-{}", "0".repeat(32), &GOOD[36..])),
            ("no span", format!("{}{}-01", &GOOD[..36], "0".repeat(16))),
            ("two bytes a character", "é".repeat(28)),
        ] {
            assert_eq!(TraceContext::parse(&text), None, "{what}: {text}");
        }
    }
}
