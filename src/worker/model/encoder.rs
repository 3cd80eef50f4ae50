//! An encoder of the BERT family from a folder with safetensors: tokens in, one vector or one score out.
//!
//! Each row looks at all rows of its own text, so a text is computed at once and nothing is kept.
//! Attention, norms and products run over the rows of all texts of a step, as in [`super::Model`].
//!
//! Source: `modeling_bert.py` of the `transformers` library.

use std::path::Path;

use candle_core::Result;
use serde::Deserialize;
use slotd_kernels::{Activations, Gate, Heads, Pool, Span, add, attend, gate, shift, standardise};

use super::{
    Part, Purpose, Want,
    load::other_shape,
    matrix::{HostMatrix, pool, products},
    tensors::Tensors,
};
use crate::worker::exit::Ending;

/// The weights of a whole encoder.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) config: Config,
    output: Output,
    words: HostMatrix,
    positions: HostMatrix,
    /// Added to each row: of which text of a pair it is.
    kinds: [Vec<f32>; 2],
    norm: Norm,
    layers: Vec<Layer>,
    pool: Pool,
}

/// The numbers of `config.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    model_type: String,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(rename = "hidden_size")]
    pub(crate) width: usize,
    #[serde(rename = "intermediate_size")]
    inner: usize,
    #[serde(rename = "num_attention_heads")]
    heads: usize,
    #[serde(rename = "num_hidden_layers")]
    layers: usize,
    #[serde(rename = "max_position_embeddings")]
    pub(crate) positions: usize,
    #[serde(rename = "layer_norm_eps")]
    epsilon: f32,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

const MOST_NUMBER: usize = 1 << 20;

/// What becomes of the rows of a text.
#[derive(Debug)]
enum Output {
    Vector(Pooling),
    Score(Head),
}

/// Makes one score of the first row.
#[derive(Debug)]
struct Head {
    pooler: Dense,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// How rows become one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pooling {
    Mean,
    First,
}

/// The file that says so.
#[derive(Debug, Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

#[derive(Debug)]
struct Norm {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// A matrix and what is added to its outputs.
#[derive(Debug)]
struct Dense {
    matrix: HostMatrix,
    bias: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    query: Dense,
    key: Dense,
    value: Dense,
    output: Dense,
    output_norm: Norm,
    up: Dense,
    down: Dense,
    down_norm: Norm,
}

impl Encoder {
    /// Loads the model of `folder`, telling how many bytes of how many are read.
    pub(crate) fn load(
        folder: &Path,
        mut progress: impl FnMut(u64, u64),
    ) -> std::result::Result<Self, Ending> {
        let config = Config::read(folder)?;
        let tensors = Tensors::open(folder)?;
        let load = Load { tensors: &tensors, config: &config };
        let width = config.width;
        let words = load.matrix("embeddings.word_embeddings", None)?;
        let positions =
            load.matrix("embeddings.position_embeddings", Some((config.positions, width)))?;
        let kinds = load.matrix("embeddings.token_type_embeddings", None)?;
        // Models that do not tell the texts of a pair apart have one row.
        let kinds = [0, kinds.rows.saturating_sub(1).min(1)].map(|at| kinds.row(at));
        let [first, second] =
            kinds.map(|kind| kind.map_err(|error| Ending::from_candle("loading", &error)));
        let kinds = [first?, second?];
        let norm = load.norm("embeddings.LayerNorm")?;
        let output = if config.is_ranking() {
            Output::Score(load.head()?)
        } else {
            Output::Vector(Pooling::read(folder)?)
        };
        let total = u64::try_from(config.layers).unwrap_or(u64::MAX);
        let mut layers = Vec::with_capacity(config.layers);
        for index in 0..config.layers {
            layers.push(load.layer(index)?);
            progress(u64::try_from(layers.len()).unwrap_or(0), total);
        }
        Ok(Self { output, words, positions, kinds, norm, layers, pool: pool(), config })
    }

    /// Gives the number of tokens the model can tell apart.
    pub(crate) fn vocabulary(&self) -> usize {
        self.words.rows
    }

    /// Gives the bytes of the files that hold the weights.
    pub(crate) fn bytes(folder: &Path) -> std::result::Result<u64, Ending> {
        Ok(Tensors::open(folder)?.bytes())
    }

    /// Gives what the model is for.
    pub(crate) fn purpose(&self) -> Purpose {
        match self.output {
            Output::Vector(_) => Purpose::Vectors,
            Output::Score(_) => Purpose::Scores,
        }
    }

