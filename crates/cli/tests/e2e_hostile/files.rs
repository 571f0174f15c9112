//! Whoever may write to the directory of a file that hub or agent read: what is there is no file any more.

use std::path::Path;

use anyhow::{Result, ensure};
use nowconnect_testkit::anyhow;
use nowconnect_testkit::lab::HubPlan;
use nowconnect_testkit::process::Signal;
use nowconnect_testkit::program;
use nowconnect_testkit::wait::{until, within};
use tokio::process::Command;

use crate::list::cases;
use crate::scene::{Scene, lab};

cases! { "Files that somebody replaces";
    a_pipe_where_a_token_should_be: "nobody is served: the hub does not start, exit code 2", "the key, and `is no file`" => at_start(|plan, pipe| plan.set("admin.token_file", pipe), "admin.token_file: ", "is no file");
    a_pipe_where_a_private_key_should_be: "nobody is served: the hub does not start, exit code 2", "the key, and `is no file`" => at_start(|plan, pipe| plan.set("tunnel.tls.cert_file", pipe).set("tunnel.tls.key_file", pipe), "tunnel.tls.key_file: ", "is no file");
    a_pipe_where_the_keys_of_tokens_should_be: "nobody is served: the hub does not start, exit code 2", "the key, and `is no file`" => at_start(|plan, pipe| plan.set("security.jwks_url", format!("file://{pipe}")), "security.jwks_url: ", "is no file");
    a_pipe_where_the_audit_trail_should_be: "nobody is served: the hub does not start, exit code 2", "`it is a pipe`" => at_start(|plan, pipe| plan.set("audit.file", pipe), "audit.file", "it is a pipe");
    a_device_that_takes_the_audit_trail_and_keeps_nothing: "nothing: records wait until there is a file again", "`audit_file_failed`, `nowconnect_audit_file_failing` 1" => trail_into_nothing();
    a_pipe_in_the_place_of_a_token_while_the_hub_runs: "the former token stays in force; the hub stops when it is told", "`config_rejected`" => while_it_runs();
    a_pipe_in_the_place_of_an_agent_s_token: "the agent stays away until a token is there again", "`tunnel_failed` of the agent, which names the file" => agents_token();
}

async fn pipe(at: &Path) -> Result<()> {
    let new = at.with_extension("pipe");
    program::succeed(Command::new("mkfifo").arg(&new)).await?;
    Ok(std::fs::rename(new, at)?)
}

async fn at_start(
    set: impl for<'a> FnOnce(HubPlan<'a>, &str) -> HubPlan<'a>,
    key: &str,
    problem: &str,
) -> Result<()> {
    let lab = lab()?;
    let at = lab.path("secret");
    pipe(&at).await?;
    let mut hub = set(lab.hub("hub-a").listener("echo"), &at.display().to_string()).spawn()?;
    let status = hub.process().wait_exit().await?;
    let text = hub.log().text();
    ensure!(status.code() == Some(2), "{status}: {text}");
    ensure!(text.contains(key) && text.contains(problem), "{text}");
    Ok(())
}

async fn trail_into_nothing() -> Result<()> {
    let mut trail = None;
    let mut scene = Scene::set_with(|plan| {
        let at = plan.lab().path("audit.log");
        let plan = plan.set("audit.file", at.display().to_string());
        trail = Some(at);
        plan
    })
    .await?;
    let trail = trail.unwrap_or_default();
    std::fs::remove_file(&trail)?;
    std::os::unix::fs::symlink("/dev/null", &trail)?;
    scene.hub.log().wait_event("audit_file_failed").await?;
    scene.serves().await?;
    scene
        .counted("nowconnect_audit_file_failing", &[], 1.0)
        .await?;
    std::fs::remove_file(&trail)?;
    scene.hub.log().wait_event("audit_file_recovered").await?;
    until("what waited to be written", async || {
        let kept = program::read(&trail)?;
        ensure!(kept.contains("flow_opened"), "{kept}");
        Ok(())
    })
    .await
}

async fn while_it_runs() -> Result<()> {
    let mut token = None;
    let mut scene = Scene::set_with(|plan| {
        let at = plan.lab().write("admin.token", "correct-horse");
        token = at.ok();
        plan.set("admin.token_file", token.clone().unwrap_or_default())
    })
    .await?;
    pipe(Path::new(&token.unwrap_or_default())).await?;
    scene.hub.process().signal(Signal::Hup).await?;
    let rejected = scene.hub.log().wait_event("config_rejected").await?;
    let error = rejected.text("error");
    ensure!(
        error.contains("admin.token_file: ") && error.contains("is no file"),
        "{error}"
    );
    scene.serves().await?;
    scene.hub.process().signal(Signal::Term).await?;
    let status = scene.hub.process().wait_exit().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

async fn agents_token() -> Result<()> {
    let mut scene = Scene::set().await?;
    let (at, token) = (scene.agent.token_file().to_owned(), scene.token("site-1"));
    pipe(&at).await?;
    scene.hub.restart().await?;
    let why = within("the agent to say why", async {
        scene
            .agent
            .log()
            .wait_event_where("tunnel_failed", Default::default(), |event| {
                event.text("error").contains("no file")
            })
            .await
    })
    .await??;
    ensure!(
        why.text("error").contains(&at.display().to_string()),
        "{}",
        why.json()
    );
    scene.agent.replace_token(&token)?;
    scene.hub.wait_agents(1).await?;
    scene.serves().await
}
