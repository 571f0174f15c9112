//! The peers of a hub: the way to each, and whether both prove who they are.

use http::Uri;
use nowconnect_hub::config::HubConfig;
use nowconnect_hub::probe::{Met, NotMet, Visit, VisitError, Whose};
use nowconnect_link::tls::CertificateFault;

use super::report::Report;
use super::{chain, web};

const AREA: &str = "peer";

/// Visits every peer.
pub(super) async fn examine(config: &HubConfig, report: &mut Report) {
    for url in &config.ha.mesh.peers {
        visit(config, url, report).await;
    }
}

async fn visit(config: &HubConfig, url: &Uri, report: &mut Report) {
    let (config, of) = (config.clone(), url.clone());
    let ready = tokio::task::spawn_blocking(move || (Visit::new(&config, &of), config)).await;
    let (visit, config) = match ready {
        Ok((Ok(visit), config)) => (visit, config),
        // Told with the certificates.
        Ok((Err(VisitError::Tls(_)), _)) => {
            let next = "correct what is said about the certificate first";
            return report.fault(AREA, format!("{url}: ha.mesh.tls cannot be used"), next);
        }
        Ok((Err(VisitError::Url(error)), _)) => return report.error(AREA, error),
        Err(error) => return report.error(AREA, error),
    };
    let (host, port) = (visit.url().host(), visit.url().port());
    if !web::resolve(host, port, report).await {
        return;
    }
    match visit.dial().await {
        Ok(stream) => drop(web::clock(stream, visit.url(), host, report).await),
        Err(error) => return not_met(&config, &visit, &error, report).await,
    }
    match visit.knock().await {
        Ok(met) => well_met(&config, &visit, &met, report),
        Err(error) => not_met(&config, &visit, &error, report).await,
    }
}

fn well_met(config: &HubConfig, visit: &Visit, met: &Met, report: &mut Report) {
    let how = match (met.sealed, config.ha.mesh.require_mtls) {
        (true, _) => "both have proven who they are, inside the WebSocket",
        (false, true) => "both have proven who they are",
        (false, false) => "it answers; nobody has to prove anything (require_mtls: false)",
    };
    report.ok(AREA, format!("{}: {how}", visit.url().uri()));
    chain::told(AREA, "its", &met.chain, report);
}

async fn not_met(config: &HubConfig, visit: &Visit, error: &NotMet, report: &mut Report) {
    let url = visit.url().uri();
    let Some((whose, fault)) = error.fault else {
        return report.error(AREA, format!("{url}: {error}"));
    };
    let shown = visit.shown(whose).await;
    let tls = config.ha.mesh.tls.as_ref();
    let bundle = tls.map(|tls| tls.ca_bundle.as_path());
    let fact = match (whose, fault) {
        (Whose::Doors | Whose::Peers, CertificateFault::UnknownCa) => {
            format!("{url}: {}", chain::unknown_ca(&shown, bundle))
        }
        (Whose::Doors | Whose::Peers, fault) => {
            format!("{url}: {}", chain::fault(fault, &shown, visit.url().host()))
        }
        (Whose::Ours, _) => format!("{url}: it does not take our certificate: {error}"),
    };
    report.fault(AREA, fact, next(whose, fault));
    let own = tls.and_then(|tls| chain::read(&tls.cert_file));
    if let (Whose::Ours, Some(own)) = (whose, own) {
        chain::told(AREA, "our", &own, report);
    }
}

fn next(whose: Whose, fault: CertificateFault) -> &'static str {
    match (whose, fault) {
        (Whose::Doors | Whose::Peers, CertificateFault::UnknownCa) => {
            "hubs need certificates of one mesh CA, which all of them have in ha.mesh.tls.ca_bundle \
             (nowconnect certs issue); a proxy that opens TLS must let this host through"
        }
        (Whose::Doors | Whose::Peers, CertificateFault::WrongName) => {
            "put a name of its certificate into ha.mesh.peers, or issue one for this host \
             (nowconnect certs issue)"
        }
        (Whose::Doors | Whose::Peers, CertificateFault::Expired) => {
            "renew it there (nowconnect certs issue); if it is valid, correct this machine's clock"
        }
        (Whose::Doors | Whose::Peers, CertificateFault::NotYetValid) => {
            "correct this machine's clock, or that of whoever has issued it"
        }
        (Whose::Ours, CertificateFault::WrongName) => {
            "our certificate must be for the host by which that hub dials this one: one of its \
             ha.mesh.peers"
        }
        (Whose::Ours, CertificateFault::UnknownCa) => {
            "have ours issued by the mesh CA of that hub, or put our CA into its ca_bundle"
        }
        (Whose::Ours, CertificateFault::Expired) => {
            "renew ours (nowconnect certs issue), or correct the clock of that hub"
        }
        (Whose::Ours, CertificateFault::Missing) => {
            "it wants a certificate: set ha.mesh.tls.cert_file and key_file"
        }
        (_, CertificateFault::WrongUse) => {
            "a hub's certificate needs the extended key usages serverAuth and clientAuth \
             (nowconnect certs issue)"
        }
        _ => {
            "both hubs need certificates of one mesh CA in ha.mesh.tls, each for the host by which \
             the other dials it (nowconnect certs issue); see the log of that hub"
        }
    }
}
