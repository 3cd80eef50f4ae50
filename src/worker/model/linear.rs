//! One matrix of weights on a GPU, in the format of the file or as floats.

use std::borrow::Cow;

use candle_core::{
    Device, Result, Tensor,
    quantized::{GgmlDType, QStorage, QTensor},
};

/// A matrix of weights, `rows` outputs by `width` inputs.
#[derive(Debug)]
pub(super) enum Linear {
    /// Weights in blocks, multiplied as they are.
    Blocks(QTensor),
    /// Plain floats, already transposed for the product.
    Floats(Tensor),
}

impl Linear {
    /// Makes a matrix from the bytes of a file's tensor.
    pub(super) fn new(
        dtype: GgmlDType,
        bytes: Vec<u8>,
        dims: (usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let storage = QStorage::from_data(Cow::Owned(bytes), device, dtype)?;
        let weights = QTensor::new(storage, dims)?;
        if matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            return Ok(Self::Floats(weights.dequantize(device)?.t()?));
        }
        Ok(Self::Blocks(weights))
    }

    /// Multiplies `inputs`, one row a position, by the matrix.
    pub(super) fn forward(&self, inputs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Floats(weights) => inputs.matmul(weights),
            Self::Blocks(weights) => inputs.contiguous()?.apply_op1_no_bwd(weights),
        }
    }
}
