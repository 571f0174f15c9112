//! Why a token was refused: one code per cause, the same everywhere it is reported.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)+) => {
        /// Why an agent was not let in. Codes are part of the contract: dashboards and agents read them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// Every reason, to create each metric series at zero.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// The stable `snake_case` code.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Reason::$name => $code,)+
                }
            }
        }
    };
}

reasons! {
    /// No bearer token in the request.
    MissingToken = "missing_token",
    /// Longer than [`crate::auth::jwt::MAX_TOKEN_BYTES`].
    TooLarge = "too_large",
    /// Not three base64url parts of JSON, or a claim of the wrong type.
    Malformed = "malformed",
    /// A header parameter that must be understood or that points at foreign keys (`crit`, `jku`, `jwk`, `x5u`).
    HeaderNotAllowed = "header_not_allowed",
    /// `alg` is not on the list: `none`, HMAC and everything unknown.
    AlgNotAllowed = "alg_not_allowed",
    /// `alg` is on the list, but is not the algorithm of the key that the token names.
    AlgMismatch = "alg_mismatch",
    /// No key of the set has the token's `kid`.
    UnknownKey = "unknown_key",
    /// The signature does not verify.
    BadSignature = "bad_signature",
    /// No `exp` claim.
    MissingExpiry = "missing_expiry",
    /// `exp` has passed.
    Expired = "expired",
    /// `nbf` has not come yet.
    NotYetValid = "not_yet_valid",
    /// `aud` is missing or names somebody else.
    WrongAudience = "wrong_audience",
    /// `iss` is missing or is not the configured issuer.
    WrongIssuer = "wrong_issuer",
    /// No `agent_id` claim.
    MissingAgentId = "missing_agent_id",
    /// `agent_id` is not 1 to 64 characters of `[A-Za-z0-9._-]`.
    InvalidAgentId = "invalid_agent_id",
    /// The hub has no `security.jwks_url`.
    NoJwks = "no_jwks",
    /// The hub could not get the keys; the same token may pass later.
    KeysUnavailable = "keys_unavailable",
    /// A bearer token where a proof of possession (RFC 9449) is demanded: by `security.fapi_mode: 2`,
    /// or by the token, which is for one key (section 7.2: it must not pass as a bearer token).
    DpopRequired = "dpop_required",
    /// `Authorization: DPoP` without the `DPoP` header.
    DpopMissing = "dpop_missing",
    /// Not exactly one proof of [`crate::auth::dpop::MAX_PROOF_BYTES`] with the header and claims that it needs.
    DpopMalformed = "dpop_malformed",
    /// The proof's `alg` is not on the list, or does not go with its key.
    DpopAlgNotAllowed = "dpop_alg_not_allowed",
    /// The proof's `jwk` is missing, private, weak or of another kind.
    DpopBadKey = "dpop_bad_key",
    /// The proof's signature is not by its key.
    DpopBadSignature = "dpop_bad_signature",
    /// The proof is for another method.
    DpopWrongMethod = "dpop_wrong_method",
    /// The proof is for another URL.
    DpopWrongTarget = "dpop_wrong_target",
    /// The proof is for another token.
    DpopWrongToken = "dpop_wrong_token",
    /// The token is for another key than the proof's.
    DpopKeyMismatch = "dpop_key_mismatch",
    /// The token is for no key, and `security.fapi_mode: 2` demands one.
    DpopTokenUnbound = "dpop_token_unbound",
    /// The renewed token is for another key than the tunnel's.
    DpopKeyChanged = "dpop_key_changed",
    /// The proof is too old, or from the future.
    DpopClock = "dpop_clock",
    /// The proof was shown before.
    DpopReplayed = "dpop_replayed",
    /// The proof's nonce is not this hub's, or too old.
    DpopBadNonce = "dpop_bad_nonce",
    /// The proof needs a nonce of this hub: whether another one has seen it cannot be known.
    DpopNonceDemanded = "use_dpop_nonce",
    /// More proofs than can be remembered; a new one passes later.
    DpopOverloaded = "dpop_overloaded",
}

impl Reason {
    /// Whether the fault is the hub's and passes by itself: answer 503 with Retry-After, not 401.
    pub const fn is_temporary(self) -> bool {
        matches!(self, Reason::KeysUnavailable | Reason::DpopOverloaded)
    }

    /// Whether it is no offence but a step of the handshake: neither logged as one nor counted.
    pub const fn is_step(self) -> bool {
        matches!(self, Reason::DpopNonceDemanded)
    }

    /// Whether a token or proof was bad, as those of a stranger who guesses are. What the agent is to
    /// repeat with a nonce is not: its token is good, and its proof is by the right key.
    pub const fn is_offence(self) -> bool {
        !self.is_temporary()
            && !matches!(
                self,
                Reason::DpopNonceDemanded | Reason::DpopBadNonce | Reason::DpopClock
            )
    }

