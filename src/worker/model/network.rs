//! Either kind of model: one that writes text, or an encoder, which makes embeddings or scores.

use candle_core::Result;

use super::{Cache, Encoder, Model, Part};

/// A loaded model of either kind.
#[derive(Debug)]
pub(crate) enum Network {
    Text(Box<Model>),
    Encoder(Box<Encoder>),
}

/// What a model is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// Text, and embeddings as well.
    Text,
    /// Embeddings alone.
    Vectors,
    /// Scores of pairs of texts alone.
    Scores,
}

impl Network {
    /// Makes an empty cache for `capacity` positions.
    pub(crate) fn cache(&self, capacity: usize) -> Result<Cache> {
        match self {
            Self::Text(model) => model.cache(capacity),
            Self::Encoder(_) => Ok(Cache::bare(capacity)),
        }
    }

    /// Gives the number of tokens the model can tell apart.
    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Self::Text(model) => model.vocabulary(),
            Self::Encoder(encoder) => encoder.vocabulary(),
        }
    }

    /// Says whether a row's numbers are the same whatever is computed with it.
    pub(crate) fn is_exact(&self) -> bool {
        match self {
            Self::Text(model) => model.is_exact(),
            Self::Encoder(_) => true,
        }
    }

    /// Says whether a text must be taken in at once.
    pub(crate) fn is_encoder(&self) -> bool {
        matches!(self, Self::Encoder(_))
    }

    /// Gives what the model is for.
    pub(crate) fn purpose(&self) -> Purpose {
        match self {
            Self::Text(_) => Purpose::Text,
            Self::Encoder(encoder) => encoder.purpose(),
        }
    }

    /// Gives the length of a row.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Text(model) => model.shape.width,
            Self::Encoder(encoder) => encoder.config.width,
        }
    }

    /// Gives how many tokens the model was trained with.
    pub(crate) fn trained_context(&self) -> usize {
        match self {
            Self::Text(model) => model.shape.trained_context,
            Self::Encoder(encoder) => encoder.config.positions,
        }
    }

    /// Takes in the tokens of all `parts`, and gives each the rows it wants.
    pub(crate) fn step(&self, parts: &mut [Part<'_>]) -> Result<Vec<Vec<Vec<f32>>>> {
        match self {
            Self::Text(model) => model.step(parts),
            Self::Encoder(encoder) => encoder.step(parts),
        }
    }
}
