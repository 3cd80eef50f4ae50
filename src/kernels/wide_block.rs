//! Blocks of 256 weights straight into registers: eight blocks of 32, as the other formats have
//! them, under scales that are small integers themselves.
//!
//! Source: `ggml-common.h` of ggml for the layout.

use core::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_add_epi8, _mm_and_si128, _mm_cvtph_ps, _mm_cvtsi32_si128,
    _mm_cvtsi64_si128, _mm_cvtss_f32, _mm_movehdup_ps, _mm_set_epi32, _mm_set1_epi8,
    _mm_srli_epi16, _mm_srli_si128, _mm256_add_epi8, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_castsi256_si128, _mm256_cmpeq_epi8, _mm256_cvtepi8_epi16, _mm256_cvtepi8_epi32,
    _mm256_cvtepi32_ps, _mm256_extracti128_si256, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_ps, _mm256_setr_epi64x, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
};

use crate::{activations::BLOCK, block::sixteen, tile::load_u8};

pub(crate) const Q2_K: u8 = 0;
pub(crate) const Q3_K: u8 = 1;
pub(crate) const Q4_K: u8 = 2;
pub(crate) const Q5_K: u8 = 3;
pub(crate) const Q6_K: u8 = 4;

/// What the integers of eight blocks of 32 are multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Scales {
    /// One for each block.
    pub(crate) each: __m256,
    /// What meets the sums of the inputs: one for each block in the first, or one for each half of
    /// a block in both.
    pub(crate) mins: [__m256; 2],
    /// A further integer for each half of a block, those of four blocks in both halves of each.
    steps: [__m256i; 2],
}

/// Says whether each half of a block of 32 has a scale of its own.
pub(crate) const fn has_halves(format: u8) -> bool {
    !matches!(format, Q4_K | Q5_K)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn scales<const FORMAT: u8, const SIZE: usize>(block: &[u8; SIZE]) -> Scales {
    match FORMAT {
        Q4_K | Q5_K => by_block(block),
        Q2_K => {
            let (scale, min) = two_halves(word(block, 80));
            let packed = sixteen(block, 0);
            let low = _mm_set1_epi8(15);
            let mins = _mm_and_si128(_mm_srli_epi16::<4>(packed), low);
            by_half(scale, _mm_and_si128(packed, low), -min, mins)
        }
        Q3_K => {
            let scale = two_halves(i32::from(u16::from_le_bytes([block[108], block[109]]))).0;
            let (a, b, c) = (word(block, 96), word(block, 100), word(block, 104));
            let low = |bits: i32| bits & 0x0F0F_0F0F;
            let high = |bits: i32| (bits & 0x0303_0303) << 4;
            let steps = _mm_set_epi32(
                low(b >> 4) | high(c >> 6),
                low(a >> 4) | high(c >> 4),
                low(b) | high(c >> 2),
                low(a) | high(c),
            );
            let steps = _mm_add_epi8(steps, _mm_set1_epi8(-32));
            by_half(scale, steps, -4.0 * scale, steps)
        }
        _ => {
            let scale = two_halves(i32::from(u16::from_le_bytes([block[208], block[209]]))).0;
            let steps = sixteen(block, 192);
            by_half(scale, steps, -32.0 * scale, steps)
        }
    }
}

/// Twelve bytes hold eight scales and eight mins of six bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn by_block<const SIZE: usize>(block: &[u8; SIZE]) -> Scales {
    let (scale, min) = two_halves(word(block, 0));
    let (a, b, c) = (word(block, 4), word(block, 8), word(block, 12));
    let low = |bits: i32| i64::from(bits & 0x3F3F_3F3F);
    let high =
        |bits: i32, more: i32| i64::from(bits & 0x0F0F_0F0F | (more >> 6 & 0x0303_0303) << 4) << 32;
    let scales = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(low(a) | high(c, a)));
    let mins = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(low(b) | high(c >> 4, b)));
    Scales {
        each: _mm256_mul_ps(_mm256_cvtepi32_ps(scales), _mm256_set1_ps(scale)),
        mins: [_mm256_mul_ps(_mm256_cvtepi32_ps(mins), _mm256_set1_ps(-min)), _mm256_setzero_ps()],
        steps: [_mm256_setzero_si256(); 2],
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn by_half(scale: f32, steps: __m128i, min: f32, mins: __m128i) -> Scales {
    let min = _mm256_set1_ps(min);
    let of = |eight| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), min);
    let steps = _mm256_cvtepi8_epi16(steps);
    Scales {
        each: _mm256_set1_ps(scale),
        mins: [of(mins), of(_mm_srli_si128::<8>(mins))],
        steps: [
            _mm256_broadcastsi128_si256(_mm256_castsi256_si128(steps)),
            _mm256_broadcastsi128_si256(_mm256_extracti128_si256::<1>(steps)),
        ],
    }
}