    /// The error code of a DPoP challenge for it (RFC 9449 sections 7.1 and 9); `None` where proofs do
    /// not matter.
    pub const fn challenge(self) -> Option<&'static str> {
        Some(match self {
            Reason::DpopNonceDemanded | Reason::DpopBadNonce | Reason::DpopClock => {
                "use_dpop_nonce"
            }
            Reason::DpopMissing
            | Reason::DpopMalformed
            | Reason::DpopAlgNotAllowed
            | Reason::DpopBadKey
            | Reason::DpopBadSignature
            | Reason::DpopWrongMethod
            | Reason::DpopWrongTarget
            | Reason::DpopWrongToken
            | Reason::DpopReplayed => "invalid_dpop_proof",
            Reason::DpopRequired
            | Reason::DpopKeyMismatch
            | Reason::DpopTokenUnbound
            | Reason::DpopKeyChanged => "invalid_token",
            _ => return None,
        })
    }

    /// What to do about it, for the operator who reads the log.
    pub const fn hint(self) -> &'static str {
        match self {
            Reason::MissingToken => {
                "send Authorization: Bearer <JWT>; check the agent's token file"
            }
            Reason::TooLarge => "the token is over 8 KiB; ask the issuer for fewer claims",
            Reason::Malformed => "not a JWT this hub can read; check the agent's token file",
            Reason::HeaderNotAllowed => "crit, jku, jwk and x5u headers are never accepted",
            Reason::AlgNotAllowed => "sign with RS*, PS*, ES256, ES384 or EdDSA",
            Reason::AlgMismatch => "sign with the algorithm that the JWKS gives for this key",
            Reason::UnknownKey => "no such key in the JWKS; check security.jwks_url and the issuer",
            Reason::BadSignature => "the token was altered, or another key has the same kid",
            Reason::MissingExpiry => "the token needs an exp claim",
            Reason::Expired => "get a new token; if it is new, compare the clocks",
            Reason::NotYetValid => "the token starts later; compare the clocks",
            Reason::WrongAudience => "compare the aud claim with security.audience",
            Reason::WrongIssuer => "compare the iss claim with security.issuer",
            Reason::MissingAgentId => "the token needs an agent_id claim",
            Reason::InvalidAgentId => "agent_id takes 1 to 64 characters of A-Z a-z 0-9 . _ -",
            Reason::NoJwks => "set security.jwks_url (or NOWCONNECT_JWKS_URL) on the hub",
            Reason::KeysUnavailable => "the hub cannot reach security.jwks_url; it keeps trying",
            Reason::DpopRequired => {
                "prove possession of a key (DPoP): set tunnel.auth.dpop_key_file (NC_DPOP_KEY_FILE) on \
                 the agent; nowconnect token dpop-key --out FILE makes one, for the token's cnf.jkt"
            }
            Reason::DpopMissing => "send the DPoP header with Authorization: DPoP",
            Reason::DpopMalformed => "send exactly one DPoP proof as RFC 9449 section 4.2 has it",
            Reason::DpopAlgNotAllowed => "sign proofs with ES256, ES384, EdDSA, RS* or PS*",
            Reason::DpopBadKey => {
                "jwk must be the public half of a P-256, P-384, Ed25519 or RSA key (2048 bits or more)"
            }
            Reason::DpopBadSignature => "the proof was altered, or its jwk is another key's",
            Reason::DpopWrongMethod => "htm is GET for the upgrade, TOKEN for a renewal in band",
            Reason::DpopWrongTarget => {
                "the agent's URL is not the one this hub goes by: see security.dpop_htu and \
                 tunnel.trusted_proxies"
            }
            Reason::DpopWrongToken => "ath must be the hash of the token that is shown",
            Reason::DpopKeyMismatch => {
                "the token's cnf.jkt is not the thumbprint of the agent's key; nowconnect token \
                 dpop-key --show FILE prints it"
            }
            Reason::DpopTokenUnbound => {
                "the token has no cnf.jkt: let the identity provider bind it to the agent's key"
            }
            Reason::DpopKeyChanged => "a tunnel keeps its key: open another one with the new key",
            Reason::DpopClock => "compare the clocks of agent and hub; a nonce was given meanwhile",
            Reason::DpopReplayed => "make a fresh proof for every attempt; was one captured?",
            Reason::DpopBadNonce | Reason::DpopNonceDemanded => {
                "make the proof with the nonce of the DPoP-Nonce header"
            }
            Reason::DpopOverloaded => "too many proofs in two minutes; try again later",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A refusal: the code for everybody, and detail for the hub's own log.
///
/// The detail never holds any part of the token's text, and claim values only after the signature
/// was found good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {}", if detail.is_empty() { reason.hint() } else { detail })]
pub struct Rejection {
    /// The stable cause.
    pub reason: Reason,
    /// What exactly was wrong; empty when the reason says it all.
    pub detail: String,
}

impl Rejection {
    /// A refusal with detail, made safe to log: on one line, and not long.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        const MAX_DETAIL_CHARS: usize = 300;
        // Parsers quote what they do not know, as it is.
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let detail = detail.into();
        let detail = detail.chars().take(MAX_DETAIL_CHARS).map(plain).collect();
        Self { reason, detail }
    }
}

impl From<Reason> for Rejection {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            detail: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_short_and_on_one_line() {
        let rejection = Rejection::new(Reason::DpopBadKey, "a\n{}\u{1b}\u{e4}".repeat(1000));
        assert!(rejection.detail.starts_with("a {} \u{e4}a"));
        assert_eq!(rejection.detail.chars().count(), 300);
    }

    #[test]
    fn whoever_is_told_to_come_again_has_done_nothing_bad() {
        for reason in Reason::ALL {
            let invited = reason.challenge() == Some("use_dpop_nonce");
            assert_eq!(
                reason.is_offence(),
                !invited && !reason.is_temporary(),
                "{reason}"
            );
        }
    }
}