    /// Takes in the whole texts of all `parts`, and gives for each the sum of its rows, or its
    /// first one, or its score.
    pub(crate) fn step(&self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<Vec<f32>>>> {
        let (pool, width) = (self.pool, self.config.width);
        let mut hidden = self.embedded(parts)?;
        for layer in &self.layers {
            let inputs = Activations::new(pool, hidden.clone(), width);
            let weights = [&layer.query.matrix, &layer.key.matrix, &layer.value.matrix];
            let [mut queries, mut keys, mut values] = products(pool, &inputs, weights)?;
            shift(&mut queries, &layer.query.bias);
            shift(&mut keys, &layer.key.bias);
            shift(&mut values, &layer.value.bias);
            let mixed = self.look(parts, &queries, (&keys, &values));
            let output = layer.output.of(pool, mixed, width)?;
            add(&mut hidden, &output);
            hidden = self.normed(&hidden, &layer.output_norm);
            let inner = layer.up.of(pool, hidden.clone(), width)?;
            let ones = vec![1.0; inner.len()];
            let inner = gate(pool, Gate::ExactGelu, &inner, ones, self.config.inner);
            let output = layer.down.of(pool, inner, self.config.inner)?;
            add(&mut hidden, &output);
            hidden = self.normed(&hidden, &layer.down_norm);
        }
        let mut rows = hidden.chunks_exact(width);
        let pooled = parts.iter_mut().map(|part| {
            part.cache.advance(part.tokens.len());
            let mut of_part = rows.by_ref().take(part.tokens.len());
            if let Output::Vector(Pooling::Mean) = self.output {
                return Ok(vec![super::sum(of_part, width)]);
            }
            let first = of_part.next().unwrap_or_default().to_vec();
            of_part.for_each(drop);
            match &self.output {
                Output::Vector(_) => Ok(vec![first]),
                Output::Score(head) => Ok(vec![vec![head.score(pool, first)?]]),
            }
        });
        pooled.collect()
    }

    fn embedded(&self, parts: &[Part<'_>]) -> Result<Vec<f32>> {
        let mut hidden = Vec::new();
        for part in parts {
            if part.cache.length() != 0 || part.tokens.len() > self.config.positions {
                candle_core::bail!("a text is taken in at once, and fits the positions");
            }
            let second = match part.want {
                Want::Score { second } => second,
                Want::Nothing | Want::Last | Want::All | Want::Sum => usize::MAX,
            };
            let [of_first, of_second] = &self.kinds;
            for (position, token) in part.tokens.iter().enumerate() {
                let mut row = self.words.row(usize::try_from(*token).unwrap_or(usize::MAX))?;
                add(&mut row, &self.positions.row(position)?);
                add(&mut row, if position < second { of_first } else { of_second });
                hidden.extend(row);
            }
        }
        Ok(self.normed(&hidden, &self.norm))
    }

    fn normed(&self, rows: &[f32], norm: &Norm) -> Vec<f32> {
        standardise(self.pool, rows, (&norm.weights, &norm.bias), self.config.epsilon)
    }

    fn look(&self, parts: &[Part<'_>], queries: &[f32], kept: (&[f32], &[f32])) -> Vec<f32> {
        let width = self.config.width;
        let head = self.config.head();
        let scale = 1.0 / super::to_f32(head).sqrt();
        let heads =
            Heads { queries: self.config.heads, keys: self.config.heads, width: head, scale };
        let mut rows = queries.chunks_exact(width);
        let mut spans = Vec::new();
        let mut first = 0_usize;
        for part in parts {
            let length = part.tokens.len();
            let end = first.saturating_add(length.saturating_mul(width));
            let keys = kept.0.get(first..end).unwrap_or_default();
            let values = kept.1.get(first..end).unwrap_or_default();
            let of_part = rows.by_ref().take(length);
            spans.extend(of_part.map(|queries| Span { queries, keys, values, length }));
            first = end;
        }
        attend(self.pool, heads, &spans)
    }
}

impl Dense {
    fn of(&self, pool: Pool, rows: Vec<f32>, width: usize) -> Result<Vec<f32>> {
        let [mut output] = products(pool, &Activations::new(pool, rows, width), [&self.matrix])?;
        shift(&mut output, &self.bias);
        Ok(output)
    }
}

impl Head {
    fn score(&self, pool: Pool, first: Vec<f32>) -> Result<f32> {
        let width = first.len();
        let pooled = self.pooler.of(pool, first, width)?;
        let products = pooled.iter().zip(&self.weights).map(|(x, weight)| x.tanh() * weight);
        Ok(products.chain(self.bias.iter().copied()).sum())
    }
}

impl Config {
    fn read(folder: &Path) -> std::result::Result<Self, Ending> {
        let config: Self = json(&folder.join("config.json"))?;
        let fault = |problem: String| Err(Ending::bad_model(problem));
        if config.model_type != "bert" {
            return fault(format!(
                "the model in `{}` is of type `{}`, of those in folders this worker serves `bert`",
                folder.display(),
                config.model_type
            ));
        }
        if config.hidden_act != "gelu" {
            return fault(format!(
                "the model's activation is `{}`, this worker knows `gelu`",
                config.hidden_act
            ));
        }
        if config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return fault("the model's positions are not absolute".to_owned());
        }
        let numbers = [
            ("hidden_size", config.width),
            ("intermediate_size", config.inner),
            ("num_attention_heads", config.heads),
            ("num_hidden_layers", config.layers),
            ("max_position_embeddings", config.positions),
        ];
        for (key, number) in numbers {
            if !(1..=MOST_NUMBER).contains(&number) {
                return fault(format!(
                    "`{key}` of `config.json` is {number}, expected 1 to {MOST_NUMBER}"
                ));
            }
        }
        let Self { width, heads, .. } = config;
        if !width.is_multiple_of(heads) {
            return fault(format!(
                "`hidden_size` of `config.json` is {width}, expected a multiple of the {heads} heads"
            ));
        }
        Ok(config)
    }

    /// Says whether the model ranks: such are made as classifiers with one class.
    fn is_ranking(&self) -> bool {
        self.architectures.iter().any(|class| class.ends_with("ForSequenceClassification"))
    }

    fn head(&self) -> usize {
        self.width.checked_div(self.heads).unwrap_or(0)
    }
}

impl Pooling {
    /// Without a file that says otherwise it is the mean.
    fn read(folder: &Path) -> std::result::Result<Self, Ending> {
        let path = folder.join("1_Pooling").join("config.json");
        if !path.exists() {
            return Ok(Self::Mean);
        }
        let config: PoolingConfig = json(&path)?;
        match (config.pooling_mode_mean_tokens, config.pooling_mode_cls_token) {
            (true, false) => Ok(Self::Mean),
            (false, true) => Ok(Self::First),
            (true, true) | (false, false) => Err(Ending::bad_model(format!(
                "`{}` asks for a pooling that this worker does not know, it knows the mean and \
                 the first token",
                path.display()
            ))),
        }
    }
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> std::result::Result<T, Ending> {
    let text = std::fs::read(path).map_err(|error| {
        Ending::missing_file(format!("cannot read `{}`: {error}", path.display()))
    })?;
    serde_json::from_slice(&text)
        .map_err(|error| Ending::bad_model(format!("`{}`: {error}", path.display())))
}

/// A load in progress.
struct Load<'a> {
    tensors: &'a Tensors,
    config: &'a Config,
}

impl Load<'_> {
    fn layer(&self, index: usize) -> std::result::Result<Layer, Ending> {
        let Config { width, inner, .. } = *self.config;
        let dense = |name: &str, dims| self.dense(&format!("encoder.layer.{index}.{name}"), dims);
        let norm = |name: &str| self.norm(&format!("encoder.layer.{index}.{name}.LayerNorm"));
        Ok(Layer {
            query: dense("attention.self.query", (width, width))?,
            key: dense("attention.self.key", (width, width))?,
            value: dense("attention.self.value", (width, width))?,
            output: dense("attention.output.dense", (width, width))?,
            output_norm: norm("attention.output")?,
            up: dense("intermediate.dense", (inner, width))?,
            down: dense("output.dense", (width, inner))?,
            down_norm: norm("output")?,
        })
    }

    /// A head with several classes gives no single number to rank by.
    fn head(&self) -> std::result::Result<Head, Ending> {
        let width = self.config.width;
        let [classes, _] = *self.tensors.place("classifier.weight")?.1.dims.as_slice() else {
            return Err(Ending::bad_model("`classifier.weight` is no matrix"));
        };
        if classes != 1 {
            return Err(Ending::bad_model(format!(
                "the model tells {classes} classes apart; this worker ranks, with models of one class"
            )));
        }
        Ok(Head {
            pooler: self.dense("pooler.dense", (width, width))?,
            weights: self.tensors.numbers("classifier.weight", &[1, width])?,
            bias: self.tensors.numbers("classifier.bias", &[1])?,
        })
    }

    fn dense(&self, name: &str, dims: (usize, usize)) -> std::result::Result<Dense, Ending> {
        let bias = self.tensors.numbers(&format!("{name}.bias"), &[dims.0])?;
        Ok(Dense { matrix: self.matrix(name, Some(dims))?, bias })
    }

    fn norm(&self, name: &str) -> std::result::Result<Norm, Ending> {
        let width = self.config.width;
        Ok(Norm {
            weights: self.tensors.numbers(&format!("{name}.weight"), &[width])?,
            bias: self.tensors.numbers(&format!("{name}.bias"), &[width])?,
        })
    }

    /// Maps a matrix of any height, or one of `dims`.
    fn matrix(
        &self,
        name: &str,
        dims: Option<(usize, usize)>,
    ) -> std::result::Result<HostMatrix, Ending> {
        let name = format!("{name}.weight");
        let (file, extent) = self.tensors.place(&name)?;
        let wrong = || {
            let expected = match dims {
                Some((rows, width)) => format!("[{rows}, {width}]"),
                None => format!("rows of {}", self.config.width),
            };
            other_shape(&name, &extent.dims, &expected)
        };
        let is_right = match dims {
            Some((rows, width)) => extent.dims == [rows, width],
            None => extent.dims.last() == Some(&self.config.width),
        };
        if !is_right {
            return Err(wrong());
        }
        let matrix = HostMatrix::new(file, &extent).ok_or_else(wrong)?;
        matrix.touch();
        Ok(matrix)
    }
}
