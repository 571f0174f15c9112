//! Names of flows: for life ([`Cid`]), on one link ([`FlowId`]), and the proof that it is yours
//! ([`Secret`]).

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Name of a flow for its whole life, on every path and in every log line; a UUID on paper.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid(pub [u8; 16]);

impl Cid {
    /// A new name. Version 7, so that names sort by the time their flow was opened.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().into_bytes())
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID")]
pub struct InvalidCid;

impl FromStr for Cid {
    type Err = InvalidCid;

    fn from_str(text: &str) -> Result<Self, InvalidCid> {
        Uuid::try_parse(text)
            .map(|id| Self(id.into_bytes()))
            .map_err(|_| InvalidCid)
    }
}

/// What a flow's OPEN carried and every later attach must repeat: without it, knowing a [`Cid`]
/// (which logs show) would be enough to take a flow over. Never printed.
#[derive(Clone, Copy)]
pub struct Secret(pub [u8; 16]);

impl Secret {
    /// A new secret from the operating system's random source.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }

    /// Compares without telling by its duration where the first difference is.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .fold(0u8, |acc, (a, b)| acc | (a ^ b))
            == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Name of a flow on one link. The side that opens flows counts up from 1 and never uses a number
/// twice on the same link, so a number at or below the highest seen that is no longer known belongs
/// to a flow that has ended. 0 is the link itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FlowId(pub u32);

impl FlowId {
    /// The link itself.
    pub const LINK: Self = Self(0);
}

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cid_reads_back_as_it_was_written() {
        let cid = Cid::generate();
        assert_eq!(cid.to_string().parse(), Ok(cid));
        assert_eq!("nonsense".parse::<Cid>(), Err(InvalidCid));
    }

    #[test]
    fn a_secret_is_compared_whole_and_never_printed() {
        let secret = Secret([7; 16]);
        let mut other = secret;
        other.0[15] ^= 1;
        assert!(secret.matches(&secret) && !secret.matches(&other));
        assert_eq!(format!("{secret:?}"), "***");
    }
}
