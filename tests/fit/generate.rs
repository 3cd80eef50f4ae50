//! Models that are made: random weights of any shape behind a real model's tokenizer.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

/// What a model is to look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) layers: u32,
    pub(crate) width: u32,
    pub(crate) feed_forward: u32,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) head: u32,
    pub(crate) window: Option<u32>,
    /// How many experts a layer has; two of them work on each token.
    pub(crate) experts: Option<u32>,
    pub(crate) format: Format,
    /// The output is a matrix of its own.
    pub(crate) has_output: bool,
}

/// How matrices are stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Format {
    F16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4K,
    Q6K,
}

const TRAINED: u32 = 32_768;
/// An encoder looks up an embedding for each of these.
/// First and second text of a pair; llama-server wants their number, and takes a model without their tensor.
const TOKEN_TYPES: u32 = 2;
const POSITIONS: u32 = 2048;

impl Shape {
    /// It makes embeddings and no text.
    pub(crate) fn is_encoder(&self) -> bool {
        self.architecture == "bert"
    }
}

impl Format {
    /// Its number, the weights of a block, and the bytes of one.
    fn of(self) -> (u32, u64, usize) {
        match self {
            Self::F16 => (1, 1, 2),
            Self::Q8_0 => (8, 32, 34),
            Self::Q4_0 => (2, 32, 18),
            Self::Q4_1 => (3, 32, 20),
            Self::Q4K => (12, 256, 144),
            Self::Q6K => (14, 256, 210),
        }
    }

    /// Where a block has its scales; they are small.
    fn scales(self) -> &'static [usize] {
        match self {
            Self::F16 | Self::Q8_0 | Self::Q4_0 => &[0],
            Self::Q4_1 | Self::Q4K => &[0, 2],
            Self::Q6K => &[208],
        }
    }
}

/// Writes the model, with the tokenizer of the file `like`.
pub(crate) fn write(path: &Path, shape: &Shape, like: &Path) {
    let tokenizer = tokenizer(&fs::read(like).unwrap());
    let tensors = tensors(shape, tokenizer.vocabulary);
    let mut metadata = Metadata::default();
    metadata.text("general.architecture", shape.architecture);
    metadata.text("general.name", shape.name);
    let number = |key: &str, value: u32, to: &mut Metadata| {
        to.number(&format!("{}.{key}", shape.architecture), value);
    };
    number("block_count", shape.layers, &mut metadata);
    let trained = if shape.is_encoder() { POSITIONS } else { TRAINED };
    number("context_length", trained, &mut metadata);
    number("embedding_length", shape.width, &mut metadata);
    number("feed_forward_length", shape.feed_forward, &mut metadata);
    number("attention.head_count", shape.heads, &mut metadata);
    number("attention.head_count_kv", shape.kv_heads, &mut metadata);
    number("attention.key_length", shape.head, &mut metadata);
    number("attention.value_length", shape.head, &mut metadata);
    number("rope.dimension_count", shape.head, &mut metadata);
    if let Some(experts) = shape.experts {
        number("expert_count", experts, &mut metadata);
        number("expert_used_count", 2, &mut metadata);
        number("expert_feed_forward_length", shape.feed_forward, &mut metadata);
    }
    if let Some(window) = shape.window {
        number("attention.sliding_window", window, &mut metadata);
    }
    let epsilon = if shape.is_encoder() { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    metadata.float(&format!("{}.attention.{epsilon}", shape.architecture), 1e-5);
    if shape.is_encoder() {
        metadata.number(&format!("{}.pooling_type", shape.architecture), 1);
        metadata.number("tokenizer.ggml.token_type_count", TOKEN_TYPES);
        metadata.pair(&format!("{}.attention.causal", shape.architecture), 7, &[0]);
    }

    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.pairs + tokenizer.pairs).to_le_bytes());
    header.extend(metadata.bytes);
    header.extend(tokenizer.bytes);
    let mut offset = 0_u64;
    for tensor in &tensors {
        header.extend(string(&tensor.name));
        header.extend((tensor.dims.len() as u32).to_le_bytes());
        header.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
        header.extend(tensor.kind().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(32);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&header).unwrap();
    let mut random = Random(7);
    for tensor in &tensors {
        tensor.write(&mut file, &mut random);
    }
    file.flush().unwrap();
}