impl Scales {
    /// Gives the integers of the halves of block `at` of eight, each eight times.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) fn steps(&self, at: usize) -> __m256i {
        let low = 0x0100_0100_0100_0100;
        let high = 0x0302_0302_0302_0302;
        let first = _mm256_setr_epi64x(low, low, high, high);
        let place = _mm256_add_epi8(first, _mm256_set1_epi8((at % 4 * 4) as i8));
        _mm256_shuffle_epi8(self.steps[at / 4], place)
    }
}

/// Gives the integers of four blocks of 32: the first four or the last.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quants<const FORMAT: u8, const SIZE: usize>(
    block: &[u8; SIZE],
    part: usize,
) -> [__m256i; 4] {
    match FORMAT {
        Q2_K => pairs(thirty_two(block, 16 + part * 32)),
        Q3_K => {
            let third = thirty_two(block, 0);
            let [a, b, c, d] = pairs(thirty_two(block, 32 + part * 32));
            let or = |low, at| _mm256_or_si256(low, bit(third, part * 4 + at, 4));
            [or(a, 0), or(b, 1), or(c, 2), or(d, 3)]
        }
        Q4_K => {
            let [a, b] = nibbles(thirty_two(block, 16 + part * 64));
            let [c, d] = nibbles(thirty_two(block, 48 + part * 64));
            [a, b, c, d]
        }
        Q5_K => {
            let fifth = thirty_two(block, 16);
            let [a, b] = nibbles(thirty_two(block, 48 + part * 64));
            let [c, d] = nibbles(thirty_two(block, 80 + part * 64));
            let or = |low, at| _mm256_or_si256(low, bit(fifth, part * 4 + at, 16));
            [or(a, 0), or(b, 1), or(c, 2), or(d, 3)]
        }
        _ => {
            let [a, c] = nibbles(thirty_two(block, part * 64));
            let [b, d] = nibbles(thirty_two(block, 32 + part * 64));
            let high = thirty_two(block, 128 + part * 32);
            let mask = _mm256_set1_epi8(0x30);
            let or = |low, high| _mm256_or_si256(low, _mm256_and_si256(high, mask));
            [
                or(a, _mm256_slli_epi16::<4>(high)),
                or(b, _mm256_slli_epi16::<2>(high)),
                or(c, high),
                or(d, _mm256_srli_epi16::<2>(high)),
            ]
        }
    }
}

/// Low halves of bytes, and high ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(bytes: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(15);
    [_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask)]
}

/// The four pairs of bits of each byte, the lowest first.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pairs(bytes: __m256i) -> [__m256i; 4] {
    let mask = _mm256_set1_epi8(3);
    [
        _mm256_and_si256(bytes, mask),
        _mm256_and_si256(_mm256_srli_epi16::<2>(bytes), mask),
        _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask),
        _mm256_and_si256(_mm256_srli_epi16::<6>(bytes), mask),
    ]
}

/// Gives `value` where bit `at` of a byte is set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn bit(bytes: __m256i, at: usize, value: i8) -> __m256i {
    let mask = _mm256_set1_epi8((1_u8 << at).cast_signed());
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask);
    _mm256_and_si256(set, _mm256_set1_epi8(value))
}

/// Widens two 16-bit floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn two_halves(bits: i32) -> (f32, f32) {
    let both = _mm_cvtph_ps(_mm_cvtsi32_si128(bits));
    (_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both)))
}

