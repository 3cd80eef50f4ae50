//! The layers that are computed on a GPU.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{ops, rotary_emb::rope_thd};

use super::{Part, linear::Linear, shape::Shape};

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct DeviceLayer {
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

/// The rotations of rows, `rows × half a head`.
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

impl DeviceLayer {
    /// Computes layer `index` of a GPU for the rows of all `parts`, in order.
    pub(super) fn forward(
        &self,
        (shape, index): (&Shape, usize),
        hidden: &Tensor,
        parts: &[Part<'_>],
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let normed = ops::rms_norm(hidden, &self.attention_norm, shape.norm_epsilon)?;
        let attended = self.attend((shape, index), &normed, parts, rotation)?;
        let hidden = (hidden + self.output.forward(&attended)?)?;
        let normed = ops::rms_norm(&hidden, &self.feed_forward_norm, shape.norm_epsilon)?;
        let [gate, up] = self
            .gate_up
            .forward(&normed)?
            .try_into()
            .map_err(|parts: Vec<Tensor>| candle_wrong(&parts))?;
        let inner = (gate.silu()? * up)?;
        hidden + self.down.forward(&inner)?
    }

    fn attend(
        &self,
        (shape, index): (&Shape, usize),
        inputs: &Tensor,
        parts: &[Part<'_>],
        rotation: &Rotation,
    ) -> Result<Tensor> {
        let outputs = self.qkv.forward(inputs)?;
        let [queries, keys, values] =
            outputs.try_into().map_err(|parts: Vec<Tensor>| candle_wrong(&parts))?;
        let mut first = 0_usize;
        let mut mixed = Vec::with_capacity(parts.len());
        for part in parts {
            let rows = part.tokens.len();
            let of_part = |rows_of: &Tensor, heads: usize| {
                let part = rows_of.narrow(0, first, rows)?;
                part.reshape((1, rows, heads, shape.head_width))
            };
            let cos = rotation.cos.narrow(0, first, rows)?;
            let sin = rotation.sin.narrow(0, first, rows)?;
            let queries = rope_thd(&of_part(&queries, shape.heads)?, &cos, &sin)?;
            let keys = rope_thd(&of_part(&keys, shape.kv_heads)?, &cos, &sin)?;
            let values = of_part(&values, shape.kv_heads)?.contiguous()?;
            let at = part.cache.length();
            let Some(kept) = part.cache.device_layers().get(index) else {
                candle_core::bail!("a cache has all layers")
            };
            let (keys, values) = kept.store(at, &keys, &values)?;
            let attended = attend_plainly(&queries, &keys, &values, at, shape)?;
            let width = shape.heads.saturating_mul(shape.head_width);
            mixed.push(attended.transpose(1, 2)?.reshape((rows, width))?);
            first = first.saturating_add(rows);
        }
        Tensor::cat(&mixed, 0)
    }
}

fn candle_wrong(parts: &[Tensor]) -> candle_core::Error {
    candle_core::Error::Msg(format!("a layer's matrices gave {} outputs", parts.len()))
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
        .affine(f64::from(shape.scale), 0.0)?;
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
