//! A model of the llama family from a GGUF file: tokens in, logits or hidden states out.
//!
//! Owns the weights and their computation; it never samples, never speaks HTTP, and keeps no state
//! between calls but the [`Cache`] it is handed.

mod cache;
mod header;
mod layer;
mod linear;
mod load;
mod shape;
#[cfg(test)]
pub(crate) mod tiny;

use std::sync::Arc;

#[cfg(test)]
use candle_core::D;
use candle_core::{Device, Result, Tensor, quantized::QTensor};
use candle_nn::ops;

use self::{
    layer::{Layer, Rotation},
    linear::Linear,
};
pub(crate) use self::{cache::Cache, header::Header, load::Loading, shape::Shape};

/// The weights of a whole model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) shape: Shape,
    embedding: Arc<QTensor>,
    layers: Vec<Layer>,
    output_norm: Tensor,
    output: Linear,
    /// Where the last step is computed.
    device: Device,
    /// Rotations of all positions, one copy a device in use.
    rotations: Vec<(Device, Rotation)>,
}

impl Model {
    /// Makes an empty cache for `capacity` positions.
    pub(crate) fn cache(&self, capacity: usize) -> Result<Cache> {
        let devices: Vec<Device> = self.layers.iter().map(|layer| layer.device.clone()).collect();
        Cache::new(&self.shape, capacity, &devices)
    }

    /// Takes in `tokens` after what `cache` holds and gives the logits that follow the last one.
    pub(crate) fn logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let hidden = self.hidden(tokens, cache)?;
        let last = hidden.narrow(0, hidden.dim(0)?.saturating_sub(1), 1)?;
        let normed = ops::rms_norm(&last, &self.output_norm, self.shape.norm_epsilon)?;
        self.output.forward(&normed)?.flatten_all()?.to_vec1()
    }

    /// Takes in `tokens` without asking what follows.
    pub(crate) fn take_in(&self, tokens: &[u32], cache: &mut Cache) -> Result<()> {
        self.hidden(tokens, cache).map(drop)
    }

    /// Takes in `tokens` and gives the logits that follow each of them, one row a token.
    pub(crate) fn all_logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<Vec<f32>>> {
        let hidden = self.hidden(tokens, cache)?;
        let normed = ops::rms_norm(&hidden, &self.output_norm, self.shape.norm_epsilon)?;
        self.output.forward(&normed)?.to_vec2()
    }

    /// Takes in `tokens` and gives the sum of their hidden states after the output norm.
    pub(crate) fn summed_states(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let hidden = self.hidden(tokens, cache)?;
        let normed = ops::rms_norm(&hidden, &self.output_norm, self.shape.norm_epsilon)?;
        normed.sum(0)?.to_vec1()
    }

    /// Gives the number of tokens the model can tell apart.
    pub(crate) fn vocabulary(&self) -> usize {
        self.embedding.shape().dims().first().copied().unwrap_or(0)
    }

    fn hidden(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let at = cache.length();
        if tokens.is_empty() || at.saturating_add(tokens.len()) > cache.capacity() {
            candle_core::bail!("{} tokens at {at} do not fit {}", tokens.len(), cache.capacity());
        }
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.embedding.device())?;
        let mut hidden = self.embedding.embedding(&ids)?;
        for (layer, kept) in self.layers.iter().zip(cache.layers()) {
            hidden = hidden.to_device(&layer.device)?;
            let rotation = self.rotation(&layer.device, at, tokens.len())?;
            hidden = layer.forward(&self.shape, &hidden, (at, kept), &rotation)?;
        }
        cache.advance(tokens.len());
        hidden.to_device(&self.device)
    }

    fn rotation(&self, device: &Device, at: usize, count: usize) -> Result<Rotation> {
        let Some((_, all)) = self.rotations.iter().find(|(of, _)| of.same_device(device)) else {
            candle_core::bail!("each device in use has its rotations")
        };
        Ok(Rotation { cos: all.cos.narrow(0, at, count)?, sin: all.sin.narrow(0, at, count)? })
    }
}

impl Shape {
    /// Gives the factor that scores are multiplied with before the softmax.
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a width is small")]
    fn scale(&self) -> f32 {
        1.0 / (self.head_width as f32).sqrt()
    }
}

/// Gives the place of the largest of the last dimension; used where tests compare models.
#[cfg(test)]
pub(crate) fn largest(logits: &[f32]) -> Option<usize> {
    let tensor = Tensor::from_slice(logits, logits.len(), &Device::Cpu).ok()?;
    let place: u32 = tensor.argmax(D::Minus1).ok()?.to_scalar().ok()?;
    usize::try_from(place).ok()
}
