//! Every input that the fuzzer has found worth keeping, without the fuzzer.

use std::{fs, path::Path};

#[path = "readers.rs"]
mod readers;

fn replay(target: &str, reader: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "{} inputs in {}", files.len(), folder.display());
    for file in files {
        // Where it panics, the last line says on what.
        println!("{}", file.display());
        reader(&fs::read(&file).unwrap());
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
