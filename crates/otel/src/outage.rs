//! What the log is told of a collector that fails: once when it begins, once when it is over.

use nowconnect_link::web_client::WebError;
use nowconnect_settings::mask_url;

/// Why spans did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("the collector took some spans and rejected {0}: {1:?}")]
    Rejected(u64, String),
    #[error("the answer is no OTLP: {0}")]
    Answer(prost::DecodeError),
    #[error("no request can be made: {0}")]
    Request(#[from] http::Error),
}

impl Failure {
    /// Whether another attempt may do better (OTLP specification, "Failures"; a timeout as well).
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Web(WebError::Status(status)) => matches!(status, 429 | 502 | 503 | 504),
            Self::Web(WebError::Timeout(_) | WebError::Connect(_) | WebError::Lost(_)) => true,
            Self::Web(_) | Self::Rejected(..) | Self::Answer(_) | Self::Request(_) => false,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Web(WebError::Connect(_) | WebError::Timeout(_)) => {
                "see whether the collector runs, and whether its port for OTLP over HTTP (usually 4318) can be reached from here"
            }
            Self::Web(WebError::Tls(..)) => {
                "see whether OTEL_EXPORTER_OTLP_CERTIFICATE names the CA of the collector's certificate, and the address is one that it is for"
            }
            Self::Web(WebError::Status(401 | 403)) => {
                "see what the collector wants in OTEL_EXPORTER_OTLP_HEADERS"
            }
            Self::Web(WebError::Status(404 | 405) | WebError::Redirect(_)) => {
                "see whether the path is right: /v1/traces is appended to OTEL_EXPORTER_OTLP_ENDPOINT, nothing to OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
            }
            Self::Web(WebError::Lost(_) | WebError::Body(_)) | Self::Answer(_) => {
                "see whether this is the port for OTLP over HTTP (usually 4318), not gRPC (4317)"
            }
            _ => "see the log of the collector",
        }
    }
}

/// Whether the collector fails at present.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// Spans lost since it began.
    lost: Option<u64>,
}

impl Outage {
    /// `lost` spans are given up because of `failure`; 0 while they will be sent again.
    pub(crate) fn note(&mut self, endpoint: &http::Uri, failure: &Failure, lost: u64) {
        if self.lost.is_none() {
            tracing::warn!(
                event = "traces_failing",
                endpoint = mask_url(&endpoint.to_string()),
                error = %failure,
                hint = failure.hint()
            );
        }
        *self.lost.get_or_insert(0) += lost;
    }

    /// The collector took everything.
    pub(crate) fn over(&mut self) {
        if let Some(lost) = self.lost.take() {
            tracing::info!(event = "traces_recovered", lost);
        }
    }
}
