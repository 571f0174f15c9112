//! Ways for the fuzzer into parsers that are private. Nothing else may use them, and nothing here is
//! in the program that ships: what nobody calls is not linked.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use ipnet::IpNet;

use crate::auth::dpop::{Nonces, Occasion, Proof};
use crate::auth::key::VerifyKey;
use crate::auth::{Identity, Rejection, Rules, fetch, jwt};
use crate::config::{PdpFormat, ProxyProtocol};
use crate::forwarded;
use crate::pdp;
use crate::policy::proxy;

pub use crate::admin::fuzzing as admin;
pub use crate::policy::ProxyError;
pub use crate::probes::fuzzing as probes;
pub use crate::registry::fuzzing as registry;

/// Who sent a request that came from `peer`, as the forwarded headers of trusted proxies say.
pub fn sender(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    forwarded::sender(peer, headers, trusted)
}

/// The client that the PROXY header at the start of `bytes` names, and the length of that header;
/// `None` while the header is not whole.
///
/// # Errors
/// It will never be a header.
#[allow(clippy::type_complexity)]
pub fn proxy_header(
    bytes: &[u8],
    accepted: ProxyProtocol,
) -> Result<Option<(Option<SocketAddr>, usize)>, ProxyError> {
    proxy::client_in(bytes, accepted)
}

/// Judges the claims of a token whose signature was found good.
///
/// # Errors
/// The first rule that they break.
pub fn claims(
    payload: &[u8],
    key: &VerifyKey,
    rules: &Rules,
    now: SystemTime,
) -> Result<Identity, Rejection> {
    jwt::judge(payload, key, rules, now)
}

/// Judges the claims of a proof of possession whose signature was found good, by the key with this
/// thumbprint.
///
/// # Errors
/// The first rule that they break.
pub fn proof_claims(
    key: &str,
    payload: &[u8],
    occasion: &Occasion<'_>,
    nonces: &Nonces,
) -> Result<Proof, Rejection> {
    Proof::judge(key, payload, occasion, nonces)
}

/// What an answer of a policy decision point says: whether it allows, and for how long.
///
/// # Errors
/// It says neither.
pub fn decision(
    format: PdpFormat,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(bool, Option<Duration>), String> {
    let answer = pdp::wire::answer(format, headers, body)?;
    Ok((answer.allowed, answer.ttl))
}

/// How long the server of a key set says that it keeps.
pub fn max_age(headers: &HeaderMap) -> Option<Duration> {
    fetch::max_age(headers)
}
