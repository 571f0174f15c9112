//! The policy decision point, asked a question that nothing depends on.

use std::net::{IpAddr, Ipv4Addr};

use nowconnect_hub::config::{HubConfig, PdpConfig, PdpFormat};
use nowconnect_hub::pdp::Question;
use nowconnect_hub::probe::{self, AskError, WebError};

use super::report::Report;
use super::web;

const AREA: &str = "pdp";
/// Stands for an agent. It is none that could exist: names of agents have no colon.
const NOBODY: &str = "nowconnect:doctor";
/// An address of no client (RFC 5737).
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Asks whether nobody may serve a client from nowhere: any answer will do.
pub(super) async fn examine(config: &HubConfig, report: &mut Report) {
    let Some(pdp) = &config.pdp else { return };
    let listener = config.listeners.first();
    let question = Question {
        agent_id: NOBODY.into(),
        connector: listener.map_or("doctor".into(), |one| (*one.connector).into()),
        client: Some(NOWHERE),
        listener: listener.map_or("doctor".into(), |one| (*one.name).into()),
        origin: None,
    };
    let trial = match probe::decision(config, &question).await {
        Ok(Some(trial)) => trial,
        Ok(None) => return,
        Err(error) => return report.error(AREA, error),
    };
    let took = trial.took.as_millis();
    match trial.asked {
        Ok(allowed) => {
            let word = if allowed { "allow" } else { "deny" };
            let Question {
                agent_id,
                connector,
                ..
            } = &question;
            report.ok(
                AREA,
                format!("may {agent_id} serve {connector} to {NOWHERE}? {word}, after {took} ms"),
            );
            // Whoever says yes to that says it to everything.
            if allowed {
                report.warning(
                    AREA,
                    format!("it allows an agent {NOBODY} that cannot exist"),
                    "does its policy look at the subject? If it is meant to allow everything, it is not needed",
                );
            }
        }
        Err(error) => {
            report.fault(
                AREA,
                format!("{}: {error}", web::shown(&pdp.url)),
                next(&error, pdp),
            );
            let open = if pdp.fail_open { "let in" } else { "refused" };
            report.ok(
                AREA,
                format!("without an answer clients are {open} (pdp.fail_open)"),
            );
        }
    }
}

fn next(error: &AskError, pdp: &PdpConfig) -> String {
    match error {
        AskError::Web(WebError::Timeout(_)) => {
            "find out why it is slow, or raise pdp.timeout_ms: every new flow waits for it".into()
        }
        AskError::Web(WebError::Status(401 | 403)) if pdp.token_file.is_none() => {
            "it wants to know who asks: set pdp.token_file".into()
        }
        AskError::Web(WebError::Status(401 | 403)) => {
            "it does not take the token of pdp.token_file: renew it, or have it let this hub ask".into()
        }
        AskError::Web(WebError::Status(404 | 405)) if pdp.format == PdpFormat::Authzen => {
            "correct the path of pdp.url (without one /access/v1/evaluation is asked), or pdp.format".into()
        }
        AskError::Web(WebError::Status(400 | 415 | 422)) => {
            "it does not understand the question: check pdp.format, and its log".into()
        }
        AskError::Web(error) => web::next(error, "pdp.url", "pdp.ca_bundle"),
        AskError::Answer(_) => format!(
            "check pdp.format (it is {}), and that pdp.url leads to the decision point itself",
            pdp.format.as_str(),
        ),
    }
}
