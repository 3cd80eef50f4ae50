//! The endpoint on real sockets: engines that the test plays itself, a core that it answers for.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken set-up is a failed test"
)]

mod client;
mod engine;
mod holding;
mod models;
mod replicas;
mod refusals;
mod requests;
mod streams;
mod upstream;
mod world;
