//! Search filters: from their text (RFC 4515) to their encoding (RFC 4511 section 4.5.1).

use super::ber::{BOOLEAN, OCTETS, SEQUENCE, element, of};

/// How deep filters may be nested.
const MAX_DEPTH: usize = 32;

/// Encodes a filter. A single item may come without brackets, as in `ldapsearch`.
///
/// # Errors
/// Says what is wrong and where.
pub(super) fn encode(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    let mut parser = Parser { rest: text };
    let filter = match text.starts_with('(') {
        true => parser.filter(0)?,
        false => parser.item()?,
    };
    match parser.rest {
        "" => Ok(filter),
        rest => Err(format!("nothing may follow the filter, but '{rest}' does")),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, wanted: char) -> Result<(), String> {
        self.rest = self.rest.strip_prefix(wanted).ok_or_else(|| {
            let before = match self.rest {
                "" => "at the end".to_owned(),
                rest => format!("before '{rest}'"),
            };
            format!("a '{wanted}' is missing {before}")
        })?;
        Ok(())
    }

    fn filter(&mut self, depth: usize) -> Result<Vec<u8>, String> {
        if depth >= MAX_DEPTH {
            return Err(format!("filters are nested more than {MAX_DEPTH} deep"));
        }
        self.take('(')?;
        let filter = match self.rest.chars().next() {
            Some('&') => self.list(0xa0, depth)?,
            Some('|') => self.list(0xa1, depth)?,
            Some('!') => {
                self.take('!')?;
                element(0xa2, &self.filter(depth + 1)?)
            }
            _ => self.item()?,
        };
        self.take(')')?;
        Ok(filter)
    }

    /// Of none is also a filter: absolutely true or false (RFC 4526).
    fn list(&mut self, tag: u8, depth: usize) -> Result<Vec<u8>, String> {
        self.rest = self.rest.get(1..).unwrap_or_default();
        let mut filters = Vec::new();
        while self.rest.starts_with('(') {
            filters.push(self.filter(depth + 1)?);
        }
        Ok(of(tag, &filters))
    }

    fn item(&mut self) -> Result<Vec<u8>, String> {
        let end = self.rest.find([')', '(']).unwrap_or(self.rest.len());
        let (item, rest) = self.rest.split_at(end);
        let Some((left, value)) = item.split_once('=') else {
            return Err(format!("'{item}' is no condition: write attribute=value"));
        };
        self.rest = rest;
        if let Some(left) = left.strip_suffix(':') {
            return extensible(left, value);
        }
        let (tag, attribute) = match left.chars().next_back() {
            Some('>') => (0xa5, left.trim_end_matches('>')),
            Some('<') => (0xa6, left.trim_end_matches('<')),
            Some('~') => (0xa8, left.trim_end_matches('~')),
            _ => (0xa3, left),
        };
        let name = attribute_name(attribute)?;
        match (tag, value) {
            (0xa3, "*") => Ok(element(0x87, name)),
            (0xa3, value) if value.contains('*') => substrings(name, value),
            (tag, value) => Ok(of(
                tag,
                &[element(OCTETS, name), element(OCTETS, &unescape(value)?)],
            )),
        }
    }
}

fn attribute_name(name: &str) -> Result<&[u8], String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ';' | '_');
    match !name.is_empty() && name.chars().all(good) {
        true => Ok(name.as_bytes()),
        false => Err(format!("'{name}' is no attribute")),
    }
}

fn substrings(name: &[u8], value: &str) -> Result<Vec<u8>, String> {
    let pieces: Vec<&str> = value.split('*').collect();
    let last = pieces.len() - 1;
    let mut encoded = Vec::new();
    for (at, piece) in pieces.into_iter().enumerate() {
        let tag = match at {
            0 => 0x80,
            at if at == last => 0x82,
            _ => 0x81,
        };
        if !piece.is_empty() {
            encoded.push(element(tag, &unescape(piece)?));
        }
    }
    match encoded.is_empty() {
        true => Err(format!("'{value}' has nothing between its asterisks")),
        false => Ok(of(0xa4, &[element(OCTETS, name), of(SEQUENCE, &encoded)])),
    }
}

/// `attribute:dn:rule:=value`, where attribute, `dn` or rule may be missing, not both names.
fn extensible(left: &str, value: &str) -> Result<Vec<u8>, String> {
    let mut parts = left.split(':');
    let attribute = parts.next().unwrap_or_default();
    let mut parts = parts.peekable();
    let dn = parts
        .next_if(|part| part.eq_ignore_ascii_case("dn"))
        .is_some();
    let rule = parts.next();
    if parts.next().is_some() || (attribute.is_empty() && rule.is_none()) {
        return Err(format!("'{left}:=' is no matching rule"));
    }
    let mut encoded = Vec::new();
    if let Some(rule) = rule {
        encoded.push(element(0x81, attribute_name(rule)?));
    }
    if !attribute.is_empty() {
        encoded.push(element(0x82, attribute_name(attribute)?));
    }
    encoded.push(element(0x83, &unescape(value)?));
    if dn {
        // Context tag 4 in place of BOOLEAN's own.
        encoded.push(element(0x83 + BOOLEAN, &[0xff]));
    }
    Ok(of(0xa9, &encoded))
}

/// `\2a` stands for the byte 2a.
fn unescape(value: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(value.len());
    let mut pieces = value.split('\\');
    out.extend_from_slice(pieces.next().unwrap_or_default().as_bytes());
    for piece in pieces {
        let digits = piece
            .get(..2)
            .filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        let byte = byte.ok_or("after a backslash come two hexadecimal digits: \\2a is '*'")?;
        out.push(byte);
        out.extend_from_slice(piece.get(2..).unwrap_or_default().as_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> String {
        let bytes = encode(text).unwrap();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn every_kind_of_filter_is_encoded_as_in_the_standard() {
        for (text, expected) in [
            ("(cn=*)", "8702636e"),
            ("cn=a", "a3070402636e040161"),
            ("(cn=a*b*c)", "a40f0402636e3009800161810162820163"),
            ("(cn=*a)", "a4090402636e3003820161"),
            ("(n>=5)", "a50604016e040135"),
            ("(n<=5)", "a60604016e040135"),
            ("(n~=5)", "a80604016e040135"),
            ("(!(a=b))", "a208a306040161040162"),
            ("(&(a=b)(c=*))", "a00ba306040161040162870163"),
            ("(|)", "a100"),
            (r"(a=\2a\c3\a9)", "a3080401610403 2ac3a9"),
            ("(cn:dn:2.4:=x)", "a90f8103322e348202636e8301788401ff"),
            ("(:1.2:=x)", "a9088103312e32830178"),
        ] {
            assert_eq!(hex(text), expected.replace(' ', ""), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let deep = "(!".repeat(40) + "(a=b)" + &")".repeat(40);
        for text in [
            "", "(a=b", "(a=b))", "(ab)", "(=b)", "(a b=c)", r"(a=\zz)", r"(a=\2)", "(a=**)",
            "(:=x)", &deep,
        ] {
            assert!(encode(text).is_err(), "{text}");
        }
    }
}
