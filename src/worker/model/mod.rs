//! A model from a GGUF file: tokens in, logits or hidden states out.
//!
//! Owns the weights and their computation; it never samples, never speaks HTTP, and keeps no state
//! between calls but the [`Cache`]s it is handed.
//!
//! One call computes a step of several sequences: each brings some tokens and its cache. Products
//! with weights run over the rows of all of them, attention over each one's own positions. On the
//! host a row's numbers do not depend on the rows beside it, to the last bit.

mod cache;
mod device;
mod encoder;
mod header;
mod host;
mod linear;
mod load;
mod matrix;
mod network;
#[cfg(test)]
mod reference;
mod shape;
mod tensors;
#[cfg(test)]
pub(crate) mod tiny;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops;
use slotd_kernels::{Activations, Pool, normalise};

pub(crate) use self::{
    cache::Cache,
    encoder::Encoder,
    header::Header,
    load::Loading,
    network::{Network, Purpose},
    shape::Shape,
};
use self::{
    device::{DeviceLayer, Rotation},
    host::HostLayer,
    linear::Linear,
    matrix::{HostMatrix, products},
};

/// The weights of a whole model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) shape: Shape,
    embedding: HostMatrix,
    /// The first layers.
    host: Vec<HostLayer>,
    /// The layers after them.
    device: Vec<DeviceLayer>,
    output: Output,
    /// What position 1 turns each pair of numbers of a head by.
    frequencies: Vec<f32>,
    /// The same in layers that look back no further than a window.
    near_frequencies: Vec<f32>,
    pool: Pool,
}

/// The last step: a norm and a matrix, where they are computed.
#[derive(Debug)]
enum Output {
    /// Without a matrix of its own it is the embedding's.
    Host {
        norm: Vec<f32>,
        matrix: Option<HostMatrix>,
    },
    Device {
        norm: Tensor,
        matrix: Linear,
    },
}

/// What one sequence brings to a step.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// Never empty, and no more than the cache has room for.
    pub(crate) tokens: &'a [u32],
    pub(crate) cache: &'a mut Cache,
    pub(crate) want: Want,
}

/// What a sequence wants of a step, apart from its cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Want {
    Nothing,
    /// The logits that follow the last token.
    Last,
    /// The logits that follow each token.
    All,
    /// The sum of the tokens' hidden states after the output norm.
    Sum,
    /// How well the texts of a pair belong together; the token at `second` is the first of the second
    /// one. Of encoders that rank.
    Score {
        second: usize,
    },
}

impl Model {
    /// Makes an empty cache for `capacity` positions.
    pub(crate) fn cache(&self, capacity: usize) -> Result<Cache> {
        let devices: Vec<Device> = self.device.iter().map(|layer| layer.device.clone()).collect();
        Cache::new(&self.shape, capacity, self.host.len(), &devices)
    }

    /// Gives the number of tokens the model can tell apart.
    pub(crate) fn vocabulary(&self) -> usize {
        self.embedding.rows
    }

    /// Says whether a row's numbers are the same whatever is computed with it.
    pub(crate) fn is_exact(&self) -> bool {
        self.device.is_empty() && matches!(self.output, Output::Host { .. })
    }

