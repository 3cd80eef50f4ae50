//! Matrices of weights on the host: read in place from the mapped file.
//!
//! A format that the kernels of this machine do not know is copied, and multiplied by candle's code
//! for blocks. Both ways give each row of inputs the same result whatever rows come with it.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use candle_core::{
    Result,
    quantized::{GgmlDType, QuantizedType},
    utils::barrier_pool,
};
use memmap2::Mmap;
use slotd_kernels::{Activations, Format, Matrix, Pool, multiply};

use super::header::Extent;

/// A matrix of weights, `rows` outputs by `width` inputs.
pub(crate) struct HostMatrix {
    pub(crate) rows: usize,
    width: usize,
    pub(super) dtype: GgmlDType,
    file: Arc<Mmap>,
    range: Range<usize>,
    kind: Kind,
}

enum Kind {
    /// Multiplied as it lies in the file.
    Mapped(Format),
    /// Copied, for want of a kernel.
    Copied(Box<dyn QuantizedType>),
}

/// Gives the threads that compute: those of candle.
pub(crate) fn pool() -> Pool {
    let pool = barrier_pool();
    Pool::new(pool.n_workers().saturating_add(1), |count, task| {
        barrier_pool().execute_chunked(count, task);
    })
}

impl HostMatrix {
    /// Makes a matrix of a tensor that lies within `file`.
    pub(crate) fn new(file: &Arc<Mmap>, extent: &Extent) -> Option<Self> {
        let [rows, width] = *extent.dims.as_slice() else { return None };
        let range = extent.range()?;
        let bytes = file.get(range.clone())?;
        let kind = match format(extent.dtype).filter(|format| Matrix::supported(*format, width)) {
            Some(format) => Kind::Mapped(format),
            // A vector of bytes is aligned as any block must be; a place in a file need not be.
            None => Kind::Copied(extent.dtype.from_data(Cow::Owned(bytes.to_vec()))),
        };
        Some(Self { rows, width, dtype: extent.dtype, file: Arc::clone(file), range, kind })
    }

    /// Gives row `at` as floats.
    pub(crate) fn row(&self, at: usize) -> Result<Vec<f32>> {
        let length = self.range.len().checked_div(self.rows).unwrap_or(0);
        let start = at.saturating_mul(length);
        let row = self.bytes().get(start..start.saturating_add(length));
        let Some(row) = row.filter(|_| at < self.rows) else {
            candle_core::bail!("row {at} of {}", self.rows)
        };
        let row = self.dtype.from_data(Cow::Owned(row.to_vec())).dequantize(self.width)?;
        Ok(row.as_slice::<f32>()?.to_vec())
    }

    /// Reads all pages in, so that no request waits for a disk.
    pub(crate) fn touch(&self) {
        const PAGE: usize = 4096;
        if let Kind::Mapped(_) = self.kind {
            let sum = self.bytes().iter().step_by(PAGE).fold(0_u8, |sum, byte| sum ^ byte);
            std::hint::black_box(sum);
        }
    }

    fn bytes(&self) -> &[u8] {
        self.file.get(self.range.clone()).unwrap_or_default()
    }
}

/// Multiplies `inputs` by each of `matrices`.
pub(crate) fn products<const N: usize>(
    pool: Pool,
    inputs: &Activations,
    matrices: [&HostMatrix; N],
) -> Result<[Vec<f32>; N]> {
    let mapped = matrices.map(|matrix| match &matrix.kind {
        Kind::Mapped(format) => {
            Some(Matrix { format: *format, bytes: matrix.bytes(), rows: matrix.rows })
        }
        Kind::Copied(_) => None,
    });
    if mapped.iter().all(Option::is_some) {
        let mapped: Vec<Matrix<'_>> = mapped.into_iter().flatten().collect();
        let mut outputs = multiply(pool, inputs, &mapped).into_iter();
        return Ok(std::array::from_fn(|_| outputs.next().unwrap_or_default()));
    }
    let mut outputs = [const { Vec::new() }; N];
    for (output, (matrix, mapped)) in outputs.iter_mut().zip(matrices.iter().zip(mapped)) {
        *output = match (&matrix.kind, mapped) {
            (Kind::Mapped(_), mapped) => {
                multiply(pool, inputs, mapped.as_slice()).pop().unwrap_or_default()
            }
            (Kind::Copied(blocks), _) => {
                let rows = inputs.floats().len().checked_div(matrix.width).unwrap_or(0);
                let mut output = vec![0.0; rows.saturating_mul(matrix.rows)];
                blocks.matmul_t((rows, matrix.width, matrix.rows), inputs.floats(), &mut output)?;
                output
            }
        };
    }
    Ok(outputs)
}

