//! The innermost loops: a few rows of weights times a few rows of inputs, with AVX2.
//!
//! Each product of two rows adds the same terms in the same order whatever tile it is part of:
//! for each eight blocks the eight mins times the sums of the inputs, then block after block.

use core::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps,
    _mm256_abs_epi8, _mm256_broadcast_ss, _mm256_castps256_ps128, _mm256_cvtepi32_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi16, _mm256_setzero_ps, _mm256_sign_epi8,
    _mm256_storeu_ps, _mm256_storeu_si256,
};

use crate::{
    activations::{BLOCK, LANES, RowBlocks},
    block,
    unpack::Unpacked,
    wide_block::{self, Scales},
};

/// One row of weights in blocks.
#[derive(Clone, Copy)]
pub(crate) struct WeightBlocks<'a> {
    quants: &'a [[u8; BLOCK]],
    scales: &'a [[f32; LANES]],
    mins: &'a [[f32; LANES]],
    /// What the integers of each half of a block are multiplied with first, each eight times.
    steps: &'a [[i16; 16]],
    half_mins: &'a [[[f32; LANES]; 2]],
}

impl<'a> WeightBlocks<'a> {
    #[inline(always)]
    pub(crate) fn of(unpacked: &'a Unpacked, at: usize, width: usize) -> Self {
        let blocks = width / BLOCK;
        let groups = blocks.div_ceil(LANES);
        let of_row = at * groups..(at + 1) * groups;
        Self {
            quants: &unpacked.quants[at * blocks..(at + 1) * blocks],
            scales: &unpacked.scales[of_row.clone()],
            mins: &unpacked.mins[of_row.clone()],
            steps: &unpacked.steps[at * blocks..(at + 1) * blocks],
            half_mins: &unpacked.half_mins[of_row],
        }
    }
}

/// Scale and min for each 32, integers without a sign.
pub(crate) const SHIFTED: u8 = 0;
/// A scale for each 32, integers with a sign.
pub(crate) const SIGNED: u8 = 1;
/// Steps and mins for each 16 under a scale for each 32, integers without a sign.
pub(crate) const HALVES: u8 = 2;

/// Writes the product of `$rows` rows of inputs and `$columns` rows of weights. Written out in
/// full: sums that are found by an index that is not a literal would live in memory.
macro_rules! tile {
    (
        $blocks:ident, $floats:ident, $rows:literal, $columns:literal,
        [$($row:literal)*], [$($column:literal)*], [$($r:literal $c:literal),*]
    ) => {
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) fn $blocks<const MODE: u8>(
            inputs: [RowBlocks<'_>; $rows],
            weights: [WeightBlocks<'_>; $columns],
        ) -> [[f32; $columns]; $rows] {
            let count = inputs[0].quants.len();
            let of_inputs = [$(&inputs[$row].quants[..count]),*];
            let of_weights = [$(&weights[$column].quants[..count]),*];
            let mut sums = [[_mm256_setzero_ps(); $columns]; $rows];
            let ones = _mm256_set1_epi16(1);
            for group in 0..count.div_ceil(LANES) {
                let mut scales = [[[0.0_f32; LANES]; $columns]; $rows];
                $(
                    if MODE == HALVES {
                        for half in 0..2 {
                            sums[$r][$c] = _mm256_fmadd_ps(
                                load(&weights[$c].half_mins[group][half]),
                                load(&inputs[$r].half_sums[group][half]),
                                sums[$r][$c],
                            );
                        }
                    } else {
                        if MODE == SHIFTED {
                            sums[$r][$c] = _mm256_fmadd_ps(
                                load(&weights[$c].mins[group]),
                                load(&inputs[$r].sums[group]),
                                sums[$r][$c],
                            );
                        }
                    }
                    let scale = load(&weights[$c].scales[group]);
                    let scale = _mm256_mul_ps(scale, load(&inputs[$r].scales[group]));
                    store(&mut scales[$r][$c], scale);
                )*
                let start = group * LANES;
                for lane in 0..LANES.min(count - start) {
                    let at = start + lane;
                    let input = [$(load_i8(&of_inputs[$row][at])),*];
                    let weight = [$(load_u8(&of_weights[$column][at])),*];
                    let steps = [$(
                        if MODE == HALVES { load_i16(&weights[$column].steps[at]) } else { ones }
                    ),*];
                    $(
                        let product = multiply::<MODE>(weight[$c], input[$r], steps[$c]);
                        let scale = _mm256_broadcast_ss(&scales[$r][$c][lane]);
                        sums[$r][$c] = _mm256_fmadd_ps(product, scale, sums[$r][$c]);
                    )*
                }
            }
            let mut made = [[0.0; $columns]; $rows];
            $(made[$r][$c] = total(sums[$r][$c]);)*
            made
        }

        #[inline]
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) fn $floats(
            inputs: [&[f32]; $rows],
            weights: [&[f32]; $columns],
        ) -> [[f32; $columns]; $rows] {
            let count = inputs[0].len() / LANES;
            let of_inputs = [$(&inputs[$row].as_chunks::<LANES>().0[..count]),*];
            let of_weights = [$(&weights[$column].as_chunks::<LANES>().0[..count]),*];
            let mut sums = [[_mm256_setzero_ps(); $columns]; $rows];
            for at in 0..count {
                let input = [$(load(&of_inputs[$row][at])),*];
                let weight = [$(load(&of_weights[$column][at])),*];
                $(sums[$r][$c] = _mm256_fmadd_ps(weight[$c], input[$r], sums[$r][$c]);)*
            }
            let mut made = [[0.0; $columns]; $rows];
            $(
                made[$r][$c] = total(sums[$r][$c]);
                for at in count * LANES..inputs[$r].len() {
                    made[$r][$c] = weights[$c][at].mul_add(inputs[$r][at], made[$r][$c]);
                }
            )*
            made
        }
    };
}

