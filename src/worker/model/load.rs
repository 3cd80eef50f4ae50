//! Weights from the file to where they are computed.

use std::{borrow::Cow, sync::Arc};

use candle_core::{
    Device, Result, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};

use super::{
    Model,
    header::{Extent, Header},
    layer::{Layer, Rotation, Stacked},
    linear::Linear,
    shape::Shape,
};
use crate::worker::exit::Ending;

/// A load in progress: which file, which devices, and whom to tell how far it is.
#[derive(Debug)]
pub(crate) struct Loading<'a, F> {
    pub(crate) header: &'a Header,
    pub(crate) shape: Shape,
    /// Positions that will be asked for.
    pub(crate) context: usize,
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
        let embedding = self.embedding(&mut read)?;
        let mut layers = Vec::with_capacity(self.shape.layers);
        for index in 0..self.shape.layers {
            layers.push(self.layer(index, &mut read)?);
            (self.progress)(read, total);
        }
        let device = match &self.gpu {
            Some((gpu, count)) if *count > self.shape.layers => gpu.clone(),
            _ => Device::Cpu,
        };
        let output_norm = self.vector("output_norm.weight", self.shape.width, &device)?;
        let output = self.output(&embedding, &device, &mut read)?;
        let rotations = self.rotations(&layers)?;
        (self.progress)(total, total);
        let shape = self.shape;
        Ok(Model { shape, embedding, layers, output_norm, output, device, rotations })
    }

    fn layer(&self, index: usize, read: &mut u64) -> std::result::Result<Layer, Ending> {
        let device = match &self.gpu {
            Some((gpu, count)) if index.saturating_add(*count) >= self.shape.layers => gpu.clone(),
            _ => Device::Cpu,
        };
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
        Ok(Layer {
            attention_norm: self.vector(&name("attn_norm"), width, &device)?,
            qkv: self.stacked(&qkv, &device, read)?,
            output: self.linear(&name("attn_output"), (width, query), &device, read)?,
            feed_forward_norm: self.vector(&name("ffn_norm"), width, &device)?,
            gate_up: self.stacked(&gate_up, &device, read)?,
            down: self.linear(&name("ffn_down"), (width, feed_forward), &device, read)?,
            device,
        })
    }

    fn embedding(&self, read: &mut u64) -> std::result::Result<Arc<QTensor>, Ending> {
        let name = "token_embd.weight";
        let extent = self.extent(name)?;
        let [_, width] = extent.dims.as_slice() else { return Err(wrong_shape(name, &extent)) };
        if *width != self.shape.width {
            return Err(wrong_shape(name, &extent));
        }
        let bytes = self.bytes(name, &extent, read)?;
        table(bytes, &extent)
            .map(Arc::new)
            .map_err(|error| Ending::from_candle("loading the embedding", &error))
    }

    fn output(
        &self,
        embedding: &Arc<QTensor>,
        device: &Device,
        read: &mut u64,
    ) -> std::result::Result<Linear, Ending> {
        let vocabulary = embedding.shape().dims().first().copied().unwrap_or(0);
        let dims = (vocabulary, self.shape.width);
        if self.header.extent("output.weight")?.is_some() {
            return self.linear("output.weight", dims, device, read);
        }
        // A model without an output matrix uses its embedding for both.
        if let Some(shared) = Linear::shared(embedding).filter(|_| device.is_cpu()) {
            return Ok(shared);
        }
        self.linear("token_embd.weight", dims, device, read)
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
            let bytes = order.apply(self.bytes(name, &extent, read)?, *rows);
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
            Ok((extent.dtype, order.apply(self.bytes(name, &extent, read)?, *rows), *rows))
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
        let bytes = self.bytes(name, &extent, read)?;
        Linear::new(extent.dtype, bytes, dims, device)
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    fn vector(
        &self,
        name: &str,
        length: usize,
        device: &Device,
    ) -> std::result::Result<Tensor, Ending> {
        let extent = self.extent(name)?;
        if extent.dims != [length] {
            return Err(wrong_shape(name, &extent));
        }
        let bytes = self.bytes(name, &extent, &mut 0)?;
        table(bytes, &extent)
            .and_then(|vector| vector.dequantize(device))
            .map_err(|error| Ending::from_candle(&format!("loading `{name}`"), &error))
    }

    /// The angles of all positions. A tensor of factors stretches single frequencies (Llama 3).
    fn rotations(&self, layers: &[Layer]) -> std::result::Result<Vec<(Device, Rotation)>, Ending> {
        let half = self.shape.head_width / 2;
        let stretched = match self.header.extent("rope_freqs.weight")? {
            Some(_) => Some(self.vector("rope_freqs.weight", half, &Device::Cpu)?),
            None => None,
        };
        let made = || -> Result<Vec<(Device, Rotation)>> {
            let all = self.shape.rotation(self.context, stretched.as_ref())?;
            let mut rotations: Vec<(Device, Rotation)> = Vec::new();
            for layer in layers {
                if !rotations.iter().any(|(device, _)| device.same_device(&layer.device)) {
                    let (cos, sin) =
                        (all.cos.to_device(&layer.device)?, all.sin.to_device(&layer.device)?);
                    rotations.push((layer.device.clone(), Rotation { cos, sin }));
                }
            }
            Ok(rotations)
        };
        made().map_err(|error| Ending::from_candle("preparing positions", &error))
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

    fn bytes(
        &self,
        name: &str,
        extent: &Extent,
        read: &mut u64,
    ) -> std::result::Result<Vec<u8>, Ending> {
        let bytes = self.header.bytes(extent).map_err(|error| {
            Ending::missing_file(format!("cannot read tensor `{name}` of the model: {error}"))
        })?;
        *read = read.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        Ok(bytes)
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

impl Shape {
    fn rotation(&self, context: usize, stretched: Option<&Tensor>) -> Result<Rotation> {
        let half = self.head_width / 2;
        let steps = Tensor::arange(0_u32, u32::try_from(half)?, &Device::Cpu)?;
        let exponents = steps
            .to_dtype(candle_core::DType::F32)?
            .affine(f64::from(self.rope_base.ln()) / -to_f64(half), 0.0)?;
        let mut frequencies = exponents.exp()?.affine(1.0 / f64::from(self.rope_factor), 0.0)?;
        if let Some(stretched) = stretched {
            frequencies = (frequencies / stretched)?;
        }
        let positions = Tensor::arange(0_u32, u32::try_from(context)?, &Device::Cpu)?;
        let positions = positions.to_dtype(candle_core::DType::F32)?.reshape((context, 1))?;
        let angles = positions.matmul(&frequencies.reshape((1, half))?)?;
        Ok(Rotation { cos: angles.cos()?, sin: angles.sin()? })
    }
}

#[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a width is small")]
fn to_f64(number: usize) -> f64 {
    number as f64
}

fn table(bytes: Vec<u8>, extent: &Extent) -> Result<QTensor> {
    let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, extent.dtype)?;
    QTensor::new(storage, extent.dims.clone())
}

fn wrong_shape(name: &str, extent: &Extent) -> Ending {
    Ending::bad_model(format!("tensor `{name}` has the unexpected shape {:?}", extent.dims))
}
