//! Scripts that run inside Redis, so that a change is made as a whole or not at all.

use std::fmt::Write as _;
use std::sync::LazyLock;

use sha1::{Digest, Sha1};

macro_rules! load {
    ($file:literal) => {
        LazyLock::new(|| Script::new(include_str!($file)))
    };
}

pub(super) static CLAIM: LazyLock<Script> = load!("claim.lua");
pub(super) static HOLD: LazyLock<Script> = load!("hold.lua");
pub(super) static TABLE: LazyLock<Script> = load!("table.lua");
pub(super) static LEAVE: LazyLock<Script> = load!("leave.lua");
pub(super) static PROOF: LazyLock<Script> = load!("proof.lua");
pub(super) static HUBS: LazyLock<Script> = load!("hubs.lua");

/// A script and the hash by which a server that has run it knows it.
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        let mut hash = String::new();
        for byte in Sha1::digest(text) {
            let _ = write!(hash, "{byte:02x}");
        }
        Self { text, hash }
    }

    pub(super) fn text(&self) -> &'static str {
        self.text
    }

    pub(super) fn hash(&self) -> &str {
        &self.hash
    }
}
