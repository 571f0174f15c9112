//! A hub that is configured as one of several runs alone, and says so.

use anyhow::{Result, ensure};
use nowconnect_testkit::http;
use nowconnect_testkit::lab::Lab;
use serde_json::{Value, json};

/// The `ha` section of the documented example, with files that are not on this machine.
fn example(mode: &str) -> Value {
    json!({
        "enabled": true,
        "mode": mode,
        "replica_id": "hub-a",
        "redis_url": "redis://shared_redis:6379/0",
        "mesh": {
            "listen": "",
            "peers": ["wss://cloud-b.example.com/mesh"],
            "require_mtls": true,
            "tls": {
                "ca_bundle": "/app/certs/ca.pem",
                "cert_file": "/app/certs/hub-a.crt",
                "key_file": "/app/certs/hub-a.key",
            },
            "send_queue_depth": 1000,
            "per_link_max_inflight_bytes": 8_388_608,
            "connect_backoff_max_sec": 30,
        },
    })
}

#[tokio::test]
async fn the_example_starts_and_warns_that_it_runs_alone() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    for (mode, status, strict) in [("shadow", "ready", 200), ("active", "degraded", 503)] {
        let hub = lab.hub(mode).set("ha", example(mode)).start().await?;
        let ready = http::get(hub.http_addr()?, "/readyz").await?;
        let told: Value = serde_json::from_str(&ready.body)?;
        ensure!(told["status"] == status && told["mode"] == mode, "{told}");
        let answer = http::get(hub.http_addr()?, "/readyz?strict=1").await?;
        ensure!(answer.status == strict, "{answer:?}");
        let warning = hub.log().wait_event("ha_not_available").await?;
        let said = (warning.text("level"), warning.text("mode"));
        ensure!(said == ("WARN".to_owned(), mode.to_owned()), "{warning:?}");
    }
    Ok(())
}

#[tokio::test]
async fn checks_that_this_version_cannot_make_stop_the_start() -> Result<()> {
    let lab = Lab::new(env!("CARGO_BIN_EXE_nowconnect"))?;
    for (key, text) in [
        ("pdp.url", "pdp: { url: 'http://127.0.0.1:1/decide' }\n"),
        ("security.fapi_mode: 2", "security: { fapi_mode: 2 }\n"),
    ] {
        let file = lab.write("cloud.yaml", text)?;
        for command in ["check", "hub"] {
            let done = lab.run(&[command, "--config", &file]).await?;
            ensure!(done.status.code() == Some(2), "{done:?}");
            ensure!(done.stderr.contains(key), "{done:?}");
            ensure!(done.stderr.contains("remove the key"), "{done:?}");
        }
    }
    Ok(())
}