tile!(blocks_4, floats_4, 4, 2, [0 1 2 3], [0 1], [0 0, 0 1, 1 0, 1 1, 2 0, 2 1, 3 0, 3 1]);
tile!(blocks_2, floats_2, 2, 4, [0 1], [0 1 2 3], [0 0, 0 1, 0 2, 0 3, 1 0, 1 1, 1 2, 1 3]);
tile!(blocks_1, floats_1, 1, 4, [0], [0 1 2 3], [0 0, 0 1, 0 2, 0 3]);

/// Multiplies one row of inputs by two rows of weights straight from a file's blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn packed<const FORMAT: u8, const SIZE: usize>(
    input: RowBlocks<'_>,
    weights: [&[u8]; 2],
) -> [f32; 2] {
    let count = input.quants.len();
    let of_input = input.quants;
    let first = &weights[0].as_chunks::<SIZE>().0[..count];
    let second = &weights[1].as_chunks::<SIZE>().0[..count];
    let ones = _mm256_set1_epi16(1);
    let (mut sum_0, mut sum_1) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let (mut scales_0, mut scales_1) = ([0.0; LANES], [0.0; LANES]);
    for group in 0..count.div_ceil(LANES) {
        let start = group * LANES;
        let end = count.min(start + LANES);
        let of_group = load(&input.scales[group]);
        let sums = load(&input.sums[group]);
        let (scale, min) = block::scales::<FORMAT, SIZE>(&first[start..end]);
        store(&mut scales_0, _mm256_mul_ps(scale, of_group));
        if FORMAT != block::Q8_0 {
            sum_0 = _mm256_fmadd_ps(min, sums, sum_0);
        }
        let (scale, min) = block::scales::<FORMAT, SIZE>(&second[start..end]);
        store(&mut scales_1, _mm256_mul_ps(scale, of_group));
        if FORMAT != block::Q8_0 {
            sum_1 = _mm256_fmadd_ps(min, sums, sum_1);
        }
        for at in start..end {
            let quants = load_i8(&of_input[at]);
            let lane = at % LANES;
            let weight = block::quants::<FORMAT, SIZE>(&first[at]);
            let product = multiply_packed::<FORMAT>(weight, quants, ones);
            sum_0 = _mm256_fmadd_ps(product, _mm256_broadcast_ss(&scales_0[lane]), sum_0);
            let weight = block::quants::<FORMAT, SIZE>(&second[at]);
            let product = multiply_packed::<FORMAT>(weight, quants, ones);
            sum_1 = _mm256_fmadd_ps(product, _mm256_broadcast_ss(&scales_1[lane]), sum_1);
        }
    }
    [total(sum_0), total(sum_1)]
}

