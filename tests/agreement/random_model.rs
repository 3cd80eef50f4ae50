//! Small models of several architectures with random weights, written as GGUF files.
//!
//! Their weights are plain floats: both engines then compute nearly the same, and a wrong step of
//! a graph shows in each number.

use std::{
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value},
};

/// What sets an architecture apart.
pub(crate) struct Kind {
    pub(crate) architecture: &'static str,
    layers: usize,
    /// Numbers and floats of its metadata.
    numbers: &'static [(&'static str, u32)],
    floats: &'static [(&'static str, f32)],
    /// Tensors of each layer beside those that all have.
    more: &'static [(&'static str, &'static [usize])],
    is_fused: bool,
}

const WIDTH: usize = 64;
const HEADS: usize = 4;
const HEAD: usize = 32;
const QUERY: usize = HEADS * HEAD;
const KV: usize = 2 * HEAD;
const INNER: usize = 96;

pub(crate) const KINDS: [Kind; 5] = [
    Kind {
        architecture: "llama",
        layers: 3,
        numbers: &[],
        floats: &[],
        more: &[],
        is_fused: false,
    },
    Kind {
        architecture: "qwen2",
        layers: 3,
        numbers: &[],
        floats: &[("rope.freq_base", 1e6)],
        more: &[("attn_q.bias", &[QUERY]), ("attn_k.bias", &[KV]), ("attn_v.bias", &[KV])],
        is_fused: false,
    },
    Kind {
        architecture: "qwen3",
        layers: 3,
        numbers: &[],
        floats: &[("rope.freq_base", 1e6)],
        more: &[("attn_q_norm.weight", &[HEAD]), ("attn_k_norm.weight", &[HEAD])],
        is_fused: false,
    },
    Kind {
        architecture: "gemma3",
        layers: 8,
        numbers: &[("attention.sliding_window", 12)],
        floats: &[
            ("rope.freq_base", 1e6),
            ("rope.scaling.factor", 8.0),
            ("rope.freq_base_swa", 1e4),
            ("final_logit_softcapping", 20.0),
        ],
        more: &[
            ("attn_q_norm.weight", &[HEAD]),
            ("attn_k_norm.weight", &[HEAD]),
            ("post_attention_norm.weight", &[WIDTH]),
            ("post_ffw_norm.weight", &[WIDTH]),
        ],
        is_fused: false,
    },
    Kind {
        architecture: "phi3",
        layers: 3,
        numbers: &[("rope.scaling.original_context_length", 128)],
        floats: &[("rope.scaling.attn_factor", 1.19)],
        more: &[],
        is_fused: true,
    },
];

/// Writes the model into `folder`, with a chat template or none.
pub(crate) fn write(folder: &Path, kind: &Kind, template: Option<&str>) -> PathBuf {
    let path = folder.join(format!("{}.gguf", kind.architecture));
    let mut metadata = metadata(kind);
    let template = template.map(|text| Value::String(text.to_owned()));
    metadata.extend(template.map(|text| ("tokenizer.chat_template".to_owned(), text)));
    let metadata: Vec<(&str, &Value)> =
        metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors = tensors(kind);
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = BufWriter::new(File::create(&path).unwrap());
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    path
}

fn metadata(kind: &Kind) -> Vec<(String, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let number = |number: usize| Value::U32(u32::try_from(number).unwrap());
    let mut tokens = tokens();
    let types = (0..tokens.len()).map(|id| Value::I32(if id < 257 { 1 } else { 3 })).collect();
    let own = |key: &str| format!("{}.{key}", kind.architecture);
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(kind.architecture)),
        (own("block_count"), number(kind.layers)),
        (own("context_length"), number(512)),
        (own("embedding_length"), number(WIDTH)),
        (own("feed_forward_length"), number(INNER)),
        (own("attention.head_count"), number(HEADS)),
        (own("attention.head_count_kv"), number(KV / HEAD)),
        (own("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text("gpt-2")),
        ("tokenizer.ggml.merges".to_owned(), Value::Array(vec![text("a b")])),
        ("tokenizer.ggml.tokens".to_owned(), {
            Value::Array(tokens.drain(..).map(Value::String).collect())
        }),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(types)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(257)),
    ];
    if !takes_all_of_width(kind) {
        metadata.push((own("attention.key_length"), number(HEAD)));
        metadata.push((own("attention.value_length"), number(HEAD)));
    }
    if kind.floats.iter().any(|(key, _)| *key == "rope.scaling.factor") {
        metadata.push((own("rope.scaling.type"), text("linear")));
    }
    metadata.extend(kind.numbers.iter().map(|(key, value)| (own(key), Value::U32(*value))));
    metadata.extend(kind.floats.iter().map(|(key, value)| (own(key), Value::F32(*value))));
    metadata
}

