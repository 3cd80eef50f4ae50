//! Attention of single rows over the keys and values of their sequences.

use std::cell::RefCell;

use crate::{pool::Pool, row::exp};

/// How queries, keys and values are divided.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys and values; several query heads share one.
    pub keys: usize,
    /// Numbers a head.
    pub width: usize,
    /// What scores are multiplied with before the softmax.
    pub scale: f32,
}

/// One row: its queries, and the keys and values of the positions it looks at, its own the last.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// All heads, one after the other.
    pub queries: &'a [f32],
    /// Position after position, each with all heads.
    pub keys: &'a [f32],
    /// As the keys.
    pub values: &'a [f32],
    /// Positions.
    pub length: usize,
}

const LANES: usize = 8;
/// Values that are summed up at once: what the registers hold.
const WIDE: usize = 32;

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Gives a row of mixed values for each of `spans`.
pub fn attend(pool: Pool, heads: Heads, spans: &[Span<'_>]) -> Vec<f32> {
    let shared = heads.queries / heads.keys.max(1);
    let mut mixed = vec![0.0; spans.len() * heads.queries * heads.width];
    let units: Vec<&mut [f32]> = mixed.chunks_exact_mut((shared * heads.width).max(1)).collect();
    let positions: usize = spans.iter().map(|span| span.length).sum();
    let pool =
        if positions * heads.queries * heads.width < 1 << 15 { Pool::inline() } else { pool };
    pool.each(units, |at, mixed| {
        let Some(span) = spans.get(at / heads.keys) else { return };
        SCORES.with_borrow_mut(|scores| {
            scores.resize(span.length, 0.0);
            let head = at % heads.keys;
            let first = head * shared * heads.width;
            let queries = &span.queries[first..first + shared * heads.width];
            let pairs = queries.chunks_exact(heads.width).zip(mixed.chunks_exact_mut(heads.width));
            for (query, mixed) in pairs {
                one_head(heads, (span, head), query, scores, mixed);
            }
        });
    });
    mixed
}

fn one_head(
    heads: Heads,
    (span, head): (&Span<'_>, usize),
    query: &[f32],
    scores: &mut [f32],
    mixed: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if crate::product::has_avx2() {
        // SAFETY: the features were found.
        #[expect(unsafe_code, reason = "vector code is entered where the processor has it")]
        return unsafe { one_head_avx2(heads, (span, head), query, scores, mixed) };
    }
    one_head_any::<{ cfg!(target_arch = "aarch64") }>(heads, (span, head), query, scores, mixed);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn one_head_avx2(
    heads: Heads,
    (span, head): (&Span<'_>, usize),
    query: &[f32],
    scores: &mut [f32],
    mixed: &mut [f32],
) {
    one_head_any::<true>(heads, (span, head), query, scores, mixed);
}

#[inline(always)]
fn one_head_any<const FUSED: bool>(
    heads: Heads,
    (span, head): (&Span<'_>, usize),
    query: &[f32],
    scores: &mut [f32],
    mixed: &mut [f32],
) {
    let (stride, start) = (heads.keys * heads.width, head * heads.width);
    let of_head = start..start + heads.width;
    let mut most = f32::NEG_INFINITY;
    for (key, score) in span.keys.chunks_exact(stride).zip(scores.iter_mut()) {
        *score = dot::<FUSED>(query, &key[of_head.clone()]) * heads.scale;
        most = if *score > most { *score } else { most };
    }
    let mut sums = [0.0_f32; LANES];
    let (eights, rest) = scores.as_chunks_mut::<LANES>();
    for eight in eights {
        for (score, sum) in eight.iter_mut().zip(&mut sums) {
            *score = exp(*score - most);
            *sum += *score;
        }
    }
    for (score, sum) in rest.iter_mut().zip(&mut sums) {
        *score = exp(*score - most);
        *sum += *score;
    }
    let inverse = 1.0 / sums.iter().sum::<f32>();
    let mut at = 0;
    while at < heads.width {
        if heads.width - at >= WIDE {
            mix::<FUSED, WIDE>(
                span.values,
                (stride, start + at),
                scores,
                inverse,
                &mut mixed[at..at + WIDE],
            );
            at += WIDE;
        } else if heads.width - at >= LANES {
            mix::<FUSED, LANES>(
                span.values,
                (stride, start + at),
                scores,
                inverse,
                &mut mixed[at..at + LANES],
            );
            at += LANES;
        } else {
            mix::<FUSED, 1>(
                span.values,
                (stride, start + at),
                scores,
                inverse,
                &mut mixed[at..=at],
            );
            at += 1;
        }
    }
}

#[inline(always)]
fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = fused::<FUSED>(*a, *b, *sum);
        }
    }
    let four: [f32; 4] = std::array::from_fn(|i| sums[i] + sums[i + 4]);
    let total = (four[0] + four[2]) + (four[1] + four[3]);
    a_rest.iter().zip(b_rest).fold(total, |sum, (a, b)| fused::<FUSED>(*a, *b, sum))
}

#[inline(always)]
fn mix<const FUSED: bool, const COUNT: usize>(
    values: &[f32],
    (stride, start): (usize, usize),
    weights: &[f32],
    inverse: f32,
    mixed: &mut [f32],
) {
    let mut sums = [0.0_f32; COUNT];
    for (values, weight) in values.chunks_exact(stride).zip(weights) {
        let Some(values) = values[start..].first_chunk::<COUNT>() else { return };
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = fused::<FUSED>(*weight, *value, *sum);
        }
    }
    for (mixed, sum) in mixed.iter_mut().zip(sums) {
        *mixed = sum * inverse;
    }
}

/// Without an instruction for it, a fused product is a slow function of the C library.
#[inline(always)]
fn fused<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize, step: f32) -> Vec<f32> {
        (0..count).map(|i| ((i % 60_000) as f32 * step).sin() * 2.0).collect()
    }

    /// What one head of a span is, in wide floats.
    fn wanted(heads: Heads, span: &Span<'_>, query: usize) -> Vec<f64> {
        let stride = heads.keys * heads.width;
        let start = query * heads.keys / heads.queries * heads.width;
        let of_head = |rows: &[f32], row: usize| -> Vec<f64> {
            let row = &rows[row * stride + start..][..heads.width];
            row.iter().map(|x| f64::from(*x)).collect()
        };
        let query = &span.queries[query * heads.width..][..heads.width];
        let score = |row| {
            let key = of_head(span.keys, row);
            query.iter().zip(key).map(|(x, key)| f64::from(*x) * key).sum::<f64>()
        };
        let scores: Vec<f64> =
            (0..span.length).map(|row| (score(row) * f64::from(heads.scale)).exp()).collect();
        let sum: f64 = scores.iter().sum();
        let mut mixed = vec![0.0; heads.width];
        for (row, score) in scores.iter().enumerate() {
            for (mixed, value) in mixed.iter_mut().zip(of_head(span.values, row)) {
                *mixed += score / sum * value;
            }
        }
        mixed
    }

    #[test]
    fn attention_is_the_softmax_of_scores_over_values() {
        for (queries, keys) in [(4, 2), (9, 3), (2, 2)] {
            for width in [2, 8, 11, 40, 64, 100] {
                let heads = Heads { queries, keys, width, scale: 1.0 / (width as f32).sqrt() };
                let all = noise(queries * width * 5, 0.7);
                let kept = [noise(keys * width * 300, 0.31), noise(keys * width * 300, 0.17)];
                let spans: Vec<Span<'_>> = [1, 5, 8, 19, 300]
                    .into_iter()
                    .zip(all.chunks(queries * width))
                    .map(|(length, queries)| Span {
                        queries,
                        keys: &kept[0][..length * keys * width],
                        values: &kept[1][..length * keys * width],
                        length,
                    })
                    .collect();
                let mixed = attend(Pool::inline(), heads, &spans);
                for (span, mixed) in spans.iter().zip(mixed.chunks(queries * width)) {
                    check(heads, span, mixed);
                }
            }
        }
    }

    fn check(heads: Heads, span: &Span<'_>, mixed: &[f32]) {
        for (query, made) in mixed.chunks(heads.width).enumerate() {
            for (made, wanted) in made.iter().zip(wanted(heads, span, query)) {
                let off = (f64::from(*made) - wanted).abs();
                assert!(off < 1e-5, "{heads:?} over {}: {made} {wanted}", span.length);
            }
        }
    }
}
