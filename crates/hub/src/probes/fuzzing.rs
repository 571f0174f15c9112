//! The probes' part of [`crate::fuzzing`].

use super::{http, ldap};

/// What an answer to a search for the root DSE says so far.
///
/// # Errors
/// It is not well, or no LDAP.
pub fn root_dse(answer: &[u8]) -> Result<Option<()>, String> {
    ldap::root_dse(answer)
}

/// What an answer to StartTLS says so far.
///
/// # Errors
/// It is a refusal, or no LDAP.
pub fn start_tls(answer: &[u8]) -> Result<Option<()>, String> {
    ldap::start_tls(answer)
}

/// The status in an answer to a request.
///
/// # Errors
/// It is no HTTP.
pub fn http_status(answer: &[u8]) -> Result<Option<u16>, String> {
    http::status(answer)
}
