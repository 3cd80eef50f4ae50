//! One layer: attention over the positions so far, then the gated feed-forward network.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{
    attention::{AttnMask, flash_attn},
    ops,
    rotary_emb::rope_thd,
};

use super::{cache::LayerCache, linear::Linear, shape::Shape};

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) device: Device,
    pub(super) attention_norm: Tensor,
    /// Queries, keys and values of one input.
    pub(super) qkv: Stacked,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Tensor,
    /// Gate and input of the feed-forward network.
    pub(super) gate_up: Stacked,
    pub(super) down: Linear,
}

/// Matrices that share their input: one matrix where their formats are alike, so that the input is
/// packed once and the cores are woken once.
#[derive(Debug)]
pub(super) struct Stacked {
    pub(super) parts: Vec<Linear>,
    /// Outputs of each matrix, in order.
    pub(super) rows: Vec<usize>,
}

/// The rotation of a range of positions.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Stacked {
    fn forward(&self, inputs: &Tensor) -> Result<Vec<Tensor>> {
        let outputs: Vec<Tensor> =
            self.parts.iter().map(|part| part.forward(inputs)).collect::<Result<_>>()?;
        let [whole] = outputs.as_slice() else { return Ok(outputs) };
        let mut start = 0_usize;
        self.rows
            .iter()
            .map(|rows| {
                let part = whole.narrow(1, start, *rows)?.contiguous();
                start = start.saturating_add(*rows);
                part
            })
            .collect()
    }
}

impl Layer {
    /// Computes the layer for rows of `hidden` that stand at positions from `at` on.
    pub(super) fn forward(
        &self,
        shape: &Shape,
        hidden: &Tensor,
        (at, cache): (usize, &LayerCache),
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let normed = ops::rms_norm(hidden, &self.attention_norm, shape.norm_epsilon)?;
        let attended = self.attend(shape, &normed, (at, cache), rotation)?;
        let hidden = (hidden + self.output.forward(&attended)?)?;
        let normed = ops::rms_norm(&hidden, &self.feed_forward_norm, shape.norm_epsilon)?;
        let parts = self.gate_up.forward(&normed)?;
        let [gate, up] = parts.as_slice() else {
            candle_core::bail!("a layer has a gate and an input")
        };
        let inner = (gate.silu()? * up)?;
        hidden + self.down.forward(&inner)?
    }

    fn attend(
        &self,
        shape: &Shape,
        inputs: &Tensor,
        (at, cache): (usize, &LayerCache),
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let rows = inputs.dim(0)?;
        let parts = self.qkv.forward(inputs)?;
        let [queries, keys, values] = parts.as_slice() else {
            candle_core::bail!("a layer has queries, keys and values")
        };
        let queries = queries.reshape((1, rows, shape.heads, shape.head_width))?;
        let keys = keys.reshape((1, rows, shape.kv_heads, shape.head_width))?;
        let values = values.reshape((1, rows, shape.kv_heads, shape.head_width))?;
        let queries = rope_thd(&queries, &rotation.cos, &rotation.sin)?;
        let keys = rope_thd(&keys, &rotation.cos, &rotation.sin)?;
        let (keys, values) = cache.store(at, &keys, &values)?;
        let attended = if self.device.is_cpu() {
            let mask = AttnMask::causal_with_offset(at);
            flash_attn::<f32>(&queries, &keys, &values, shape.scale(), mask, None, None)?
        } else {
            attend_plainly(&queries, &keys, &values, at, shape)?
        };
        attended.transpose(1, 2)?.reshape((rows, shape.heads * shape.head_width))
    }
}

/// Attention by whole matrices, for devices without a fused kernel here.
fn attend_plainly(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    at: usize,
    shape: &Shape,
) -> Result<Tensor> {
    let (_, rows, heads, width) = queries.dims4()?;
    let length = keys.dim(1)?;
    let shared = heads / shape.kv_heads;
    // One group of query heads a head of keys: no key is copied.
    let queries = queries
        .transpose(1, 2)?
        .reshape((shape.kv_heads, shared * rows, width))?
        .affine(f64::from(shape.scale()), 0.0)?;
    let keys = keys.squeeze(0)?.transpose(0, 1)?.contiguous()?;
    let values = values.squeeze(0)?.transpose(0, 1)?.contiguous()?;
    let scores = queries.matmul(&keys.transpose(1, 2)?)?;
    let scores = scores.reshape((shape.kv_heads, shared, rows, length))?;
    let scores = scores.broadcast_add(&causal_mask(at, rows, length, queries.device())?)?;
    let weights = ops::softmax_last_dim(&scores.contiguous()?)?;
    let mixed = weights.reshape((shape.kv_heads, shared * rows, length))?.matmul(&values)?;
    mixed.reshape((1, heads, rows, width))
}

/// Zero where a row may look, minus infinity beyond its own position.
fn causal_mask(at: usize, rows: usize, length: usize, device: &Device) -> Result<Tensor> {
    let hidden = (0..rows).flat_map(|row| {
        (0..length).map(
            move |position| {
                if position > at.saturating_add(row) { f32::NEG_INFINITY } else { 0.0 }
            },
        )
    });
    Tensor::from_iter(hidden, device)?.reshape((rows, length))?.to_dtype(DType::F32)
}

/// Tells whether the two ways to attend agree; shared by the tests of the whole model.
#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;

    #[test]
    fn plain_and_fused_attention_agree() {
        let device = Device::Cpu;
        let shape = Shape {
            layers: 1,
            width: 32,
            feed_forward: 32,
            heads: 4,
            kv_heads: 2,
            head_width: 8,
            trained_context: 16,
            norm_epsilon: 1e-5,
            rope_base: 1e4,
            rope_factor: 1.0,
        };
        let (at, rows) = (3, 2);
        let random =
            |length, heads| Tensor::randn(0_f32, 1.0, (1, length, heads, 8), &device).unwrap();
        let (queries, keys, values) = (random(rows, 4), random(at + rows, 2), random(at + rows, 2));
        let plain = attend_plainly(&queries, &keys, &values, at, &shape).unwrap();
        let mask = AttnMask::causal_with_offset(at);
        let fused =
            flash_attn::<f32>(&queries, &keys, &values, shape.scale(), mask, None, None).unwrap();
        let difference = (plain - fused).unwrap().abs().unwrap().flatten_all().unwrap();
        let difference: f32 = difference.max(D::Minus1).unwrap().to_scalar().unwrap();
        assert!(difference < 1e-4, "{difference}");
    }
}