struct Tensor {
    name: String,
    dims: Vec<u64>,
    format: Format,
}

impl Tensor {
    fn is_vector(&self) -> bool {
        self.dims.len() == 1
    }

    fn kind(&self) -> u32 {
        if self.is_vector() { 0 } else { self.format.of().0 }
    }

    fn bytes(&self) -> u64 {
        let numbers: u64 = self.dims.iter().product();
        let (_, block, bytes) = self.format.of();
        if self.is_vector() { numbers * 4 } else { numbers / block * bytes as u64 }
    }

    fn write(&self, file: &mut impl Write, random: &mut Random) {
        let bytes = self.bytes();
        if self.is_vector() {
            (0..bytes / 4).for_each(|_| file.write_all(&1_f32.to_le_bytes()).unwrap());
        } else {
            // 0.0004 in half precision, and noise of whole numbers behind it.
            let (_, _, block) = self.format.of();
            let mut one = vec![0_u8; block];
            for _ in 0..bytes / block as u64 {
                random.fill(&mut one);
                for at in self.format.scales() {
                    one[*at..*at + 2].copy_from_slice(&0x0e8d_u16.to_le_bytes());
                }
                file.write_all(&one).unwrap();
            }
        }
        let padding = bytes.next_multiple_of(32) - bytes;
        file.write_all(&vec![0; padding as usize]).unwrap();
    }
}

fn tensors(shape: &Shape, vocabulary: u64) -> Vec<Tensor> {
    if shape.is_encoder() {
        return encoder(shape, vocabulary);
    }
    let Shape { width, feed_forward, heads, kv_heads, head, .. } = *shape;
    let [width, inner] = [width, feed_forward].map(u64::from);
    let [query, kv] = [heads * head, kv_heads * head].map(u64::from);
    let head = u64::from(head);
    let mut tensors = Vec::new();
    let mut add = |name: String, dims: &[u64]| {
        tensors.push(Tensor { name, dims: dims.to_vec(), format: shape.format });
    };
    add("token_embd.weight".into(), &[width, vocabulary]);
    for layer in 0..shape.layers {
        let mut part = |name: &str, dims: &[u64]| add(format!("blk.{layer}.{name}"), dims);
        part("attn_norm.weight", &[width]);
        part("attn_q.weight", &[width, query]);
        part("attn_k.weight", &[width, kv]);
        part("attn_v.weight", &[width, kv]);
        part("attn_output.weight", &[query, width]);
        part("ffn_norm.weight", &[width]);
        if let Some(experts) = shape.experts.map(u64::from) {
            part("ffn_gate_inp.weight", &[width, experts]);
            part("ffn_gate_exps.weight", &[width, inner, experts]);
            part("ffn_up_exps.weight", &[width, inner, experts]);
            part("ffn_down_exps.weight", &[inner, width, experts]);
        } else {
            part("ffn_gate.weight", &[width, inner]);
            part("ffn_up.weight", &[width, inner]);
            part("ffn_down.weight", &[inner, width]);
        }
        match shape.architecture {
            "qwen3" | "qwen3moe" => {
                part("attn_q_norm.weight", &[head]);
                part("attn_k_norm.weight", &[head]);
            }
            "gemma3" => {
                part("attn_q_norm.weight", &[head]);
                part("attn_k_norm.weight", &[head]);
                part("post_attention_norm.weight", &[width]);
                part("post_ffw_norm.weight", &[width]);
            }
            _ => {}
        }
    }
    add("output_norm.weight".into(), &[width]);
    if shape.has_output {
        add("output.weight".into(), &[width, vocabulary]);
    }
    tensors
}

