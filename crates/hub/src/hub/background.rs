//! What goes on while a hub runs: sweeps, values that scrapes read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Hub;
use crate::admin::{Admin, SAMPLE_PERIOD};
use crate::listener;
use crate::registry::RegistryHealth;
use crate::server::Stage;

/// Between looks at idle and orphaned flows.
const SWEEP: Duration = Duration::from_millis(500);
/// How long a hub that has just started waits for the others before it serves alone.
const SETTLE: Duration = Duration::from_secs(3);
const SETTLE_POLL: Duration = Duration::from_millis(20);
/// How long clients who waited for the hub wait for an agent too: both are on their way back.
const RETURN: Duration = Duration::from_secs(10);

impl Hub {
    /// Lets clients in and `/readyz` tell that the hub is ready: once it knows of the agents of other
    /// hubs and has links to them. Those who come earlier wait, or they would find no agent here that
    /// is there: a balancer may not even have noticed that the hub was restarted.
    pub(super) fn settle(&self) {
        let (health, settled) = (self.health.clone(), self.settled.clone());
        let enter = move || {
            health.enter(Stage::Ready);
            settled.cancel();
        };
        let health = self.health.clone();
        if health.troubles().is_empty() {
            return enter();
        }
        let settled = async move {
            let wait = async {
                while !health.troubles().is_empty() {
                    sleep(SETTLE_POLL).await;
                }
            };
            let _ = timeout(SETTLE, wait).await;
            enter();
        };
        let stop = self.tasks.token();
        self.tasks
            .spawn("settle", stop.run_until_cancelled_owned(settled));
    }

    /// When a listener may let clients in. Those who wait in a socket that has outlived a hub would be sent
    /// away by the next one, were its agents not given time to come back.
    pub(super) fn opening(&self, bound: &listener::Bound) -> CancellationToken {
        let settled = self.settled.clone();
        if !bound.is_inherited() {
            return settled;
        }
        let (opening, router) = (CancellationToken::new(), self.router.clone());
        let (open, connector) = (opening.clone().drop_guard(), bound.door().connector.clone());
        let wait = async move {
            let _open = open;
            settled.cancelled().await;
            let served = async {
                while !router.serves(&connector) {
                    sleep(SETTLE_POLL).await;
                }
            };
            let _ = timeout(RETURN, served).await;
        };
        let stop = self.tasks.token();
        self.tasks
            .spawn("opening", stop.run_until_cancelled_owned(wait));
        opening
    }

    pub(super) fn tend(&self) {
        let (router, tunnels) = (self.router.clone(), self.tunnels.clone());
        let (mesh, mesh_port) = (self.mesh.clone(), self.mesh_port.clone());
        let sweep = async move {
            let mut ticks = interval(SWEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                router.sweep(tunnels.resume_grace());
                mesh_port.tend(&mesh);
                mesh.rest();
            }
        };
        self.tasks
            .spawn("sweep", self.tasks.token().run_until_cancelled_owned(sweep));
        let probe = self.probes.clone().run(self.tasks.token());
        self.tasks.spawn("probes", probe);
        let sample = take_samples(self.admin.clone());
        let sample = self.tasks.token().run_until_cancelled_owned(sample);
        self.tasks.spawn("history", sample);
        self.tend_certificates();
    }

    /// Lets `/readyz` tell what makes an active hub degraded.
    pub(super) fn watch_troubles(&self) {
        let (registry, mesh) = (self.registry.clone(), self.mesh.clone());
        self.health.watch(move || {
            let mut troubles = mesh.troubles();
            if let Some(RegistryHealth::Down(why)) = registry.health() {
                troubles.push(format!("registry: {why}"));
            }
            troubles
        });
    }

    /// Shows what does not count by itself.
    pub(super) async fn show(&self) {
        let mode = self.config.lock().await.ha.mode;
        self.metrics.mesh.set_mode(mode.as_str());
        let (engine, seen) = (self.engine.clone(), AtomicU64::new(0));
        self.metrics.on_scrape(move |metrics| {
            let total = engine.blocked_micros.load(Ordering::Relaxed);
            let before = seen.swap(total, Ordering::Relaxed);
            let seconds = total.saturating_sub(before) as f64 / 1e6;
            metrics
                .flows
                .blocked_seconds
                .with(["client"])
                .inc_by(seconds);
        });
        self.show_expiry();
    }
}

/// At whole multiples of the period, so that samples of different hubs are of the same time.
async fn take_samples(admin: Arc<Admin>) {
    let period = SAMPLE_PERIOD.as_millis();
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let into = now.unwrap_or_default().as_millis() % period;
        let left = u64::try_from(period - into).unwrap_or_default();
        sleep(Duration::from_millis(left)).await;
        admin.sample();
    }
}
