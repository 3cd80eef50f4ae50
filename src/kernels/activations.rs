//! Inputs of a product: rows of floats, and the same rows in blocks of 32 small integers.

use crate::pool::Pool;

/// Weights or inputs that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Blocks whose scales are handled at once; rows of scales are padded to a multiple of it.
pub(crate) const LANES: usize = 8;

/// Rows of inputs, in both forms.
#[derive(Debug)]
pub struct Activations {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) floats: Vec<f32>,
    pub(crate) quants: Vec<[i8; BLOCK]>,
    pub(crate) scales: Vec<[f32; LANES]>,
    /// What each block sums up to: meets the mins of weights.
    pub(crate) sums: Vec<[f32; LANES]>,
    /// The same for each half of a block.
    pub(crate) half_sums: Vec<[[f32; LANES]; 2]>,
}

/// One row in blocks.
#[derive(Clone, Copy)]
pub(crate) struct RowBlocks<'a> {
    pub(crate) quants: &'a [[i8; BLOCK]],
    pub(crate) scales: &'a [[f32; LANES]],
    pub(crate) sums: &'a [[f32; LANES]],
    pub(crate) half_sums: &'a [[[f32; LANES]; 2]],
}

struct RowMut<'a> {
    floats: &'a [f32],
    quants: &'a mut [[i8; BLOCK]],
    scales: &'a mut [[f32; LANES]],
    sums: &'a mut [[f32; LANES]],
    half_sums: &'a mut [[[f32; LANES]; 2]],
}

impl Activations {
    /// Takes `floats`, rows of `width`, and rounds them to blocks. A width that is no multiple of
    /// 32 has no blocks, and only meets weights that are floats.
    pub fn new(pool: Pool, floats: Vec<f32>, width: usize) -> Self {
        let rows = floats.len() / width.max(1);
        let blocks = if width.is_multiple_of(BLOCK) { width / BLOCK } else { 0 };
        let groups = blocks.div_ceil(LANES);
        let mut made = Self {
            rows,
            width,
            quants: vec![[0; BLOCK]; rows * blocks],
            scales: vec![[0.0; LANES]; rows * groups],
            sums: vec![[0.0; LANES]; rows * groups],
            half_sums: vec![[[0.0; LANES]; 2]; rows * groups],
            floats,
        };
        if blocks > 0 {
            made.round(pool, blocks, groups);
        }
        made
    }

    /// Gives the rows as they came.
    pub fn floats(&self) -> &[f32] {
        &self.floats
    }

    fn round(&mut self, pool: Pool, blocks: usize, groups: usize) {
        let units = self
            .floats
            .chunks_exact(self.width)
            .zip(self.quants.chunks_exact_mut(blocks))
            .zip(self.scales.chunks_exact_mut(groups))
            .zip(self.sums.chunks_exact_mut(groups))
            .zip(self.half_sums.chunks_exact_mut(groups))
            .map(|((((floats, quants), scales), sums), half_sums)| RowMut {
                floats,
                quants,
                scales,
                sums,
                half_sums,
            });
        pool.few(self.rows).each(units.collect(), |_, row| round(row));
    }

    pub(crate) fn row(&self, at: usize) -> RowBlocks<'_> {
        let blocks = self.width / BLOCK;
        let groups = blocks.div_ceil(LANES);
        RowBlocks {
            quants: &self.quants[at * blocks..(at + 1) * blocks],
            scales: &self.scales[at * groups..(at + 1) * groups],
            sums: &self.sums[at * groups..(at + 1) * groups],
            half_sums: &self.half_sums[at * groups..(at + 1) * groups],
        }
    }
}