    /// Takes in the tokens of all `parts`, and gives each the rows it wants.
    pub(crate) fn step(&self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<Vec<f32>>>> {
        for part in &*parts {
            let (at, room) = (part.cache.length(), part.cache.capacity());
            if part.tokens.is_empty() || at.saturating_add(part.tokens.len()) > room {
                candle_core::bail!("{} tokens at {at} do not fit {room}", part.tokens.len());
            }
        }
        let [turns, near_turns] = [&self.frequencies, &self.near_frequencies]
            .map(|frequencies| turns(parts, frequencies, self.shape.rope_magnitude));
        let mut hidden = self.embedded(parts)?;
        for (index, layer) in self.host.iter().enumerate() {
            let is_near = self.shape.window_of(index).is_some();
            let turns = if is_near { &near_turns } else { &turns };
            layer.forward((&self.shape, index, self.pool), &mut hidden, parts, turns)?;
        }
        let rows = if self.device.is_empty() && matches!(self.output, Output::Host { .. }) {
            self.finish_on_host(&hidden, parts)?
        } else {
            self.finish_on_device(hidden, parts, &turns)?
        };
        for part in parts {
            part.cache.advance(part.tokens.len());
        }
        Ok(rows)
    }

    fn embedded(&self, parts: &[Part<'_>]) -> Result<Vec<f32>> {
        let count: usize = parts.iter().map(|part| part.tokens.len()).sum();
        let mut hidden = Vec::with_capacity(count.saturating_mul(self.shape.width));
        for token in parts.iter().flat_map(|part| part.tokens) {
            hidden.extend(self.embedding.row(usize::try_from(*token).unwrap_or(usize::MAX))?);
        }
        if self.shape.embedding_scale.to_bits() != 1.0_f32.to_bits() {
            for x in &mut hidden {
                *x *= self.shape.embedding_scale;
            }
        }
        Ok(hidden)
    }

    fn finish_on_host(&self, hidden: &[f32], parts: &[Part<'_>]) -> Result<Vec<Vec<Vec<f32>>>> {
        let Output::Host { norm, matrix } = &self.output else {
            candle_core::bail!("the output is on a GPU")
        };
        let width = self.shape.width;
        let wanted = wanted_rows(hidden, parts, width);
        let normed = normalise(self.pool, &wanted, norm, self.shape.norm_epsilon);
        let mut rest = normed.as_slice();
        let mut needed = Vec::new();
        for part in parts {
            let (of_part, after) = rest.split_at_checked(part.rows() * width).unwrap_or_default();
            if part.want != Want::Sum {
                needed.extend_from_slice(of_part);
            }
            rest = after;
        }
        let logits = if needed.is_empty() {
            Vec::new()
        } else {
            let inputs = Activations::new(self.pool, needed, width);
            let matrix = matrix.as_ref().unwrap_or(&self.embedding);
            let [mut logits] = products(self.pool, &inputs, [matrix])?;
            if let Some(cap) = self.shape.logit_cap {
                for logit in &mut logits {
                    *logit = cap * (*logit / cap).tanh();
                }
            }
            logits
        };
        let mut logits = logits.chunks_exact(self.vocabulary().max(1)).map(<[f32]>::to_vec);
        let mut normed = normed.chunks_exact(width);
        let rows = parts.iter().map(|part| {
            let of_part = normed.by_ref().take(part.rows());
            if part.want == Want::Sum {
                return vec![sum(of_part, width)];
            }
            let count = of_part.count();
            logits.by_ref().take(count).collect()
        });
        Ok(rows.collect())
    }

    fn finish_on_device(
        &self,
        hidden: Vec<f32>,
        parts: &[Part<'_>],
        turns: &[(f32, f32)],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let width = self.shape.width;
        let count = hidden.len().checked_div(width).unwrap_or(0);
        let mut hidden = Tensor::from_vec(hidden, (count, width), &Device::Cpu)?;
        let mut rotation: Option<(Device, Rotation)> = None;
        for (index, layer) in self.device.iter().enumerate() {
            hidden = hidden.to_device(&layer.device)?;
            let known = rotation.take().filter(|(device, _)| device.same_device(&layer.device));
            let known = match known {
                Some(known) => known,
                None => (layer.device.clone(), Rotation::new(turns, count, &layer.device)?),
            };
            hidden = layer.forward((&self.shape, index), &hidden, parts, &known.1)?;
            rotation = Some(known);
        }
        let Output::Device { norm, matrix } = &self.output else {
            let hidden: Vec<f32> = hidden.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            return self.finish_on_host(&hidden, parts);
        };
        let hidden: Vec<f32> = hidden.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        let wanted = wanted_rows(&hidden, parts, width);
        let mut rows = Vec::with_capacity(parts.len());
        let mut first = 0_usize;
        for part in parts {
            let count = part.rows();
            let end = first.saturating_add(count.saturating_mul(width));
            let of_part = wanted.get(first..end).unwrap_or_default().to_vec();
            first = end;
            if count == 0 {
                rows.push(Vec::new());
                continue;
            }
            let of_part = Tensor::from_vec(of_part, (count, width), norm.device())?;
            let normed = ops::rms_norm(&of_part, norm, self.shape.norm_epsilon)?;
            rows.push(match part.want {
                Want::Sum => vec![normed.sum(0)?.to_vec1()?],
                Want::Nothing | Want::Last | Want::All | Want::Score { .. } => {
                    matrix.forward(&normed)?.to_vec2()?
                }
            });
        }
        Ok(rows)
    }
}

/// Gives the cosine and sine of each pair of numbers of a head, for the rows of all parts; nothing
/// without frequencies.
fn turns(parts: &[Part<'_>], frequencies: &[f32], magnitude: f32) -> Vec<(f32, f32)> {
    let positions = parts.iter().flat_map(|part| {
        let at = part.cache.length();
        at..at.saturating_add(part.tokens.len())
    });
    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "below 2 to the 24")]
    let turn = |position: usize| {
        frequencies.iter().map(move |frequency| {
            let angle = position as f32 * frequency;
            (angle.cos() * magnitude, angle.sin() * magnitude)
        })
    };
    positions.flat_map(turn).collect()
}

impl Part<'_> {
    /// Gives how many rows take the last step.
    fn rows(&self) -> usize {
        match self.want {
            Want::Nothing | Want::Score { .. } => 0,
            Want::Last => 1,
            Want::All | Want::Sum => self.tokens.len(),
        }
    }
}

/// Gives the hidden states that take the last step.
fn wanted_rows(hidden: &[f32], parts: &[Part<'_>], width: usize) -> Vec<f32> {
    let mut wanted = Vec::new();
    let mut end = 0_usize;
    for part in parts {
        end = end.saturating_add(part.tokens.len());
        let first = end.saturating_sub(part.rows());
        let of_part = hidden.get(first.saturating_mul(width)..end.saturating_mul(width));
        wanted.extend_from_slice(of_part.unwrap_or_default());
    }
    wanted
}

#[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a width is small")]
fn to_f32(number: usize) -> f32 {
    number as f32
}

fn sum<'a>(rows: impl Iterator<Item = &'a [f32]>, width: usize) -> Vec<f32> {
    rows.fold(vec![0.0; width], |mut sum, row| {
        slotd_kernels::add(&mut sum, row);
        sum
    })
}

impl Rotation {
    fn new(turns: &[(f32, f32)], rows: usize, device: &Device) -> Result<Self> {
        let half = turns.len().checked_div(rows).unwrap_or(0);
        let one = |of: fn(&(f32, f32)) -> f32| {
            let numbers: Vec<f32> = turns.iter().map(of).collect();
            Tensor::from_vec(numbers, (rows, half), device)
        };
        Ok(Self { cos: one(|turn| turn.0)?, sin: one(|turn| turn.1)? })
    }
}

/// Steps of one sequence alone.
#[cfg(test)]
impl Model {
    pub(crate) fn logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let mut rows = self.step(&mut [Part { tokens, cache, want: Want::Last }])?;
        Ok(rows.pop().and_then(|mut rows| rows.pop()).unwrap_or_default())
    }

    pub(crate) fn all_logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<Vec<f32>>> {
        let mut rows = self.step(&mut [Part { tokens, cache, want: Want::All }])?;
        Ok(rows.pop().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use candle_core::quantized::GgmlDType;

    use super::{reference::Inputs, *};
    use crate::worker::exit::{BAD_MODEL, Ending, MISSING_FILE};

    fn load_on(path: &Path, gpu: Option<(Device, usize)>) -> std::result::Result<Model, Ending> {
        let header = Header::open(path)?;
        let shape = Shape::read(&header)?;
        Loading { header: &header, shape, gpu, progress: |_, _| () }.run()
    }

    fn load(path: &Path) -> std::result::Result<Model, Ending> {
        load_on(path, None)
    }

    fn tiny_model(dtype: GgmlDType) -> Model {
        let folder = tempfile::tempdir().unwrap();
        load(&tiny::write(folder.path(), dtype)).unwrap()
    }

    /// How far `made` lies from `wanted`, as a part of the size of `wanted`.
    fn distance(made: &[f32], wanted: &[f64]) -> f64 {
        assert_eq!(made.len(), wanted.len());
        let squares = made.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).powi(2));
        (squares.sum::<f64>() / wanted.iter().map(|b| b * b).sum::<f64>()).sqrt()
    }

    /// Puts the same rows through each layer and its reference; gives the greatest distances of
    /// what the layers add, with rounded inputs of products and with exact ones.
    fn distances(model: &Model, tokens: &[u32]) -> (f64, f64) {
        let (mut rounded, mut exact) = (0.0_f64, 0.0_f64);
        let mut cache = model.cache(tokens.len()).unwrap();
        let mut parts = [Part { tokens, cache: &mut cache, want: Want::All }];
        let turns = turns(&parts, &model.frequencies, 1.0);
        let mut hidden = model.embedded(&parts).unwrap();
        let shape = &model.shape;
        for (index, layer) in model.host.iter().enumerate() {
            let before = reference::wide(&hidden);
            layer.forward((shape, index, model.pool), &mut hidden, &mut parts, &turns).unwrap();
            let far = |inputs| {
                let wanted = reference::layer(shape, layer, &before, inputs);
                let off = hidden.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).powi(2));
                let added = wanted.iter().zip(&before).map(|(a, b)| (a - b).powi(2));
                (off.sum::<f64>() / added.sum::<f64>()).sqrt()
            };
            rounded = rounded.max(far(Inputs::Rounded));
            exact = exact.max(far(Inputs::Exact));
        }
        let logits = model.finish_on_host(&hidden, &parts).unwrap().concat().concat();
        let Output::Host { norm, matrix } = &model.output else { panic!("no GPU was asked for") };
        let normed = reference::normalised(shape, &reference::wide(&hidden), norm);
        let matrix = matrix.as_ref().unwrap_or(&model.embedding);
        let far = |inputs| distance(&logits, &reference::product(matrix, &normed, inputs));
        (rounded.max(far(Inputs::Rounded)), exact.max(far(Inputs::Exact)))
    }

    /// Between two computations of rounded products a number now and then falls to the other side
    /// of a half: they are as near as a layer's few such numbers leave them, floats much nearer.
    #[test]
    fn each_layer_gives_what_plain_loops_of_wide_floats_give() {
        let tokens: Vec<u32> = (10..50).collect();
        for dtype in [GgmlDType::F32, GgmlDType::F16] {
            let (_, exact) = distances(&tiny_model(dtype), &tokens);
            assert!(exact < 1e-5, "{dtype:?}: {exact}");
        }
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q5_1, GgmlDType::Q8_0] {
            let (rounded, exact) = distances(&tiny_model(dtype), &tokens);
            println!("{dtype:?}: {rounded} from rounded inputs, {exact} from exact ones");
            assert!(rounded < 1e-3, "{dtype:?}: {rounded}");
            assert!(exact < 1e-1, "{dtype:?}: {exact}");
        }
    }

    fn difference(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn a_prompt_in_parts_gives_what_it_gives_at_once_to_the_last_bit() {
        for dtype in [GgmlDType::F32, GgmlDType::Q4_1, GgmlDType::Q8_0] {
            let model = tiny_model(dtype);
            let tokens: Vec<u32> = (10..120).collect();
            let mut cache = model.cache(128).unwrap();
            let whole = model.logits(&tokens, &mut cache).unwrap();
            let mut cache = model.cache(128).unwrap();
            model.logits(&tokens[..7], &mut cache).unwrap();
            model.logits(&tokens[7..8], &mut cache).unwrap();
            assert_eq!(whole, model.logits(&tokens[8..], &mut cache).unwrap());
            cache.truncate(29);
            let mut copy = model.cache(128).unwrap();
            copy.copy_from(&cache, 20).unwrap();
            assert_eq!(whole, model.logits(&tokens[29..], &mut cache).unwrap());
            assert_eq!(whole, model.logits(&tokens[20..], &mut copy).unwrap());
        }
    }

    #[test]
    fn sequences_step_together_as_each_would_alone_to_the_last_bit() {
        let model = tiny_model(GgmlDType::Q4_1);
        let prompts: [&[u32]; 3] = [&[5; 70], &[1, 2, 3], &[9]];
        let mut alone: Vec<Cache> = prompts.map(|_| model.cache(128).unwrap()).into();
        let mut together: Vec<Cache> = prompts.map(|_| model.cache(128).unwrap()).into();
        for _ in 0..3 {
            let mut caches = together.iter_mut();
            let mut parts = prompts.map(|tokens| Part {
                tokens: &tokens[..tokens.len().min(40)],
                cache: caches.next().unwrap(),
                want: Want::Last,
            });
            let rows = model.step(&mut parts).unwrap();
            for ((tokens, cache), rows) in prompts.iter().zip(&mut alone).zip(rows) {
                let wanted = model.logits(&tokens[..tokens.len().min(40)], cache).unwrap();
                assert_eq!(rows, [wanted]);
            }
        }
    }

    #[test]
    fn layers_of_a_gpu_compute_what_the_host_computes() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny::write(folder.path(), GgmlDType::F32);
        let tokens: Vec<u32> = (10..40).collect();
        let logits = |gpu| {
            let model = load_on(&path, gpu).unwrap();
            let (mut first, mut second) = (model.cache(64).unwrap(), model.cache(64).unwrap());
            let mut parts = [
                Part { tokens: &tokens[..9], cache: &mut first, want: Want::Sum },
                Part { tokens: &tokens[9..], cache: &mut second, want: Want::All },
            ];
            let rows = model.step(&mut parts).unwrap();
            let after = model.logits(&[7], &mut second).unwrap();
            rows.concat().concat().into_iter().chain(after).collect::<Vec<f32>>()
        };
        let host = logits(None);
        for count in [1, 2, 3] {
            // candle's own CPU code stands for a GPU.
            assert!(difference(&host, &logits(Some((Device::Cpu, count)))) < 2e-3, "{count}");
        }
    }

    #[test]
    fn each_row_of_all_logits_is_that_of_its_token() {
        let model = tiny_model(GgmlDType::F32);
        let tokens: Vec<u32> = (10..20).collect();
        let rows = model.all_logits(&tokens, &mut model.cache(64).unwrap()).unwrap();
        let first = model.logits(&tokens[..3], &mut model.cache(64).unwrap()).unwrap();
        assert_eq!(rows[2], first);
    }

    #[test]
    fn formats_of_few_bits_stay_close_to_floats() {
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
            "the model's architecture is `mamba`, this worker serves `llama`, `qwen2`, `qwen3`, \
             `gemma3`, `phi3`"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_no_bad_model() {
        let ending = load(Path::new("/nonexistent/model.gguf")).unwrap_err();
        assert_eq!(ending.code(), MISSING_FILE);
    }

    mod real {
        use super::*;

        #[test]
        fn each_layer_of_a_real_model_gives_what_plain_loops_give() {
            let path = std::env::var_os("SLOTD_TEST_MODEL").expect("set SLOTD_TEST_MODEL");
            let model = load(Path::new(&path)).unwrap();
            // "The capital of France is Paris."
            let tokens = [504, 3575, 282, 4649, 314, 7042, 30];
            let (rounded, exact) = distances(&model, &tokens);
            println!("{rounded} from rounded inputs, {exact} from exact ones");
            assert!(rounded < 2e-2, "{rounded}");
            assert!(exact < 1e-1, "{exact}");
        }
    }
}
