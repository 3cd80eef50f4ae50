//! Every input that the fuzzer has found worth keeping, and some that lie beside them, without the fuzzer.

use std::{env, fs, path::Path};

#[path = "readers.rs"]
mod readers;

/// How many inputs are made of each that is kept; `SLOTD_FUZZ_ROUNDS` sets another number.
const ROUNDS: usize = 300;

fn replay(target: &str, reader: fn(&[u8])) {
    let rounds = env::var("SLOTD_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "{} inputs in {}", files.len(), folder.display());
    for file in files {
        // Where it panics, the last line says on what.
        println!("{}", file.display());
        let kept = fs::read(&file).unwrap();
        reader(&kept);
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        for _ in 0..rounds {
            let bytes = dice.changed(&kept);
            let broken = Unfinished(&bytes);
            reader(&bytes);
            drop(broken);
        }
    }
}

/// Shows what a reader broke on.
struct Unfinished<'a>(&'a [u8]);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0.escape_ascii());
        }
    }
}

/// The same changes each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % bound.max(1)
    }

    /// Bytes cut off, overwritten, repeated, or made as large as they can be.
    fn changed(&mut self, kept: &[u8]) -> Vec<u8> {
        let mut bytes = kept.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let length = self.below(9).min(bytes.len() - at);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes[at..at + length].fill(0xFF),
                2 => bytes.extend_from_within(at..at + length),
                3 => drop(bytes.drain(at..at + length)),
                _ => {
                    let dice = u8::try_from((self.0 >> 9) & 0x7F).unwrap();
                    bytes[at..at + length].fill(dice);
                }
            }
        }
        bytes
    }
}

#[test]
fn the_corpus_of_gguf_headers_holds() {
    replay("gguf", readers::gguf);
}

#[test]
fn the_corpus_of_safetensors_headers_holds() {
    replay("safetensors", readers::safetensors);
}

#[test]
fn the_corpus_of_profiles_holds() {
    replay("profile", readers::profile);
}