#[inline(always)]
fn word(block: &[u8], at: usize) -> i32 {
    i32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn thirty_two<const SIZE: usize>(block: &[u8; SIZE], from: usize) -> __m256i {
    match block[from..].first_chunk::<BLOCK>() {
        Some(bytes) => load_u8(bytes),
        None => _mm256_setzero_si256(),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Activations, Format, Matrix, Pool, multiply};

    /// The integer of a weight, without its zero.
    fn low(format: Format, weight: usize, bytes: &[u8]) -> u8 {
        let (part, rest, place) = (weight / 128, weight % 128, weight % 32);
        match format {
            Format::Q2K => bytes[16 + part * 32 + place] >> (rest / 32 * 2) & 3,
            Format::Q3K => {
                bytes[32 + part * 32 + place] >> (rest / 32 * 2) & 3
                    | (bytes[place] >> (weight / 32) & 1) << 2
            }
            Format::Q4K => bytes[16 + weight / 64 * 32 + place] >> (weight / 32 % 2 * 4) & 15,
            Format::Q5K => {
                bytes[48 + weight / 64 * 32 + place] >> (weight / 32 % 2 * 4) & 15
                    | (bytes[16 + place] >> (weight / 32) & 1) << 4
            }
            _ => {
                bytes[part * 64 + rest % 64] >> (rest / 64 * 4) & 15
                    | (bytes[128 + part * 32 + place] >> (rest / 32 * 2) & 3) << 4
            }
        }
    }

    /// Scale and min of a weight, in units of those of its block of 256.
    fn factors(format: Format, weight: usize, bytes: &[u8]) -> (i32, i32) {
        let (half, eighth) = (weight / 16, weight / 32);
        let (scale, min) = match format {
            Format::Q2K => (bytes[half] & 15, bytes[half] >> 4),
            Format::Q3K => {
                let low = bytes[96 + half % 8] >> (half / 8 * 4) & 15;
                (low | (bytes[104 + half % 4] >> (half / 4 * 2) & 3) << 4, 0)
            }
            Format::Q4K | Format::Q5K if eighth < 4 => {
                (bytes[4 + eighth] & 63, bytes[8 + eighth] & 63)
            }
            Format::Q4K | Format::Q5K => (
                bytes[8 + eighth] & 15 | bytes[eighth] >> 6 << 4,
                bytes[8 + eighth] >> 4 | bytes[4 + eighth] >> 6 << 4,
            ),
            _ => return (i32::from(bytes[192 + half].cast_signed()), 0),
        };
        let zero = if format == Format::Q3K { 32 } else { 0 };
        (i32::from(scale) - zero, i32::from(min))
    }

    #[test]
    fn each_weight_is_what_plain_loops_read() {
        // Where the scale lies, where the min's, and which integer stands for zero.
        let formats = [
            (Format::Q2K, 80, 82, 0),
            (Format::Q3K, 108, 108, 4),
            (Format::Q4K, 0, 2, 0),
            (Format::Q5K, 0, 2, 0),
            (Format::Q6K, 208, 208, 32),
        ];
        for (format, scale_at, min_at, zero) in formats {
            let mut state = 7_u32;
            let mut bytes: Vec<u8> = (0..format.row_bytes(256) * 3)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_be_bytes()[0]
                })
                .collect();
            for row in bytes.chunks_mut(format.row_bytes(256)) {
                row[min_at..min_at + 2].copy_from_slice(&[0, 0x34]); // 0.25
                row[scale_at..scale_at + 2].copy_from_slice(&[0, 0xB8]); // -0.5
            }
            let one_hot: Vec<f32> =
                (0..256 * 256).map(|at| if at % 257 == 0 { 1.0 } else { 0.0 }).collect();
            let matrix = Matrix { format, bytes: &bytes, rows: 3 };
            let product = |inputs: &[f32]| {
                let inputs = Activations::new(Pool::inline(), inputs.to_vec(), 256);
                multiply(Pool::inline(), &inputs, &[matrix]).concat()
            };
            for (at, made) in product(&one_hot).into_iter().enumerate() {
                let (weight, row) = (at / 3, at % 3);
                let row = &bytes[row * format.row_bytes(256)..];
                let (scale, min) = factors(format, weight, row);
                let quant = i32::from(low(format, weight, row)) - zero;
                let wanted = -0.5 * f64::from(scale * quant) - 0.25 * f64::from(min);
                let off = (f64::from(made) - wanted).abs();
                assert!(off <= 1e-6 * 600.0, "{format:?} weight {weight}: {made} {wanted}");
            }
            for (input, wanted) in one_hot.chunks(256).zip(product(&one_hot).chunks(3)) {
                assert_eq!(product(input), wanted, "{format:?}");
            }
        }
    }
}
