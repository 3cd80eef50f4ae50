//! Blocks of 32 weights straight into registers.
//!
//! Source: `ggml-common.h` of ggml for the layout; its AVX2 code for the fifth bits.

use core::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_and_si128, _mm_loadu_si128, _mm_packus_epi32, _mm_set_epi32,
    _mm_set1_epi32, _mm_srli_epi16, _mm_srli_epi32, _mm256_and_si256, _mm256_castsi128_si256,
    _mm256_cmpeq_epi8, _mm256_cvtph_ps, _mm256_inserti128_si256, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setr_epi64x,
    _mm256_setzero_ps, _mm256_shuffle_epi8,
};

use crate::{
    activations::{BLOCK, LANES},
    tile::load_u8,
};

pub(crate) const Q4_0: u8 = 0;
pub(crate) const Q4_1: u8 = 1;
pub(crate) const Q5_0: u8 = 2;
pub(crate) const Q5_1: u8 = 3;
pub(crate) const Q8_0: u8 = 4;

/// Gives the scales and mins of up to eight blocks; those that are missing are zero.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn scales<const FORMAT: u8, const SIZE: usize>(
    blocks: &[[u8; SIZE]],
) -> (__m256, __m256) {
    if let Some([a, b, c, d, e, f, g, h]) = blocks.first_chunk::<LANES>() {
        let low = _mm_set_epi32(word(d), word(c), word(b), word(a));
        return of_words::<FORMAT>(low, _mm_set_epi32(word(h), word(g), word(f), word(e)));
    }
    let mut words = [0; LANES];
    for (to, block) in words.iter_mut().zip(blocks) {
        *to = word(block);
    }
    let [a, b, c, d, e, f, g, h] = words;
    of_words::<FORMAT>(_mm_set_epi32(d, c, b, a), _mm_set_epi32(h, g, f, e))
}

/// Takes the first four bytes of eight blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn of_words<const FORMAT: u8>(low: __m128i, high: __m128i) -> (__m256, __m256) {
    let bits = _mm_set1_epi32(0xFFFF);
    let scales = _mm_packus_epi32(_mm_and_si128(low, bits), _mm_and_si128(high, bits));
    let scales = _mm256_cvtph_ps(scales);
    let mins = if FORMAT == Q4_1 || FORMAT == Q5_1 {
        _mm256_cvtph_ps(_mm_packus_epi32(_mm_srli_epi32::<16>(low), _mm_srli_epi32::<16>(high)))
    } else if FORMAT == Q8_0 {
        _mm256_setzero_ps()
    } else {
        let zero = if FORMAT == Q4_0 { -8.0 } else { -16.0 };
        _mm256_mul_ps(scales, _mm256_set1_ps(zero))
    };
    (scales, mins)
}

#[inline(always)]
fn word(block: &[u8]) -> i32 {
    i32::from_le_bytes([block[0], block[1], block[2], block[3]])
}

/// Gives the integers of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quants<const FORMAT: u8, const SIZE: usize>(block: &[u8; SIZE]) -> __m256i {
    match FORMAT {
        Q4_0 => nibbles(sixteen(block, 2)),
        Q4_1 => nibbles(sixteen(block, 4)),
        Q5_0 => _mm256_or_si256(nibbles(sixteen(block, 6)), fifth_bits(word(&block[2..6]))),
        Q5_1 => _mm256_or_si256(nibbles(sixteen(block, 8)), fifth_bits(word(&block[4..8]))),
        _ => match block[2..].first_chunk::<BLOCK>() {
            Some(whole) => load_u8(whole),
            None => _mm256_set1_epi8(0),
        },
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(packed: __m128i) -> __m256i {
    let both = _mm256_castsi128_si256(packed);
    let both = _mm256_inserti128_si256::<1>(both, _mm_srli_epi16::<4>(packed));
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// Gives 16 where a bit is set.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fifth_bits(bits: i32) -> __m256i {
    let bytes =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), bytes);
    let set = _mm256_or_si256(spread, _mm256_set1_epi64x(0x7FBF_DFEF_F7FB_FDFE));
    let set = _mm256_cmpeq_epi8(set, _mm256_set1_epi8(-1));
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sixteen<const SIZE: usize>(block: &[u8; SIZE], from: usize) -> __m128i {
    let bytes = &block[from..from + 16];
    // SAFETY: the slice is as long as the vector; the instruction asks for no alignment.
    #[expect(unsafe_code, reason = "the standard library has no safe load")]
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}
