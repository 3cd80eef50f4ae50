//! The endpoint on real sockets: engines that the test plays itself, a core that it answers for.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken set-up is a failed test"
)]

mod access;
mod bytes;
mod client;
mod corpus;
mod engine;
mod fall_through;
mod flights;
mod holding;
mod limits;
mod looks;
mod models;
mod ollama;
mod params;
mod replicas;
mod resume;
mod refusals;
mod requests;
mod sockets;
mod streams;
mod surface;
mod throttle;
mod tls;
mod uploads;
mod upstream;
mod world;
