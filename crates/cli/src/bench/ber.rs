//! The Basic Encoding Rules as LDAP uses them (RFC 4511 section 5.1): definite lengths, tags of one byte.

/// Longest message that is taken, in bytes.
pub(super) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const ENUMERATED: u8 = 0x0a;
pub(super) const SEQUENCE: u8 = 0x30;

/// What a peer sent is not BER, or not LDAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server does not speak LDAP: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// An element: its tag, its length, its content.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let bytes = content.len().to_be_bytes();
            let skipped = bytes.iter().take_while(|byte| **byte == 0).count();
            let bytes = bytes.get(skipped..).unwrap_or_default();
            // At most eight bytes of length.
            out.push(0x80 | bytes.len() as u8);
            out.extend_from_slice(bytes);
        }
    }
    out.extend_from_slice(content);
    out
}

/// An element that is made of others.
pub(super) fn of(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    element(tag, &parts.concat())
}

/// A number that is not negative, in as few bytes as may be.
pub(super) fn number(tag: u8, value: u32) -> Vec<u8> {
    let bytes = u64::from(value).to_be_bytes();
    // The first bit is the sign: it must stay clear.
    let skipped = bytes
        .windows(2)
        .take_while(|pair| pair[0] == 0 && pair[1] < 0x80);
    let skipped = skipped.count();
    element(tag, bytes.get(skipped..).unwrap_or_default())
}

/// How long the first message of `input` is with its header; `None` while that cannot be said yet.
pub(super) fn message_len(input: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some((tag, rest)) = input.split_first() else {
        return Ok(None);
    };
    if *tag != SEQUENCE {
        return Err(Malformed(
            "a message does not begin as one (is the port right, is --ssl?)",
        ));
    }
    let Some((content, header)) = length(rest)? else {
        return Ok(None);
    };
    let whole = content.saturating_add(header).saturating_add(1);
    match whole > MAX_MESSAGE {
        true => Err(Malformed("a message is longer than 16 MiB")),
        false => Ok(Some(whole)),
    }
}

/// A length and how many bytes say it.
fn length(input: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some((first, rest)) = input.split_first() else {
        return Ok(None);
    };
    let count = usize::from(first & 0x7f);
    match first {
        0..=0x7f => Ok(Some((count, 1))),
        0x81..=0x84 => Ok(rest.get(..count).map(|bytes| {
            let value = bytes
                .iter()
                .fold(0, |value, byte| (value << 8) | usize::from(*byte));
            (value, count + 1)
        })),
        _ => Err(Malformed("a length is indefinite or above 4 GiB")),
    }
}

/// Takes elements from the front of a content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next element; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u8, Reader<'a>)>, Malformed> {
        let Some((tag, rest)) = self.0.split_first() else {
            return Ok(None);
        };
        let cut = Malformed("an element is cut off");
        let (len, header) = length(rest)?.ok_or(cut)?;
        let rest = rest.get(header..).ok_or(cut)?;
        let (content, rest) = rest.split_at_checked(len).ok_or(cut)?;
        self.0 = rest;
        Ok(Some((*tag, Reader(content))))
    }

    /// The next element, which must be there and have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Result<Reader<'a>, Malformed> {
        match self.next()? {
            Some((found, content)) if found == tag => Ok(content),
            _ => Err(Malformed("an element is missing")),
        }
    }

    /// The next element, as a number that is not negative.
    pub(super) fn number(&mut self, tag: u8) -> Result<u32, Malformed> {
        let bytes = self.expect(tag)?.0;
        let negative = bytes.first().is_none_or(|first| *first >= 0x80);
        if negative || bytes.len() > 5 {
            return Err(Malformed("a number is out of range"));
        }
        let value = bytes
            .iter()
            .fold(0, |value, byte| (value << 8) | u64::from(*byte));
        u32::try_from(value).map_err(|_| Malformed("a number is out of range"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_numbers_are_as_short_as_may_be_and_read_back() {
        assert_eq!(element(OCTETS, b"a"), [4, 1, b'a']);
        assert_eq!(element(OCTETS, &[0; 128])[..3], [4, 0x81, 128]);
        assert_eq!(element(OCTETS, &[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(number(INTEGER, 0), [2, 1, 0]);
        assert_eq!(number(INTEGER, 128), [2, 2, 0, 128]);
        for value in [0, 1, 127, 128, 255, 256, 65_535, u32::MAX] {
            let encoded = number(INTEGER, value);
            assert_eq!(Reader(&encoded).number(INTEGER), Ok(value));
        }
    }

    #[test]
    fn a_message_is_measured_before_it_is_whole_and_nonsense_is_refused() {
        let message = element(SEQUENCE, &[7; 300]);
        assert_eq!(message_len(&message[..1]), Ok(None));
        assert_eq!(message_len(&message[..3]), Ok(None));
        assert_eq!(message_len(&message[..4]), Ok(Some(304)));
        assert!(message_len(b"HTTP/1.1 400").is_err());
        assert!(message_len(&[0x30, 0x80]).is_err());
        assert!(message_len(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(Reader(&[4, 5, 1]).next().is_err());
        assert!(Reader(&[2, 1, 0x80]).number(INTEGER).is_err());
    }
}
