//! Steps on single rows: norms, the gate of a feed-forward network, rotations, sums.

use crate::pool::Pool;

const LANES: usize = 8;

/// Divides each row of `hidden` by its root mean square and multiplies it by `weights`.
pub fn normalise(pool: Pool, hidden: &[f32], weights: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weights.len().max(1);
    let mut normed = vec![0.0; hidden.len()];
    let units = hidden.chunks_exact(width).zip(normed.chunks_exact_mut(width)).collect();
    pool.few(hidden.len() / width).each(units, |_, (row, normed)| {
        let mut squares = [0.0_f32; LANES];
        let (eights, rest) = row.as_chunks::<LANES>();
        for eight in eights {
            for (square, float) in squares.iter_mut().zip(eight) {
                *square += float * float;
            }
        }
        let rest: f32 = rest.iter().map(|float| float * float).sum();
        let mean = (squares.iter().sum::<f32>() + rest) / width as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for ((normed, float), weight) in normed.iter_mut().zip(*row).zip(weights) {
            *normed = float * scale * weight;
        }
    });
    normed
}

/// Brings each row of `hidden` to a mean of zero and a variance of one, multiplies it by the first of
/// `weights` and adds the second.
pub fn standardise(
    pool: Pool,
    hidden: &[f32],
    (weights, bias): (&[f32], &[f32]),
    epsilon: f32,
) -> Vec<f32> {
    let width = weights.len().max(1);
    let mut made = vec![0.0; hidden.len()];
    let units = hidden.chunks_exact(width).zip(made.chunks_exact_mut(width)).collect();
    pool.few(hidden.len() / width).each(units, |_, (row, made)| {
        let mean = row.iter().sum::<f32>() / width as f32;
        let squares: f32 = row.iter().map(|float| (float - mean) * (float - mean)).sum();
        let scale = 1.0 / (squares / width as f32 + epsilon).sqrt();
        let factors = weights.iter().zip(bias);
        for ((made, float), (weight, bias)) in made.iter_mut().zip(*row).zip(factors) {
            *made = (float - mean) * scale * weight + bias;
        }
    });
    made
}

/// Adds `more` to `hidden`.
pub fn add(hidden: &mut [f32], more: &[f32]) {
    for (hidden, more) in hidden.iter_mut().zip(more) {
        *hidden += more;
    }
}

/// Adds `bias` to each row of `hidden`.
pub fn shift(hidden: &mut [f32], bias: &[f32]) {
    for row in hidden.chunks_exact_mut(bias.len().max(1)) {
        add(row, bias);
    }
}

/// What a gate lets through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gate {
    /// `x` times its sigmoid.
    Silu,
    /// `x` times the normal distribution's share below it, by the usual approximation.
    Gelu,
    /// The same without the approximation.
    ExactGelu,
}

/// Multiplies `inputs` by what `kind` makes of the `gates`, row by row of `width`.
pub fn gate(pool: Pool, kind: Gate, gates: &[f32], mut inputs: Vec<f32>, width: usize) -> Vec<f32> {
    let width = width.max(1);
    let units = inputs.chunks_mut(width).zip(gates.chunks(width)).collect();
    pool.few(gates.len() / width).each(units, |_, (inputs, gates)| gate_row(kind, gates, inputs));
    inputs
}

