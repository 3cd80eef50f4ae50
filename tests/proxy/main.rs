//! The endpoint on real sockets: engines that the test plays itself, a core that it answers for.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken set-up is a failed test"
)]

mod access;
mod client;
mod corpus;
mod engine;
mod holding;
mod models;
mod replicas;
mod refusals;
mod requests;
mod streams;
mod tls;
mod upstream;
mod world;
