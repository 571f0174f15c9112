//! Agent tokens, good and hostile, against the rules for them. No network, and the clock is ours.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use nowconnect_hub::auth::jwt::{Identity, MAX_TOKEN_BYTES, Rules, Unverified};
use nowconnect_hub::auth::key::{KeySet, KeySetError, MAX_KEYS};
use nowconnect_hub::auth::mint::{self, AgentToken, KeyKind, SigningKey};
use nowconnect_hub::auth::{Reason, Rejection};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn rules() -> Rules {
    Rules {
        audience: "nowconnect".into(),
        issuer: None,
    }
}

/// An issuer whose tokens the test writes by hand.
struct Issuer {
    key: SigningKey,
    signer: EncodingKey,
    set: KeySet,
}

impl Issuer {
    fn new(kind: KeyKind) -> Self {
        let key = SigningKey::generate(kind).unwrap();
        let pem = key.to_pem();
        let pair = rcgen::KeyPair::from_pem(&pem).unwrap();
        let signer = match kind {
            KeyKind::Es256 => EncodingKey::from_ec_der(pair.serialized_der()),
            KeyKind::EdDsa => EncodingKey::from_ed_der(pair.serialized_der()),
            KeyKind::Rs256 => EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
        };
        let document = serde_json::to_vec(&mint::jwks([&key])).unwrap();
        let (set, skipped) = KeySet::parse(&document).unwrap();
        assert_eq!(skipped, []);
        Self { key, signer, set }
    }

    fn kid(&self) -> &str {
        self.key.jwk().common.key_id.as_deref().unwrap()
    }

    fn jwk(&self) -> Value {
        serde_json::to_value(self.key.jwk()).unwrap()
    }

    fn sign(&self, algorithm: Algorithm, header: &str, claims: &str) -> String {
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims)
        );
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.signer, algorithm).unwrap();
        format!("{message}.{signature}")
    }

    /// A token with an honest header around `claims`.
    fn token(&self, claims: &str) -> String {
        let header = json!({"alg": "ES256", "kid": self.kid()}).to_string();
        self.sign(Algorithm::ES256, &header, claims)
    }
}

fn verify(set: &KeySet, token: &str, rules: &Rules, now: u64) -> Result<Identity, Rejection> {
    let parsed = Unverified::parse(token)?;
    let key = set
        .find(parsed.key_id(), parsed.algorithm())
        .ok_or(Reason::UnknownKey)?;
    parsed.verify(key, rules, at(now))
}

fn reason(set: &KeySet, token: &str) -> Reason {
    verify(set, token, &rules(), NOW).unwrap_err().reason
}

fn claims() -> Value {
    json!({"aud": "nowconnect", "exp": NOW + 300, "agent_id": "site-1"})
}

fn claims_with(name: &str, value: Value) -> String {
    let mut claims = claims();
    claims[name] = value;
    claims.to_string()
}

#[test]
fn minted_tokens_pass_for_every_kind_of_key() {
    for kind in [KeyKind::Es256, KeyKind::Rs256, KeyKind::EdDsa] {
        let issuer = Issuer::new(kind);
        let agent = AgentToken {
            agent_id: "site-1".into(),
            audience: "nowconnect".into(),
            issuer: Some("dev".into()),
            connectors: Some(vec!["ldap".into(), "pg".into()]),
            proof_key: None,
            lifetime: Duration::from_secs(60),
        };
        // A key survives its trip through a file.
        let key = SigningKey::from_pem(&issuer.key.to_pem()).unwrap();
        assert_eq!(key.jwk(), issuer.key.jwk());
        let token = key.mint(&agent, at(NOW)).unwrap();
        let rules = Rules {
            issuer: Some("dev".into()),
            ..rules()
        };
        let identity = verify(&issuer.set, &token, &rules, NOW).unwrap();
        assert_eq!(identity.agent_id, "site-1");
        assert_eq!(identity.expires_at, at(NOW + 60));
        assert_eq!(identity.remaining(at(NOW)), Duration::from_secs(90));
        assert_eq!(identity.key_id, issuer.kid());
        assert!(identity.grants("ldap") && identity.grants("pg") && !identity.grants("ldaps"));
        assert!(issuer.set.holds(&identity.key_id));
    }
}

