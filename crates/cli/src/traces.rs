//! Spans for a tracing system, in a binary that can send them.

use std::sync::Arc;

use nowconnect_link::metrics::TraceTally;
use nowconnect_link::trace::Tracer;
use nowconnect_settings::TracesConfig;

use crate::failure::Failure;

/// What sends spans while hub or agent run; nothing where none are wanted.
#[derive(Default)]
pub(crate) struct Traces {
    #[cfg(feature = "otel")]
    exporter: Option<nowconnect_otel::Exporter>,
}

impl Traces {
    /// Starts to send those of `instance`, a `service`, as configured.
    ///
    /// # Errors
    /// When the CA certificates cannot be read, or there can be no further thread.
    #[cfg(feature = "otel")]
    pub(crate) fn start(
        config: Option<&TracesConfig>,
        service: &'static str,
        instance: &str,
    ) -> Result<Self, Failure> {
        use nowconnect_otel::{Exporter, Process, StartError};
        let process = Process {
            service,
            instance: instance.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let exporter = config.map(|config| Exporter::start(config, &process));
        let exporter = exporter.transpose().map_err(|error| match error {
            StartError::Tls(_) => Failure::usage(error),
            StartError::Thread(_) => Failure::from(error),
        })?;
        Ok(Self { exporter })
    }

    /// Says that it cannot, where that is asked for.
    #[cfg(not(feature = "otel"))]
    pub(crate) fn start(
        config: Option<&TracesConfig>,
        _: &'static str,
        _: &str,
    ) -> Result<Self, Failure> {
        if config.is_some() {
            tracing::warn!(
                event = "traces_unsupported",
                hint = "this binary was built without the feature otel and sends no traces: take one that has it, as releases do, or leave OTEL_EXPORTER_OTLP_ENDPOINT unset"
            );
        }
        Ok(Self::default())
    }

    /// What makes spans.
    pub(crate) fn tracer(&self) -> Tracer {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            return exporter.tracer();
        }
        Tracer::default()
    }

    /// What became of them; nothing where none are sent.
    pub(crate) fn tally(&self) -> Arc<TraceTally> {
        #[cfg(feature = "otel")]
        if let Some(exporter) = &self.exporter {
            return exporter.tally().clone();
        }
        Arc::default()
    }

    /// Sends what waits, for two seconds at most.
    pub(crate) async fn stop(self) {
        #[cfg(feature = "otel")]
        if let Some(exporter) = self.exporter {
            exporter.stop().await;
        }
    }
}
