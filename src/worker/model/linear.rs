//! One matrix of weights, in the form that this machine multiplies fastest.
//!
//! On the CPU, candle has vector code for some block formats and plain loops for others. A format
//! of the second kind is rewritten, without loss, into one of the first:
//!
//! | in the file | weight        | kept as                         |
//! | ----------- | ------------- | ------------------------------- |
//! | `Q4_1`      | `d·q + m`     | `Q4_0`: `d·(q−8)`, shift `m+8d` |
//! | `Q5_0`      | `d·(q−16)`    | `Q8_0`: `d·(q−16)`              |
//! | `Q5_1`      | `d·q + m`     | `Q8_0`: `d·q`, shift `m`        |
//!
//! A shift is one number a block of 32 weights; it meets the sum of the 32 inputs of that block.
//! Many rows at once (a prompt) are multiplied as plain floats, which the unpacking of the weights
//! pays for from [`DENSE_ROWS`] rows on.

use std::{borrow::Cow, sync::Arc};

use candle_core::{
    D, Device, Result, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::f16;

/// A matrix of weights, `rows` outputs by `width` inputs.
#[derive(Debug)]
pub(crate) enum Linear {
    /// Weights in blocks, multiplied as they are.
    Blocks { weights: Arc<QTensor>, shift: Option<Tensor>, dense: DenseFrom },
    /// Plain floats, already transposed for the product.
    Floats(Tensor),
}

/// From how many rows on the weights are unpacked for one product of floats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DenseFrom {
    Rows(usize),
    Never,
}

impl DenseFrom {
    /// The formats of 256 weights a block have their own fast product for many rows.
    fn of(weights: &QTensor) -> Self {
        match (weights.device(), weights.dtype().block_size()) {
            (Device::Cpu, BLOCK) => Self::Rows(DENSE_ROWS),
            _ => Self::Never,
        }
    }
}

const BLOCK: usize = 32;
const DENSE_ROWS: usize = 24;

impl Linear {
    /// Makes a matrix from the bytes of a file's tensor.
    pub(crate) fn new(
        dtype: GgmlDType,
        bytes: Vec<u8>,
        dims: (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        if matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            let storage = QStorage::from_data(Cow::Owned(bytes), device, dtype)?;
            let weights = QTensor::new(storage, dims)?.dequantize(device)?;
            return Ok(Self::Floats(weights.t()?));
        }
        let (dtype, bytes, shift) = match (device, dtype) {
            (Device::Cpu, GgmlDType::Q4_1) => split_q4_1(&bytes),
            (Device::Cpu, GgmlDType::Q5_0) => widen_q5_0(&bytes),
            (Device::Cpu, GgmlDType::Q5_1) => split_q5_1(&bytes),
            _ => (dtype, bytes, Vec::new()),
        };
        let (rows, width) = dims;
        let shift = if shift.is_empty() {
            None
        } else {
            let shift = Tensor::from_vec(shift, (rows, width / BLOCK), device)?;
            // Outputs lie side by side: a row of inputs meets whole vectors of them.
            Some(shift.t()?.contiguous()?)
        };
        let storage = QStorage::from_data(Cow::Owned(bytes), device, dtype)?;
        let weights = Arc::new(QTensor::new(storage, dims)?);
        Ok(Self::Blocks { dense: DenseFrom::of(&weights), weights, shift })
    }

    /// Makes a matrix of weights that are in use elsewhere too, if they can be used as they are.
    pub(crate) fn shared(weights: &Arc<QTensor>) -> Option<Self> {
        let as_they_are = matches!(weights.dtype(), GgmlDType::Q4_0 | GgmlDType::Q8_0)
            || weights.dtype().block_size() > BLOCK;
        let dense = DenseFrom::of(weights);
        as_they_are.then(|| Self::Blocks { weights: Arc::clone(weights), shift: None, dense })
    }

    /// Multiplies `inputs`, one row a position, by the matrix.
    pub(crate) fn forward(&self, inputs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Floats(weights) => inputs.matmul(weights),
            Self::Blocks { weights, shift, dense } => {
                let (rows, width) = inputs.dims2()?;
                let is_dense = matches!(dense, DenseFrom::Rows(from) if rows >= *from);
                let inputs = inputs.contiguous()?;
                let outputs = if is_dense {
                    inputs.matmul(&weights.dequantize(inputs.device())?.t()?)?
                } else {
                    inputs.apply_op1_no_bwd(weights.as_ref())?
                };
                let Some(shift) = shift else { return Ok(outputs) };
                let sums = inputs.reshape((rows, width / BLOCK, BLOCK))?.sum(D::Minus1)?;
                outputs + sums.matmul(shift)?
            }
        }
    }
}

