//! A listener's place in the rules: its own networks and limits, its counts, its log.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nowconnect_link::quiet::Quiet;
use nowconnect_proto::bucket::Bucket;
use parking_lot::Mutex;

use super::slots::Gate;
use crate::config::ListenerConfig;
use crate::metrics::{ConnectorMetrics, ListenerError, Metrics};

/// One listener as policy, router and logs see it. A reload that changes its rules keeps its name,
/// its count of connections and its handles.
#[derive(Debug)]
pub struct Door {
    /// The listener's name.
    pub name: Arc<str>,
    /// Where its connections go.
    pub connector: Arc<str>,
    /// The handles of its connector.
    pub metrics: Arc<ConnectorMetrics>,
    pub(super) rules: ArcSwap<ListenerConfig>,
    pub(super) held: Gate,
    pub(super) opens: Arc<Mutex<Bucket>>,
    quiet: [Quiet; ListenerError::ALL.len()],
}

impl Door {
    /// The door of a configured listener, with nobody in it.
    pub fn new(config: ListenerConfig, metrics: &Metrics) -> Self {
        Self {
            name: config.name.as_str().into(),
            connector: config.connector.as_str().into(),
            metrics: metrics.connector(&config.connector),
            rules: ArcSwap::from_pointee(config),
            held: Gate::default(),
            opens: Arc::default(),
            quiet: Default::default(),
        }
    }

    /// The door of the same address under another name or to another connector. Those who came
    /// through the old one count for the limit of the new one.
    pub fn successor(&self, config: ListenerConfig, metrics: &Metrics) -> Self {
        Self {
            held: self.held.clone(),
            opens: self.opens.clone(),
            ..Self::new(config, metrics)
        }
    }

    /// Whether both have one address and lead to one connector, so that a flow of the one may go on
    /// under the other.
    pub fn leads_like(&self, other: &Self) -> bool {
        self.connector == other.connector && self.rules.load().bind == other.rules.load().bind
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<ListenerConfig> {
        self.rules.load_full()
    }

    /// Puts other rules in force for what comes next.
    pub fn set_config(&self, config: ListenerConfig) {
        self.rules.store(Arc::new(config));
    }

    /// Connections that it holds now.
    pub fn held(&self) -> usize {
        self.held.held()
    }

    /// Counts a client that was turned away, and logs it unless its like fill the log.
    pub fn turn_away(&self, client: SocketAddr, why: ListenerError) {
        self.metrics.error(why).inc();
        let Some(suppressed) = self.quiet[why as usize].pass() else {
            return;
        };
        let event = match why {
            ListenerError::CidrBlocked => "cidr_blocked",
            ListenerError::NoAgent => "no_agent_for_connector",
            _ => "connection_refused",
        };
        tracing::warn!(
            event,
            listener = %self.name,
            connector = %self.connector,
            client = %client,
            reason = why.as_str(),
            suppressed,
            audit = true,
        );
    }
}