fn round(row: &mut RowMut<'_>) {
    #[cfg(target_arch = "x86_64")]
    if crate::product::has_avx2() {
        // SAFETY: the features were found.
        #[expect(unsafe_code, reason = "vector code is entered where the processor has it")]
        return unsafe { round_avx2(row) };
    }
    round_any(row);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn round_avx2(row: &mut RowMut<'_>) {
    round_any(row);
}

#[inline(always)]
fn round_any(row: &mut RowMut<'_>) {
    /// Added to a small float, leaves its nearest integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let (blocks, _) = row.floats.as_chunks::<BLOCK>();
    for (at, (floats, quants)) in blocks.iter().zip(row.quants.iter_mut()).enumerate() {
        let mut most = [0.0_f32; 8];
        for eight in floats.as_chunks::<8>().0 {
            for (most, float) in most.iter_mut().zip(eight) {
                *most = if float.abs() > *most { float.abs() } else { *most };
            }
        }
        let most = most.iter().fold(0.0_f32, |a, b| a.max(*b));
        let scale = most / 127.0;
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut whole = [0_i32; BLOCK];
        for (whole, float) in whole.iter_mut().zip(floats) {
            *whole = (float * inverse + MAGIC).to_bits().cast_signed().wrapping_sub(0x4B40_0000);
        }
        for (quant, whole) in quants.iter_mut().zip(&whole) {
            *quant = *whole as i8;
        }
        let low: i32 = quants[..16].iter().map(|quant| i32::from(*quant)).sum();
        let high: i32 = quants[16..].iter().map(|quant| i32::from(*quant)).sum();
        let (group, lane) = (at / LANES, at % LANES);
        row.scales[group][lane] = scale;
        row.sums[group][lane] = scale * (low + high) as f32;
        row.half_sums[group][lane / 4][lane % 4 * 2] = scale * low as f32;
        row.half_sums[group][lane / 4][lane % 4 * 2 + 1] = scale * high as f32;
    }
}

impl Pool {
    /// Steps that are shorter than waking the other threads stay on this one.
    pub(crate) fn few(self, rows: usize) -> Self {
        if rows < 8 { Self::inline() } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_their_blocks_within_half_a_step() {
        // Blocks of all sizes, one of zeros; the last group of scales is not full.
        for (rows, width) in [(1, 32), (3, 96), (9, 576), (2, 256)] {
            let size = |at: usize| [1e-6, 0.3, 0.0, 7.0, 4e4][at / 32 % 5];
            let floats: Vec<f32> = (0..rows * width)
                .map(|at| ((at * at % 8191) as f32 * 0.7).sin() * size(at))
                .collect();
            let made = Activations::new(Pool::inline(), floats.clone(), width);
            for (at, floats) in floats.chunks(width).enumerate() {
                check(made.row(at), floats);
            }
        }
    }

    fn check(row: RowBlocks<'_>, floats: &[f32]) {
        for (n, (quants, floats)) in row.quants.iter().zip(floats.chunks(32)).enumerate() {
            let (group, lane) = (n / LANES, n % LANES);
            let scale = f64::from(row.scales[group][lane]);
            let most = floats.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            near(most, scale * 127.0);
            for (quant, float) in quants.iter().zip(floats) {
                let off = (f64::from(*quant) * scale - f64::from(*float)).abs();
                assert!(off <= scale * 0.50002, "{n}: {quant} {float} {scale}");
                assert!(*quant >= -127);
            }
            let sum = |quants: &[i8]| scale * quants.iter().map(|x| f64::from(*x)).sum::<f64>();
            let halves = row.half_sums[group][lane / 4];
            near(row.sums[group][lane], sum(quants));
            near(halves[lane % 4 * 2], sum(&quants[..16]));
            near(halves[lane % 4 * 2 + 1], sum(&quants[16..]));
        }
        let blocks = row.quants.len();
        for lane in blocks..blocks.div_ceil(LANES) * LANES {
            assert_eq!(row.scales[lane / LANES][lane % LANES].to_bits(), 0);
            assert_eq!(row.sums[lane / LANES][lane % LANES].to_bits(), 0);
        }
    }

    fn near(made: f32, wanted: f64) {
        assert!((f64::from(made) - wanted).abs() <= wanted.abs() * 1e-6, "{made} {wanted}");
    }
}
