//! The layers that are computed on the host.

use candle_core::Result;
use slotd_kernels::{Activations, Heads, Pool, Span, add, attend, gate, normalise, rotate, shift};

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
    /// Added to queries, keys and values.
    pub(super) biases: Option<[Vec<f32>; 3]>,
    /// Norms of each head of queries and of keys.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) output: HostMatrix,
    /// Norms of what attention and feed-forward network add.
    pub(super) post_norms: Option<[Vec<f32>; 2]>,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: HostMatrix,
    pub(super) up: HostMatrix,
    pub(super) down: HostMatrix,
}

impl HostLayer {
    /// Computes layer `index` for the rows of all `parts`, in order, in `hidden`; `turns` holds
    /// the rotation of each row, for this layer.
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
        let [mut queries, mut keys, mut values] = products(pool, &inputs, weights)?;
        if let Some(biases) = &self.biases {
            for (rows, bias) in [&mut queries, &mut keys, &mut values].into_iter().zip(biases) {
                shift(rows, bias);
            }
        }
        if let Some([of_queries, of_keys]) = &self.head_norms {
            queries = normalise(pool, &queries, of_queries, shape.norm_epsilon);
            keys = normalise(pool, &keys, of_keys, shape.norm_epsilon);
        }
        let pairs = shape.head_width / 2;
        rotate(shape.pairs, &mut queries, attended, turns, pairs);
        rotate(shape.pairs, &mut keys, shape.kv_width(), turns, pairs);
        store(shape, index, parts, (&keys, &values));
        let mixed = look(shape, index, pool, parts, &queries);
        let mixed = Activations::new(pool, mixed, attended);
        let [mut output] = products(pool, &mixed, [&self.output])?;
        if let Some([norm, _]) = &self.post_norms {
            output = normalise(pool, &output, norm, shape.norm_epsilon);
        }
        add(hidden, &output);

        let normed = normalise(pool, hidden, &self.feed_forward_norm, shape.norm_epsilon);
        let inputs = Activations::new(pool, normed, width);
        let [gates, inner] = products(pool, &inputs, [&self.gate, &self.up])?;
        let inner = gate(pool, shape.gate, &gates, inner, shape.feed_forward);
        let inner = Activations::new(pool, inner, shape.feed_forward);
        let [mut output] = products(pool, &inner, [&self.down])?;
        if let Some([_, norm]) = &self.post_norms {
            output = normalise(pool, &output, norm, shape.norm_epsilon);
        }
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
        scale: shape.scale,
    };
    let window = shape.window_of(index).unwrap_or(usize::MAX);
    let mut spans = Vec::new();
    let mut rows = queries.chunks_exact(shape.heads.saturating_mul(shape.head_width).max(1));
    for part in parts {
        let (kept, at) = (part.cache.host(index), part.cache.length());
        for (row, queries) in rows.by_ref().take(part.tokens.len()).enumerate() {
            let end = at.saturating_add(row).saturating_add(1);
            let start = end.saturating_sub(window);
            let (keys, values) = kept.between(start, end);
            let length = end.saturating_sub(start);
            spans.push(Span { queries, keys, values, length });
        }
    }
    attend(pool, heads, &spans)
}
