//! One audit record as one line of JSON, and the chain that joins each to the one before.
//!
//! `{"ts":…,"seq":…,"event":…,fields…,"prev":"<hash of the record before>","hash":"<its own>"}`. The
//! hash is over the bytes of the line in front of `,"hash":`, which hold `prev`: nothing has to be
//! brought into a canonical form, and `sha256sum` can check it.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use aws_lc_rs::{digest, hmac};
use serde_json::Value;

/// What stands between the bytes that are hashed and the hash.
const HASH: &[u8] = b",\"hash\":\"";
/// What follows the hash.
const CLOSE: &[u8] = b"\"}";
/// Bytes of a SHA-256, and letters of one in hexadecimal.
const BYTES: usize = 32;
const LETTERS: usize = 2 * BYTES;
/// Bytes of a key: fewer could be guessed, more are no key.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;

/// A SHA-256 or HMAC-SHA-256. Displays as 64 lower-case hexadecimal letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; BYTES]);

impl Digest {
    /// What the first record of a chain names as the one before.
    pub(crate) const NONE: Self = Self([0; BYTES]);

    fn of(bytes: &[u8]) -> Self {
        Self(bytes.try_into().unwrap_or_default())
    }

    /// Reads what `Display` writes, and nothing else.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let nibble = |letter: u8| match letter {
            b'0'..=b'9' => Some(letter - b'0'),
            b'a'..=b'f' => Some(letter - b'a' + 10),
            _ => None,
        };
        if text.len() != LETTERS {
            return None;
        }
        let mut bytes = [0; BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// SHA-256 of bytes that come piece by piece.
pub(crate) struct Hasher(digest::Context);

impl Hasher {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::of(self.0.finish().as_ref())
    }

    /// SHA-256 of `bytes`.
    pub(crate) fn once(bytes: &[u8]) -> Digest {
        Digest::of(digest::digest(&digest::SHA256, bytes).as_ref())
    }
}

/// How records are chained.
#[derive(Clone, Debug)]
pub(crate) enum Seal {
    /// Whoever can write the file can make another chain.
    Plain,
    /// Only who has the key can.
    Keyed(Arc<hmac::Key>),
}

impl Seal {
    /// Reads a key: the bytes of the file, without white space around them.
    ///
    /// # Errors
    /// The file cannot be read, or does not hold a key.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| {
                let most = 2 * *KEY_BYTES.end() as u64;
                file.take(most).read_to_end(&mut bytes)
            })
            .with_context(|| format!("cannot read the key {name}"))?;
        let key = bytes.trim_ascii();
        anyhow::ensure!(
            KEY_BYTES.contains(&key.len()),
            "{name} must hold 16 to 4096 bytes: for example 'openssl rand -hex 32 > {name}'"
        );
        Ok(Self::Keyed(Arc::new(hmac::Key::new(
            hmac::HMAC_SHA256,
            key,
        ))))
    }

    fn of(&self, bytes: &[u8]) -> Digest {
        match self {
            Self::Plain => Hasher::once(bytes),
            Self::Keyed(key) => Digest::of(hmac::sign(key, bytes).as_ref()),
        }
    }

    /// Tells keys apart without telling them.
    pub(crate) fn key_id(&self) -> Option<String> {
        let Self::Keyed(key) = self else { return None };
        let tag = hmac::sign(key, b"nowconnect audit key");
        Some(Digest::of(tag.as_ref()).to_string()[..16].to_owned())
    }

    /// Its name in `audit_opened`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Plain => "sha256",
            Self::Keyed(_) => "hmac-sha256",
        }
    }
}

/// Numbers of records. None is so large that there is no next one, whatever a file says.
const SEQ: std::ops::Range<u64> = 1..u64::MAX;

/// Where a trail stands: its last record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) hash: Digest,
}

impl Head {
    /// No record yet.
    pub(crate) const START: Self = Self {
        seq: 0,
        hash: Digest::NONE,
    };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl std::str::FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (seq, hash) = text
            .split_once(':')
            .ok_or("SEQ:HASH is missing its colon")?;
        Ok(Self {
            seq: seq
                .parse()
                .ok()
                .filter(|seq| *seq < SEQ.end)
                .ok_or("SEQ is not the number of a record")?,
            hash: Digest::parse(hash.as_bytes()).ok_or("HASH is not 64 hexadecimal letters")?,
        })
    }
}

/// A record without its place in the trail.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// RFC 3339.
    pub(crate) ts: String,
    /// `"event":"…"` and the fields, as members of a JSON object.
    pub(crate) members: String,
}

impl Draft {
    /// Bytes that it holds.
    pub(crate) fn weight(&self) -> usize {
        self.ts.len() + self.members.len()
    }

    /// Appends the line behind `head`, and moves `head` to it. Without a `seal` there is no chain.
    pub(crate) fn write(&self, out: &mut Vec<u8>, head: &mut Head, seal: Option<&Seal>) {
        let from = out.len();
        let seq = head.seq + 1;
        out.extend_from_slice(
            format!("{{\"ts\":\"{}\",\"seq\":{seq},{}", self.ts, self.members).as_bytes(),
        );
        let mut hash = Digest::NONE;
        if let Some(seal) = seal {
            out.extend_from_slice(format!(",\"prev\":\"{}\"", head.hash).as_bytes());
            hash = seal.of(&out[from..]);
            out.extend_from_slice(HASH);
            out.extend_from_slice(hash.to_string().as_bytes());
            out.push(b'"');
        }
        out.extend_from_slice(b"}\n");
        *head = Head { seq, hash };
    }
}

