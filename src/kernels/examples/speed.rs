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
        Format::Q4K,
        Format::Q6K,
        Format::F16,
        Format::F32,
    ];
    for format in formats {
        for (width, columns) in [(576, 1536), (1536, 576), (4096, 4096)] {
            if width % format.block().0 != 0 {
                continue;
            }
            let bytes = vec![0x11_u8; format.row_bytes(width) * columns];
            let matrix = Matrix { format, bytes: &bytes, rows: columns };
            for rows in [1, 2, 4, 8, 128] {
                let inputs = Activations::new(Pool::inline(), vec![0.3; rows * width], width);
                let macs = (rows * width * columns) as f64;
                let turns = (2e9 / macs).clamp(3.0, 2000.0) as usize;
                let start = Instant::now();
                for _ in 0..turns {
                    std::hint::black_box(multiply(Pool::inline(), &inputs, &[matrix]));
                }
                let seconds = start.elapsed().as_secs_f64() / turns as f64;
                print!(
                    "{format:?} {width}x{columns} rows {rows}: {:.1} GMAC/s  ",
                    macs / seconds / 1e9
                );
            }
            println!();
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
