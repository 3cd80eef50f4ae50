//! Keys and values, and the states of recurrent layers, as llama-server keeps them.
//!
//! Source: `llama_kv_cache`, `llama_kv_cache_iswa`, `llama_memory_recurrent`, `llama_hparams` and
//! `create_memory` in `llama-model.cpp` of llama.cpp b11434, and there `models/*.cpp` for the windows.

use super::product;
use crate::spec::model::ModelFacts;

/// Architectures that keep nothing between two requests.
const WITHOUT_CACHE: [&str; 14] = [
    "bert",
    "clef",
    "dream",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "llada",
    "llada-moe",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "wavtokenizer-dec",
];
/// Architectures all of whose layers are recurrent.
const RECURRENT: [&str; 6] = ["arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"];
/// Architectures in which every layer that says no interval of its own is the fourth one's.
const FOURTH_ATTENDS: [&str; 5] = ["minimax-01", "qwen35", "qwen35moe", "qwen3next", "qwen4exp"];
/// Positions are counted in steps of this.
pub(super) const STEP: u64 = 256;

/// How the cells of the cache are laid out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Layout {
    /// Positions of one stream.
    pub(super) cells: u64,
    /// One for all sequences, or one each.
    pub(super) streams: u64,
    /// Sequences.
    pub(super) sequences: u64,
    /// Positions that are computed at once.
    pub(super) batch: u64,
    /// Layers with a window keep all positions too.
    pub(super) keeps_all: bool,
    /// How keys and values are stored.
    pub(super) keys: Stored,
    pub(super) values: Stored,
}

/// How numbers of a cache are stored: `block` of them take `bytes`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stored {
    block: u64,
    bytes: u64,
}

impl Stored {
    pub(super) const F16: Self = Self { block: 1, bytes: 2 };

    /// Finds the type by llama-server's name for it.
    pub(super) fn named(name: &str) -> Option<Self> {
        let (block, bytes) = match name {
            "f32" => (1, 4),
            "f16" | "bf16" => (1, 2),
            "q8_0" => (32, 34),
            "q5_1" => (32, 24),
            "q5_0" => (32, 22),
            "q4_1" => (32, 20),
            "q4_0" | "iq4_nl" => (32, 18),
            _ => return None,
        };
        Some(Self { block, bytes })
    }

    fn row(self, numbers: u64) -> u64 {
        product([numbers.div_ceil(self.block), self.bytes])
    }
}

/// How many layers keep something: those that predict further tokens are left out.
pub(super) fn layers(facts: &ModelFacts) -> u64 {
    let all = facts.number("block_count").unwrap_or_default();
    all.saturating_sub(facts.number("nextn_predict_layers").unwrap_or_default())
}

/// Returns what `layer` keeps.
pub(super) fn bytes_of(facts: &ModelFacts, layer: u64, layout: &Layout) -> u64 {
    if WITHOUT_CACHE.contains(&facts.architecture.as_str()) {
        return 0;
    }
    let state = if has_state(facts, layer) { product([state(facts), layout.sequences]) } else { 0 };
    let cells = product([cells(facts, layer, layout), layout.streams]);
    state.saturating_add(product([cells, position(facts, layer, layout)]))
}

/// Returns what one copy of all that cannot be cut back takes: windows and states of one sequence. What
/// lies before the window is not copied. Source: `llama_kv_cache::state_write`.
pub(super) fn checkpoint(facts: &ModelFacts, layout: &Layout) -> u64 {
    let of_layer = |layer| {
        let state = if has_state(facts, layer) { state(facts) } else { 0 };
        match window(facts, layer) {
            Some(window) if !layout.keeps_all => {
                let cells = window.min(layout.cells);
                state.saturating_add(product([cells, position(facts, layer, layout)]))
            }
            Some(_) | None => state,
        }
    };
    (0..layers(facts)).fold(0, |sum: u64, layer| sum.saturating_add(of_layer(layer)))
}

/// Positions that `layer` keeps of each stream.
pub(super) fn cells(facts: &ModelFacts, layer: u64, layout: &Layout) -> u64 {
    match window(facts, layer) {
        Some(window) if !layout.keeps_all => {
            let sharing = if layout.streams == 1 { layout.sequences } else { 1 };
            let wanted = product([window, sharing]).saturating_add(layout.batch);
            wanted.min(layout.cells).next_multiple_of(STEP)
        }
        Some(_) | None => layout.cells,
    }
}

