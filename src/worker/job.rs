//! What a request asks of a sequence, and what the sequence tells.

use std::time::Duration;

use thiserror::Error;

use super::{
    exit::is_out_of_memory,
    grammar::Grammar,
    sampler::{Sampling, Scored},
    text::Pair,
};

/// Work for a sequence.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Generate(Box<Generate>),
    /// Gives one vector for these tokens.
    Embed(Vec<u32>),
    /// Gives the score of this pair.
    Rank(Pair),
}

/// Text to be continued.
#[derive(Clone, Debug)]
pub(super) struct Generate {
    /// Never empty, and shorter than the context.
    pub(super) prompt: Vec<u32>,
    pub(super) sampling: Sampling,
    pub(super) most_tokens: usize,
    pub(super) stops: Vec<String>,
    /// What the answer must be.
    pub(super) grammar: Option<Grammar>,
    /// Goes on after tokens that end the text.
    pub(super) ignore_end: bool,
    /// The same request must give the same text, whatever was asked before it.
    pub(super) is_repeatable: bool,
    /// Tells how likely the tokens of the prompt were.
    pub(super) score_prompt: bool,
}

/// What is told about a job, in this order: its begin, prompt scores, text, an end.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// It has a seat.
    Begun,
    PromptScores(Vec<Scored>),
    Text(Piece),
    Done(Done),
    Embedding(Vec<f32>),
    Score(f32),
    Failed(ComputeFault),
    /// The answer cannot go on as its schema asks, and why: the client's to mend.
    Unkept(String),
}

/// Text with the tokens it was made from.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Empty unless probabilities were asked for.
    pub(super) scores: Vec<Scored>,
}

/// The end of an answer and what it took.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Done {
    pub(super) reason: Reason,
    pub(super) prompt_tokens: usize,
    /// Tokens of the prompt that were still known.
    pub(super) cached_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) prompt_time: Duration,
    pub(super) completion_time: Duration,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reason {
    /// The model ended the text, or a stop string came.
    Stop,
    /// The number of tokens was reached, or the context is full.
    Length,
}

/// Says why a computation failed.
#[derive(Clone, Debug, Error)]
#[error("{0}")]
pub(super) struct ComputeFault(pub(super) String);

impl Job {
    /// Gives how many tokens the answer may have.
    pub(super) fn most_tokens(&self) -> usize {
        match self {
            Self::Generate(generate) => generate.most_tokens,
            Self::Embed(_) | Self::Rank(_) => 0,
        }
    }
}

impl ComputeFault {
    pub(super) fn is_out_of_memory(&self) -> bool {
        is_out_of_memory(&self.0)
    }
}

impl Reason {
    /// Gives the word of the API.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}
