//! Rows of weights out of a file's blocks: small integers with their scales, or floats.

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
    pub(crate) steps: Vec<[i16; 16]>,
    pub(crate) half_mins: Vec<[[f32; LANES]; 2]>,
    pub(crate) floats: Vec<f32>,
}

/// One row of weights being filled.
pub(crate) struct RowMut<'a> {
    pub(crate) quants: &'a mut [[u8; BLOCK]],
    pub(crate) scales: &'a mut [[f32; LANES]],
    pub(crate) mins: &'a mut [[f32; LANES]],
    pub(crate) steps: &'a mut [[i16; 16]],
    pub(crate) half_mins: &'a mut [[[f32; LANES]; 2]],
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
        self.steps.resize(rows * blocks, [0; 16]);
        self.half_mins.resize(rows * groups, [[0.0; LANES]; 2]);
    }

    /// Gives the places of row `at` in blocks.
    #[inline(always)]
    pub(crate) fn row_mut(&mut self, at: usize, width: usize) -> RowMut<'_> {
        let blocks = width / BLOCK;
        let groups = blocks.div_ceil(LANES);
        let of_row = at * groups..(at + 1) * groups;
        RowMut {
            quants: &mut self.quants[at * blocks..(at + 1) * blocks],
            scales: &mut self.scales[of_row.clone()],
            mins: &mut self.mins[of_row.clone()],
            steps: &mut self.steps[at * blocks..(at + 1) * blocks],
            half_mins: &mut self.half_mins[of_row],
        }
    }

    /// Widens the floats of `bytes` as row `at`.
    #[inline(always)]
    pub(crate) fn widen(&mut self, format: Format, at: usize, bytes: &[u8], width: usize) {
        floats(format, bytes, &mut self.floats[at * width..(at + 1) * width]);
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

/// Widens a 16-bit float that is finite, as scales are.
#[inline(always)]
fn widen(bits: u16) -> f32 {
    /// 2 to the 112: what the exponents of the two formats differ by.
    const SHIFT: f32 = f32::from_bits(0x7780_0000);
    let most = f32::from_bits(u32::from(bits & 0x7FFF) << 13) * SHIFT;
    f32::from_bits(most.to_bits() | u32::from(bits & 0x8000) << 16)
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
