//! Arithmetic of a language model on a CPU: products with block-quantised weights, attention,
//! norms and activations over rows of floats.
//!
//! A row's result depends on that row alone, to the last bit: not on how many rows are computed
//! with it, on how they are split between threads, or on the part of a prompt it came in. So a
//! sequence gives the same text alone, in a batch, in any parts, and from a cache.
//!
//! Weights are read in place, in the format of the file. On x86-64 with AVX2 the products use it,
//! elsewhere [`Matrix::supported`] says no and the caller multiplies by other means.

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod block;
mod format;
mod pool;
mod product;
mod row;
#[cfg(target_arch = "x86_64")]
mod tile;
mod unpack;
#[cfg(target_arch = "x86_64")]
mod wide_block;

pub use self::{
    activations::Activations,
    attention::{Heads, Span, attend},
    format::Format,
    pool::Pool,
    product::{Matrix, multiply},
    row::{Gate, Pairs, add, gate, normalise, rotate, shift, standardise},
};