/// Gives about how many bytes a tensor of `length` bytes in the file takes once it is in use.
pub(super) fn resident_bytes(dtype: GgmlDType, length: usize) -> u64 {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    // New size over old size; two sizes where candle keeps a second, packed copy.
    let packed_twice = cfg!(target_arch = "x86_64");
    let (new, old) = match dtype {
        GgmlDType::Q4_1 => (22, 20),
        GgmlDType::Q5_0 => (34, 22),
        GgmlDType::Q5_1 => (38, 24),
        GgmlDType::F16 | GgmlDType::BF16 => (2, 1),
        GgmlDType::Q4K | GgmlDType::Q6K if packed_twice => (23, 10),
        GgmlDType::F32
        | GgmlDType::Q4_0
        | GgmlDType::Q8_0
        | GgmlDType::Q8_1
        | GgmlDType::Q2K
        | GgmlDType::Q3K
        | GgmlDType::Q4K
        | GgmlDType::Q5K
        | GgmlDType::Q6K
        | GgmlDType::Q8K => (1, 1),
    };
    length.saturating_mul(new) / old
}

type Parts = (GgmlDType, Vec<u8>, Vec<f32>);

fn split_q4_1(bytes: &[u8]) -> Parts {
    let (blocks, _) = bytes.as_chunks::<20>();
    let mut packed = vec![0; blocks.len() * 18];
    let mut shifts = vec![0.0; blocks.len()];
    let (rewritten, _) = packed.as_chunks_mut::<18>();
    for ((block, to), shift) in blocks.iter().zip(rewritten).zip(&mut shifts) {
        let [d0, d1, m0, m1, nibbles @ ..] = block;
        let [to_d0, to_d1, to_nibbles @ ..] = to;
        (*to_d0, *to_d1, *to_nibbles) = (*d0, *d1, *nibbles);
        let scale = f16::from_le_bytes([*d0, *d1]).to_f32();
        *shift = f16::from_le_bytes([*m0, *m1]).to_f32() + 8.0 * scale;
    }
    (GgmlDType::Q4_0, packed, shifts)
}

fn widen_q5_0(bytes: &[u8]) -> Parts {
    let (blocks, _) = bytes.as_chunks::<22>();
    let mut packed = Vec::with_capacity(blocks.len() * 34);
    for [d0, d1, h0, h1, h2, h3, nibbles @ ..] in blocks {
        packed.extend([*d0, *d1]);
        packed.extend(five_bits([*h0, *h1, *h2, *h3], nibbles).map(|q| q.wrapping_sub(16)));
    }
    (GgmlDType::Q8_0, packed, Vec::new())
}

fn split_q5_1(bytes: &[u8]) -> Parts {
    let (blocks, _) = bytes.as_chunks::<24>();
    let mut packed = Vec::with_capacity(blocks.len() * 34);
    let mut shifts = Vec::with_capacity(blocks.len());
    for [d0, d1, m0, m1, h0, h1, h2, h3, nibbles @ ..] in blocks {
        packed.extend([*d0, *d1]);
        packed.extend(five_bits([*h0, *h1, *h2, *h3], nibbles));
        shifts.push(f16::from_le_bytes([*m0, *m1]).to_f32());
    }
    (GgmlDType::Q8_0, packed, shifts)
}

/// Gives the 32 values of a block: low nibbles first, then the high ones, the fifth bits apart.
fn five_bits(fifth: [u8; 4], nibbles: &[u8; 16]) -> impl Iterator<Item = u8> {
    let fifth = u32::from_le_bytes(fifth);
    let low = nibbles.iter().map(|byte| byte & 15);
    let high = nibbles.iter().map(|byte| byte >> 4);
    low.chain(high).zip(0_u32..).map(move |(q, at)| if fifth >> at & 1 == 1 { q | 16 } else { q })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rewritten matrix must multiply as the original's unpacked floats do.
    fn rewritten_multiplies_alike(dtype: GgmlDType, rows: usize) {
        let (outputs, width) = (8, 64);
        let device = Device::Cpu;
        let noise = |count: usize, step: f32| -> Vec<f32> {
            (0_u16..).take(count).map(|i| (f32::from(i) * step).sin()).collect()
        };
        let plain =
            Tensor::from_vec(noise(outputs * width, 0.37), (outputs, width), &device).unwrap();
        let original = QTensor::quantize(&plain, dtype).unwrap();
        let inputs = Tensor::from_vec(noise(rows * width, 0.11), (rows, width), &device).unwrap();
        let wanted = inputs.matmul(&original.dequantize(&device).unwrap().t().unwrap()).unwrap();
        let bytes = original.data().unwrap().to_vec();
        let linear = Linear::new(dtype, bytes, (outputs, width), &device).unwrap();
        let found = linear.forward(&inputs).unwrap();
        let difference = (found - wanted).unwrap().abs().unwrap().max_all().unwrap();
        let difference: f32 = difference.to_scalar().unwrap();
        assert!(difference < 0.1, "{dtype:?}: {difference}");
    }

    #[test]
    fn formats_without_vector_code_are_rewritten_without_loss() {
        for dtype in [GgmlDType::Q4_1, GgmlDType::Q5_0, GgmlDType::Q5_1, GgmlDType::Q8_0] {
            rewritten_multiplies_alike(dtype, 1);
            rewritten_multiplies_alike(dtype, DENSE_ROWS + 1);
        }
    }
}
