//! Rows of weights out of a file's blocks: small integers with their scales, or floats.
//!
//! Source: `ggml-quants.c` of ggml, the functions `dequantize_row_*`.

use crate::{
    activations::{BLOCK, LANES},
    format::Format,
};

/// Rows of weights on their way into a product; kept and filled anew for each group of rows.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    pub(crate) quants: Vec<[u8; BLOCK]>,
    pub(crate) scales: Vec<[f32; LANES]>,
    pub(crate) mins: Vec<[f32; LANES]>,
    pub(crate) half_scales: Vec<[[f32; LANES]; 2]>,
    pub(crate) half_mins: Vec<[[f32; LANES]; 2]>,
    pub(crate) floats: Vec<f32>,
}

/// The parts of one row: integers, scales, mins.
type RowParts<'a> = (&'a mut [[u8; BLOCK]], &'a mut [[f32; LANES]], &'a mut [[f32; LANES]]);

/// One row of weights being filled.
struct RowMut<'a> {
    quants: &'a mut [[u8; BLOCK]],
    scales: &'a mut [f32],
    mins: &'a mut [f32],
    half_scales: &'a mut [f32],
    half_mins: &'a mut [f32],
}

impl Unpacked {
    /// Makes room for `rows` rows of `width` weights.
    pub(crate) fn fit(&mut self, format: Format, rows: usize, width: usize) {
        if format.block().0 == 1 {
            self.floats.resize(rows * width, 0.0);
            return;
        }
        let blocks = width / BLOCK;
        let groups = blocks.div_ceil(LANES);
        self.quants.resize(rows * blocks, [0; BLOCK]);
        self.scales.resize(rows * groups, [0.0; LANES]);
        self.mins.resize(rows * groups, [0.0; LANES]);
        self.half_scales.resize(rows * groups, [[0.0; LANES]; 2]);
        self.half_mins.resize(rows * groups, [[0.0; LANES]; 2]);
    }

    /// Gives the places of row `at`: integers, scales, mins.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, at: usize, width: usize) -> RowParts<'_> {
        let blocks = width / BLOCK;
        let groups = blocks.div_ceil(LANES);
        (
            &mut self.quants[at * blocks..(at + 1) * blocks],
            &mut self.scales[at * groups..(at + 1) * groups],
            &mut self.mins[at * groups..(at + 1) * groups],
        )
    }

    /// Unpacks `bytes` as row `at`.
    #[inline(always)]
    pub(crate) fn unpack(&mut self, format: Format, at: usize, bytes: &[u8], width: usize) {
        if format.block().0 == 1 {
            floats(format, bytes, &mut self.floats[at * width..(at + 1) * width]);
            return;
        }
        let blocks = width / BLOCK;
        let groups = blocks.div_ceil(LANES);
        let of_row = at * groups..(at + 1) * groups;
        let mut row = RowMut {
            quants: &mut self.quants[at * blocks..(at + 1) * blocks],
            scales: self.scales[of_row.clone()].as_flattened_mut(),
            mins: self.mins[of_row.clone()].as_flattened_mut(),
            half_scales: self.half_scales[of_row.clone()].as_flattened_mut().as_flattened_mut(),
            half_mins: self.half_mins[of_row].as_flattened_mut().as_flattened_mut(),
        };
        match format {
            Format::Q4_0 => legacy::<18>(bytes, row, |block| {
                let scale = half(block, 0);
                (nibbles(block, 2), scale, -8.0 * scale)
            }),
            Format::Q4_1 => {
                legacy::<20>(bytes, row, |block| {
                    (nibbles(block, 4), half(block, 0), half(block, 2))
                });
            }
            Format::Q5_0 => legacy::<22>(bytes, row, |block| {
                let scale = half(block, 0);
                (fifth_bits(nibbles(block, 6), block, 2), scale, -16.0 * scale)
            }),
            Format::Q5_1 => legacy::<24>(bytes, row, |block| {
                (fifth_bits(nibbles(block, 8), block, 4), half(block, 0), half(block, 2))
            }),
            Format::Q8_0 => legacy::<34>(bytes, row, |block| {
                let mut quants = [0; BLOCK];
                quants.copy_from_slice(&block[2..]);
                (quants, half(block, 0), 0.0)
            }),
            Format::Q2K => q2k(bytes, &mut row),
            Format::Q3K => q3k(bytes, &mut row),
            Format::Q4K => q4k(bytes, &mut row),
            Format::Q5K => q5k(bytes, &mut row),
            Format::Q6K => q6k(bytes, &mut row),
            Format::F32 | Format::F16 | Format::Bf16 => {}
        }
    }
}

#[inline(always)]
fn floats(format: Format, bytes: &[u8], to: &mut [f32]) {
    match format {
        Format::F32 => {
            for (to, from) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        Format::F16 => {
            for (to, from) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = widen(u16::from_le_bytes(*from));
            }
        }
        _ => {
            for (to, from) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
            }
        }
    }
}

#[inline(always)]
fn legacy<const SIZE: usize>(
    bytes: &[u8],
    row: RowMut<'_>,
    read: impl Fn(&[u8; SIZE]) -> ([u8; BLOCK], f32, f32),
) {
    let blocks = bytes.as_chunks::<SIZE>().0.iter();
    let scales = row.scales.iter_mut().zip(row.mins);
    for ((block, quants), (scale, min)) in blocks.zip(row.quants).zip(scales) {
        (*quants, *scale, *min) = read(block);
    }
}

