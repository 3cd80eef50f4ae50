//! What the computing thread tells about itself between two steps: its seats, and what it has done.

use std::time::Duration;

use super::sampler::Sampling;

/// The seats, those who wait for one, and all work so far.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) seats: Vec<SeatReport>,
    pub(super) waiting: usize,
    pub(super) work: Work,
}

/// One seat.
#[derive(Clone, Debug)]
pub(super) struct SeatReport {
    pub(super) is_processing: bool,
    /// What sits here, or sat here last.
    pub(super) task: Option<Task>,
}

/// A job as far as it has come.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// Counts the jobs.
    pub(super) id: u64,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    /// Tokens of the prompt that were computed.
    pub(super) processed_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) has_new_line: bool,
    /// `None` for an embedding or a score.
    pub(super) asked: Option<Asked>,
}

/// How an answer is to be made.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) sampling: Sampling,
    pub(super) most_tokens: usize,
    pub(super) ignore_end: bool,
}

/// All work so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    /// Tokens of prompts that were computed, and those that were known.
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) prompt_time: Duration,
    pub(super) completion_tokens: usize,
    pub(super) completion_time: Duration,
    pub(super) steps: usize,
    /// Seats that took part in a step, over all steps.
    pub(super) busy_seats: usize,
    /// The longest sequence, prompt and answer.
    pub(super) most_tokens: usize,
}
