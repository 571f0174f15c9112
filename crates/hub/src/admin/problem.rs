//! Why a request is not answered as it was meant.

use http::StatusCode;

use crate::server::{Answer, answer};

/// A refusal: a code for programs, and what to do about it for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: &str) -> Self {
        Self {
            status,
            code,
            detail: detail.to_owned(),
        }
    }

    pub(super) fn bad_query(detail: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_query", detail)
    }

    pub(super) fn into_answer(self) -> Answer {
        answer::explained(self.status, self.code, &self.detail)
    }
}