/// What BERT has: biases everywhere, positions that are looked up, no output.
fn encoder(shape: &Shape, vocabulary: u64) -> Vec<Tensor> {
    let [width, inner] = [shape.width, shape.feed_forward].map(u64::from);
    let mut tensors = Vec::new();
    let mut add = |name: String, dims: &[u64], format: Format| {
        tensors.push(Tensor { name, dims: dims.to_vec(), format });
    };
    add("token_embd.weight".into(), &[width, vocabulary], shape.format);
    add("position_embd.weight".into(), &[width, POSITIONS.into()], Format::F16);
    let norm = |name: &str, add: &mut dyn FnMut(String, &[u64], Format)| {
        add(format!("{name}.weight"), &[width], shape.format);
        add(format!("{name}.bias"), &[width], shape.format);
    };
    norm("token_embd_norm", &mut add);
    for layer in 0..shape.layers {
        let at = |name: &str| format!("blk.{layer}.{name}");
        for (name, from, to) in [
            ("attn_q", width, width),
            ("attn_k", width, width),
            ("attn_v", width, width),
            ("attn_output", width, width),
            ("ffn_up", width, inner),
            ("ffn_down", inner, width),
        ] {
            add(at(&format!("{name}.weight")), &[from, to], shape.format);
            add(at(&format!("{name}.bias")), &[to], shape.format);
        }
        norm(&at("attn_output_norm"), &mut add);
        norm(&at("layer_output_norm"), &mut add);
    }
    tensors
}

#[derive(Default)]
struct Metadata {
    bytes: Vec<u8>,
    pairs: u64,
}

impl Metadata {
    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.bytes.extend(string(key));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.pairs += 1;
    }

    fn text(&mut self, key: &str, value: &str) {
        self.pair(key, 8, &string(value));
    }

    fn number(&mut self, key: &str, value: u32) {
        self.pair(key, 4, &value.to_le_bytes());
    }

    fn float(&mut self, key: &str, value: f32) {
        self.pair(key, 6, &value.to_le_bytes());
    }
}

struct Tokenizer {
    bytes: Vec<u8>,
    pairs: u64,
    vocabulary: u64,
}

/// Copies what a file says of its tokenizer.
fn tokenizer(file: &[u8]) -> Tokenizer {
    let pairs = u64_at(file, 16);
    let mut at = 24;
    let mut found = Tokenizer { bytes: Vec::new(), pairs: 0, vocabulary: 0 };
    for _ in 0..pairs {
        let start = at;
        let length = u64_at(file, at) as usize;
        let key = String::from_utf8_lossy(&file[at + 8..at + 8 + length]).into_owned();
        at += 8 + length;
        let kind = u32_at(file, at);
        at += 4;
        if key == "tokenizer.ggml.tokens" {
            found.vocabulary = u64_at(file, at + 4);
        }
        at = skip(file, at, kind);
        if key.starts_with("tokenizer.") {
            found.bytes.extend(&file[start..at]);
            found.pairs += 1;
        }
    }
    found
}

fn skip(file: &[u8], at: usize, kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => at + 1,
        2 | 3 => at + 2,
        4..=6 => at + 4,
        10..=12 => at + 8,
        8 => at + 8 + u64_at(file, at) as usize,
        9 => {
            let (kind, count) = (u32_at(file, at), u64_at(file, at + 4));
            (0..count).fold(at + 12, |at, _| skip(file, at, kind))
        }
        other => panic!("a value of type {other}"),
    }
}

fn u32_at(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(file[at..at + 4].try_into().unwrap())
}

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// The same noise on every machine.
struct Random(u64);

impl Random {
    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            part.copy_from_slice(&self.0.to_le_bytes()[..part.len()]);
        }
    }
}
