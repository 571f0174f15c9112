//! Headers by which a sender claims to be somebody else.

use anyhow::{Result, ensure};
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::{anyhow, http};
use serde_json::json;

use crate::list::cases;
use crate::mesh::certified;
use crate::scene::{Scene, refused};

cases! { "Forged headers";
    a_forwarded_address_from_nobody_we_trust: "401; the address of the connection is the one that counts", "`jwt_rejected` with `remote` 127.0.0.1" => address(json!([]), "203.0.113.9", "127.0.0.1");
    an_address_put_in_front_of_the_ingress_s_own: "401; the address that the ingress has appended is the one that counts", "`jwt_rejected` with `remote` 198.51.100.7" => address(json!(["127.0.0.0/8"]), "203.0.113.9, 198.51.100.7", "198.51.100.7");
    a_forwarded_address_that_is_none: "401; the address of the connection is the one that counts", "`jwt_rejected` with `remote` 127.0.0.1" => address(json!(["127.0.0.0/8"]), "203.0.113.9, evil", "127.0.0.1");
    nginx_s_word_for_a_certificate: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X-SSL-Client-Verify", "SUCCESS");
    nginx_s_certificate: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X-SSL-Client-Cert", "-----BEGIN%20CERTIFICATE-----");
    traefik_s_certificate: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X-Forwarded-Tls-Client-Cert", "MIIB");
    traefik_s_subject: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X-Forwarded-Tls-Client-Cert-Info", "Subject%3D%22CN%3Dhub-b%22");
    envoy_s_certificate: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X-Forwarded-Client-Cert", "Hash=1;Subject=\"CN=hub-b\"");
    a_header_spelled_with_underscores: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X_SSL_CLIENT_VERIFY", "SUCCESS");
    a_header_named_in_connection: "403 `certificate_missing`, the end", "`mesh_refused`" => header("X-SSL-Client-Verify", "SUCCESS\r\nX-Real-IP: 127.0.0.10");
}

async fn address(trusted: serde_json::Value, told: &str, counts: &str) -> Result<()> {
    let mut scene = Scene::set_with(|plan| plan.set("tunnel.trusted_proxies", trusted)).await?;
    let mut headers = http::upgrade_headers("Bearer x");
    headers.push(("X-Forwarded-For", told));
    let answer = http::request(scene.tunnel(), "GET", "/tunnel", &headers, "").await?;
    refused(&answer, 401, "malformed")?;
    let event = scene.logged("jwt_rejected", "malformed").await?;
    ensure!(event.text("remote") == counts, "{}", event.json());
    scene.serves().await
}

async fn header(name: &str, value: &str) -> Result<()> {
    let authority = Authority::new("mesh")?;
    authority.issue("hub-a", &Certificate::good(&["127.0.0.1"]))?;
    let trusted = json!(["127.0.0.0/8"]);
    let mut scene = Scene::set_with(|plan| {
        certified(plan, &authority, "hub-a").set("tunnel.trusted_proxies", trusted)
    })
    .await?;
    let mut headers = http::upgrade_headers("Bearer x");
    headers.retain(|(name, _)| !["Sec-WebSocket-Protocol", "Connection"].contains(name));
    let connection = format!("Upgrade, {name}");
    headers.extend([
        ("Sec-WebSocket-Protocol", "nowconnect.mesh.v1"),
        ("Connection", connection.as_str()),
        (name, value),
    ]);
    let answer = http::request(scene.tunnel(), "GET", "/mesh", &headers, "").await?;
    refused(&answer, 403, "certificate_missing")?;
    scene.logged("mesh_refused", "certificate_missing").await?;
    scene.serves().await
}
