//! What a layer should give, in plain loops of 64-bit floats: what the host's code is tested against.

use candle_core::{Device, Tensor};

use super::{HostMatrix, Shape, host::HostLayer};

/// How a reference takes the inputs of its products.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Inputs {
    /// As they are.
    Exact,
    /// In blocks of 32 integers of 8 bits that share a scale, as the kernels take them.
    Rounded,
}

pub(super) fn wide(floats: &[f32]) -> Vec<f64> {
    floats.iter().map(|float| f64::from(*float)).collect()
}

/// Gives what the kernels' integers and scales stand for.
pub(super) fn rounded(floats: &[f32]) -> Vec<f64> {
    let block = |block: &[f32]| -> Vec<f64> {
        let most = block.iter().fold(0.0_f32, |most, float| most.max(float.abs()));
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let whole = block.iter().map(|float| (float * inverse).round_ties_even());
        whole.map(|whole| f64::from(whole) * f64::from(most / 127.0)).collect()
    };
    floats.chunks(32).flat_map(block).collect()
}

/// Multiplies rows of inputs by a matrix.
pub(super) fn product(matrix: &HostMatrix, rows: &[f64], inputs: Inputs) -> Vec<f64> {
    let weights: Vec<f64> =
        (0..matrix.rows).flat_map(|row| wide(&matrix.row(row).unwrap())).collect();
    let width = weights.len() / matrix.rows;
    let rounds = inputs == Inputs::Rounded && matrix.dtype.block_size() > 1;
    let rows = if rounds { rounded(&narrow(rows)) } else { rows.to_vec() };
    let count = rows.len() / width;
    let weights = Tensor::from_vec(weights, (matrix.rows, width), &Device::Cpu).unwrap();
    let rows = Tensor::from_vec(rows, (count, width), &Device::Cpu).unwrap();
    rows.matmul(&weights.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[expect(clippy::as_conversions, clippy::cast_possible_truncation, reason = "to the nearest float")]
fn narrow(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|number| *number as f32).collect()
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "widths are small")]
pub(super) fn normalised(shape: &Shape, rows: &[f64], weights: &[f32]) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(shape.norm_epsilon)).sqrt();
        row.iter().zip(weights).map(|(x, weight)| x * scale * f64::from(*weight)).collect()
    };
    rows.chunks(shape.width).flat_map(row).collect()
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "positions are small")]
fn rotated(shape: &Shape, mut rows: Vec<f64>, width: usize) -> Vec<f64> {
    for (position, row) in rows.chunks_mut(width).enumerate() {
        for head in row.chunks_mut(shape.head_width) {
            for (pair, numbers) in head.chunks_mut(2).enumerate() {
                let power = (pair * 2) as f64 / shape.head_width as f64;
                let angle = position as f64
                    / f64::from(shape.rope_factor)
                    / f64::from(shape.rope_base).powf(power);
                let (x, y) = (numbers[0], numbers[1]);
                numbers[0] = x * angle.cos() - y * angle.sin();
                numbers[1] = x * angle.sin() + y * angle.cos();
            }
        }
    }
    rows
}

fn attended(shape: &Shape, queries: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
    let (head_width, kv_width) = (shape.head_width, shape.kv_width());
    let mut mixed = Vec::with_capacity(queries.len());
    for (at, query) in queries.chunks(head_width).enumerate() {
        let (position, head) = (at / shape.heads, at % shape.heads * shape.kv_heads / shape.heads);
        let of = |rows: &[f64], row: usize, i: usize| rows[row * kv_width + head * head_width + i];
        let score = |row| query.iter().enumerate().map(|(i, x)| x * of(keys, row, i)).sum::<f64>();
        let scores = (0..=position).map(|row| (score(row) * f64::from(shape.scale)).exp());
        let scores: Vec<f64> = scores.collect();
        let sum: f64 = scores.iter().sum();
        mixed.extend((0..head_width).map(|i| {
            scores.iter().enumerate().map(|(row, s)| s / sum * of(values, row, i)).sum::<f64>()
        }));
    }
    mixed
}

/// Gives what `layer` makes of a sequence's rows from its first position on.
pub(super) fn layer(shape: &Shape, layer: &HostLayer, rows: &[f64], inputs: Inputs) -> Vec<f64> {
    let normed = normalised(shape, rows, &layer.attention_norm);
    let queries = product(&layer.query, &normed, inputs);
    let queries = rotated(shape, queries, shape.heads * shape.head_width);
    let keys = rotated(shape, product(&layer.key, &normed, inputs), shape.kv_width());
    let values = product(&layer.value, &normed, inputs);
    let mixed = attended(shape, &queries, &keys, &values);
    let added = product(&layer.output, &mixed, inputs);
    let rows: Vec<f64> = rows.iter().zip(added).map(|(a, b)| a + b).collect();
    let normed = normalised(shape, &rows, &layer.feed_forward_norm);
    let gates = product(&layer.gate, &normed, inputs);
    let up = product(&layer.up, &normed, inputs);
    let inner: Vec<f64> = gates.iter().zip(up).map(|(x, up)| x / (1.0 + (-x).exp()) * up).collect();
    let added = product(&layer.down, &inner, inputs);
    rows.iter().zip(added).map(|(a, b)| a + b).collect()
}
