//! What the fuzzer runs: for every parser of input that others send, a function that takes any bytes
//! and panics when a rule is broken.
//!
//! `fuzz/` (cargo-fuzz, nightly) feeds them with bytes that it invents; `tests/replay.rs` feeds them on
//! stable with the kept ones of `fuzz/seeds`. "No panic" is the least a target asks for: most also
//! compare with a second, simple reading of the same bytes, or with what was written being read back.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod admin;
mod configuration;
#[path = "../../proto/tests/model/end.rs"]
mod end;
mod flow;
mod frames;
mod http;
mod peers;
mod proofs;
mod proxy_header;
mod registry;
mod relay;
mod targets;
mod tokens;
mod v1;
mod websocket;

/// One function, and the name of its directory in `fuzz/seeds`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// What it does with bytes.
    pub run: fn(&[u8]),
}

macro_rules! targets {
    ($($(#[$doc:meta])* $name:ident = $run:path;)+) => {
        $($(#[$doc])* pub use $run as $name;)+

        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $run },)+];
    };
}

targets! {
    frame = frames::frame;
    hello = frames::hello;
    json_v1 = v1::messages;
    flow = flow::run;
    relay = relay::run;
    ws_decode = websocket::messages;
    ws_bytes = websocket::bytes;
    upgrade_request = http::upgrade_request;
    upgrade_answer = http::upgrade_answer;
    connect_answer = http::connect_answer;
    forwarded = peers::forwarded;
    certificate = peers::certificate;
    proxy_header = proxy_header::header;
    jwt = tokens::token;
    claims = tokens::claims;
    jwks = tokens::keys;
    dpop = proofs::proof;
    dpop_claims = proofs::claims;
    pdp_answer = tokens::decision;
    probe_answer = targets::answer;
    redis_answer = registry::answer;
    redis_entry = registry::entry;
    redis_notice = registry::notice;
    redis_notices = registry::notices;
    admin_request = admin::request;
    hub_answers = admin::answers;
    hub_config = configuration::hub_file;
    hub_env = configuration::hub_environment;
    agent_config = configuration::agent_file;
    agent_env = configuration::agent_environment;
}
