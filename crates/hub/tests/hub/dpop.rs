//! Tokens that are for one key, renewed over a tunnel.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use nowconnect_hub::auth::dpop::token_hash;
use nowconnect_hub::auth::mint::{KeyKind, SigningKey};
use nowconnect_proto::frame::Frame;
use nowconnect_proto::hello::{Body, Token, TokenAck};
use nowconnect_testkit::issuer::{claims, now};
use serde_json::{Value, json};

use crate::agent::{Agent, Process};
use crate::rig::Rig;

struct Key {
    key: SigningKey,
    signer: EncodingKey,
}

impl Key {
    fn new() -> Self {
        let key = SigningKey::generate(KeyKind::Es256).unwrap();
        let pair = rcgen::KeyPair::from_pem(&key.to_pem()).unwrap();
        let signer = EncodingKey::from_ec_der(pair.serialized_der());
        Self { key, signer }
    }

    fn token(&self, rig: &Rig) -> String {
        let mut claims = claims("site-1", 3600);
        claims["cnf"] = json!({ "jkt": self.key.jwk().common.key_id });
        rig.issuer.sign(&claims).unwrap()
    }

    fn prove(&self, rig: &Rig, token: &str, nonce: Option<String>) -> String {
        let header = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": self.key.jwk() });
        let mut claims = json!({
            "jti": uuid::Uuid::new_v4().to_string(), "htm": "TOKEN", "iat": now(),
            "htu": format!("http://{}/tunnel", rig.http()), "ath": token_hash(token),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&header), part(&claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.signer, Algorithm::ES256);
        format!("{message}.{}", signature.unwrap())
    }
}

async fn renew(agent: &mut Agent, token: String, proof: Option<String>) -> TokenAck {
    let body = Token { token, proof }.encode().unwrap();
    agent.link.send(Frame::Token(body.into()));
    agent.token_ack().await
}

fn refused(ack: &TokenAck) -> (&str, Option<String>) {
    match ack {
        TokenAck::Refused { error, nonce } => (error, nonce.clone()),
        TokenAck::Renewed { .. } => panic!("taken"),
    }
}

#[tokio::test]
async fn a_token_for_a_key_is_renewed_with_a_proof_by_that_key_alone() {
    let rig = Rig::start().await;
    let mut agent = rig.tunnel(&Process::new("site-1", 1).await).await;
    let key = Key::new();
    let token = key.token(&rig);
    let bare = renew(&mut agent, token.clone(), None).await;
    assert_eq!(refused(&bare), ("dpop_required", None));

    // Nobody shares the memory of this hub, so it asks for its nonce.
    let proof = key.prove(&rig, &token, None);
    let asked = renew(&mut agent, token.clone(), Some(proof)).await;
    let (code, nonce) = refused(&asked);
    assert!(code == "use_dpop_nonce" && nonce.is_some(), "{asked:?}");
    let proof = key.prove(&rig, &token, nonce.clone());
    let taken = renew(&mut agent, token.clone(), Some(proof.clone())).await;
    assert!(matches!(taken, TokenAck::Renewed { .. }), "{taken:?}");
    let again = renew(&mut agent, token, Some(proof)).await;
    assert_eq!(refused(&again), ("dpop_replayed", None));

    // From here on the tunnel is this key's: neither another's token nor a mere bearer token passes.
    let other = Key::new();
    let token = other.token(&rig);
    let proof = other.prove(&rig, &token, nonce.clone());
    let changed = renew(&mut agent, token.clone(), Some(proof)).await;
    assert_eq!(refused(&changed), ("dpop_key_changed", None));
    let proof = key.prove(&rig, &token, nonce);
    let mismatch = renew(&mut agent, token, Some(proof)).await;
    assert_eq!(refused(&mismatch), ("dpop_key_mismatch", None));
    let unbound = rig.issuer.token("site-1").unwrap();
    let downgrade = renew(&mut agent, unbound, None).await;
    assert_eq!(refused(&downgrade), ("dpop_key_changed", None));
    let failures = |reason| [("reason", reason)];
    rig.wait_metric(
        "nowconnect_auth_failures_total",
        &failures("dpop_key_changed"),
        2.0,
    )
    .await;
}