/// Says whether the heads of queries together are as wide as the model.
fn takes_all_of_width(kind: &Kind) -> bool {
    matches!(kind.architecture, "qwen2" | "phi3")
}

/// The letters that stand for bytes, one join of two, and special tokens.
fn tokens() -> Vec<String> {
    let is_plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let letters = (0..=255_u8).map(|byte| {
        if is_plain(byte) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    });
    let mut tokens: Vec<String> = letters.map(String::from).collect();
    tokens.extend(["ab", "<|im_end|>", "<|im_start|>"].map(str::to_owned));
    tokens
}

fn tensors(kind: &Kind) -> Vec<(String, QTensor)> {
    let query = if takes_all_of_width(kind) { WIDTH } else { QUERY };
    let kv = query / 2;
    let mut parts: Vec<(String, Vec<usize>)> = vec![
        ("token_embd.weight".to_owned(), vec![259, WIDTH]),
        ("output_norm.weight".to_owned(), vec![WIDTH]),
        ("output.weight".to_owned(), vec![259, WIDTH]),
    ];
    if kind.architecture == "phi3" {
        let half = WIDTH / HEADS / 2;
        parts.push(("rope_factors_long.weight".to_owned(), vec![half]));
        parts.push(("rope_factors_short.weight".to_owned(), vec![half]));
    }
    for layer in 0..kind.layers {
        let mut part = |name: &str, dims: &[usize]| {
            parts.push((format!("blk.{layer}.{name}"), dims.to_vec()));
        };
        part("attn_norm.weight", &[WIDTH]);
        part("ffn_norm.weight", &[WIDTH]);
        part("attn_output.weight", &[WIDTH, query]);
        part("ffn_down.weight", &[WIDTH, INNER]);
        if kind.is_fused {
            part("attn_qkv.weight", &[query + 2 * kv, WIDTH]);
            part("ffn_up.weight", &[2 * INNER, WIDTH]);
        } else {
            part("attn_q.weight", &[query, WIDTH]);
            part("attn_k.weight", &[kv, WIDTH]);
            part("attn_v.weight", &[kv, WIDTH]);
            part("ffn_gate.weight", &[INNER, WIDTH]);
            part("ffn_up.weight", &[INNER, WIDTH]);
        }
        for (name, dims) in kind.more {
            let is_wide = is_bias(name);
            let dims = dims.iter().map(|dim| if is_wide { dim * query / QUERY } else { *dim });
            part(name, &dims.collect::<Vec<_>>());
        }
    }
    let mut state = 9_u64;
    let made = parts.into_iter().map(|(name, dims)| {
        let tensor = random(&mut state, &name, &dims);
        (name, tensor)
    });
    made.collect()
}

fn is_bias(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, part)| part == "bias")
}

/// Gives the same numbers on every machine: norms and factors about one, matrices that leave the
/// size of what they multiply.
fn random(state: &mut u64, name: &str, dims: &[usize]) -> QTensor {
    let count = dims.iter().product();
    let mut next = || {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(i16::from_ne_bytes([state.to_be_bytes()[0], state.to_be_bytes()[1]])) / 32768.0
    };
    let (middle, size) = match (dims, name) {
        (_, "token_embd.weight") => (0.0, 0.3),
        (_, "output.weight") => (0.0, 0.6),
        ([_], name) if is_bias(name) => (0.0, 0.5),
        ([_], name) if name.starts_with("rope") => (1.6, 0.5),
        ([_], _) => (1.0, 0.4),
        _ => (0.0, 0.25),
    };
    let numbers: Vec<f32> = (0..count).map(|_| middle + size * next()).collect();
    let tensor = Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, GgmlDType::F32).unwrap()
}
