//! Counters of one slot's requests: plain atomics, added to as requests end.
//!
//! They belong to the slot's name and outlive its engines and its profile's edits: a counter that starts
//! again would read as a restart of the daemon.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The client left before the answer was whole.
    Gone,
    /// The answer was whole.
    Answered,
    /// It got an error instead of an answer.
    Refused,
    /// The answer broke off.
    Broken,
    /// A person cancelled it.
    Cancelled,
}

impl Outcome {
    /// Every outcome, in the order of the counters.
    pub(super) const ALL: [Self; 5] =
        [Self::Gone, Self::Answered, Self::Refused, Self::Broken, Self::Cancelled];

    /// Returns the word that logs and metrics use.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Upper edges of buckets, in microseconds: `gen_ai.server.request.duration`.
/// Source: OpenTelemetry's semantic conventions for generative AI, metrics (this and the next two).
pub(super) const DURATION: [u64; 14] = [
    10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000, 2_560_000, 5_120_000,
    10_240_000, 20_480_000, 40_960_000, 81_920_000,
];
/// `gen_ai.server.time_to_first_token`.
pub(super) const FIRST_TOKEN: [u64; 16] = [
    1000, 5000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 250_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000,
];
/// `gen_ai.server.time_per_output_token`.
pub(super) const PER_TOKEN: [u64; 13] = [
    10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 400_000, 500_000, 750_000,
    1_000_000, 2_500_000,
];

/// Durations counted into buckets.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    edges: &'static [u64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum_us: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    fn new(edges: &'static [u64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { edges, counts, above: AtomicU64::new(0), sum_us: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub(super) fn observe(&self, duration: Duration) {
        let us = micros(duration);
        let bucket = self.edges.iter().position(|edge| us <= *edge);
        let count = bucket.and_then(|bucket| self.counts.get(bucket)).unwrap_or(&self.above);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Returns each edge, in seconds, with how many durations were not above it; the last without an
    /// edge counts all.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let edges = self.edges.iter().map(|us| Some(seconds(*us))).chain([None]);
        let counts = self.counts.iter().chain([&self.above]);
        edges.zip(counts.scan(0, |total: &mut u64, count| {
            *total = total.saturating_add(count.load(Ordering::Relaxed));
            Some(*total)
        }))
    }

    /// Returns the sum of all durations, in seconds.
    pub(super) fn sum(&self) -> f64 {
        seconds(self.sum_us.load(Ordering::Relaxed))
    }
}

/// Counts a slot's requests.
#[derive(Debug)]
pub(super) struct Meters {
    outcomes: [AtomicU64; 5],
    /// From the request to the end of its answer.
    pub(super) duration: Histogram<14>,
    /// From the request to the first byte of its stream, waiting included.
    pub(super) first_token: Histogram<16>,
    /// Between two tokens of a stream.
    pub(super) per_token: Histogram<13>,
    /// Waiting for a seat at the engine.
    pub(super) queue: Histogram<14>,
    /// Waiting for the engine itself; only requests that had to.
    pub(super) cold_start: Histogram<14>,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    /// How long engines say that they worked on prompts, and generated.
    prompt_us: AtomicU64,
    generated_us: AtomicU64,
}

/// What one request adds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    pub(super) outcome: Outcome,
    pub(super) duration: Duration,
    pub(super) first_token: Option<Duration>,
    pub(super) per_token: Option<Duration>,
    pub(super) queue: Duration,
    pub(super) cold_start: Option<Duration>,
    pub(super) prompt: (u64, Duration),
    pub(super) generated: (u64, Duration),
}

impl Default for Meters {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            outcomes: std::array::from_fn(|_| zero()),
            duration: Histogram::new(&DURATION),
            first_token: Histogram::new(&FIRST_TOKEN),
            per_token: Histogram::new(&PER_TOKEN),
            queue: Histogram::new(&DURATION),
            cold_start: Histogram::new(&DURATION),
            prompt_tokens: zero(),
            generated_tokens: zero(),
            prompt_us: zero(),
            generated_us: zero(),
        }
    }
}

impl Meters {
    /// Counts a request that has ended.
    pub(super) fn count(&self, tally: &Tally) {
        let index = Outcome::ALL.iter().position(|one| *one == tally.outcome);
        if let Some(outcome) = index.and_then(|index| self.outcomes.get(index)) {
            outcome.fetch_add(1, Ordering::Relaxed);
        }
        self.duration.observe(tally.duration);
        self.queue.observe(tally.queue);
        tally.first_token.into_iter().for_each(|time| self.first_token.observe(time));
        tally.per_token.into_iter().for_each(|time| self.per_token.observe(time));
        tally.cold_start.into_iter().for_each(|time| self.cold_start.observe(time));
        let (prompt, prompt_time) = tally.prompt;
        let (generated, generated_time) = tally.generated;
        self.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
        self.generated_tokens.fetch_add(generated, Ordering::Relaxed);
        self.prompt_us.fetch_add(micros(prompt_time), Ordering::Relaxed);
        self.generated_us.fetch_add(micros(generated_time), Ordering::Relaxed);
    }

    /// Returns how many requests ended in each way.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        let counts = self.outcomes.iter().map(|count| count.load(Ordering::Relaxed));
        Outcome::ALL.into_iter().zip(counts)
    }

    /// Returns how many seconds engines worked on prompts, and generated.
    pub(super) fn seconds(&self) -> (f64, f64) {
        let of = |us: &AtomicU64| seconds(us.load(Ordering::Relaxed));
        (of(&self.prompt_us), of(&self.generated_us))
    }
}

/// Returns whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_is_not_above_their_edge() {
        let histogram = Histogram::new(&DURATION);
        for us in [0, 10_000, 10_001, 81_920_000, 81_920_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets.first(), Some(&(Some(0.01), 2)));
        assert_eq!(buckets.get(1), Some(&(Some(0.02), 3)));
        assert_eq!(buckets.get(13), Some(&(Some(81.92), 4)));
        assert_eq!(buckets.last(), Some(&(None, 5)));
        assert!((histogram.sum() - 163.860_002).abs() < 1e-9, "{}", histogram.sum());
    }
}
