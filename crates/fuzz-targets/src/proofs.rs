//! Proofs of possession (DPoP, RFC 9449).

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use nowconnect_hub::auth::dpop::{
    MAX_AGE, MAX_AHEAD, MAX_JTI_BYTES, MAX_PROOF_BYTES, Nonces, Occasion, Proof, ProofId, Target,
    token_hash,
};
use nowconnect_hub::fuzzing;

use crate::tokens::{check_refusal, second_reading};

/// The proof of RFC 9449 section 7.1 up to its signature: nobody has its key, so nothing else passes.
const SIGNED: &str = concat!(
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNo",
    "UklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERW",
    "clUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR",
    "1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCw",
    "iYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9."
);
const URL: &str = "https://resource.example.org/protectedresource";
const TOKEN: &str = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU";
/// The thumbprint of the key, from section 6.1.
const KEY: &str = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I";
const NOW: Duration = Duration::from_secs(1_562_262_618);

static TARGETS: LazyLock<[Target; 1]> = LazyLock::new(|| [Target::parse(URL).expect("a URL")]);
static NONCES: LazyLock<Nonces> = LazyLock::new(Nonces::new);

fn occasion() -> Occasion<'static> {
    Occasion {
        method: "GET",
        targets: &*TARGETS,
        token: TOKEN,
        key: KEY,
        now: UNIX_EPOCH + NOW,
    }
}

/// Any text as a proof: nothing passes that the key did not sign, and no refusal shows it.
pub fn proof(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Proof::check(text, &occasion(), &NONCES) {
        Ok(passed) => {
            assert!(text.len() <= MAX_PROOF_BYTES && text.starts_with(SIGNED));
            assert_eq!(passed.id, ProofId::new(KEY, "e1j3V_bKic8-LAEB"));
            assert!(!passed.has_nonce);
        }
        Err(refused) => check_refusal(text, &refused.to_string()),
    }
}

/// Any JSON as the claims of a proof that was signed well: what passes is for this request, this token
/// and this time, by a second reading, and its URL has one form only.
pub fn claims(data: &[u8]) {
    let judged = fuzzing::proof_claims(KEY, data, &occasion(), &NONCES);
    if let Err(refused) = &judged {
        let shown = refused.to_string();
        assert!(
            shown.len() < 2000 && !shown.contains(char::is_control),
            "{shown:?}"
        );
    }
    let text = std::str::from_utf8(data).unwrap_or_default();
    let Some(claims) = serde_json::from_str::<serde_json::Value>(text).ok() else {
        return;
    };
    let target = claims["htu"].as_str().and_then(Target::parse);
    if let Some(target) = &target {
        let again = Target::parse(target.as_str());
        assert_eq!(again.as_ref(), Some(target));
        assert!(!target.as_str().contains(['?', '#']));
        // A path may hold one (RFC 3986 section 3.3), in front of it stands a user.
        let authority = target.as_str().split('/').nth(2);
        assert!(authority.is_some_and(|authority| !authority.contains('@')));
    }
    let Ok(passed) = judged else {
        return;
    };
    let claims = second_reading(data).expect("an object");
    let jti = claims["jti"].as_str().expect("a name");
    assert!((1..=MAX_JTI_BYTES).contains(&jti.len()));
    assert_eq!(passed.id, ProofId::new(KEY, jti));
    assert_eq!(claims["htm"], "GET");
    assert_eq!(claims["ath"], token_hash(TOKEN));
    assert_eq!(target.as_ref(), TARGETS.first());
    // Nobody can know a nonce of this process.
    assert!(!passed.has_nonce && claims.get("nonce").is_none());
    let iat = claims["iat"].as_f64().expect("a number");
    let (earliest, latest) = (NOW - MAX_AGE, NOW + MAX_AHEAD);
    assert!(iat >= earliest.as_secs_f64() && iat < latest.as_secs_f64() + 1.0);
}