/// Multiplies one row of inputs by two rows of weights straight from a file's blocks of 256.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn packed_wide<const FORMAT: u8, const SIZE: usize>(
    input: RowBlocks<'_>,
    weights: [&[u8]; 2],
) -> [f32; 2] {
    let of_input = input.quants.as_chunks::<LANES>().0;
    let count = of_input.len();
    let first = &weights[0].as_chunks::<SIZE>().0[..count];
    let second = &weights[1].as_chunks::<SIZE>().0[..count];
    let mut sums = [_mm256_setzero_ps(); 2];
    let mut scales = [[0.0; LANES]; 2];
    for group in 0..count {
        let blocks = [&first[group], &second[group]];
        let of_blocks = [
            wide_block::scales::<FORMAT, SIZE>(blocks[0]),
            wide_block::scales::<FORMAT, SIZE>(blocks[1]),
        ];
        for ((sum, scales), of_block) in sums.iter_mut().zip(&mut scales).zip(&of_blocks) {
            if wide_block::has_halves(FORMAT) {
                let of_halves = &input.half_sums[group];
                *sum = _mm256_fmadd_ps(of_block.mins[0], load(&of_halves[0]), *sum);
                *sum = _mm256_fmadd_ps(of_block.mins[1], load(&of_halves[1]), *sum);
            } else {
                *sum = _mm256_fmadd_ps(of_block.mins[0], load(&input.sums[group]), *sum);
            }
            store(scales, _mm256_mul_ps(of_block.each, load(&input.scales[group])));
        }
        for part in 0..2 {
            let weights = [
                wide_block::quants::<FORMAT, SIZE>(blocks[0], part),
                wide_block::quants::<FORMAT, SIZE>(blocks[1], part),
            ];
            for (at, weights) in weights[0].into_iter().zip(weights[1]).enumerate() {
                let lane = part * 4 + at;
                let quants = load_i8(&of_input[group][lane]);
                let [first, second] = &of_blocks;
                let product = multiply_wide::<FORMAT>(weights.0, quants, first, lane);
                let scale = _mm256_broadcast_ss(&scales[0][lane]);
                sums[0] = _mm256_fmadd_ps(product, scale, sums[0]);
                let product = multiply_wide::<FORMAT>(weights.1, quants, second, lane);
                let scale = _mm256_broadcast_ss(&scales[1][lane]);
                sums[1] = _mm256_fmadd_ps(product, scale, sums[1]);
            }
        }
    }
    [total(sums[0]), total(sums[1])]
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_packed<const FORMAT: u8>(weight: __m256i, input: __m256i, ones: __m256i) -> __m256 {
    if FORMAT == block::Q8_0 {
        multiply::<SIGNED>(weight, input, ones)
    } else {
        multiply::<SHIFTED>(weight, input, ones)
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_wide<const FORMAT: u8>(
    weight: __m256i,
    input: __m256i,
    of_block: &Scales,
    lane: usize,
) -> __m256 {
    if wide_block::has_halves(FORMAT) {
        multiply::<HALVES>(weight, input, of_block.steps(lane))
    } else {
        multiply::<SHIFTED>(weight, input, _mm256_set1_epi16(1))
    }
}

/// Gives eight partial sums of 32 products, each times its step.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const MODE: u8>(weight: __m256i, input: __m256i, steps: __m256i) -> __m256 {
    let pairs = if MODE == SIGNED {
        _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(input, weight))
    } else {
        _mm256_maddubs_epi16(weight, input)
    };
    _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, steps))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn total(sum: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_extractf128_ps(sum, 1), _mm256_castps256_ps128(sum));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn load(from: &[f32; LANES]) -> __m256 {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe load")]
    unsafe {
        _mm256_loadu_ps(from.as_ptr())
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn store(to: &mut [f32; LANES], from: __m256) {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe store")]
    unsafe {
        _mm256_storeu_ps(to.as_mut_ptr(), from);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn store_u8(to: &mut [u8; BLOCK], from: __m256i) {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe store")]
    unsafe {
        _mm256_storeu_si256(to.as_mut_ptr().cast(), from);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn load_u8(from: &[u8; BLOCK]) -> __m256i {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe load")]
    unsafe {
        _mm256_loadu_si256(from.as_ptr().cast())
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_i16(from: &[i16; 16]) -> __m256i {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe load")]
    unsafe {
        _mm256_loadu_si256(from.as_ptr().cast())
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn store_i16(to: &mut [i16; 16], from: __m256i) {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe store")]
    unsafe {
        _mm256_storeu_si256(to.as_mut_ptr().cast(), from);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_i8(from: &[i8; BLOCK]) -> __m256i {
    // SAFETY: the array is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe load")]
    unsafe {
        _mm256_loadu_si256(from.as_ptr().cast())
    }
}
