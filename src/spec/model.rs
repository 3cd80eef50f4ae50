//! What a model file says of itself, as far as memory goes.
//!
//! The header of the file is read by `models`; what its numbers mean for an engine is known by `engine`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Bytes;

/// What the header of a model file says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ModelFacts {
    /// `general.architecture`, such as `llama`; empty where it is not said.
    pub architecture: String,
    /// The whole numbers under the architecture's own name, which is left out of the keys:
    /// `attention.head_count`, say.
    pub numbers: BTreeMap<String, Numbers>,
    /// How many tokens the vocabulary has; 0 where it is not said.
    pub vocabulary: u64,
    /// How many pairs of tokens its tokenizer merges; 0 where it does not work by merging.
    #[serde(default)]
    pub merges: u64,
    /// The tensors, in the order of the file.
    pub weights: Vec<Tensor>,
}

/// A number for the whole model, or one a layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Numbers {
    /// One for all.
    All(u64),
    /// One for each layer, from the first.
    Each(Vec<u64>),
}

/// One tensor.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Tensor {
    /// Its name, such as `blk.3.ffn_up_exps.weight`.
    #[serde(default)]
    pub name: String,
    /// What kind of tensor it is.
    pub kind: WeightKind,
    /// What it takes in the file.
    pub bytes: Bytes,
    /// Which file of a split model it is in, from 0.
    #[serde(default)]
    pub part: u32,
    /// Where in the file it begins and ends, counted from the first tensor.
    #[serde(default)]
    pub span: (u64, u64),
}

/// Where a tensor stands and how it is stored.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WeightKind {
    /// Where in the model it stands.
    pub place: Place,
    /// Its type, as ggml numbers it.
    pub ggml_type: u32,
    /// How many dimensions it has.
    pub dimensions: u32,
    /// The rows of a matrix come in eights.
    pub has_rows_of_eight: bool,
}

/// Where in a model a tensor stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Before the layers: the embedding of tokens, which engines look rows up in.
    Input,
    /// In a layer, from 0.
    Layer(u32),
    /// After them.
    Output,
}

impl ModelFacts {
    /// Returns the number of `key` that holds for the whole model; the largest where each layer has its own.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.numbers.get(key)? {
            Numbers::All(number) => Some(*number),
            Numbers::Each(numbers) => numbers.iter().copied().max(),
        }
    }

    /// Returns the number of `key` that holds for `layer`.
    pub fn of_layer(&self, key: &str, layer: u64) -> Option<u64> {
        match self.numbers.get(key)? {
            Numbers::All(number) => Some(*number),
            Numbers::Each(numbers) => numbers.get(usize::try_from(layer).ok()?).copied(),
        }
    }

    /// Returns the numbers of `key` where each layer has its own.
    pub fn each(&self, key: &str) -> Option<&[u64]> {
        match self.numbers.get(key)? {
            Numbers::All(_) => None,
            Numbers::Each(numbers) => Some(numbers),
        }
    }

    /// Returns what the tensors take that `wanted` picks.
    pub fn bytes_of(&self, wanted: impl Fn(&Tensor) -> bool) -> u64 {
        let wanted = self.weights.iter().filter(|tensor| wanted(tensor));
        wanted.fold(0, |sum, tensor| sum.saturating_add(tensor.bytes.0))
    }

    /// Returns the bytes of the files from the first to the last of the tensors that `wanted` picks,
    /// with those that lie between them.
    pub fn spanned_by(&self, wanted: impl Fn(&Tensor) -> bool) -> u64 {
        let mut spans: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for tensor in self.weights.iter().filter(|tensor| wanted(tensor)) {
            let (first, end) = spans.entry(tensor.part).or_insert(tensor.span);
            (*first, *end) = ((*first).min(tensor.span.0), (*end).max(tensor.span.1));
        }
        spans.values().fold(0, |sum, (first, end)| sum.saturating_add(end.saturating_sub(*first)))
    }

    /// Adds what another file of the same model holds.
    pub fn add(&mut self, other: Self) {
        let part = self.weights.iter().map(|tensor| tensor.part).max().unwrap_or_default();
        let part = part.saturating_add(1);
        let others = other.weights.into_iter();
        self.weights.extend(others.map(|tensor| Tensor { part, ..tensor }));
    }
}

impl Place {
    /// Finds the place by the tensor's name.
    /// Source: `LLM_TENSOR_INFOS` in `llama-arch.cpp` of llama.cpp b11434.
    pub fn of(name: &str) -> Self {
        const INPUT: [&str; 5] = [
            "token_embd.",
            "token_embd_norm.",
            "token_types.",
            "position_embd.",
            "per_layer_token_embd.",
        ];
        let in_layer = ["blk.", "enc.blk.", "dec.blk."].iter().find_map(|start| {
            let (layer, _) = name.strip_prefix(start)?.split_once('.')?;
            layer.parse().ok()
        });
        match in_layer {
            Some(layer) => Self::Layer(layer),
            None if INPUT.iter().any(|start| name.starts_with(start)) => Self::Input,
            None => Self::Output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_placed_by_its_name() {
        assert_eq!(Place::of("token_embd.weight"), Place::Input);
        assert_eq!(Place::of("blk.17.attn_q.weight"), Place::Layer(17));
        assert_eq!(Place::of("output.weight"), Place::Output);
        assert_eq!(Place::of("blk.x.attn_q.weight"), Place::Output);
    }

    #[test]
    fn what_lies_between_two_tensors_of_a_file_is_spanned_by_them() {
        let tensor = |place, first: u64, end: u64| Tensor {
            name: String::new(),
            kind: WeightKind { place, ggml_type: 0, dimensions: 1, has_rows_of_eight: false },
            bytes: Bytes(end - first),
            part: 0,
            span: (first, end),
        };
        let file = |of: [Tensor; 2]| ModelFacts { weights: of.into(), ..ModelFacts::default() };
        let mut facts = file([tensor(Place::Input, 0, 10), tensor(Place::Layer(0), 10, 30)]);
        facts.add(file([tensor(Place::Layer(1), 0, 50), tensor(Place::Output, 50, 60)]));
        assert_eq!(facts.spanned_by(|_| true), 30 + 60);
        assert_eq!(facts.spanned_by(|tensor| tensor.kind.place != Place::Layer(1)), 30 + 10);
        assert_eq!(facts.spanned_by(|_| false), 0);
    }

    #[test]
    fn a_number_holds_for_all_layers_or_for_each() {
        let numbers = BTreeMap::from([
            ("all".to_owned(), Numbers::All(3)),
            ("each".to_owned(), Numbers::Each(vec![1, 5])),
        ]);
        let facts = ModelFacts { numbers, ..ModelFacts::default() };
        assert_eq!((facts.number("all"), facts.of_layer("all", 9)), (Some(3), Some(3)));
        assert_eq!((facts.number("each"), facts.of_layer("each", 0)), (Some(5), Some(1)));
        assert_eq!(facts.of_layer("each", 2), None);
        assert_eq!(facts.each("all"), None);
    }
}
