//! The whole daemon on real processes: `faults` with the fake engine, for what cannot be ordered of
//! a real one, `hangs` and `external` with it too, `containers` with one that its program does not hold; `restarts` of the daemon itself; `revisions` that slots go over to; `real` with llama-server, the
//! candle worker and a real model.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::tests_outside_test_module,
    reason = "this is a test: a broken set-up is a failed one"
)]

mod access;
mod bench;
mod canaries;
mod common;
mod containers;
mod doors;
mod edits;
mod ends;
mod external;
mod fall_through;
mod faults;
mod full_disk;
mod gpus;
mod hangs;
mod ladder;
mod memory;
mod models;
mod orders;
mod pressure;
#[cfg(feature = "worker")]
mod real;
mod restarts;
mod revisions;
mod rules;
mod stay;
mod storage;
mod storms;
