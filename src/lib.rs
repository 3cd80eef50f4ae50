//! slotd keeps inference servers alive: one daemon, one supervised engine child per slot, one
//! OpenAI-compatible endpoint that reaches healthy slots only.
//!
//! ```text
//! apps ──HTTP──▶ proxy ──reads──▶ routing table (published from the core's snapshot)
//!                  │  └─lease──▶ slot gate (in flight, limit, last access)
//!                  │  └─miss───▶ mailbox ──▶ supervisor ──commands──▶ runtime ──spawn, signal──▶ engine
//! admin, CLI ─────────────────────────────▶ (pure core) ◀──events──── effects ◀──exit, log────── child
//! ```
//!
//! The core decides, the shell acts, the data plane flies. Modules stand in layer order: each
//! imports only from those below it, and `tests/layering.rs` holds that.

pub mod cli;
pub mod runtime;
pub mod proxy;
pub mod admin;
pub mod process;
pub mod probe;
pub mod sensor;
pub mod models;
pub mod store;
pub mod config;
pub mod mailbox;
pub mod supervisor;
pub mod engine;
#[cfg(feature = "worker")]
pub mod worker;
pub mod spec;
