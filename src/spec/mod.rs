//! Plain values, checked when they are made.
//!
//! Owns the vocabulary that every layer shares: names, generations, quantities, what a profile
//! means, why a child died. It never does I/O and depends on nothing above it.

pub mod control;
pub mod date;
pub mod death;
pub mod difference;
pub mod edit;
mod endpoint;
pub mod gpu;
pub mod identity;
pub mod ladder;
pub mod memory;
pub mod model;
mod name;
pub mod params;
pub mod pressure;
pub mod profile;
mod quantity;
pub mod requests;
pub mod residence;
pub mod rule;

pub use endpoint::Endpoint;
pub use name::{Generation, NameFault, SlotName, WaiterId};
pub use quantity::{Bytes, Monotime, QuantityFault, parse_duration};
