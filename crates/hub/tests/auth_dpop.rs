//! Proofs of possession, good and hostile, against the rules of RFC 9449. No network, and the clock is
//! ours.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey};
use nowconnect_hub::auth::dpop::{
    MAX_JTI_BYTES, MAX_PROOF_BYTES, Nonces, Occasion, Proof, ProofId, RENEWAL, Target, UPGRADE,
    token_hash,
};
use nowconnect_hub::auth::mint::{KeyKind, SigningKey};
use nowconnect_hub::auth::{Reason, Rejection};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const TOKEN: &str = "a.b.c";
const URL: &str = "https://hub.example.com/tunnel";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// An agent whose proofs the test writes by hand.
struct Agent {
    key: SigningKey,
    signer: EncodingKey,
    algorithm: Algorithm,
}

impl Agent {
    fn new(kind: KeyKind) -> Self {
        let key = SigningKey::generate(kind).unwrap();
        let pem = key.to_pem();
        let pair = rcgen::KeyPair::from_pem(&pem).unwrap();
        let (algorithm, signer) = match kind {
            KeyKind::Es256 => (
                Algorithm::ES256,
                EncodingKey::from_ec_der(pair.serialized_der()),
            ),
            KeyKind::EdDsa => (
                Algorithm::EdDSA,
                EncodingKey::from_ed_der(pair.serialized_der()),
            ),
            KeyKind::Rs256 => (
                Algorithm::RS256,
                EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
            ),
        };
        Self {
            key,
            signer,
            algorithm,
        }
    }

    fn thumbprint(&self) -> String {
        self.key.jwk().thumbprint(ThumbprintHash::SHA256).unwrap()
    }

    fn header(&self) -> Value {
        json!({ "typ": "dpop+jwt", "alg": self.algorithm, "jwk": self.key.jwk() })
    }

