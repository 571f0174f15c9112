//! What is in the way of a hub.

use anyhow::Result;
use nowconnect_testkit::authority::{Authority, Certificate};
use nowconnect_testkit::issuer::{Issuer, claims};
use nowconnect_testkit::redis::Redis;
use nowconnect_testkit::target::Target;
use nowconnect_testkit::{ports, program};
use serde_json::{Value, json};

use super::{answering, doctor, http, hub_config, lab, showing};

#[tokio::test]
async fn a_hub_is_looked_at_before_and_while_it_runs() -> Result<()> {
    let (lab, target) = (lab()?, Target::echo().await?);
    let mut config = hub_config(&lab)?;
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(0), "{}", found.report);
    assert!(
        found.said("ok", "ports").contains("free:"),
        "{}",
        found.report
    );
    assert!(
        found.said("ok", "token keys").contains("1 usable key"),
        "{}",
        found.report
    );

    let taken = target.addr();
    config["listeners"][0]["bind"] = taken.to_string().into();
    config["security"]["jwks_url"] = "http://127.0.0.1:1/jwks.json".into();
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(1), "{}", found.report);
    let said = found.said("fault", "ports");
    assert!(
        said.contains("another program") && said.contains("ss -ltnp"),
        "{}",
        found.report
    );
    assert!(
        found.said("fault", "token keys").contains("127.0.0.1:1"),
        "{}",
        found.report
    );

    config["tunnel"]["prot"] = 1.into();
    let found = doctor(&lab, "hub", &config, &[]).await?;
    assert_eq!(found.code, Some(2), "{}", found.report);
    assert!(
        found.said("fault", "configuration").contains("prot"),
        "{}",
        found.report
    );

    let running = lab.hub_for(&[("echo", target.addr())]).start().await?;
    let found = doctor(&lab, "hub", running.config(), &[]).await?;
    assert!(
        found.said("ok", "ports").contains("a hub runs here"),
        "{}",
        found.report
    );
    Ok(())
}

