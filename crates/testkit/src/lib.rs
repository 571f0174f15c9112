//! What end-to-end tests stand on: the real binary as a process, real servers (OpenLDAP, Redis,
//! PostgreSQL), misbehaving TCP targets, a fault proxy for the tunnel, a token issuer, and waits
//! that end at an event instead of after a pause.
//!
//! ```no_run
//! # async fn demo() -> anyhow::Result<()> {
//! use nowconnect_testkit::{lab::Lab, target::Target};
//!
//! let lab = Lab::new("target/debug/nowconnect")?;
//! let echo = Target::echo().await?;
//! let (hub, agent) = lab.site(&[("echo", echo.addr())]).await?;
//! let client = hub.connect("echo").await?;
//! # drop((agent, client)); Ok(())
//! # }
//! ```

/// For tests whose crate does not depend on it.
pub use anyhow;

pub mod authority;
pub mod browser;
pub mod captured_log;
pub mod collector;
pub mod connect_proxy;
pub mod fault_proxy;
pub mod held_sockets;
pub mod http;
pub mod issuer;
pub mod lab;
pub mod log;
pub mod metrics;
pub mod nginx;
pub mod pattern;
pub mod pdp;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod program;
pub mod raw_tunnel;
pub mod raw_ws;
pub mod redis;
pub mod slapd;
pub mod target;
pub mod transfer;
pub mod wait;