#[test]
fn rsa_keys_verify_every_rsa_algorithm_unless_pinned() {
    let issuer = Issuer::new(KeyKind::Rs256);
    let mut jwk = issuer.jwk();
    jwk.as_object_mut().unwrap().remove("alg");
    let (open, _) = KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap();
    for algorithm in [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
    ] {
        let header = json!({"alg": format!("{algorithm:?}"), "kid": issuer.kid()}).to_string();
        let token = issuer.sign(algorithm, &header, &claims().to_string());
        assert!(
            verify(&open, &token, &rules(), NOW).is_ok(),
            "{algorithm:?}"
        );
        if algorithm != Algorithm::RS256 {
            assert_eq!(
                reason(&issuer.set, &token),
                Reason::AlgMismatch,
                "{algorithm:?}"
            );
        }
    }
}

#[test]
fn es384_verifies() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let signer = EncodingKey::from_ec_der(pair.serialized_der());
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&signer, Algorithm::ES384).unwrap();
    let (set, _) = KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap();
    let header = jsonwebtoken::Header::new(Algorithm::ES384);
    let token = jsonwebtoken::encode(&header, &claims(), &signer).unwrap();
    assert!(verify(&set, &token, &rules(), NOW).is_ok());
}

#[test]
fn none_hmac_and_unknown_algorithms_are_refused() {
    let issuer = Issuer::new(KeyKind::Rs256);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let body = encode(&claims().to_string());
    for alg in [
        "none", "None", "nOnE", "", "ES256K", "ES512", "RS1", "rs256", "RSA-OAEP",
    ] {
        let header = json!({"alg": alg, "kid": issuer.kid()}).to_string();
        let token = format!("{}.{body}.", encode(&header));
        assert_eq!(reason(&issuer.set, &token), Reason::AlgNotAllowed, "{alg}");
    }
    // HMAC keyed with the public key, as everybody can compute it (CVE-2016-10555).
    let public_pem = rcgen::KeyPair::from_pem(&issuer.key.to_pem())
        .unwrap()
        .public_key_pem();
    let hmac = EncodingKey::from_secret(public_pem.as_bytes());
    let mut header = jsonwebtoken::Header::new(Algorithm::HS256);
    header.kid = Some(issuer.kid().into());
    let token = jsonwebtoken::encode(&header, &claims(), &hmac).unwrap();
    assert_eq!(reason(&issuer.set, &token), Reason::AlgNotAllowed);
}

#[test]
fn the_key_decides_the_algorithm() {
    let ec = Issuer::new(KeyKind::Es256);
    for alg in ["RS256", "PS256", "ES384", "EdDSA"] {
        let header = json!({"alg": alg, "kid": ec.kid()}).to_string();
        let token = ec.sign(Algorithm::ES256, &header, &claims().to_string());
        assert_eq!(reason(&ec.set, &token), Reason::AlgMismatch, "{alg}");
    }
}

#[test]
fn headers_that_bring_their_own_keys_are_refused() {
    let issuer = Issuer::new(KeyKind::Es256);
    for (name, value) in [
        ("jku", json!("https://evil.example/jwks")),
        ("jwk", issuer.jwk()),
        ("x5u", json!("https://evil.example/cert")),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("jwk", Value::Null),
    ] {
        let mut header = json!({"alg": "ES256", "kid": issuer.kid()});
        header[name] = value;
        let token = issuer.sign(Algorithm::ES256, &header.to_string(), &claims().to_string());
        assert_eq!(
            reason(&issuer.set, &token),
            Reason::HeaderNotAllowed,
            "{name}"
        );
    }
}

