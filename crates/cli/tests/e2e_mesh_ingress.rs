//! Hubs behind a real nginx with a public certificate: what the ingress owns proves nothing.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::lab::{Hub, HubPlan, Lab};
use nowconnect_testkit::nginx::Ingress;
use nowconnect_testkit::{anyhow, ports};
use serde_json::json;

/// A hub of the mesh of `authority`, reached as `host`.
fn member<'a>(
    plan: HubPlan<'a>,
    name: &str,
    authority: &Authority,
    host: &str,
    peer: &str,
) -> Result<HubPlan<'a>> {
    authority.issue(name, &Certificate::good(&[host]))?;
    let file = |name: String| authority.file(&name).display().to_string();
    let tls = json!({
        "ca_bundle": file("ca.pem".to_owned()),
        "cert_file": file(format!("{name}.crt")),
        "key_file": file(format!("{name}.key")),
    });
    Ok(plan
        .set("ha.enabled", true)
        .set("ha.mode", "active")
        .set("ha.replica_id", name)
        .set("ha.mesh.peers", json!([peer]))
        .set("ha.mesh.connect_backoff_max_sec", 1)
        .set("ha.mesh.tls", tls))
}

/// An nginx in front of `hub`, with a certificate that the system trusts.
fn ingress(public: &Authority, listen: SocketAddr, hub: &Hub) -> Result<Ingress> {
    Ok(Ingress {
        listen,
        certificate: public.file("public.crt"),
        key: public.file("public.key"),
        client_ca: None,
        hub: hub.tunnel_addr()?,
    })
}

fn trust(public: &Authority) -> String {
    let bundle: &Path = &public.bundle();
    bundle.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_certificate_leads_to_the_mesh_and_proves_nobody_a_member() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    let (mesh, rogue, public) = (
        Authority::new("mesh")?,
        Authority::new("rogue")?,
        Authority::new("public")?,
    );
    public.issue("public", &Certificate::good(&["localhost"]))?;
    let listen = ports::local(ports::reserve()?);
    let url = format!("wss://localhost:{}/mesh", listen.port());

    let impostor = member(
        lab.hub("impostor"),
        "hub-b",
        &rogue,
        "localhost",
        "ws://127.0.0.9:1/mesh",
    )?
    .start()
    .await?;
    let front = ingress(&public, listen, &impostor)?
        .start(lab.dir())
        .await?;
    let dialing = member(lab.hub_for(&[]), "hub-a", &mesh, "127.0.0.9", &url)?;
    let dialing = dialing
        .env("SSL_CERT_FILE", &trust(&public))
        .start()
        .await?;
    let failed = dialing.log().wait_event("mesh_link_failed").await?;
    let error = failed.text("error");
    anyhow::ensure!(
        error.contains("mutual TLS inside the WebSocket failed"),
        "{error}"
    );
    anyhow::ensure!(error.contains("no CA that is trusted here"), "{error}");
    drop((front, impostor));

    let member_b = member(
        lab.hub("hub-b"),
        "hub-b",
        &mesh,
        "localhost",
        "ws://127.0.0.9:1/mesh",
    )?
    .start()
    .await?;
    let _front = ingress(&public, listen, &member_b)?
        .start(lab.dir())
        .await?;
    let up = dialing.log().wait_event("mesh_link_up").await?;
    anyhow::ensure!(up.text("sealed") == "true", "{:?}", up.json());
    let up = member_b.log().wait_event("mesh_link_up").await?;
    anyhow::ensure!(up.text("proven") == "127.0.0.9", "{:?}", up.json());
    anyhow::ensure!(up.text("sealed") == "true", "{:?}", up.json());
    Ok(())
}
