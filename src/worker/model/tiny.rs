//! A tiny random model, written as a GGUF file for tests.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value},
};

use crate::worker::text::byte_alphabet;

/// Writes a model of two layers and 256 + 3 byte tokens into `folder`.
pub(crate) fn write(folder: &Path, dtype: GgmlDType) -> PathBuf {
    write_as(folder, &metadata("llama"), dtype)
}

/// Writes that model with one value of its metadata replaced.
pub(crate) fn write_with(folder: &Path, key: &'static str, value: Value) -> PathBuf {
    let mut metadata = metadata("llama");
    metadata.retain(|(known, _)| *known != key);
    metadata.push((key, value));
    write_as(folder, &metadata, GgmlDType::F32)
}

fn write_as(folder: &Path, metadata: &[(&str, Value)], dtype: GgmlDType) -> PathBuf {
    let path = folder.join("tiny.gguf");
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors = tensors(dtype);
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(&path).unwrap());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    drop(file);
    path
}

/// Writes a file that is whole, but of another architecture.
pub(crate) fn write_foreign(folder: &Path) -> PathBuf {
    let path = folder.join("foreign.gguf");
    let metadata = metadata("mamba");
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &[]).unwrap();
    path
}

fn metadata(architecture: &str) -> Vec<(&'static str, Value)> {
    let mut tokens: Vec<Value> =
        byte_alphabet().map(|letter| Value::String(letter.to_string())).collect();
    let special = ["<|end|>", "<|im_start|>", "<|im_end|>"];
    tokens.extend(special.map(|token| Value::String(token.to_owned())));
    let kinds = (0..tokens.len()).map(|id| Value::I32(if id < 256 { 1 } else { 3 })).collect();
    vec![
        ("general.architecture", Value::String(architecture.to_owned())),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(256)),
        ("llama.embedding_length", Value::U32(64)),
        ("llama.feed_forward_length", Value::U32(96)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".to_owned())),
        ("tokenizer.ggml.tokens", Value::Array(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", Value::Array(Vec::new())),
        ("tokenizer.ggml.eos_token_id", Value::U32(256)),
    ]
}

fn tensors(dtype: GgmlDType) -> Vec<(String, QTensor)> {
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), noise(&[259, 64], 1, GgmlDType::F32)),
        ("output_norm.weight".to_owned(), noise(&[64], 2, GgmlDType::F32)),
    ];
    for layer in 0..2_u16 {
        let parts: [(&str, &[usize]); 9] = [
            ("attn_norm", &[64]),
            ("attn_q", &[64, 64]),
            ("attn_k", &[32, 64]),
            ("attn_v", &[32, 64]),
            ("attn_output", &[64, 64]),
            ("ffn_norm", &[64]),
            ("ffn_gate", &[96, 64]),
            ("ffn_up", &[96, 64]),
            ("ffn_down", &[64, 96]),
        ];
        for (seed, (part, dims)) in (3_u16..).zip(parts) {
            let dtype = if dims.len() == 1 { GgmlDType::F32 } else { dtype };
            tensors.push((
                format!("blk.{layer}.{part}.weight"),
                noise(dims, layer * 16 + seed, dtype),
            ));
        }
    }
    tensors
}

/// Gives the same numbers on every machine.
fn noise(dims: &[usize], seed: u16, dtype: GgmlDType) -> QTensor {
    let count = dims.iter().product();
    let step = 1.7 + f32::from(seed) * 0.013;
    let numbers: Vec<f32> =
        (0_u16..).take(count).map(|i| (f32::from(i) * step).sin() * 0.7).collect();
    QTensor::quantize(&Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap(), dtype).unwrap()
}
