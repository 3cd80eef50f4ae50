//! What an encoder's folder says of itself, as far as memory goes: its `config.json`, and the headers of its weights.

use std::{fs, path::Path};

use serde::Deserialize;

use super::safetensors;
use crate::spec::model::{ModelFacts, Numbers, Place, Tensor, WeightKind};

/// The architecture that the worker serves from folders.
pub(super) const ARCHITECTURE: &str = "bert";

/// The numbers of `config.json`. Source: `BertConfig` of the `transformers` library.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    max_position_embeddings: u64,
    vocab_size: u64,
}

/// Reads the facts; `None` where the folder does not say them, or is another model's.
pub(super) fn facts(folder: &Path) -> Option<ModelFacts> {
    let config: Config =
        serde_json::from_slice(&fs::read(folder.join("config.json")).ok()?).ok()?;
    if config.model_type != ARCHITECTURE {
        return None;
    }
    let bytes = safetensors::read_model(folder).ok()?.bytes();
    let numbers = [
        ("block_count", config.num_hidden_layers),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("context_length", config.max_position_embeddings),
    ];
    // All are on the host, and none is looked at apart from others: one stands for all of them.
    let kind =
        WeightKind { place: Place::Input, ggml_type: 0, dimensions: 2, has_rows_of_eight: false };
    Some(ModelFacts {
        architecture: ARCHITECTURE.to_owned(),
        numbers: numbers.map(|(key, number)| (key.to_owned(), Numbers::All(number))).into(),
        vocabulary: config.vocab_size,
        merges: 0,
        weights: vec![Tensor { name: String::new(), kind, bytes, part: 0, span: (0, bytes.0) }],
    })
}
