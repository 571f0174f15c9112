//! Peers, and how both prove to each other who they are: inside the WebSocket, as behind an ingress, and
//! by the certificates of the connection.

use anyhow::Result;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::lab::{Hub, HubPlan, Lab};
use nowconnect_testkit::ports;
use serde_json::{Value, json};

use super::{Finding, doctor, hub_config, lab, showing};

fn tls(bundle: &Authority, authority: &Authority, name: &str) -> Value {
    json!({
        "ca_bundle": bundle.bundle(),
        "cert_file": authority.file(&format!("{name}.crt")),
        "key_file": authority.file(&format!("{name}.key")),
    })
}

/// Two mesh CAs, with certificates for this machine and for others.
struct Cast {
    lab: Lab,
    ours: Authority,
    other: Authority,
}

impl Cast {
    fn new() -> Result<Self> {
        let (ours, other) = (Authority::new("mesh CA")?, Authority::new("other mesh CA")?);
        for authority in [&ours, &other] {
            let here = Certificate::good(&["127.0.0.1", "localhost"]);
            authority.issue("hub", &here)?;
            authority.issue("server", &here.clone().for_servers())?;
            authority.issue("elsewhere", &Certificate::good(&["hub-x.example"]))?;
            authority.issue("expired", &here.expired())?;
        }
        Ok(Self {
            lab: lab()?,
            ours,
            other,
        })
    }

    /// Hubs with this certificate, and their URLs: one takes links with TLS inside the WebSocket, the
    /// other with TLS. Nobody needs the registry to be shared for that.
    async fn peers(&self, name: &str) -> Result<[(Hub, String); 2]> {
        let inside = self.lab.hub("hub-b");
        let url = inside.mesh_url();
        let port = ports::reserve()?;
        let direct = self.lab.hub("hub-c");
        let direct = direct.set("ha.mesh.listen", format!("127.0.0.1:{port}"));
        Ok([
            (self.start(inside, name).await?, url),
            (
                self.start(direct, name).await?,
                format!("wss://127.0.0.1:{port}/mesh"),
            ),
        ])
    }

    async fn start(&self, plan: HubPlan<'_>, name: &str) -> Result<Hub> {
        let peers = json!(["ws://localhost:1/mesh", "ws://127.0.0.1:1/mesh"]);
        let mut hub = plan
            .listener("echo")
            .member("shadow", "redis://127.0.0.1:1/0")
            .set("ha.mesh.peers", peers)
            .set("ha.mesh.tls", tls(&self.ours, &self.ours, name))
            .spawn()?;
        hub.wait_ready().await?;
        Ok(hub)
    }

    async fn visit(&self, url: &str, tls: Value) -> Result<Finding> {
        let mut config = hub_config(&self.lab)?;
        config["ha"] = json!({
            "mode": "shadow", "replica_id": "hub-a", "redis_url": "redis://127.0.0.1:1/0",
            "mesh": { "peers": [url], "tls": tls },
        });
        doctor(&self.lab, "hub", &config, &[]).await
    }
}

#[tokio::test]
async fn both_prove_themselves_or_it_is_said_who_does_not() -> Result<()> {
    let cast = Cast::new()?;
    let peers = cast.peers("hub").await?;
    let (ours, other) = (&cast.ours, &cast.other);
    for (_, url) in &peers {
        let found = cast.visit(url, tls(ours, ours, "hub")).await?;
        found.has("ok", "peer", &[url, "both have proven who they are"])?;
        found.has(
            "ok",
            "peer",
            &[
                "its certificate: for 127.0.0.1, localhost",
                "CN=mesh CA",
                "ends in",
            ],
        )?;
        found.has("ok", "clock", &["agree within"])?;
        for (tls, words) in [
            (
                tls(other, other, "hub"),
                &[
                    "signed by CN=mesh CA",
                    "does not vouch for",
                    "nowconnect certs",
                ][..],
            ),
            (
                tls(ours, other, "hub"),
                &["does not take our certificate", "issued by the mesh CA"],
            ),
            (
                tls(ours, ours, "elsewhere"),
                &["does not take our certificate", "ha.mesh.peers"],
            ),
            (
                tls(ours, ours, "server"),
                &["does not take our certificate", "clientAuth"],
            ),
        ] {
            let found = cast.visit(url, tls).await?;
            found.has("fault", "peer", words)?;
        }
        let expired = cast.visit(url, tls(ours, ours, "expired")).await?;
        expired.has("fault", "certificate", &["expired", "renew"])?;
    }
    let by_name = peers[1].1.replace("127.0.0.1", "localhost");
    cast.visit(&by_name, tls(ours, ours, "hub"))
        .await?
        .has("ok", "peer", &["proven"])
}

#[tokio::test]
async fn a_peer_for_another_host_is_named() -> Result<()> {
    let cast = Cast::new()?;
    let peers = cast.peers("elsewhere").await?;
    for (_, url) in &peers {
        let found = cast.visit(url, tls(&cast.ours, &cast.ours, "hub")).await?;
        found.has(
            "fault",
            "peer",
            &["is for hub-x.example, and not for 127.0.0.1"],
        )?;
    }
    let old = showing(&cast.ours, "expired").await?;
    let url = format!("wss://{}/mesh", old.addr());
    let found = cast.visit(&url, tls(&cast.ours, &cast.ours, "hub")).await?;
    found.has(
        "fault",
        "peer",
        &["has expired", "ended 60 min ago", "renew"],
    )?;
    let url = format!("wss://127.0.0.1:{}/mesh", ports::reserve()?);
    let found = cast.visit(&url, tls(&cast.ours, &cast.ours, "hub")).await?;
    found.has("fault", "peer", &["nothing listens there"])
}
