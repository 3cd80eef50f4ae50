//! How fast products are: `cargo run --release -p slotd-kernels --example speed`.

#![expect(
    clippy::disallowed_methods,
    clippy::cast_sign_loss,
    reason = "a program that measures reads the clock"
)]
use std::time::Instant;

use slotd_kernels::{Activations, Format, Heads, Matrix, Pool, Span, attend, multiply};

fn main() {
    let formats = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::F16,
        Format::F32,
    ];
    for (width, columns) in [(576, 1536), (1536, 576), (4096, 1024)] {
        for rows in [1, 2, 4, 8, 128] {
            products(&formats, (width, columns), rows);
        }
    }
    let heads = Heads { queries: 9, keys: 3, width: 64, scale: 0.1 };
    let (queries, keys) = (vec![0.1; 576], vec![0.1; 192 * 1024]);
    for length in [64, 256, 1024] {
        let keys = &keys[..192 * length];
        let span = Span { queries: &queries, keys, values: keys, length };
        let start = Instant::now();
        for _ in 0..2000 {
            std::hint::black_box(attend(Pool::inline(), heads, &[span]));
        }
        println!("attention over {length}: {:.1} us", start.elapsed().as_secs_f64() * 1e6 / 2000.0);
    }
    let start = Instant::now();
    for _ in 0..2000 {
        std::hint::black_box(Activations::new(Pool::inline(), vec![0.3; 1536], 1536));
    }
    println!("rounding 1536: {:.2} us", start.elapsed().as_secs_f64() * 1e6 / 2000.0);
}

/// Measures the formats in turns and takes the best of each, since other programs take their share
/// of the machine.
fn products(formats: &[Format], (width, columns): (usize, usize), rows: usize) {
    let formats = formats.iter().filter(|format| width % format.block().0 == 0);
    let mut measured: Vec<(Format, Vec<u8>, f64)> = formats
        .map(|format| (*format, vec![0x11; format.row_bytes(width) * columns], f64::INFINITY))
        .collect();
    let inputs = Activations::new(Pool::inline(), vec![0.3; rows * width], width);
    let macs = (rows * width * columns) as f64;
    for _ in 0..(1e9 / macs).clamp(4.0, 300.0) as usize {
        for (format, bytes, best) in &mut measured {
            let matrix = Matrix { format: *format, bytes, rows: columns };
            for _ in 0..2 {
                let start = Instant::now();
                std::hint::black_box(multiply(Pool::inline(), &inputs, &[matrix]));
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
    }
    print!("GMAC/s of {width}x{columns}, {rows} rows:");
    for (format, _, best) in measured {
        print!("  {format:?} {:.1}", macs / best / 1e9);
    }
    println!();
}