#[test]
fn kid_is_a_name_and_nothing_else() {
    let issuer = Issuer::new(KeyKind::Es256);
    for kid in [
        "../../../../dev/null",
        "' OR 1=1 --",
        "a\0b",
        "\u{1b}[31m",
        &"k".repeat(5000),
    ] {
        let header = json!({"alg": "ES256", "kid": kid}).to_string();
        let token = issuer.sign(Algorithm::ES256, &header, &claims().to_string());
        assert_eq!(reason(&issuer.set, &token), Reason::UnknownKey, "{kid:?}");
    }
    for header in [
        format!(r#"{{"alg":"ES256","kid":"{0}","kid":"{0}"}}"#, issuer.kid()),
        r#"{"alg":"ES256","alg":"none","kid":"a"}"#.into(),
        r#"{"alg":"ES256","kid":null}"#.into(),
        r#"{"alg":"ES256","kid":7}"#.into(),
        r#"{"kid":"a"}"#.into(),
        "[]".into(),
        "".into(),
        "[".repeat(3000),
    ] {
        let token = issuer.sign(Algorithm::ES256, &header, &claims().to_string());
        assert_eq!(reason(&issuer.set, &token), Reason::Malformed, "{header}");
    }
}

#[test]
fn a_token_without_kid_needs_exactly_one_fitting_key() {
    let (one, two) = (Issuer::new(KeyKind::Es256), Issuer::new(KeyKind::Es256));
    let rsa = Issuer::new(KeyKind::Rs256);
    let token = one.sign(
        Algorithm::ES256,
        r#"{"alg":"ES256"}"#,
        &claims().to_string(),
    );
    let set = |jwks: &[Value]| {
        KeySet::parse(json!({ "keys": jwks }).to_string().as_bytes())
            .unwrap()
            .0
    };
    assert!(verify(&set(&[one.jwk(), rsa.jwk()]), &token, &rules(), NOW).is_ok());
    assert_eq!(
        reason(&set(&[one.jwk(), two.jwk()]), &token),
        Reason::UnknownKey
    );
    assert_eq!(reason(&set(&[rsa.jwk()]), &token), Reason::UnknownKey);
}

#[test]
fn altered_and_foreign_signatures_fail() {
    let (issuer, other) = (Issuer::new(KeyKind::Es256), Issuer::new(KeyKind::Es256));
    let good = issuer.token(&claims().to_string());
    assert!(verify(&issuer.set, &good, &rules(), NOW).is_ok());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let other_claims = URL_SAFE_NO_PAD.encode(claims_with("agent_id", json!("site-2")));
    let zeros = URL_SAFE_NO_PAD.encode([0u8; 64]);
    let foreign = {
        let header = json!({"alg": "ES256", "kid": issuer.kid()}).to_string();
        other.sign(Algorithm::ES256, &header, &claims().to_string())
    };
    for token in [
        format!("{header}.{other_claims}.{signature}"),
        format!("{message}."),
        format!("{message}.{zeros}"), // CVE-2022-21449
        format!("{message}.{signature}AA"),
        format!("{message}.{}", &signature[..40]),
        format!("{message}.!!!"),
        foreign,
    ] {
        assert_eq!(reason(&issuer.set, &token), Reason::BadSignature, "{token}");
    }
}

#[test]
fn text_that_is_no_jws_is_malformed() {
    let issuer = Issuer::new(KeyKind::Es256);
    for token in [
        "",
        "a",
        "a.b",
        "..",
        "a.b.c",
        "a.b.c.d",
        "a.b.c.d.e",
        "é.é.é",
        "e30.e30.e30",
    ] {
        assert_eq!(reason(&issuer.set, token), Reason::Malformed, "{token}");
    }
    let good = issuer.token(&claims().to_string());
    assert_eq!(reason(&issuer.set, &format!("{good}.x")), Reason::Malformed);
    assert_eq!(
        reason(&issuer.set, &"a".repeat(MAX_TOKEN_BYTES + 1)),
        Reason::TooLarge
    );
}

#[test]
fn expiry_is_required_numeric_and_checked_with_leeway() {
    let issuer = Issuer::new(KeyKind::Es256);
    let with = |exp: &str| {
        issuer.token(&format!(
            r#"{{"aud":"nowconnect","agent_id":"a","exp":{exp}}}"#
        ))
    };
    for (exp, expected) in [
        ((NOW + 1).to_string(), None),
        ((NOW - 29).to_string(), None),
        (format!("{}.75", NOW - 29), None),
        ((NOW - 30).to_string(), Some(Reason::Expired)),
        ((NOW - 59).to_string(), Some(Reason::Expired)),
        ((NOW - 61).to_string(), Some(Reason::Expired)),
        ("0".into(), Some(Reason::Expired)),
        (format!("\"{}\"", NOW + 300), Some(Reason::Malformed)),
        ("null".into(), Some(Reason::MissingExpiry)),
        ("NaN".into(), Some(Reason::Malformed)),
        ("1e300".into(), Some(Reason::Malformed)),
        ("1e999".into(), Some(Reason::Malformed)),
        ("-1".into(), Some(Reason::Malformed)),
        ("true".into(), Some(Reason::Malformed)),
        ("[1900000000]".into(), Some(Reason::Malformed)),
        (format!("{}000", NOW + 300), Some(Reason::Malformed)), // milliseconds
        ("18446744073709551616".into(), Some(Reason::Malformed)),
    ] {
        let result = verify(&issuer.set, &with(&exp), &rules(), NOW);
        assert_eq!(result.err().map(|r| r.reason), expected, "{exp}");
    }
    let without = issuer.token(r#"{"aud":"nowconnect","agent_id":"a"}"#);
    assert_eq!(reason(&issuer.set, &without), Reason::MissingExpiry);
    let twice = issuer.token(r#"{"aud":"nowconnect","agent_id":"a","exp":1,"exp":1900000000}"#);
    assert_eq!(reason(&issuer.set, &twice), Reason::Malformed);
}

#[test]
fn not_before_is_checked_with_leeway() {
    let issuer = Issuer::new(KeyKind::Es256);
    for (nbf, expected) in [
        (json!(NOW - 100), None),
        (json!(NOW + 30), None),
        (json!(NOW + 31), Some(Reason::NotYetValid)),
        (json!(NOW + 300), Some(Reason::NotYetValid)),
        (json!((NOW).to_string()), Some(Reason::Malformed)),
        (json!(null), Some(Reason::Malformed)),
    ] {
        let token = issuer.token(&claims_with("nbf", nbf.clone()));
        let result = verify(&issuer.set, &token, &rules(), NOW);
        assert_eq!(result.err().map(|r| r.reason), expected, "{nbf}");
    }
}

#[test]
fn audience_must_hold_ours_exactly() {
    let issuer = Issuer::new(KeyKind::Es256);
    for (aud, expected) in [
        (json!("nowconnect"), None),
        (json!(["other", "nowconnect"]), None),
        (json!("other"), Some(Reason::WrongAudience)),
        (json!("NowConnect"), Some(Reason::WrongAudience)),
        (json!("nowconnect other"), Some(Reason::WrongAudience)),
        (json!([]), Some(Reason::WrongAudience)),
        (json!(null), Some(Reason::WrongAudience)),
        (json!({"nowconnect": 1}), Some(Reason::Malformed)),
        (json!([["nowconnect"]]), Some(Reason::Malformed)),
    ] {
        let token = issuer.token(&claims_with("aud", aud.clone()));
        let result = verify(&issuer.set, &token, &rules(), NOW);
        assert_eq!(result.err().map(|r| r.reason), expected, "{aud}");
    }
    let without = issuer.token(&json!({"exp": NOW + 9, "agent_id": "a"}).to_string());
    assert_eq!(reason(&issuer.set, &without), Reason::WrongAudience);
    let nobody = Rules {
        audience: String::new(),
        issuer: None,
    };
    let empty = issuer.token(&claims_with("aud", json!("")));
    let refused = verify(&issuer.set, &empty, &nobody, NOW).unwrap_err();
    assert_eq!(refused.reason, Reason::WrongAudience);
}

#[test]
fn issuer_is_required_when_configured() {
    let issuer = Issuer::new(KeyKind::Es256);
    let strict = Rules {
        issuer: Some("https://idp".into()),
        ..rules()
    };
    for (iss, expected) in [
        (Some(json!("https://idp")), None),
        (Some(json!("https://idp/")), Some(Reason::WrongIssuer)),
        (Some(json!(["https://idp"])), Some(Reason::Malformed)),
        (None, Some(Reason::WrongIssuer)),
    ] {
        let claims = iss
            .clone()
            .map_or_else(|| claims().to_string(), |v| claims_with("iss", v));
        let result = verify(&issuer.set, &issuer.token(&claims), &strict, NOW);
        assert_eq!(result.err().map(|r| r.reason), expected, "{iss:?}");
    }
}

#[test]
fn agent_id_is_required_and_plain() {
    let issuer = Issuer::new(KeyKind::Es256);
    let long = "a".repeat(65);
    for (id, expected) in [
        (json!("premise-site_01.eu"), None),
        (json!(long[..64]), None),
        (json!(long), Some(Reason::InvalidAgentId)),
        (json!("a".repeat(300)), Some(Reason::InvalidAgentId)),
        (json!(""), Some(Reason::InvalidAgentId)),
        (json!("a b"), Some(Reason::InvalidAgentId)),
        (json!("a\0"), Some(Reason::InvalidAgentId)),
        (json!("a\nb"), Some(Reason::InvalidAgentId)),
        (json!("\u{1b}[2J"), Some(Reason::InvalidAgentId)),
        (json!("агент"), Some(Reason::InvalidAgentId)),
        (json!("a/b"), Some(Reason::InvalidAgentId)),
        (json!(7), Some(Reason::Malformed)),
        (json!(["a"]), Some(Reason::Malformed)),
        (json!(null), Some(Reason::MissingAgentId)),
    ] {
        let token = issuer.token(&claims_with("agent_id", id.clone()));
        let result = verify(&issuer.set, &token, &rules(), NOW);
        assert_eq!(result.err().map(|r| r.reason), expected, "{id}");
    }
    let without = json!({"aud": "nowconnect", "exp": NOW + 300, "sub": "site-1"}).to_string();
    assert_eq!(
        reason(&issuer.set, &issuer.token(&without)),
        Reason::MissingAgentId
    );
}

#[test]
fn scopes_come_from_connectors_or_else_from_words() {
    let issuer = Issuer::new(KeyKind::Es256);
    let scopes = |extra: Value| {
        let mut claims = claims();
        claims
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        verify(
            &issuer.set,
            &issuer.token(&claims.to_string()),
            &rules(),
            NOW,
        )
        .map(|i| i.scopes)
    };
    let words = |text: &str| Ok(Some(text.split_whitespace().map(str::to_owned).collect()));
    assert_eq!(scopes(json!({})), Ok(None));
    assert_eq!(
        scopes(json!({"connectors": ["ldap", "pg"]})),
        words("ldap pg")
    );
    assert_eq!(scopes(json!({"connectors": []})), words(""));
    assert_eq!(
        scopes(json!({"connectors": [], "scope": "ldap"})),
        words("")
    );
    assert_eq!(
        scopes(json!({"scope": " openid  ldap"})),
        words("openid ldap")
    );
    assert_eq!(
        scopes(json!({"scp": ["ldap", "pg x"], "scope": "y"})),
        words("ldap pg x y")
    );
    for bad in [
        json!({"connectors": "ldap"}),
        json!({"scope": 1}),
        json!({"connectors": null}),
    ] {
        assert_eq!(
            scopes(bad.clone()).unwrap_err().reason,
            Reason::Malformed,
            "{bad}"
        );
    }
}

#[test]
fn proof_key_and_token_id_are_kept() {
    let issuer = Issuer::new(KeyKind::Es256);
    let mut claims = claims();
    claims["cnf"] = json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"});
    claims["jti"] = json!("t-1");
    let identity = verify(
        &issuer.set,
        &issuer.token(&claims.to_string()),
        &rules(),
        NOW,
    )
    .unwrap();
    assert_eq!(identity.token_id.as_deref(), Some("t-1"));
    assert!(identity.proof_key.unwrap().starts_with("0ZcO"));
}

#[test]
fn a_refusal_says_what_was_expected_but_never_quotes_the_token() {
    let issuer = Issuer::new(KeyKind::Es256);
    let token = issuer.token(&claims_with("aud", json!("staging")));
    let text = verify(&issuer.set, &token, &rules(), NOW)
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        r#"wrong_audience: it is for ["staging"], this hub is "nowconnect""#
    );
    let huge = issuer.token(&claims_with("aud", json!("x".repeat(4000))));
    let refused = verify(&issuer.set, &huge, &rules(), NOW).unwrap_err();
    assert!(refused.detail.len() <= 300);
    assert!(
        Reason::ALL
            .iter()
            .all(|r| !r.hint().is_empty() && r.code().is_ascii())
    );
}

#[test]
fn bad_keys_are_skipped_with_a_reason_and_good_ones_used() {
    let (rsa, ec) = (Issuer::new(KeyKind::Rs256), Issuer::new(KeyKind::Es256));
    let edited = |base: &Value, name: &str, value: Value| {
        let mut jwk = base.clone();
        jwk["kid"] = json!(format!("edited-{name}"));
        jwk[name] = value;
        jwk
    };
    let short_modulus = URL_SAFE_NO_PAD.encode([0xffu8; 64]);
    let keys = [
        (ec.jwk(), None),
        (
            edited(&rsa.jwk(), "n", json!(short_modulus)),
            Some("it has 512"),
        ),
        (
            edited(&rsa.jwk(), "n", json!(URL_SAFE_NO_PAD.encode([0u8; 256]))),
            Some("it has 0"),
        ),
        (
            edited(&rsa.jwk(), "n", json!("not base64!")),
            Some("base64url"),
        ),
        (edited(&ec.jwk(), "use", json!("enc")), Some("`use`")),
        (
            edited(&ec.jwk(), "key_ops", json!(["sign"])),
            Some("`key_ops`"),
        ),
        (edited(&ec.jwk(), "alg", json!("RS256")), Some("`alg`")),
        (edited(&ec.jwk(), "alg", json!("HS256")), Some("`alg`")),
        (edited(&ec.jwk(), "alg", json!("ES256K")), Some("`alg`")),
        (
            edited(&ec.jwk(), "alg", json!({"ES256": null})),
            Some("`alg`"),
        ),
        (edited(&ec.jwk(), "crv", json!("P-384")), Some("48 bytes")),
        (edited(&ec.jwk(), "crv", json!("P-521")), Some("curve")),
        (edited(&ec.jwk(), "d", json!("c2VjcmV0")), Some("private")),
        (edited(&ec.jwk(), "kty", json!("XYZ")), Some("`kty`")),
        (
            edited(&ec.jwk(), "kid", json!("k".repeat(300))),
            Some("longer"),
        ),
        (
            json!({"kty": "oct", "k": "c2VjcmV0", "kid": "hmac"}),
            Some("private"),
        ),
        (json!("text"), Some("JWK")),
        (ec.jwk(), Some("same kid")),
    ];
    let document = json!({ "keys": keys.iter().map(|k| &k.0).collect::<Vec<_>>() }).to_string();
    let (set, skipped) = KeySet::parse(document.as_bytes()).unwrap();
    assert_eq!(set.count(), 1);
    for (index, (_, expected)) in keys.iter().enumerate() {
        let why = skipped
            .iter()
            .find(|s| s.index == index)
            .map(|s| s.why.as_str());
        match expected {
            None => assert_eq!(why, None),
            Some(part) => assert!(why.is_some_and(|w| w.contains(part)), "{index}: {why:?}"),
        }
    }
}

#[test]
fn documents_that_are_no_key_sets_are_refused() {
    for text in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":[],"keys":[]}"#,
    ] {
        assert!(
            matches!(KeySet::parse(text.as_bytes()), Err(KeySetError::NotJwks(_))),
            "{text}"
        );
    }
    assert!(matches!(
        KeySet::parse(br#"{"keys":[]}"#),
        Err(KeySetError::Empty(_))
    ));
    let many = json!({"keys": vec![Issuer::new(KeyKind::Es256).jwk(); MAX_KEYS + 1]}).to_string();
    assert_eq!(
        KeySet::parse(many.as_bytes()).unwrap_err(),
        KeySetError::TooMany(MAX_KEYS + 1)
    );
}

#[test]
fn minting_refuses_names_that_no_hub_would_take() {
    let issuer = Issuer::new(KeyKind::Es256);
    let agent = AgentToken {
        agent_id: "a b".into(),
        audience: "nowconnect".into(),
        issuer: None,
        connectors: None,
        proof_key: None,
        lifetime: Duration::from_secs(60),
    };
    assert!(issuer.key.mint(&agent, at(NOW)).is_err());
    assert!(SigningKey::from_pem("-----BEGIN NONSENSE-----").is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]

    /// Whatever bytes arrive, the answer is a refusal: no panic, no acceptance.
    #[test]
    fn arbitrary_text_is_refused(text in "[A-Za-z0-9_.=-]{0,200}|\\PC{0,60}") {
        proptest::prop_assert!(Unverified::parse(&text).is_err());
    }
}