/// Gives the 16-bit float at `at`.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    widen(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Widens a 16-bit float that is finite, as scales are.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    /// 2 to the 112: what the exponents of the two formats differ by.
    const SHIFT: f32 = f32::from_bits(0x7780_0000);
    let most = f32::from_bits(u32::from(bits & 0x7FFF) << 13) * SHIFT;
    f32::from_bits(most.to_bits() | u32::from(bits & 0x8000) << 16)
}

/// Low nibbles first, then the high ones.
#[inline(always)]
fn nibbles(block: &[u8], from: usize) -> [u8; BLOCK] {
    let mut quants = [0; BLOCK];
    let (low, high) = quants.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&block[from..from + 16]) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    quants
}

#[inline(always)]
fn fifth_bits(mut quants: [u8; BLOCK], block: &[u8], from: usize) -> [u8; BLOCK] {
    let bits = [block[from], block[from + 1], block[from + 2], block[from + 3]];
    for (eight, bits) in quants.as_chunks_mut::<8>().0.iter_mut().zip(bits) {
        for (bit, quant) in (0..8).zip(eight) {
            *quant |= (bits >> bit & 1) << 4;
        }
    }
    quants
}

/// Scale and min of block `at` of eight.
#[inline(always)]
fn six_bits(at: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if at < 4 {
        (packed[at] & 63, packed[at + 4] & 63)
    } else {
        (packed[at + 4] & 15 | packed[at - 4] >> 6 << 4, packed[at + 4] >> 4 | packed[at] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

#[inline(always)]
fn q4k(bytes: &[u8], row: &mut RowMut<'_>) {
    for (n, block) in bytes.as_chunks::<144>().0.iter().enumerate() {
        let (scale, min) = (half(block, 0), half(block, 2));
        for at in 0..8 {
            let (of_scale, of_min) = six_bits(at, &block[4..16]);
            row.scales[n * 8 + at] = scale * of_scale;
            row.mins[n * 8 + at] = -min * of_min;
            let from = &block[16 + at / 2 * 32..][..32];
            for (quant, byte) in row.quants[n * 8 + at].iter_mut().zip(from) {
                *quant = byte >> (at % 2 * 4) & 15;
            }
        }
    }
}

#[inline(always)]
fn q5k(bytes: &[u8], row: &mut RowMut<'_>) {
    for (n, block) in bytes.as_chunks::<176>().0.iter().enumerate() {
        let (scale, min) = (half(block, 0), half(block, 2));
        for at in 0..8 {
            let (of_scale, of_min) = six_bits(at, &block[4..16]);
            row.scales[n * 8 + at] = scale * of_scale;
            row.mins[n * 8 + at] = -min * of_min;
            let from = block[48 + at / 2 * 32..][..32].iter().zip(&block[16..48]);
            for (quant, (byte, fifth)) in row.quants[n * 8 + at].iter_mut().zip(from) {
                *quant = byte >> (at % 2 * 4) & 15 | (fifth >> at & 1) << 4;
            }
        }
    }
}

#[inline(always)]
fn q6k(bytes: &[u8], row: &mut RowMut<'_>) {
    for (n, block) in bytes.as_chunks::<210>().0.iter().enumerate() {
        let scale = half(block, 208);
        for at in 0..16 {
            let scale = scale * f32::from(block[192 + at].cast_signed());
            row.half_scales[n * 16 + at] = scale;
            row.half_mins[n * 16 + at] = -32.0 * scale;
        }
        for at in 0..8 {
            let (part, quarter) = (at / 4, at % 4);
            let low = &block[part * 64 + quarter % 2 * 32..][..32];
            let high = &block[128 + part * 32..][..32];
            let from = low.iter().zip(high);
            for (quant, (low, high)) in row.quants[n * 8 + at].iter_mut().zip(from) {
                *quant = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
            }
        }
    }
}

#[inline(always)]
fn q2k(bytes: &[u8], row: &mut RowMut<'_>) {
    for (n, block) in bytes.as_chunks::<84>().0.iter().enumerate() {
        let (scale, min) = (half(block, 80), half(block, 82));
        for (at, byte) in block[..16].iter().enumerate() {
            row.half_scales[n * 16 + at] = scale * f32::from(byte & 15);
            row.half_mins[n * 16 + at] = -min * f32::from(byte >> 4);
        }
        for at in 0..8 {
            let from = &block[16 + at / 4 * 32..][..32];
            for (quant, byte) in row.quants[n * 8 + at].iter_mut().zip(from) {
                *quant = byte >> (at % 4 * 2) & 3;
            }
        }
    }
}

#[inline(always)]
fn q3k(bytes: &[u8], row: &mut RowMut<'_>) {
    for (n, block) in bytes.as_chunks::<110>().0.iter().enumerate() {
        let scale = half(block, 108);
        let packed = &block[96..108];
        for at in 0..16 {
            let low = packed[at % 8] >> (at / 8 * 4) & 15;
            let high = packed[8 + at % 4] >> (at / 4 * 2) & 3;
            let scale = scale * (f32::from(low | high << 4) - 32.0);
            row.half_scales[n * 16 + at] = scale;
            row.half_mins[n * 16 + at] = -4.0 * scale;
        }
        for at in 0..8 {
            let from = block[32 + at / 4 * 32..][..32].iter().zip(&block[..32]);
            for (quant, (byte, third)) in row.quants[n * 8 + at].iter_mut().zip(from) {
                *quant = byte >> (at % 4 * 2) & 3 | (third >> at & 1) << 2;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_floats_widen() {
        let cases = [
            (0x3C00, 1.0),
            (0xC000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x0400, 6.103_515_6e-5),
            (0, 0.0),
        ];
        for (bits, wanted) in cases {
            assert_eq!(widen(bits).to_bits(), f32::to_bits(wanted), "{bits:x}");
        }
    }
}