fn gate_row(kind: Gate, gates: &[f32], inputs: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::product::has_avx2() {
        // SAFETY: the features were found.
        #[expect(unsafe_code, reason = "vector code is entered where the processor has it")]
        return unsafe { gate_row_avx2(kind, gates, inputs) };
    }
    gate_row_any(kind, gates, inputs);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn gate_row_avx2(kind: Gate, gates: &[f32], inputs: &mut [f32]) {
    gate_row_any(kind, gates, inputs);
}

#[inline(always)]
fn gate_row_any(kind: Gate, gates: &[f32], inputs: &mut [f32]) {
    match kind {
        Gate::Silu => {
            for (input, gate) in inputs.iter_mut().zip(gates) {
                *input *= gate / (1.0 + exp(-gate));
            }
        }
        Gate::Gelu => {
            for (input, gate) in inputs.iter_mut().zip(gates) {
                *input *= gelu(*gate);
            }
        }
        Gate::ExactGelu => {
            for (input, gate) in inputs.iter_mut().zip(gates) {
                *input *= gate * 0.5 * (1.0 + erf(gate * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
    }
}

/// Gives the error function of `x`, off by 2e-7 at most.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let mut sum = 1.061_405_4;
    sum = sum * t - 1.453_152;
    sum = sum * t + 1.421_413_7;
    sum = sum * t - 0.284_496_74;
    sum = sum * t + 0.254_829_6;
    (1.0 - sum * t * exp(-size * size)).copysign(x)
}

/// Half of 1 + tanh(y) is the sigmoid of 2 y.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    const TWICE_ROOT_OF_2_OVER_PI: f32 = 1.595_769_2;
    x / (1.0 + exp(-TWICE_ROOT_OF_2_OVER_PI * x * (1.0 + 0.044_715 * x * x)))
}

/// Which two numbers of a head are turned together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pairs {
    /// `(2i, 2i + 1)`.
    Neighbours,
    /// `(i, i + half)`.
    Halves,
}

/// Turns each pair of numbers of each head by its angle. `turns` holds the cosine and sine of each
/// of the `pairs` of a head, row after row.
pub fn rotate(kind: Pairs, rows: &mut [f32], width: usize, turns: &[(f32, f32)], pairs: usize) {
    let rows = rows.chunks_exact_mut(width.max(1)).zip(turns.chunks_exact(pairs.max(1)));
    for (row, turns) in rows {
        for head in row.chunks_exact_mut((pairs * 2).max(1)) {
            if kind == Pairs::Halves {
                let (first, second) = head.split_at_mut(pairs);
                for ((x, y), (cos, sin)) in first.iter_mut().zip(second).zip(turns) {
                    (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
                }
                continue;
            }
            for ([x, y], (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}

/// Gives e to the `x`, within two units of the last place; below -87 it gives nearly nothing.
///
/// Source: the reduction and polynomial of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let whole = shifted - MAGIC;
    let rest = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    sum = sum * rest + 1.398_199_9e-3;
    sum = sum * rest + 8.333_452e-3;
    sum = sum * rest + 4.166_579_6e-2;
    sum = sum * rest + 0.166_666_65;
    sum = sum * rest + 0.5;
    let power = sum * rest * rest + rest + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(0x4B40_0000).wrapping_add(127) << 23;
    power * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_close() {
        for step in -860..880_i16 {
            let x = f32::from(step) * 0.1;
            let (made, wanted) = (exp(x), x.exp());
            assert!((made - wanted).abs() <= wanted * 4e-7, "{x}: {made} {wanted}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn a_row_is_normalised_and_gated_alone_as_among_others() {
        let rows: Vec<f32> = (0..100 * 12_u16).map(|i| (f32::from(i) * 0.3).sin()).collect();
        let weights: Vec<f32> = (0..12_u16).map(f32::from).collect();
        let all = normalise(Pool::inline(), &rows, &weights, 1e-5);
        let one = normalise(Pool::inline(), &rows[36..48], &weights, 1e-5);
        assert_eq!(all[36..48], one);
        let gated = gate(Pool::inline(), Gate::Silu, &rows, rows.clone(), 12);
        assert_eq!(
            gated[36..48],
            gate(Pool::inline(), Gate::Silu, &rows[36..48], rows[36..48].to_vec(), 12)
        );
        let x = rows[40];
        assert!((gated[40] - x * x / (1.0 + (-x).exp())).abs() < 1e-6);
    }

    #[test]
    fn halves_turn_as_neighbours_do_and_gelu_is_close_to_the_normal_distribution() {
        let turns: Vec<(f32, f32)> = (0..3_u8).map(|i| f32::from(i).sin_cos()).collect();
        let mut neighbours = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let mut halves = [1.0, 3.0, 5.0, 2.0, 4.0, 6.0];
        rotate(Pairs::Neighbours, &mut neighbours, 6, &turns, 3);
        rotate(Pairs::Halves, &mut halves, 6, &turns, 3);
        for i in 0..3 {
            let bits = |pair: [f32; 2]| pair.map(f32::to_bits);
            let turned = [neighbours[i * 2], neighbours[i * 2 + 1]];
            assert_eq!(bits(turned), bits([halves[i], halves[i + 3]]));
        }
        for (x, wanted) in
            [(-3.0, -0.004_049_7), (-1.0, -0.158_655), (0.0, 0.0), (2.0, 1.954_499_7)]
        {
            let made = gate(Pool::inline(), Gate::Gelu, &[x], vec![1.0], 1);
            assert!((made[0] - wanted).abs() < 1e-3, "{x}: {made:?} {wanted}");
            let made = gate(Pool::inline(), Gate::ExactGelu, &[x], vec![1.0], 1);
            assert!((made[0] - wanted).abs() < 5e-6, "{x}: {made:?} {wanted}");
        }
        let made = standardise(Pool::inline(), &[1.0, 3.0, 5.0, 9.0], (&[2.0; 2], &[1.0; 2]), 0.0);
        assert_eq!(made, [-1.0, 3.0, -1.0, 3.0]);
        let mut rows = vec![1.0; 6];
        shift(&mut rows, &[1.0, 2.0, 3.0]);
        assert_eq!(rows, [2.0, 3.0, 4.0, 2.0, 3.0, 4.0]);
    }

    fn near(made: f32, wanted: f64, size: f64) {
        assert!((f64::from(made) - wanted).abs() <= size * 1e-6, "{made} {wanted}");
    }

    #[test]
    fn norm_gate_and_rotation_are_those_of_wide_floats() {
        for width in [2, 6, 30, 576] {
            let rows: Vec<f32> = (0..9 * width).map(|i| (i as f32 * 0.3).sin() * 5.0).collect();
            let more: Vec<f32> = (0..9 * width).map(|i| (i as f32 * 0.7).cos() * 9.0).collect();
            let normed = normalise(Pool::inline(), &rows, &more[..width], 1e-5);
            for (row, normed) in rows.chunks(width).zip(normed.chunks(width)) {
                let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                let scale = 1.0 / (squares / width as f64 + f64::from(1e-5_f32)).sqrt();
                for ((x, made), weight) in row.iter().zip(normed).zip(&more) {
                    let wanted = f64::from(*x) * scale * f64::from(*weight);
                    near(*made, wanted, wanted.abs());
                }
            }
            let gated = gate(Pool::inline(), Gate::Silu, &more, rows.clone(), width);
            for ((x, gate), made) in rows.iter().zip(&more).zip(gated) {
                let gate = f64::from(*gate);
                let wanted = f64::from(*x) * gate / (1.0 + (-gate).exp());
                near(made, wanted, wanted.abs());
            }
            let turns: Vec<(f32, f32)> = (0..9 * width / 2)
                .map(|i| (i as f32 * 0.1).sin_cos())
                .map(|(s, c)| (c, s))
                .collect();
            let mut turned = rows.clone();
            rotate(Pairs::Neighbours, &mut turned, width, &turns, width / 2);
            let pairs = rows.as_chunks::<2>().0.iter().zip(turned.as_chunks::<2>().0);
            for (([x, y], made), (cos, sin)) in pairs.zip(&turns) {
                let [x, y, cos, sin] = [*x, *y, *cos, *sin].map(f64::from);
                near(made[0], x * cos - y * sin, x.abs() + y.abs());
                near(made[1], x * sin + y * cos, x.abs() + y.abs());
            }
        }
    }

    #[test]
    fn a_quarter_turn_swaps_a_pair() {
        let mut row = vec![1.0, 2.0, 3.0, 4.0];
        rotate(Pairs::Neighbours, &mut row, 4, &[(0.0, 1.0)], 1);
        assert_eq!(row, [-2.0, 1.0, -4.0, 3.0]);
    }
}
