//! The reader of `safetensors` under libFuzzer.
#![no_main]

#[path = "../readers.rs"]
#[allow(dead_code, reason = "each program uses one of them")]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::safetensors(bytes));