/// Gives the kernels' name of a format.
fn format(dtype: GgmlDType) -> Option<Format> {
    Some(match dtype {
        GgmlDType::F32 => Format::F32,
        GgmlDType::F16 => Format::F16,
        GgmlDType::BF16 => Format::Bf16,
        GgmlDType::Q4_0 => Format::Q4_0,
        GgmlDType::Q4_1 => Format::Q4_1,
        GgmlDType::Q5_0 => Format::Q5_0,
        GgmlDType::Q5_1 => Format::Q5_1,
        GgmlDType::Q8_0 => Format::Q8_0,
        GgmlDType::Q2K => Format::Q2K,
        GgmlDType::Q3K => Format::Q3K,
        GgmlDType::Q4K => Format::Q4K,
        GgmlDType::Q5K => Format::Q5K,
        GgmlDType::Q6K => Format::Q6K,
        GgmlDType::Q8_1 | GgmlDType::Q8K => return None,
    })
}

impl fmt::Debug for HostMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMatrix({} x {} {:?})", self.rows, self.width, self.dtype)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use candle_core::{Device, Tensor, quantized::QTensor};

    use super::*;
    use crate::worker::model::reference::{rounded, wide};

    const FORMATS: [GgmlDType; 13] = [
        GgmlDType::F32,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];

    /// Numbers of all sizes, each block of 32 of its own, some of them zero.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            f32::from(i16::from_ne_bytes([state.to_be_bytes()[0], state.to_be_bytes()[1]]))
                / 32768.0
        };
        let mut numbers = Vec::with_capacity(count + 32);
        while numbers.len() < count {
            let size = next();
            let size = if size.abs() < 0.05 { 0.0 } else { (size * 4.0).exp2() };
            numbers.extend(std::array::from_fn::<f32, 32, _>(|_| next() * next() * size));
        }
        numbers.truncate(count);
        numbers
    }

    fn matrix(dtype: GgmlDType, rows: usize, width: usize) -> (HostMatrix, Vec<f32>) {
        let plain = Tensor::from_vec(noise(rows * width, 3), (rows, width), &Device::Cpu);
        let weights = QTensor::quantize(&plain.unwrap(), dtype).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&weights.data().unwrap()).unwrap();
        let file = Arc::new(super::super::header::map(&file).unwrap());
        let extent = Extent::whole(dtype, vec![rows, width], file.len());
        let matrix = HostMatrix::new(&file, &extent).unwrap();
        let floats = weights.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
        (matrix, floats.to_vec1().unwrap())
    }

    #[test]
    fn a_product_is_that_of_the_unpacked_weights_and_the_rounded_inputs() {
        for dtype in FORMATS {
            let blocks = dtype.block_size() > 1;
            let widths: &[usize] = match dtype.block_size() {
                1 => &[1, 7, 33, 100, 256],
                32 => &[32, 96, 256, 288, 576],
                _ => &[256, 768],
            };
            for (width, rows) in widths.iter().flat_map(|width| [(*width, 1), (*width, 77)]) {
                let (matrix, floats) = matrix(dtype, rows, width);
                let inputs = noise(67 * width, 5);
                let rounded = if blocks { rounded(&inputs) } else { wide(&inputs) };
                let floats = wide(&floats);
                for count in [1, 3, 67] {
                    let some = inputs[..count * width].to_vec();
                    let [made] =
                        products(pool(), &Activations::new(pool(), some, width), [&matrix])
                            .unwrap();
                    assert_eq!(made.len(), count * rows);
                    check((dtype, rows), &made, &rounded[..count * width], &floats);
                }
                let row = matrix.row(rows - 1).unwrap();
                assert_eq!(wide(&row), floats[(rows - 1) * width..]);
            }
        }
    }

    fn check((dtype, rows): (GgmlDType, usize), made: &[f32], inputs: &[f64], floats: &[f64]) {
        let width = floats.len() / rows;
        for (at, made) in made.iter().enumerate() {
            let input = &inputs[at / rows * width..][..width];
            let terms =
                || floats[at % rows * width..][..width].iter().zip(input).map(|(a, b)| a * b);
            let (wanted, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
            let off = (f64::from(*made) - wanted).abs();
            let place = format!("{dtype:?} {rows}x{width} at {at}");
            assert!(off <= size * 1e-5 + 1e-12, "{place}: {made} {wanted} of {size}");
        }
    }

    #[test]
    fn a_row_gives_the_same_alone_as_among_any_others() {
        for dtype in FORMATS {
            let (rows, width) = (150, 768);
            let (matrix, _) = matrix(dtype, rows, width);
            let inputs = noise(71 * width, 7);
            let all = Activations::new(pool(), inputs.clone(), width);
            let [all] = products(pool(), &all, [&matrix]).unwrap();
            for (first, count) in [(0, 1), (70, 1), (3, 2), (5, 3), (8, 4), (11, 13), (1, 66)] {
                let some = inputs[first * width..(first + count) * width].to_vec();
                let some = Activations::new(Pool::inline(), some, width);
                let [some] = products(Pool::inline(), &some, [&matrix]).unwrap();
                let wanted = &all[first * rows..(first + count) * rows];
                assert_eq!(some, wanted, "{dtype:?}: {count} rows from {first}");
            }
        }
    }
}