    fn sign(&self, header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", part(header), part(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.signer, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }

    fn proof(&self, header: &Value, claims: &Value) -> String {
        self.sign(&header.to_string(), &claims.to_string())
    }
}

fn claims() -> Value {
    json!({ "jti": "1", "htm": "GET", "htu": URL, "iat": NOW, "ath": token_hash(TOKEN) })
}

/// A JSON object with one member replaced, or removed by `null`.
fn with(mut object: Value, key: &str, value: Value) -> Value {
    if value.is_null() {
        object.as_object_mut().unwrap().remove(key);
    } else {
        object[key] = value;
    }
    object
}

fn check(proof: &str, key: &str, nonces: &Nonces) -> Result<Proof, Rejection> {
    let targets = [
        Target::parse("https://other.example.com/tunnel").unwrap(),
        Target::parse(URL).unwrap(),
    ];
    let occasion = Occasion {
        method: UPGRADE,
        targets: &targets,
        token: TOKEN,
        key,
        now: at(NOW),
    };
    Proof::check(proof, &occasion, nonces)
}

#[test]
fn good_proofs_of_every_kind_of_key_pass() {
    let nonces = Nonces::new();
    for kind in [KeyKind::Es256, KeyKind::EdDsa, KeyKind::Rs256] {
        let agent = Agent::new(kind);
        let proof = agent.proof(&agent.header(), &claims());
        let passed = check(&proof, &agent.thumbprint(), &nonces).unwrap();
        assert_eq!(passed.id, ProofId::new(&agent.thumbprint(), "1"));
        assert!(!passed.has_nonce);
    }
}

#[test]
fn what_may_vary_may_vary() {
    let (agent, nonces) = (Agent::new(KeyKind::Es256), Nonces::new());
    let good = [
        with(
            claims(),
            "htu",
            json!("WSS://HUB.example.com:443/a/../tunnel?x#y"),
        ),
        with(claims(), "iat", json!(NOW - 60)),
        with(claims(), "iat", json!(NOW + 30)),
        with(claims(), "iat", json!(NOW as f64 + 0.5)),
        with(claims(), "jti", json!("x".repeat(MAX_JTI_BYTES))),
        with(claims(), "extra", json!({ "of": ["another", "version"] })),
    ];
    for claims in good {
        let proof = agent.proof(&agent.header(), &claims);
        let passed = check(&proof, &agent.thumbprint(), &nonces);
        assert!(passed.is_ok(), "{claims}: {passed:?}");
    }
}

#[test]
fn a_nonce_of_this_hub_stands_in_for_the_clock_of_the_agent() {
    let (agent, nonces) = (Agent::new(KeyKind::Es256), Nonces::new());
    for iat in [0, NOW - 86_400, NOW + 86_400] {
        let claims = with(claims(), "iat", json!(iat));
        let claims = with(claims, "nonce", json!(nonces.current()));
        let proof = agent.proof(&agent.header(), &claims);
        assert!(
            check(&proof, &agent.thumbprint(), &nonces)
                .unwrap()
                .has_nonce
        );
        let other = check(&proof, &agent.thumbprint(), &Nonces::new());
        assert_eq!(
            other.unwrap_err().reason,
            Reason::DpopBadNonce,
            "another hub"
        );
    }
}

#[test]
fn a_proof_for_one_kind_of_request_serves_for_no_other() {
    let (agent, nonces) = (Agent::new(KeyKind::Es256), Nonces::new());
    for (made_for, used_for) in [(UPGRADE, RENEWAL), (RENEWAL, UPGRADE)] {
        let proof = agent.proof(&agent.header(), &with(claims(), "htm", json!(made_for)));
        let targets = [Target::parse(URL).unwrap()];
        let key = agent.thumbprint();
        let occasion = |method| Occasion {
            method,
            targets: &targets,
            token: TOKEN,
            key: &key,
            now: at(NOW),
        };
        assert!(Proof::check(&proof, &occasion(made_for), &nonces).is_ok());
        let refused = Proof::check(&proof, &occasion(used_for), &nonces).unwrap_err();
        assert_eq!(refused.reason, Reason::DpopWrongMethod);
    }
}

/// Name, proof, reason.
type Case = (&'static str, String, Reason);

/// Another value of one key: name, key, value, reason.
type Change = (&'static str, &'static str, Value, Reason);

fn bad_headers(agent: &Agent) -> Vec<Case> {
    use Reason::*;
    let other = Agent::new(KeyKind::Es256).header()["jwk"].clone();
    let rsa = Agent::new(KeyKind::Rs256).header()["jwk"].clone();
    let own = || agent.header()["jwk"].clone();
    let weak = json!({ "kty": "RSA", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode([0xff; 128]) });
    let secret = json!({ "kty": "oct", "k": "c2VjcmV0" });
    let changes: Vec<Change> = vec![
        ("no typ", "typ", Value::Null, DpopMalformed),
        ("typ JWT", "typ", json!("JWT"), DpopMalformed),
        ("typ number", "typ", json!(1), DpopMalformed),
        ("crit", "crit", json!(["exp"]), DpopMalformed),
        ("no alg", "alg", Value::Null, DpopAlgNotAllowed),
        ("alg none", "alg", json!("none"), DpopAlgNotAllowed),
        ("HMAC", "alg", json!("HS256"), DpopAlgNotAllowed),
        ("other key", "alg", json!("ES384"), DpopAlgNotAllowed),
        ("other kind", "alg", json!("RS256"), DpopAlgNotAllowed),
        ("no jwk", "jwk", Value::Null, DpopBadKey),
        ("text", "jwk", json!("key"), DpopBadKey),
        ("symmetric", "jwk", secret, DpopBadKey),
        (
            "private",
            "jwk",
            with(own(), "d", json!("c2VjcmV0")),
            DpopBadKey,
        ),
        ("prime", "jwk", with(rsa, "dp", json!("AQAB")), DpopBadKey),
        ("weak", "jwk", weak, DpopBadKey),
        (
            "for encryption",
            "jwk",
            with(own(), "use", json!("enc")),
            DpopBadKey,
        ),
        (
            "off the curve",
            "jwk",
            with(own(), "x", own()["y"].clone()),
            DpopBadSignature,
        ),
        ("of another", "jwk", other, DpopBadSignature),
    ];
    let proof = |key, value| agent.proof(&with(agent.header(), key, value), &claims());
    let cases = changes.into_iter();
    let cases = cases.map(|(name, key, value, reason)| (name, proof(key, value), reason));
    cases.collect()
}

fn bad_claims(agent: &Agent) -> Vec<Case> {
    use Reason::*;
    let long = "x".repeat(MAX_JTI_BYTES + 1);
    let at = |rest: &str| json!(format!("https://hub.example.com{rest}"));
    let changes: Vec<Change> = vec![
        ("no jti", "jti", Value::Null, DpopMalformed),
        ("jti empty", "jti", json!(""), DpopMalformed),
        ("jti long", "jti", json!(long), DpopMalformed),
        ("jti number", "jti", json!(1), DpopMalformed),
        ("no htm", "htm", Value::Null, DpopMalformed),
        ("htm POST", "htm", json!("POST"), DpopWrongMethod),
        ("htm lower", "htm", json!("get"), DpopWrongMethod),
        ("no htu", "htu", Value::Null, DpopMalformed),
        ("relative", "htu", json!("/tunnel"), DpopMalformed),
        (
            "other host",
            "htu",
            json!("https://evil.example.com/tunnel"),
            DpopWrongTarget,
        ),
        (
            "other scheme",
            "htu",
            json!("http://hub.example.com/tunnel"),
            DpopWrongTarget,
        ),
        ("other port", "htu", at(":444/tunnel"), DpopWrongTarget),
        ("other path", "htu", at("/mesh"), DpopWrongTarget),
        ("with a user", "htu", at("@evil/tunnel"), DpopMalformed),
        ("no ath", "ath", Value::Null, DpopMalformed),
        (
            "other token",
            "ath",
            json!(token_hash("x.y.z")),
            DpopWrongToken,
        ),
        ("the token", "ath", json!(TOKEN), DpopWrongToken),
        ("no iat", "iat", Value::Null, DpopMalformed),
        ("iat text", "iat", json!(NOW.to_string()), DpopMalformed),
        ("iat negative", "iat", json!(-1), DpopMalformed),
        ("iat old", "iat", json!(NOW - 61), DpopClock),
        ("iat ahead", "iat", json!(NOW + 31), DpopClock),
        ("iat in ms", "iat", json!(NOW * 1000), DpopMalformed),
        ("nonce empty", "nonce", json!(""), DpopBadNonce),
        ("guessed", "nonce", json!(token_hash("guess")), DpopBadNonce),
        ("nonce number", "nonce", json!(1), DpopMalformed),
    ];
    let twice = claims().to_string().replacen('{', "{\"jti\":\"0\",", 1);
    let signed = |body: &str| agent.sign(&agent.header().to_string(), body);
    let proof = |key, value| agent.proof(&agent.header(), &with(claims(), key, value));
    let cases = changes.into_iter();
    let cases = cases.map(|(name, key, value, reason)| (name, proof(key, value), reason));
    let whole = [
        ("no claims", signed("[]"), DpopMalformed),
        ("jti twice", signed(&twice), DpopMalformed),
    ];
    cases.chain(whole).collect()
}

fn bad_texts(agent: &Agent) -> Vec<Case> {
    use Reason::*;
    let good = agent.proof(&agent.header(), &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = message.split_once('.').unwrap();
    let forged = URL_SAFE_NO_PAD.encode(with(claims(), "jti", json!("2")).to_string());
    vec![
        ("empty", String::new(), DpopMalformed),
        ("two parts", message.to_owned(), DpopMalformed),
        ("four parts", format!("{good}.x"), DpopMalformed),
        ("not base64url", format!("+/{good}"), DpopMalformed),
        (
            "not JSON",
            format!("e30x.{body}.{signature}"),
            DpopMalformed,
        ),
        ("too long", "x".repeat(MAX_PROOF_BYTES + 1), DpopMalformed),
        ("no signature", format!("{message}."), DpopBadSignature),
        (
            "other claims",
            format!("{head}.{forged}.{signature}"),
            DpopBadSignature,
        ),
        (
            "two proofs in one header",
            format!("{good}, {good}"),
            DpopMalformed,
        ),
    ]
}

#[test]
fn bad_proofs_are_refused_each_for_its_reason() {
    let (agent, nonces) = (Agent::new(KeyKind::Es256), Nonces::new());
    let cases = [bad_headers(&agent), bad_claims(&agent), bad_texts(&agent)].concat();
    assert!(cases.len() >= 50);
    let mut wrong = Vec::new();
    for (name, proof, reason) in cases {
        match check(&proof, &agent.thumbprint(), &nonces) {
            Err(rejection) if rejection.reason == reason => {
                assert!(!rejection.to_string().contains("c2VjcmV0"), "{rejection}");
            }
            other => wrong.push(format!("{name}: {other:?} and not {reason}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_token_for_another_key_is_refused() {
    let (thief, nonces) = (Agent::new(KeyKind::Es256), Nonces::new());
    let owner = Agent::new(KeyKind::Es256).thumbprint();
    let proof = thief.proof(&thief.header(), &claims());
    let refused = check(&proof, &owner, &nonces).unwrap_err();
    assert_eq!(refused.reason, Reason::DpopKeyMismatch);
    assert!(refused.detail.contains(&owner) && refused.detail.contains(&thief.thumbprint()));
}

/// The proof of RFC 9449 section 7.1, for the token and the time of that section.
#[test]
fn the_example_of_the_rfc_passes() {
    const PROOF: &str = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6Ik\
        VDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCR\
        nMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JE\
        QSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIj\
        oiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0Z\
        WRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNF\
        c05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71E\
        OptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA";
    let targets = [Target::parse("https://resource.example.org/protectedresource").unwrap()];
    let occasion = Occasion {
        method: "GET",
        targets: &targets,
        token: "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU",
        // Section 6.1.
        key: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        now: at(1_562_262_618),
    };
    let passed = Proof::check(PROOF, &occasion, &Nonces::new()).unwrap();
    assert_eq!(passed.id, ProofId::new(occasion.key, "e1j3V_bKic8-LAEB"));
    let later = Occasion {
        now: at(1_562_262_618 + 61),
        ..occasion
    };
    let refused = Proof::check(PROOF, &later, &Nonces::new()).unwrap_err();
    assert_eq!(refused.reason, Reason::DpopClock);
}

/// The proof of RFC 9449 section 4.1 is one for a token request: its signature is good, and it holds no
/// hash of an access token.
#[test]
fn the_proof_for_a_token_request_is_none_for_a_resource() {
    const PROOF: &str = "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6Ik\
        VDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCR\
        nMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JE\
        QSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIj\
        oiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwia\
        WF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg\
        4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg";
    let targets = [Target::parse("https://server.example.com/token").unwrap()];
    let occasion = Occasion {
        method: "POST",
        targets: &targets,
        token: TOKEN,
        key: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I",
        now: at(1_562_262_616),
    };
    let refused = Proof::check(PROOF, &occasion, &Nonces::new()).unwrap_err();
    assert_eq!(refused.reason, Reason::DpopMalformed);
    assert!(refused.detail.contains("ath"), "{refused}");
}

/// RFC 7638 section 3.1, and RFC 8037 appendix A.3 for Ed25519.
#[test]
fn thumbprints_are_those_of_the_rfcs() {
    let rsa = json!({
        "kty": "RSA", "e": "AQAB", "alg": "RS256", "kid": "2011-04-29",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    });
    let ed = json!({
        "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    });
    for (jwk, thumbprint) in [
        (rsa, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        (ed, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
    ] {
        let jwk: Jwk = serde_json::from_value(jwk).unwrap();
        assert_eq!(jwk.thumbprint(ThumbprintHash::SHA256).unwrap(), thumbprint);
    }
}
