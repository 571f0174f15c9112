//! Whether the hub wants traffic, and why not.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use http::StatusCode;
use parking_lot::Mutex;
use serde_json::json;

use crate::config::HaMode;

/// The stages of a hub's life; each is entered once, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Ports are being bound.
    Starting = 0,
    /// Clients and agents are welcome.
    Ready = 1,
    /// New ones should go elsewhere.
    Draining = 2,
}

type Troubles = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What `/readyz` tells.
pub struct Health {
    stage: AtomicU8,
    mode: Mutex<HaMode>,
    /// Tells what makes an active hub degraded.
    troubles: OnceLock<Troubles>,
}

impl Health {
    /// A hub that starts in `mode`.
    pub fn new(mode: HaMode) -> Self {
        let stage = AtomicU8::new(Stage::Starting as u8);
        Self {
            stage,
            mode: Mutex::new(mode),
            troubles: OnceLock::new(),
        }
    }

    /// The present stage.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }

    /// Enters `stage`; a stage that has passed is not entered again.
    pub fn enter(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::Relaxed);
    }

    /// The mode in force.
    pub fn mode(&self) -> HaMode {
        *self.mode.lock()
    }

    /// Shows another mode.
    pub fn set_mode(&self, mode: HaMode) {
        *self.mode.lock() = mode;
    }

    /// Asks `troubles` from now on what makes the hub degraded while its mode is active; empty =
    /// nothing. For one caller.
    pub fn watch(&self, troubles: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        let _ = self.troubles.set(Box::new(troubles));
    }

    /// What makes the hub degraded now.
    pub fn troubles(&self) -> Vec<String> {
        let troubles = self.troubles.get();
        let troubles = troubles.filter(|_| self.mode() == HaMode::Active);
        troubles.map(|ask| ask()).unwrap_or_default()
    }

    /// Status code and body of `/readyz`; a strict asker takes degraded for not ready.
    pub fn readiness(&self, strict: bool) -> (StatusCode, serde_json::Value) {
        let mode = self.mode();
        let mut reasons = Vec::new();
        let (status, code) = match self.stage() {
            Stage::Starting => ("starting", StatusCode::SERVICE_UNAVAILABLE),
            Stage::Draining => ("draining", StatusCode::SERVICE_UNAVAILABLE),
            Stage::Ready => {
                reasons = self.troubles();
                match (reasons.is_empty(), strict) {
                    (true, _) => ("ready", StatusCode::OK),
                    (false, false) => ("degraded", StatusCode::OK),
                    (false, true) => ("degraded", StatusCode::SERVICE_UNAVAILABLE),
                }
            }
        };
        (
            code,
            json!({ "status": status, "mode": mode.as_str(), "reasons": reasons }),
        )
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("stage", &self.stage())
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(health: &Health, strict: bool) -> (u16, String) {
        let (code, body) = health.readiness(strict);
        (
            code.as_u16(),
            body["status"].as_str().unwrap_or_default().to_owned(),
        )
    }

    #[test]
    fn stages_only_go_forward() {
        let health = Health::new(HaMode::Off);
        assert_eq!(told(&health, false), (503, "starting".into()));
        health.enter(Stage::Ready);
        assert_eq!(told(&health, true), (200, "ready".into()));
        health.enter(Stage::Draining);
        health.enter(Stage::Ready);
        assert_eq!(told(&health, false), (503, "draining".into()));
    }

    #[test]
    fn only_an_active_hub_is_degraded() {
        let health = Health::new(HaMode::Shadow);
        health.enter(Stage::Ready);
        health.watch(|| vec!["mesh link to hub-b is down".into()]);
        assert_eq!(told(&health, true), (200, "ready".into()));
        health.set_mode(HaMode::Active);
        assert_eq!(told(&health, false), (200, "degraded".into()));
        assert_eq!(told(&health, true), (503, "degraded".into()));
    }
}