/// Key and value of one position.
fn position(facts: &ModelFacts, layer: u64, layout: &Layout) -> u64 {
    let attends = match facts.number("attention.shared_kv_layers") {
        Some(shared) => layer < layers(facts).saturating_sub(shared),
        None if facts.architecture == "gemma3n" => layer < 20,
        None => true,
    };
    let heads = kv_heads(facts, layer);
    if !attends || (heads == 0) || (is_recurrent(facts, layer) && !attends_too(facts)) {
        return 0;
    }
    let in_window = window(facts, layer).is_some();
    let width = |key: &str| {
        let in_window = facts.number(&format!("attention.{key}_swa")).filter(|_| in_window);
        in_window.or_else(|| facts.number(&format!("attention.{key}"))).unwrap_or_else(|| {
            let heads = facts.number("attention.head_count").unwrap_or_default();
            facts.number("embedding_length").unwrap_or_default().checked_div(heads).unwrap_or(0)
        })
    };
    let keys = layout.keys.row(product([width("key_length"), heads]));
    // Latent attention finds the values in what it keeps as keys.
    let is_latent = facts.number("attention.key_length_mla").is_some_and(|length| length > 0);
    let values = product([width("value_length"), heads]);
    keys.saturating_add(if is_latent { 0 } else { layout.values.row(values) })
}

fn kv_heads(facts: &ModelFacts, layer: u64) -> u64 {
    let own = facts.of_layer("attention.head_count_kv", layer);
    own.or_else(|| facts.of_layer("attention.head_count", layer)).unwrap_or_default()
}

/// How far `layer` looks back, if not to the beginning.
pub(super) fn window(facts: &ModelFacts, layer: u64) -> Option<u64> {
    let said = facts.number("attention.sliding_window");
    let (usual, every, full_first) = match facts.architecture.as_str() {
        "gemma2" => (Some(4096), 2, false),
        "gemma3" => (None, 6, false),
        "gemma3n" => (None, 5, false),
        "gpt-oss" => (None, 2, false),
        "exaone-moe" => (Some(128), 4, false),
        "exaone4" if layers(facts) == 64 => (Some(4096), 4, false),
        "afmoe" | "cohere2" | "cohere2moe" | "mellum" | "olmo2" => (None, 4, false),
        "llama4" if said != Some(0) => (Some(8192), 4, false),
        "plamo3" => (None, 8, false),
        "smallthinker" => (None, 4, true),
        "exaone4" | "llama4" | "phi3" | "phimoe" => return None,
        // Others say for each layer whether it has a window, or have none.
        _ => (None, 0, false),
    };
    let window = match facts.architecture.as_str() {
        "llama4" => usual,
        "smallthinker" => said.map(|said| if said > 0 { 4096 } else { 0 }),
        _ => said.or(usual),
    };
    let window = window.filter(|window| *window > 0)?;
    let pattern = "attention.sliding_window_pattern";
    let has = match facts.each(pattern) {
        Some(_) => facts.of_layer(pattern, layer) == Some(1),
        None if every == 0 => false,
        None => {
            let every = facts.number(pattern).unwrap_or(every);
            match layer.checked_rem(every) {
                None => true,
                Some(at) if full_first => at != 0,
                Some(at) => at < every.saturating_sub(1),
            }
        }
    };
    has.then_some(window)
}

fn is_recurrent(facts: &ModelFacts, layer: u64) -> bool {
    let architecture = facts.architecture.as_str();
    if RECURRENT.contains(&architecture) || attends_too(facts) {
        return true;
    }
    if let Some(said) = facts.of_layer("attention.recurrent_layers", layer) {
        return said > 0;
    }
    let usual = FOURTH_ATTENDS.contains(&architecture).then_some(4);
    match facts.number("full_attention_interval").or(usual) {
        Some(every) => layer.saturating_add(1).checked_rem(every).is_some_and(|at| at != 0),
        None => kv_heads(facts, layer) == 0 && state(facts) > 0,
    }
}

/// Layers that attend and have a state.
fn attends_too(facts: &ModelFacts) -> bool {
    facts.architecture == "falcon-h1"
}

fn has_state(facts: &ModelFacts, layer: u64) -> bool {
    let is_feed_forward_alone = facts.architecture.starts_with("nemotron_h")
        && facts.of_layer("feed_forward_length", layer).is_some_and(|length| length > 0);
    is_recurrent(facts, layer) && !is_feed_forward_alone
}

/// The state of one sequence in a recurrent layer, in single precision.
fn state(facts: &ModelFacts) -> u64 {
    let number = |key: &str| facts.number(key).unwrap_or_default();
    let width = number("embedding_length");
    let numbers = if let Some(head) = facts.number("wkv.head_size") {
        let shifts = facts.number("token_shift_count").unwrap_or(2);
        product([shifts, width]).saturating_add(product([width, head]))
    } else if let Some(length) = facts.number("shortconv.l_cache") {
        product([width, length.saturating_sub(1)])
    } else {
        let (inner, state) = (number("ssm.inner_size"), number("ssm.state_size"));
        let groups = product([2, number("ssm.group_count"), state]);
        let taken = number("ssm.conv_kernel").saturating_sub(1);
        product([taken, inner.saturating_add(groups)]).saturating_add(product([state, inner]))
    };
    product([numbers, 4])
}
