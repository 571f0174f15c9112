//! What a question led to.

use std::sync::Arc;

use uuid::Uuid;

/// What a question led to.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    Allow,
    Deny,
    /// There is no answer, and why.
    Failed(Arc<str>),
}

impl Verdict {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Failed(_) => "error",
        }
    }
}

/// A verdict, and the name under which the decision point knows the request.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) verdict: Verdict,
    pub(super) request_id: Uuid,
}

impl Outcome {
    pub(super) fn failed(why: &str) -> Self {
        Self {
            verdict: Verdict::Failed(why.into()),
            request_id: Uuid::nil(),
        }
    }
}
