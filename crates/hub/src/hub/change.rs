//! A new configuration on a running hub.

use std::fmt;

use nowconnect_settings::Effective;

use super::ports::PreparedTls;
use super::serve::bind_all;
use super::{Hub, HubError, certificates, token};
use crate::config::{Change, HaConfig, HubConfig};
use crate::listener::{self, Listener};
use crate::mesh;
use crate::pdp::Pdp;
use crate::probes::Probes;
use crate::registry::StoreConfig;

impl Hub {
    /// Puts a new configuration in force, as a whole or not at all. Returns the keys whose new
    /// values wait for the next start. Flows that may still exist go on.
    ///
    /// # Errors
    /// A new port is taken, a certificate does not load, or memory does not suffice; nothing has
    /// changed.
    pub async fn reload(&self, new: HubConfig) -> Result<Vec<&'static str>, HubError> {
        self.reload_as(new, None).await
    }

    /// The same for a configuration that people see as `effective`, by which it is recorded what is
    /// different.
    ///
    /// # Errors
    /// As [`Hub::reload`].
    pub async fn reload_as(
        &self,
        new: HubConfig,
        effective: Option<&Effective>,
    ) -> Result<Vec<&'static str>, HubError> {
        let mut config = self.config.lock().await;
        let change = config.diff(&new);
        match self.apply(&change).await {
            Ok(()) => {
                let before = std::mem::replace(&mut *config, change.config);
                report_mode(&before.ha, &config.ha);
                let waiting = change.needs_restart;
                let keys = effective.map_or_else(Vec::new, |new| self.admin.differences(new));
                self.metrics.tunnels.config_reloads.with(["applied"]).inc();
                tracing::info!(
                    event = "config_reloaded",
                    changed = %changed(keys, &change.live).join(", "),
                    needs_restart = %waiting.join(", "),
                    audit = true,
                );
                Ok(waiting)
            }
            Err(error) => {
                self.reject_reload(&error);
                Err(error)
            }
        }
    }

    /// Counts and logs a new configuration that was found invalid before it got here.
    pub fn reject_reload(&self, error: &dyn fmt::Display) {
        self.metrics.tunnels.config_reloads.with(["rejected"]).inc();
        tracing::error!(event = "config_rejected", %error, audit = true);
    }

    async fn apply(&self, change: &Change) -> Result<(), HubError> {
        let new = &change.config;
        let bound = bind_all(&change.listeners_added, &self.metrics, &self.inherited)?;
        let token = token(&new.admin)?;
        let keys = self.keys.prepare(&new.security)?;
        let decisions = Pdp::prepare(new)?;
        let questions = Probes::prepare(new)?;
        let tls = PreparedTls::load(new)?;
        let mesh = mesh::Prepared::load(new)?;
        let mesh_port = self.mesh_port.prepare(new, &self.inherited)?;
        // Memory that was set aside is not given back: behind all else that may fail.
        let flows = new.limits.max_conn_total;
        let reserved = self.engine.budget.reserve(flows);
        reserved.map_err(|most| HubError::Memory(most, flows))?;
        // Nothing fails from here on.
        let tls = self
            .tls
            .as_ref()
            .zip(tls)
            .map(|(live, tls)| live.commit(tls));
        self.keys.commit(keys);
        self.policy.set_rules(new);
        self.pdp.commit(decisions);
        self.probes.commit(questions);
        self.tunnels
            .set_rules(new, self.keys.verifier(&new.security));
        if let Some(change) = tls {
            certificates::changed(change, &self.tunnels, &self.metrics);
        }
        self.admin.set_rules(new, token);
        self.router.set_mode(new.ha.mode);
        self.crossings.forward().set_rules(new);
        self.registry.configure(StoreConfig::of(&new.ha));
        self.mesh.commit(mesh);
        self.open_mesh(mesh_port);
        self.health.set_mode(new.ha.mode);
        self.metrics.mesh.set_mode(new.ha.mode.as_str());
        (self.set_log_level)(new.observability.log_level);
        self.change_listeners(change, bound).await;
        self.inherited.report_idle(new);
        Ok(())
    }

    async fn change_listeners(&self, change: &Change, bound: Vec<listener::Bound>) {
        let (closed, doors): (Vec<_>, Vec<_>) = {
            let mut listeners = self.listeners.lock();
            let removed = &change.listeners_removed;
            let gone = |one: &mut Listener| removed.contains(&one.door().config().bind);
            let closed = listeners.extract_if(.., gone).collect();
            for config in &change.listeners_changed {
                let same = |one: &&Listener| one.door().config().bind == config.bind;
                if let Some(listener) = listeners.iter().find(same) {
                    listener.alter(config.clone(), &self.metrics);
                }
            }
            listeners.extend(bound.into_iter().map(|bound| self.open(bound)));
            (closed, listeners.iter().map(Listener::door).collect())
        };
        for listener in closed {
            listener.close().await;
        }
        self.router.enforce(&self.policy, &doors);
    }
}

/// The keys that differ, and the sections that differ in nothing that is shown: a secret.
fn changed(mut keys: Vec<String>, live: &[&str]) -> Vec<String> {
    for part in live {
        let within = |key: &String| key == part || key.starts_with(&format!("{part}."));
        if !keys.iter().any(within) {
            keys.push((*part).to_owned());
        }
    }
    keys
}

fn report_mode(before: &HaConfig, now: &HaConfig) {
    if before.mode != now.mode {
        tracing::info!(
            event = "ha_mode_changed",
            from = before.mode.as_str(),
            to = now.mode.as_str(),
            audit = true,
        );
    }
}
