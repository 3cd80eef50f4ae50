//! The core on simulated machines: who gets memory, who makes room, who comes back. Hosts and GPUs with
//! strangers that take and free memory, engines that load and die, clients that come at random.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::tests_outside_test_module,
    clippy::print_stdout,
    clippy::wildcard_enum_match_arm,
    reason = "this is a test: a broken set-up is a failed one"
)]

mod headroom;
mod growth;
mod machine;
mod pressure;
mod promises;
mod waits;
mod random;
mod scenarios;