#[tokio::test]
async fn redis_is_tried_as_a_hub_uses_it() -> Result<()> {
    let lab = lab()?;
    let redis = Redis::plan().user("hub", "r1ght-secret").start().await?;
    let mut config = hub_config(&lab)?;
    config["ha"] = json!({ "mode": "shadow", "replica_id": "hub-a" });
    for (password, works) in [("r1ght-secret", true), ("wr0ng-secret", false)] {
        let url = format!("redis://hub:{password}@{}/0", redis.addr());
        config["ha"]["redis_url"] = url.into();
        let found = doctor(&lab, "hub", &config, &[]).await?;
        let (ok, fault) = (found.said("ok", "redis"), found.said("fault", "redis"));
        assert!(
            !found.report.to_string().contains(password),
            "{}",
            found.report
        );
        match works {
            true => assert!(
                ok.contains("master") && ok.contains("scripts"),
                "{}",
                found.report
            ),
            false => assert!(fault.contains("password"), "{}", found.report),
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_redis_is_named() -> Result<()> {
    let lab = lab()?;
    let mut config = hub_config(&lab)?;
    config["ha"] = json!({ "mode": "shadow", "replica_id": "hub-a" });
    let poor = ["poor", "on", ">pw", "~other:*", "&other:*", "+@all"];
    let locked = Redis::plan().user("hub", "pw").option("user", &poor);
    let locked = locked.start().await?;
    let plain = Redis::start().await?;
    let replica = Redis::plan().replica_of(plain.addr()).start().await?;
    for (url, words) in [
        (
            format!("redis://127.0.0.1:{}/0", ports::reserve()?),
            &["refused", "redis_url"][..],
        ),
        (
            "redis://redis.invalid:6379/0".into(),
            &["redis.invalid", "redis_url"],
        ),
        (
            format!("rediss://{}/0", plain.addr()),
            &["TLS", "rediss://"],
        ),
        (format!("redis://{}/0", locked.addr()), &["NOAUTH"]),
        (
            format!("redis://poor:pw@{}/0", locked.addr()),
            &["NoPerm", "ACL"],
        ),
        (
            format!("redis://{}/0", replica.addr()),
            &["replica", "master"],
        ),
    ] {
        config["ha"]["redis_url"] = url.into();
        doctor(&lab, "hub", &config, &[])
            .await?
            .has("fault", "redis", words)?;
    }
    Ok(())
}

#[tokio::test]
async fn keys_are_listed_and_what_is_no_key_document_is_named() -> Result<()> {
    let lab = lab()?;
    let mut config = hub_config(&lab)?;
    lab.issuer().add_key()?;
    let found = doctor(&lab, "hub", &config, &[]).await?;
    found.has("ok", "token keys", &["2 usable keys"])?;
    for key in ["key-1", "key-2"] {
        found.has("ok", "token keys", &[key, "ES256"])?;
    }

    let document: Value = serde_json::from_str(&program::read(&lab.path("jwks.json"))?)?;
    let mut nameless = document.clone();
    nameless["keys"][0]
        .as_object_mut()
        .and_then(|key| key.remove("kid"));
    let encrypts = json!({ "kty": "EC", "use": "enc", "crv": "P-256", "x": "", "y": "" });
    if let Some(keys) = nameless["keys"].as_array_mut() {
        keys.push(encrypts);
    }
    let discovery = json!({ "issuer": "https://idp", "jwks_uri": "https://idp/keys" });
    let json_type = "Content-Type: application/json";
    for (answer, result, words) in [
        (
            http("200 OK", json_type, &nameless.to_string()),
            "warning",
            &["one of them has no kid"][..],
        ),
        (
            http("200 OK", json_type, &nameless.to_string()),
            "warning",
            &["keys[2] is not used"],
        ),
        (
            http("500 Oops", "X: y", ""),
            "fault",
            &["HTTP status 500", "its log"],
        ),
        (
            http("404 No", "X: y", ""),
            "fault",
            &["HTTP status 404", "path"],
        ),
        (
            http("401 No", "X: y", ""),
            "fault",
            &["HTTP status 401", "open"],
        ),
        (
            http("302 There", "Location: /login", ""),
            "fault",
            &["302", "redirects"],
        ),
        (
            http("200 OK", "Content-Type: text/html", "<html>log in</html>"),
            "fault",
            &["HTML", "jwks_uri"],
        ),
        (
            http("200 OK", json_type, &discovery.to_string()),
            "fault",
            &["discovery document", "https://idp/keys"],
        ),
        (
            http("200 OK", json_type, "{\"keys\":[]}"),
            "fault",
            &["no usable key"],
        ),
    ] {
        let server = answering(answer).await?;
        config["security"]["jwks_url"] = format!("http://{}/jwks", server.addr()).into();
        doctor(&lab, "hub", &config, &[])
            .await?
            .has(result, "token keys", words)?;
    }
    let late = http(
        "200 OK",
        "Date: Mon, 02 Jan 2012 15:04:05 GMT",
        &document.to_string(),
    );
    let server = answering(late).await?;
    config["security"]["jwks_url"] = format!("http://{}/jwks", server.addr()).into();
    let found = doctor(&lab, "hub", &config, &[]).await?;
    found.has("fault", "clock", &["ahead of 127.0.0.1", "NTP"])?;

    let authority = Authority::new("corp CA")?;
    authority.issue("idp", &Certificate::good(&["127.0.0.1"]))?;
    authority.issue("other", &Certificate::good(&["idp.example"]))?;
    for (name, trusted, words) in [
        (
            "idp",
            false,
            &["UnknownIssuer", "put that CA into security.jwks_ca"][..],
        ),
        (
            "other",
            true,
            &[
                "certificate",
                "a host name in security.jwks_url that its certificate is for",
            ],
        ),
    ] {
        let server = showing(&authority, name).await?;
        config["security"] = json!({ "jwks_url": format!("https://{}/jwks", server.addr()) });
        if trusted {
            config["security"]["jwks_ca"] = json!(authority.bundle());
        }
        doctor(&lab, "hub", &config, &[])
            .await?
            .has("fault", "token keys", words)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_judged_as_the_hub_would() -> Result<()> {
    let lab = lab()?;
    let mut config = hub_config(&lab)?;
    config["security"]["require_connector_scopes"] = true.into();
    let mut good = claims("site-1", 3600);
    good["connectors"] = json!(["echo"]);
    let mut other = good.clone();
    other["aud"] = "somebody".into();
    for (token, result, area, words) in [
        (
            lab.issuer().sign(&good)?,
            "ok",
            "token",
            &["takes it", "site-1"][..],
        ),
        (
            lab.issuer().sign(&good)?,
            "ok",
            "scopes",
            &["may serve echo"],
        ),
        (
            lab.issuer().sign(&claims("site-1", 3600))?,
            "fault",
            "scopes",
            &["none of echo"],
        ),
        (
            lab.issuer().sign(&other)?,
            "fault",
            "token",
            &["wrong_audience", "somebody"],
        ),
        (
            lab.issuer().sign(&claims("site-1", -3600))?,
            "fault",
            "token",
            &["expired"],
        ),
        ("changeme".into(), "fault", "token", &["malformed"]),
    ] {
        let file = lab.write("judged.jwt", &token)?;
        let found = doctor(&lab, "hub", &config, &["--token", &file]).await?;
        found.has(result, area, words)?;
        assert!(
            !found.report.to_string().contains(&token),
            "{}",
            found.report
        );
    }
    let elsewhere = tempfile::tempdir()?;
    let strange = Issuer::new(elsewhere.path())?.sign(&good)?;
    let file = lab.write("judged.jwt", &strange)?;
    let found = doctor(&lab, "hub", &config, &["--token", &file]).await?;
    found.has("fault", "token", &["bad_signature"])?;
    let found = doctor(&lab, "hub", &config, &["--token", "/nowhere"]).await?;
    found.has("fault", "token", &["cannot read /nowhere"])
}
