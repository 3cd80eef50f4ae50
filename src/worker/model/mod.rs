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

use candle_core::{Device, Result, Tensor, quantized::QTensor};
use candle_nn::ops;

pub(crate) use self::{cache::Cache, header::Header, load::Loading, shape::Shape};
use self::{
    layer::{Layer, Rotation},
    linear::Linear,
};

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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use candle_core::quantized::GgmlDType;

    use super::*;
    use crate::worker::exit::{BAD_MODEL, Ending, MISSING_FILE};

    fn load(path: &Path) -> std::result::Result<Model, Ending> {
        let header = Header::open(path)?;
        let shape = Shape::read(&header)?;
        let gpu = None;
        Loading { header: &header, shape, context: 64, gpu, progress: |_, _| () }.run()
    }

    fn tiny_model(dtype: GgmlDType) -> Model {
        let folder = tempfile::tempdir().unwrap();
        load(&tiny::write(folder.path(), dtype)).unwrap()
    }

    fn difference(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_prompt_in_parts_gives_what_it_gives_at_once() {
        let model = tiny_model(GgmlDType::F32);
        let tokens: Vec<u32> = (10..40).collect();
        let mut cache = model.cache(64).unwrap();
        let whole = model.logits(&tokens, &mut cache).unwrap();
        let mut cache = model.cache(64).unwrap();
        model.take_in(&tokens[..7], &mut cache).unwrap();
        model.take_in(&tokens[7..8], &mut cache).unwrap();
        let parts = model.logits(&tokens[8..], &mut cache).unwrap();
        assert!(difference(&whole, &parts) < 1e-3);
        cache.truncate(29);
        let again = model.logits(&tokens[29..], &mut cache).unwrap();
        assert!(difference(&whole, &again) < 1e-3);
    }

    #[test]
    fn each_row_of_all_logits_is_that_of_its_token() {
        let model = tiny_model(GgmlDType::F32);
        let tokens: Vec<u32> = (10..20).collect();
        let rows = model.all_logits(&tokens, &mut model.cache(64).unwrap()).unwrap();
        let first = model.logits(&tokens[..3], &mut model.cache(64).unwrap()).unwrap();
        assert!(difference(&rows[2], &first) < 1e-3);
    }

    #[test]
    fn mixed_and_rewritten_formats_stay_close_to_floats() {
        let tokens = [1, 2, 3];
        let logits = |dtype| {
            let model = tiny_model(dtype);
            model.logits(&tokens, &mut model.cache(8).unwrap()).unwrap()
        };
        let floats = logits(GgmlDType::F32);
        let scale = floats.iter().copied().fold(0.0, |most: f32, x| most.max(x.abs()));
        assert!(difference(&floats, &logits(GgmlDType::Q8_0)) < 0.15 * scale);
        assert!(difference(&floats, &logits(GgmlDType::Q5_1)) < 0.5 * scale);
    }

    #[test]
    fn more_than_the_cache_holds_is_an_error() {
        let model = tiny_model(GgmlDType::F32);
        assert!(model.logits(&[1; 9], &mut model.cache(8).unwrap()).is_err());
        assert!(model.logits(&[], &mut model.cache(8).unwrap()).is_err());
    }

    #[test]
    fn a_file_cut_anywhere_is_a_bad_model_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny::write(folder.path(), GgmlDType::Q8_0);
        let whole = fs::read(&path).unwrap();
        let step = whole.len() / 97;
        for length in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
            fs::write(&path, &whole[..length]).unwrap();
            let ending = load(&path).err().unwrap_or_else(|| panic!("{length} bytes loaded"));
            assert_eq!(ending.code(), BAD_MODEL, "{length} bytes: {ending}");
        }
    }

    #[test]
    fn another_architecture_is_named_with_those_that_are_served() {
        let folder = tempfile::tempdir().unwrap();
        let ending = load(&tiny::write_foreign(folder.path())).unwrap_err();
        assert_eq!(
            ending.to_string(),
            "the model's architecture is `mamba`, this worker serves `llama`"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_no_bad_model() {
        let ending = load(Path::new("/nonexistent/model.gguf")).unwrap_err();
        assert_eq!(ending.code(), MISSING_FILE);
    }
}