/// A line that was read.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    /// The whole of it.
    pub(crate) json: Value,
    pub(crate) seq: u64,
    /// `None`: it is not chained.
    pub(crate) link: Option<Link<'a>>,
}

/// A record's place in the chain, as it says itself.
#[derive(Debug)]
pub(crate) struct Link<'a> {
    pub(crate) prev: Digest,
    pub(crate) hash: Digest,
    /// What the hash is over.
    body: &'a [u8],
}

impl Link<'_> {
    /// Whether it is the one that `seal` makes.
    pub(crate) fn fits(&self, seal: &Seal) -> bool {
        seal.of(self.body) == self.hash
    }
}

impl<'a> Record<'a> {
    /// Reads a line without its newline; `None`: it is no audit record.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let json: Value = serde_json::from_slice(line).ok()?;
        let seq = json.get("seq")?.as_u64().filter(|seq| SEQ.contains(seq))?;
        json.get("event")?.as_str()?;
        let link = match (json.get("prev"), json.get("hash")) {
            (None, None) => None,
            (Some(prev), Some(_)) => {
                let tail = HASH.len() + LETTERS + CLOSE.len();
                let (body, tail) = line.split_at_checked(line.len().checked_sub(tail)?)?;
                let hash = tail.strip_prefix(HASH)?.strip_suffix(CLOSE)?;
                Some(Link {
                    prev: Digest::parse(prev.as_str()?.as_bytes())?,
                    hash: Digest::parse(hash)?,
                    body,
                })
            }
            _ => return None,
        };
        Some(Self { json, seq, link })
    }

    /// Where a trail stands that ends here.
    pub(crate) fn head(&self) -> Head {
        Head {
            seq: self.seq,
            hash: self.link.as_ref().map_or(Digest::NONE, |link| link.hash),
        }
    }

    /// The value of a field that is text.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.json.get(field)?.as_str()
    }

    /// The value of a field that is a number.
    pub(crate) fn number(&self, field: &str) -> Option<u64> {
        self.json.get(field)?.as_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(event: &str) -> Draft {
        Draft {
            ts: "2026-01-01T00:00:00Z".into(),
            members: format!("\"event\":\"{event}\""),
        }
    }

    #[test]
    fn what_is_written_is_read_and_fits() {
        let keyed = Seal::Keyed(Arc::new(hmac::Key::new(
            hmac::HMAC_SHA256,
            b"0123456789abcdef",
        )));
        for seal in [Seal::Plain, keyed] {
            let (mut out, mut head) = (Vec::new(), Head::START);
            draft("a").write(&mut out, &mut head, Some(&seal));
            draft("b").write(&mut out, &mut head, Some(&seal));
            let lines: Vec<_> = out.split(|byte| *byte == b'\n').collect();
            let [a, b, []] = lines[..] else {
                panic!("{lines:?}")
            };
            let (a, b) = (Record::parse(a).unwrap(), Record::parse(b).unwrap());
            assert_eq!((a.seq, b.seq, b.text("event")), (1, 2, Some("b")));
            assert_eq!(b.head(), head);
            let (one, two) = (a.link.as_ref().unwrap(), b.link.as_ref().unwrap());
            assert_eq!((one.prev, two.prev), (Digest::NONE, one.hash));
            assert!(one.fits(&seal) && two.fits(&seal));
            assert_eq!(two.fits(&Seal::Plain), seal.name() == "sha256");
        }
        let (mut out, mut head) = (Vec::new(), Head::START);
        draft("a").write(&mut out, &mut head, None);
        assert_eq!(
            out,
            b"{\"ts\":\"2026-01-01T00:00:00Z\",\"seq\":1,\"event\":\"a\"}\n"
        );
    }

    /// The documentation says how to check a record by hand; this is what it relies on.
    #[test]
    fn the_hash_is_that_of_the_line_before_it() {
        let (mut out, mut head) = (Vec::new(), Head::START);
        draft("a").write(&mut out, &mut head, Some(&Seal::Plain));
        let line = String::from_utf8(out).unwrap();
        let (body, _) = line.split_once(",\"hash\":").unwrap();
        assert_eq!(Hasher::once(body.as_bytes()), head.hash);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Hasher::once(b"").to_string(), empty);
    }

    #[test]
    fn heads_are_written_as_they_are_read() {
        let head = Head {
            seq: 7,
            hash: Hasher::once(b"x"),
        };
        assert_eq!(head.to_string().parse(), Ok(head));
        let last = format!("{}:{}", u64::MAX, head.hash);
        for wrong in ["", "7", "7:", "x:00", "7:zz", &format!("{head}0"), &last] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_neither_empty_nor_endless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let load = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Seal::load(&path)
        };
        assert!(load(b"0123456789abcdef\n").is_ok());
        for wrong in [&b""[..], b"short\n", &[b'x'; 9000]] {
            let error = load(wrong).unwrap_err().to_string();
            assert!(error.contains("16 to 4096 bytes"), "{error}");
        }
        assert!(Seal::load(&dir.path().join("none")).is_err());
    }
}
