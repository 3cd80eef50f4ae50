//! Weights from the file to where they are computed.

use candle_core::{Device, Result, Tensor, quantized::GgmlDType};

use super::{
    Model, Output,
    device::{DeviceLayer, Stacked},
    header::{Extent, Header},
    host::HostLayer,
    linear::Linear,
    matrix::{HostMatrix, pool},
    shape::Shape,
};
use crate::worker::exit::Ending;

/// A load in progress: which file, which devices, and whom to tell how far it is.
#[derive(Debug)]
pub(crate) struct Loading<'a, F> {
    pub(crate) header: &'a Header,
    pub(crate) shape: Shape,
    /// Where the last `gpu_layers` layers go, and the output if one more is asked for.
    pub(crate) gpu: Option<(Device, usize)>,
    /// Called with the bytes read so far and in all.
    pub(crate) progress: F,
}

/// What is done to the rows of a matrix on its way in.
#[derive(Clone, Copy)]
enum Order {
    AsStored,
    /// Pairs `(2i, 2i+1)` of each head become `(i, i + half)`.
    Halves {
        heads: usize,
    },
}

impl<F: FnMut(u64, u64)> Loading<'_, F> {
    /// Reads all weights.
    pub(crate) fn run(mut self) -> std::result::Result<Model, Ending> {
        let total = self.header.tensor_bytes()?;
        let mut read = 0_u64;
        let embedding = self.host_matrix("token_embd.weight", None, &mut read)?;
        let (mut host, mut device) = (Vec::new(), Vec::new());
        for index in 0..self.shape.layers {
            match &self.gpu {
                Some((gpu, count)) if index.saturating_add(*count) >= self.shape.layers => {
                    device.push(self.device_layer(index, gpu, &mut read)?);
                }
                _ => host.push(self.host_layer(index, &mut read)?),
            }
            (self.progress)(read, total);
        }
        let output = self.output(embedding.rows, &mut read)?;
        let frequencies = self.frequencies()?;
        (self.progress)(total, total);
        let (shape, pool) = (self.shape, pool());
        Ok(Model { shape, embedding, host, device, output, frequencies, pool })
    }

    fn host_layer(&self, index: usize, read: &mut u64) -> std::result::Result<HostLayer, Ending> {
        let Shape { width, feed_forward, heads, head_width, .. } = self.shape;
        let (query, kv) = (heads * head_width, self.shape.kv_width());
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let mut matrix = |part: &str, dims| self.host_matrix(&name(part), Some(dims), read);
        Ok(HostLayer {
            attention_norm: self.floats(&name("attn_norm"), width)?,
            query: matrix("attn_q", (query, width))?,
            key: matrix("attn_k", (kv, width))?,
            value: matrix("attn_v", (kv, width))?,
            output: matrix("attn_output", (width, query))?,
            feed_forward_norm: self.floats(&name("ffn_norm"), width)?,
            gate: matrix("ffn_gate", (feed_forward, width))?,
            up: matrix("ffn_up", (feed_forward, width))?,
            down: matrix("ffn_down", (width, feed_forward))?,
        })
    }

    fn device_layer(
        &self,
        index: usize,
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<DeviceLayer, Ending> {
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let Shape { width, feed_forward, heads, kv_heads, .. } = self.shape;
        let (query, kv) = (heads * self.shape.head_width, self.shape.kv_width());
        let qkv = [
            (name("attn_q"), query, Order::Halves { heads }),
            (name("attn_k"), kv, Order::Halves { heads: kv_heads }),
            (name("attn_v"), kv, Order::AsStored),
        ];
        let gate_up = [
            (name("ffn_gate"), feed_forward, Order::AsStored),
            (name("ffn_up"), feed_forward, Order::AsStored),
        ];
        Ok(DeviceLayer {
            attention_norm: self.vector(&name("attn_norm"), width, device)?,
            qkv: self.stacked(&qkv, device, read)?,
            output: self.linear(&name("attn_output"), (width, query), device, read)?,
            feed_forward_norm: self.vector(&name("ffn_norm"), width, device)?,
            gate_up: self.stacked(&gate_up, device, read)?,
            down: self.linear(&name("ffn_down"), (width, feed_forward), device, read)?,
            device: device.clone(),
        })
    }

    fn output(&self, vocabulary: usize, read: &mut u64) -> std::result::Result<Output, Ending> {
        let dims = (vocabulary, self.shape.width);
        let has_own = self.header.extent("output.weight")?.is_some();
        let norm = "output_norm.weight";
        if let Some((gpu, _)) = self.gpu.as_ref().filter(|(_, count)| *count > self.shape.layers) {
            // A model without an output matrix uses its embedding for both.
            let name = if has_own { "output.weight" } else { "token_embd.weight" };
            let norm = self.vector(norm, self.shape.width, gpu)?;
            return Ok(Output::Device { norm, matrix: self.linear(name, dims, gpu, read)? });
        }
        let norm = self.floats(norm, self.shape.width)?;
        let mut matrix = None;
        if has_own {
            matrix = Some(self.host_matrix("output.weight", Some(dims), read)?);
        }
        Ok(Output::Host { norm, matrix })
    }

    /// Maps a matrix of any height, or one of `dims`.
    fn host_matrix(
        &self,
        name: &str,
        dims: Option<(usize, usize)>,
        read: &mut u64,
    ) -> std::result::Result<HostMatrix, Ending> {
        let extent = match dims {
            Some(dims) => self.matrix(name, dims)?,
            None => self.extent(name)?,
        };
        if extent.dims.last() != Some(&dims.map_or(self.shape.width, |(_, width)| width)) {
            return Err(wrong_shape(name, &extent));
        }
        let matrix = HostMatrix::new(self.header.file(), &extent);
        let matrix = matrix.ok_or_else(|| wrong_shape(name, &extent))?;
        matrix.touch();
        *read = read.saturating_add(u64::try_from(extent.length).unwrap_or(0));
        Ok(matrix)
    }

    /// Gives a vector of `length` floats.
    fn floats(&self, name: &str, length: usize) -> std::result::Result<Vec<f32>, Ending> {
        let extent = self.extent(name)?;
        if extent.dims != [length] {
            return Err(wrong_shape(name, &extent));
        }
        let bytes = self.header.bytes(&extent).to_vec();
        let floats = extent.dtype.from_data(bytes.into()).dequantize(length);
        floats
            .and_then(|floats| Ok(floats.as_slice::<f32>()?.to_vec()))
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    fn stacked(
        &self,
        parts: &[(String, usize, Order)],
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<Stacked, Ending> {
        let width = self.shape.width;
        let mut pieces: Vec<(GgmlDType, Vec<u8>, usize)> = Vec::with_capacity(parts.len());
        for (name, rows, order) in parts {
            let extent = self.matrix(name, (*rows, width))?;
            let bytes = order.apply(self.bytes(&extent, read), *rows);
            match pieces.last_mut() {
                Some((dtype, stacked, height)) if *dtype == extent.dtype => {
                    stacked.extend(bytes);
                    *height = height.saturating_add(*rows);
                }
                _ => pieces.push((extent.dtype, bytes, *rows)),
            }
        }
        // Two alike of three would have to be told apart from three unlike ones: stack all or none.
        if pieces.len() > 1 && pieces.len() < parts.len() {
            pieces = self.unstacked(parts, read)?;
        }
        let linear = |(dtype, bytes, rows)| Linear::new(dtype, bytes, (rows, width), device);
        let stacked: Result<Vec<Linear>> = pieces.into_iter().map(linear).collect();
        let stacked = stacked.map_err(|error| Ending::from_candle("loading a layer", &error))?;
        Ok(Stacked { parts: stacked, rows: parts.iter().map(|(_, rows, _)| *rows).collect() })
    }

    fn unstacked(
        &self,
        parts: &[(String, usize, Order)],
        read: &mut u64,
    ) -> std::result::Result<Vec<(GgmlDType, Vec<u8>, usize)>, Ending> {
        let width = self.shape.width;
        let piece = |(name, rows, order): &(String, usize, Order)| {
            let extent = self.matrix(name, (*rows, width))?;
            Ok((extent.dtype, order.apply(self.bytes(&extent, read), *rows), *rows))
        };
        parts.iter().map(piece).collect()
    }

    fn linear(
        &self,
        name: &str,
        dims: (usize, usize),
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<Linear, Ending> {
        let extent = self.matrix(name, dims)?;
        let bytes = self.bytes(&extent, read);
        Linear::new(extent.dtype, bytes, dims, device)
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    fn vector(
        &self,
        name: &str,
        length: usize,
        device: &Device,
    ) -> std::result::Result<Tensor, Ending> {
        Tensor::from_vec(self.floats(name, length)?, length, device)
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    /// What position 1 turns each pair of a head by. A tensor of factors stretches single
    /// frequencies (Llama 3).
    fn frequencies(&self) -> std::result::Result<Vec<f32>, Ending> {
        let half = self.shape.head_width / 2;
        let stretched = match self.header.extent("rope_freqs.weight")? {
            Some(_) => self.floats("rope_freqs.weight", half)?,
            None => vec![1.0; half],
        };
        let step = -self.shape.rope_base.ln() / to_f32(half);
        let frequency = |(pair, stretch): (usize, &f32)| {
            (to_f32(pair) * step).exp() / self.shape.rope_factor / stretch
        };
        Ok(stretched.iter().enumerate().map(frequency).collect())
    }

    fn matrix(&self, name: &str, dims: (usize, usize)) -> std::result::Result<Extent, Ending> {
        let extent = self.extent(name)?;
        if extent.dims == [dims.0, dims.1] { Ok(extent) } else { Err(wrong_shape(name, &extent)) }
    }

    fn extent(&self, name: &str) -> std::result::Result<Extent, Ending> {
        self.header
            .extent(name)?
            .ok_or_else(|| Ending::bad_model(format!("the model lacks the tensor `{name}`")))
    }

    fn bytes(&self, extent: &Extent, read: &mut u64) -> Vec<u8> {
        let bytes = self.header.bytes(extent).to_vec();
        *read = read.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        bytes
    }
}

impl Order {
    fn apply(self, bytes: Vec<u8>, rows: usize) -> Vec<u8> {
        let Self::Halves { heads } = self else { return bytes };
        let (row, head) = (bytes.len() / rows, rows / heads);
        let mut ordered = Vec::with_capacity(bytes.len());
        for head in bytes.chunks_exact(row.saturating_mul(head)) {
            ordered.extend(head.chunks_exact(row).step_by(2).flatten());
            ordered.extend(head.chunks_exact(row).skip(1).step_by(2).flatten());
        }
        ordered
    }
}

#[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a width is small")]
fn to_f32(number: usize) -> f32 {
    number as f32
}

fn wrong_shape(name: &str, extent: &Extent) -> Ending {
    Ending::bad_model(format!("tensor `{name}` has the unexpected shape {:?}", extent.dims))
}
