//! Certificates, keys and CAs are followed while the hub runs.

use std::time::{Duration, SystemTime};

use nowconnect_link::tls::TlsError;
use tokio::time::{MissedTickBehavior, interval};

use super::Hub;
use super::ports::TlsChange;
use crate::metrics::Metrics;
use crate::tunnels::Tunnels;

/// Between looks at the files. Polling sees what file notifications miss: links that are swapped
/// (Kubernetes) and network file systems.
const POLL: Duration = Duration::from_secs(5);
/// The `use` of `tunnel.tls` in metrics and logs.
const TUNNEL: &str = "tunnel";

impl Hub {
    /// Looks at the files from time to time.
    pub(super) fn tend_certificates(&self) {
        let (tls, tunnels, metrics) =
            (self.tls.clone(), self.tunnels.clone(), self.metrics.clone());
        let mut problem = String::new();
        let tunnel = tls.map(|tls| move || follow(tls.reload(), &tunnels, &metrics, &mut problem));
        if let Some(look) = tunnel {
            self.look_repeatedly("certificates", look);
        }
        let mesh = self.mesh.clone();
        self.look_repeatedly("mesh_certificates", move || mesh.tend());
    }

    fn look_repeatedly(&self, name: &'static str, look: impl FnMut() + Send + 'static) {
        let looks = async move {
            let mut look = look;
            let mut ticks = interval(POLL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // Files may lie on a network that hangs.
                let looked = tokio::task::spawn_blocking(move || {
                    look();
                    look
                });
                match looked.await {
                    Ok(again) => look = again,
                    Err(_) => return,
                }
            }
        };
        let stop = self.tasks.token();
        self.tasks
            .spawn(name, stop.run_until_cancelled_owned(looks));
    }

    /// Lets scrapes tell when certificates end.
    pub(super) fn show_expiry(&self) {
        let (tls, mesh) = (self.tls.clone(), self.mesh.clone());
        self.metrics.on_scrape(move |metrics| {
            if let Some(tls) = &tls {
                show(metrics, TUNNEL, tls.server.expires());
                show(metrics, "client_ca", tls.agents.trust_expires());
            }
            let (own, ca) = mesh.expiry();
            show(metrics, "mesh", own);
            show(metrics, "mesh_ca", ca);
        });
    }
}

fn show(metrics: &Metrics, r#use: &str, end: Option<SystemTime>) {
    let expiry = &metrics.tunnels.cert_expiry;
    match end {
        Some(end) => {
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            expiry.with([r#use]).set(left.as_secs_f64());
        }
        None => expiry.remove([r#use]),
    }
}

/// Says, once, what became of a look at the files of `tunnel.tls`.
fn follow(
    looked: Result<TlsChange, TlsError>,
    tunnels: &Tunnels,
    metrics: &Metrics,
    problem: &mut String,
) {
    match looked {
        Ok(change) => {
            problem.clear();
            changed(change, tunnels, metrics);
        }
        Err(error) => {
            let error = error.to_string();
            if error != *problem {
                metrics.tunnels.note_certificate(TUNNEL, "rejected");
                tracing::warn!(
                    event = "certificate_kept",
                    r#use = TUNNEL,
                    error,
                    audit = true
                );
                *problem = error;
            }
        }
    }
}

/// Other files of `tunnel.tls` are in force.
pub(super) fn changed(change: TlsChange, tunnels: &Tunnels, metrics: &Metrics) {
    if change.any {
        metrics.tunnels.note_certificate(TUNNEL, "applied");
        tracing::info!(event = "certificate_changed", r#use = TUNNEL, audit = true);
    }
    if change.agents {
        tunnels.review_certificates();
    }
}
