//! Rows of inputs times matrices of weights.

use std::ops::Range;

use crate::{activations::Activations, format::Format, pool::Pool};

/// A matrix of weights as it lies in a file: `rows` outputs by `width` inputs.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How `bytes` are to be read.
    pub format: Format,
    /// `rows` rows, one after the other.
    pub bytes: &'a [u8],
    /// Outputs.
    pub rows: usize,
}

/// Rows of weights that are unpacked together.
const GROUP: usize = 8;
/// Outputs that a thread computes before it looks for more, where there are few rows of inputs.
const COLUMNS: usize = 64;
/// From how many rows of inputs on threads share them, and each reads all weights.
const MANY: usize = 64;

impl Matrix<'_> {
    /// Says whether this machine multiplies by matrices of this kind.
    pub fn supported(format: Format, width: usize) -> bool {
        has_avx2() && (format.block().0 == 1 || width.is_multiple_of(format.block().0.max(32)))
    }
}

/// Says whether the processor has the instructions of the innermost loops.
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Multiplies `inputs` by each of `matrices`; gives for each the rows of its outputs.
///
/// # Panics
/// Where [`Matrix::supported`] says no, or a matrix is not as large as it says.
pub fn multiply(pool: Pool, inputs: &Activations, matrices: &[Matrix<'_>]) -> Vec<Vec<f32>> {
    for matrix in matrices {
        assert!(Matrix::supported(matrix.format, inputs.width), "the format is supported");
        let row = matrix.format.row_bytes(inputs.width);
        assert_eq!(matrix.bytes.len(), matrix.rows * row, "a matrix has all its rows");
    }
    if inputs.rows >= MANY { many(pool, inputs, matrices) } else { few(pool, inputs, matrices) }
}

/// A thread computes all outputs of some rows.
fn many(pool: Pool, inputs: &Activations, matrices: &[Matrix<'_>]) -> Vec<Vec<f32>> {
    // A unit is whole tiles of four rows, and small enough that all threads have something to do.
    let each = (inputs.rows / (pool.threads() * 2)).clamp(8, 32) / 4 * 4;
    let mut outputs: Vec<Vec<f32>> =
        matrices.iter().map(|matrix| vec![0.0; inputs.rows * matrix.rows]).collect();
    let mut units: Vec<(usize, &Matrix<'_>, &mut [f32])> = Vec::new();
    for (outputs, matrix) in outputs.iter_mut().zip(matrices) {
        let parts = outputs.chunks_mut((each * matrix.rows).max(1));
        units.extend(parts.enumerate().map(|(at, part)| (at * each, matrix, part)));
    }
    pool.each(units, |_, (first, matrix, outputs)| {
        let rows = outputs.len() / matrix.rows.max(1);
        for start in (0..matrix.rows).step_by(GROUP) {
            let group = start..matrix.rows.min(start + GROUP);
            let part = Part { rows: *first..*first + rows, group, stride: matrix.rows };
            columns(inputs, matrix, &part, &mut outputs[start..]);
        }
    });
    outputs
}

/// A thread computes some outputs of all rows.
fn few(pool: Pool, inputs: &Activations, matrices: &[Matrix<'_>]) -> Vec<Vec<f32>> {
    let each = COLUMNS * inputs.rows;
    let parts: usize = matrices.iter().map(|matrix| matrix.rows.div_ceil(COLUMNS)).sum();
    let mut made = vec![0.0; parts * each];
    let starts = matrices
        .iter()
        .flat_map(|matrix| (0..matrix.rows).step_by(COLUMNS).map(move |start| (matrix, start)));
    let units: Vec<_> = starts.zip(made.chunks_mut(each.max(1))).collect();
    pool.each(units, |_, ((matrix, start), outputs)| {
        let end = matrix.rows.min(*start + COLUMNS);
        for first in (*start..end).step_by(GROUP) {
            let group = first..end.min(first + GROUP);
            let part = Part { rows: 0..inputs.rows, group, stride: COLUMNS };
            columns(inputs, matrix, &part, &mut outputs[first - *start..]);
        }
    });
    let mut parts = made.chunks(each.max(1));
    matrices.iter().map(|matrix| gather(inputs.rows, matrix.rows, &mut parts)).collect()
}

fn gather<'a>(rows: usize, width: usize, parts: &mut impl Iterator<Item = &'a [f32]>) -> Vec<f32> {
    let mut outputs = vec![0.0; rows * width];
    for start in (0..width).step_by(COLUMNS) {
        let Some(part) = parts.next() else { break };
        let count = COLUMNS.min(width - start);
        for (outputs, part) in outputs.chunks_exact_mut(width).zip(part.chunks_exact(COLUMNS)) {
            outputs[start..start + count].copy_from_slice(&part[..count]);
        }
    }
    outputs
}

/// A part of a product.
struct Part {
    /// Rows of inputs.
    rows: Range<usize>,
    /// Rows of weights, at most [`GROUP`].
    group: Range<usize>,
    /// How far the outputs of one row lie from those of the next.
    stride: usize,
}

#[cfg(not(target_arch = "x86_64"))]
fn columns(_: &Activations, _: &Matrix<'_>, _: &Part, _: &mut [f32]) {}

/// Multiplies some rows of inputs by a group of rows of weights.
#[cfg(target_arch = "x86_64")]
fn columns(inputs: &Activations, matrix: &Matrix<'_>, part: &Part, outputs: &mut [f32]) {
    // SAFETY: `multiply` has asked whether the processor has these features.
    #[expect(unsafe_code, reason = "vector code is entered where the processor has it")]
    unsafe {
        vector::columns(inputs, matrix, part, outputs);
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::cell::RefCell;

    use super::{GROUP, Matrix, Part};
    use crate::{
        activations::Activations,
        block,
        format::{Format, Kind},
        tile::{self, HALVES, SHIFTED, SIGNED, WeightBlocks},
        unpack::Unpacked,
        wide_block,
    };

    thread_local! {
        static UNPACKED: RefCell<Unpacked> = RefCell::default();
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn columns(
        inputs: &Activations,
        matrix: &Matrix<'_>,
        part: &Part,
        outputs: &mut [f32],
    ) {
        let row_bytes = matrix.format.row_bytes(inputs.width);
        let bytes = &matrix.bytes[part.group.start * row_bytes..part.group.end * row_bytes];
        if part.rows.len() == 1 {
            let done = match matrix.format {
                Format::Q4_0 => one_row::<{ block::Q4_0 }, 18>(inputs, part, bytes, outputs),
                Format::Q4_1 => one_row::<{ block::Q4_1 }, 20>(inputs, part, bytes, outputs),
                Format::Q5_0 => one_row::<{ block::Q5_0 }, 22>(inputs, part, bytes, outputs),
                Format::Q5_1 => one_row::<{ block::Q5_1 }, 24>(inputs, part, bytes, outputs),
                Format::Q8_0 => one_row::<{ block::Q8_0 }, 34>(inputs, part, bytes, outputs),
                Format::Q2K => wide_row::<{ wide_block::Q2_K }, 84>(inputs, part, bytes, outputs),
                Format::Q3K => wide_row::<{ wide_block::Q3_K }, 110>(inputs, part, bytes, outputs),
                Format::Q4K => wide_row::<{ wide_block::Q4_K }, 144>(inputs, part, bytes, outputs),
                Format::Q5K => wide_row::<{ wide_block::Q5_K }, 176>(inputs, part, bytes, outputs),
                Format::Q6K => wide_row::<{ wide_block::Q6_K }, 210>(inputs, part, bytes, outputs),
                Format::F32 | Format::F16 | Format::Bf16 => false,
            };
            if done {
                return;
            }
        }
        UNPACKED.with_borrow_mut(|unpacked| {
            unpacked_columns(inputs, (matrix, part), bytes, unpacked, outputs);
        });
    }

    /// Multiplies one row of inputs by a group of rows of weights, two at a time, as they lie in
    /// the file.
    macro_rules! one_row {
        ($name:ident, $tile:ident) => {
            #[inline]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn $name<const FORMAT: u8, const SIZE: usize>(
                inputs: &Activations,
                part: &Part,
                bytes: &[u8],
                outputs: &mut [f32],
            ) -> bool {
                let row_bytes = bytes.len() / part.group.len();
                let input = inputs.row(part.rows.start);
                let mut pairs = bytes.chunks_exact(row_bytes * 2);
                let mut to = outputs.chunks_mut(2);
                for (pair, to) in (&mut pairs).zip(&mut to) {
                    let (first, second) = pair.split_at(row_bytes);
                    let made = tile::$tile::<FORMAT, SIZE>(input, [first, second]);
                    to.copy_from_slice(&made[..to.len()]);
                }
                if let (false, Some(to)) = (pairs.remainder().is_empty(), to.next()) {
                    to[0] = tile::$tile::<FORMAT, SIZE>(input, [pairs.remainder(); 2])[0];
                }
                true
            }
        };
    }

    one_row!(one_row, packed);
    one_row!(wide_row, packed_wide);

    #[target_feature(enable = "avx2,fma,f16c")]
    fn unpacked_columns(
        inputs: &Activations,
        (matrix, part): (&Matrix<'_>, &Part),
        bytes: &[u8],
        unpacked: &mut Unpacked,
        outputs: &mut [f32],
    ) {
        let count = part.group.len();
        unpacked.fit(matrix.format, GROUP, inputs.width);
        for (at, bytes) in bytes.chunks_exact(bytes.len() / count).enumerate() {
            unpack(unpacked, matrix.format, at, bytes, inputs.width);
        }
        let mut row = part.rows.start;
        let mut outputs = outputs.chunks_mut(part.stride);
        while row < part.rows.end {
            let taken = match part.rows.end - row {
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            let to = [outputs.next(), None, None, None];
            let mut to = to.map(Option::unwrap_or_default);
            for to in to.iter_mut().take(taken).skip(1) {
                *to = outputs.next().unwrap_or_default();
            }
            match (matrix.format.kind(), taken) {
                (Kind::Floats, 4) => floats_4(inputs, row, unpacked, count, &mut to),
                (Kind::Floats, 2) => floats_2(inputs, row, unpacked, count, &mut to),
                (Kind::Floats, _) => floats_1(inputs, row, unpacked, count, &mut to),
                (Kind::Shifted, 4) => blocks_4::<SHIFTED>(inputs, row, unpacked, count, &mut to),
                (Kind::Shifted, 2) => blocks_2::<SHIFTED>(inputs, row, unpacked, count, &mut to),
                (Kind::Shifted, _) => blocks_1::<SHIFTED>(inputs, row, unpacked, count, &mut to),
                (Kind::Signed, 4) => blocks_4::<SIGNED>(inputs, row, unpacked, count, &mut to),
                (Kind::Signed, 2) => blocks_2::<SIGNED>(inputs, row, unpacked, count, &mut to),
                (Kind::Signed, _) => blocks_1::<SIGNED>(inputs, row, unpacked, count, &mut to),
                (Kind::Halves, 4) => blocks_4::<HALVES>(inputs, row, unpacked, count, &mut to),
                (Kind::Halves, 2) => blocks_2::<HALVES>(inputs, row, unpacked, count, &mut to),
                (Kind::Halves, _) => blocks_1::<HALVES>(inputs, row, unpacked, count, &mut to),
            }
            row += taken;
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn unpack(unpacked: &mut Unpacked, format: Format, at: usize, bytes: &[u8], width: usize) {
        match format {
            Format::Q4_0 => legacy::<{ block::Q4_0 }, 18>(unpacked, at, bytes, width),
            Format::Q4_1 => legacy::<{ block::Q4_1 }, 20>(unpacked, at, bytes, width),
            Format::Q5_0 => legacy::<{ block::Q5_0 }, 22>(unpacked, at, bytes, width),
            Format::Q5_1 => legacy::<{ block::Q5_1 }, 24>(unpacked, at, bytes, width),
            Format::Q8_0 => legacy::<{ block::Q8_0 }, 34>(unpacked, at, bytes, width),
            Format::Q2K => wide::<{ wide_block::Q2_K }, 84>(unpacked, at, bytes, width),
            Format::Q3K => wide::<{ wide_block::Q3_K }, 110>(unpacked, at, bytes, width),
            Format::Q4K => wide::<{ wide_block::Q4_K }, 144>(unpacked, at, bytes, width),
            Format::Q5K => wide::<{ wide_block::Q5_K }, 176>(unpacked, at, bytes, width),
            Format::Q6K => wide::<{ wide_block::Q6_K }, 210>(unpacked, at, bytes, width),
            Format::F32 | Format::F16 | Format::Bf16 => unpacked.widen(format, at, bytes, width),
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn legacy<const FORMAT: u8, const SIZE: usize>(
        unpacked: &mut Unpacked,
        at: usize,
        bytes: &[u8],
        width: usize,
    ) {
        let (blocks, _) = bytes.as_chunks::<SIZE>();
        let row = unpacked.row_mut(at, width);
        for ((blocks, scales), mins) in blocks.chunks(8).zip(row.scales).zip(row.mins) {
            let (scale, min) = block::scales::<FORMAT, SIZE>(blocks);
            tile::store(scales, scale);
            tile::store(mins, min);
        }
        for (block, quants) in blocks.iter().zip(row.quants) {
            tile::store_u8(quants, block::quants::<FORMAT, SIZE>(block));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn wide<const FORMAT: u8, const SIZE: usize>(
        unpacked: &mut Unpacked,
        at: usize,
        bytes: &[u8],
        width: usize,
    ) {
        let row = unpacked.row_mut(at, width);
        let eights = row.quants.as_chunks_mut::<8>().0.iter_mut();
        let eights = eights.zip(row.steps.as_chunks_mut::<8>().0);
        for (n, (block, (quants, steps))) in
            bytes.as_chunks::<SIZE>().0.iter().zip(eights).enumerate()
        {
            let scales = wide_block::scales::<FORMAT, SIZE>(block);
            tile::store(&mut row.scales[n], scales.each);
            if wide_block::has_halves(FORMAT) {
                tile::store(&mut row.half_mins[n][0], scales.mins[0]);
                tile::store(&mut row.half_mins[n][1], scales.mins[1]);
                for (at, steps) in steps.iter_mut().enumerate() {
                    tile::store_i16(steps, scales.steps(at));
                }
            } else {
                tile::store(&mut row.mins[n], scales.mins[0]);
            }
            for part in 0..2 {
                let four = wide_block::quants::<FORMAT, SIZE>(block, part);
                for (to, from) in quants[part * 4..].iter_mut().zip(four) {
                    tile::store_u8(to, from);
                }
            }
        }
    }

    /// Writes the products of some rows of inputs and all unpacked rows of weights; a rest of
    /// weights that fills no tile is filled up with its last row.
    macro_rules! rows {
        ($blocks:ident, $floats:ident, $rows:literal, $columns:literal, [$($row:literal)*], [$($column:literal)*]) => {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn $blocks<const MODE: u8>(
                inputs: &Activations,
                first: usize,
                unpacked: &Unpacked,
                count: usize,
                outputs: &mut [&mut [f32]; 4],
            ) {
                let rows = [$(inputs.row(first + $row)),*];
                for start in (0..count).step_by($columns) {
                    let weights = [$(
                        WeightBlocks::of(unpacked, (start + $column).min(count - 1), inputs.width)
                    ),*];
                    let made = tile::$blocks::<MODE>(rows, weights);
                    let taken = $columns.min(count - start);
                    $(outputs[$row][start..start + taken].copy_from_slice(&made[$row][..taken]);)*
                }
            }

            #[target_feature(enable = "avx2,fma,f16c")]
            fn $floats(
                inputs: &Activations,
                first: usize,
                unpacked: &Unpacked,
                count: usize,
                outputs: &mut [&mut [f32]; 4],
            ) {
                let width = inputs.width;
                let rows = [$(&inputs.floats[(first + $row) * width..(first + $row + 1) * width]),*];
                for start in (0..count).step_by($columns) {
                    let weights = [$({
                        let at = (start + $column).min(count - 1);
                        &unpacked.floats[at * width..(at + 1) * width]
                    }),*];
                    let made = tile::$floats(rows, weights);
                    let taken = $columns.min(count - start);
                    $(outputs[$row][start..start + taken].copy_from_slice(&made[$row][..taken]);)*
                }
            }
        };
    }

    rows!(blocks_4, floats_4, 4, 2, [0 1 2 3], [0 1]);
    rows!(blocks_2, floats_2, 2, 4, [0 1], [0 1 2 3]);
    rows!(blocks_1, floats_1, 1, 4, [0], [0 1 2 3]);
}
