//! The layers that are computed on the host.

use candle_core::Result;
use slotd_kernels::{Activations, Heads, Pool, Span, add, attend, gate, normalise, rotate};

use super::{
    Part,
    matrix::{HostMatrix, products},
    shape::Shape,
};

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct HostLayer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: HostMatrix,
    pub(super) key: HostMatrix,
    pub(super) value: HostMatrix,
    pub(super) output: HostMatrix,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: HostMatrix,
    pub(super) up: HostMatrix,
    pub(super) down: HostMatrix,
}

impl HostLayer {
    /// Computes layer `index` for the rows of all `parts`, in order, in `hidden`; `turns` holds
    /// the rotation of each row.
    pub(super) fn forward(
        &self,
        (shape, index, pool): (&Shape, usize, Pool),
        hidden: &mut [f32],
        parts: &mut [Part<'_>],
        turns: &[(f32, f32)],
    ) -> Result<()> {
        let (width, attended) = (shape.width, shape.heads.saturating_mul(shape.head_width));
        let normed = normalise(pool, hidden, &self.attention_norm, shape.norm_epsilon);
        let inputs = Activations::new(pool, normed, width);
        let weights = [&self.query, &self.key, &self.value];
        let [mut queries, mut keys, values] = products(pool, &inputs, weights)?;
        let pairs = shape.head_width / 2;
        rotate(&mut queries, attended, turns, pairs);
        rotate(&mut keys, shape.kv_width(), turns, pairs);
        store(shape, index, parts, (&keys, &values));
        let mixed = look(shape, index, pool, parts, &queries);
        let [output] = products(pool, &Activations::new(pool, mixed, attended), [&self.output])?;
        add(hidden, &output);

        let normed = normalise(pool, hidden, &self.feed_forward_norm, shape.norm_epsilon);
        let inputs = Activations::new(pool, normed, width);
        let [gates, inner] = products(pool, &inputs, [&self.gate, &self.up])?;
        let inner = gate(pool, &gates, inner, shape.feed_forward);
        let inner = Activations::new(pool, inner, shape.feed_forward);
        let [output] = products(pool, &inner, [&self.down])?;
        add(hidden, &output);
        Ok(())
    }
}

fn store(shape: &Shape, index: usize, parts: &mut [Part<'_>], (keys, values): (&[f32], &[f32])) {
    let mut first = 0_usize;
    for part in parts {
        let count = part.tokens.len().saturating_mul(shape.kv_width());
        let end = first.saturating_add(count);
        let at = part.cache.length();
        if let (Some(keys), Some(values)) = (keys.get(first..end), values.get(first..end)) {
            part.cache.store_host(index, at, keys, values);
        }
        first = end;
    }
}

fn look(shape: &Shape, index: usize, pool: Pool, parts: &[Part<'_>], queries: &[f32]) -> Vec<f32> {
    let heads = Heads {
        queries: shape.heads,
        keys: shape.kv_heads,
        width: shape.head_width,
        scale: shape.scale(),
    };
    let mut spans = Vec::new();
    let mut rows = queries.chunks_exact(shape.heads.saturating_mul(shape.head_width).max(1));
    for part in parts {
        let (kept, at) = (part.cache.host(index), part.cache.length());
        for (row, queries) in rows.by_ref().take(part.tokens.len()).enumerate() {
            let length = at.saturating_add(row).saturating_add(1);
            let (keys, values) = kept.upto(length);
            spans.push(Span { queries, keys, values, length });
        }
    }
    attend(pool, heads, &spans)
}
