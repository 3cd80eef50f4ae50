//! What is made of the times of requests.

use std::{collections::BTreeMap, time::Duration};

use super::target::Work;
use crate::store::{Measure, Spread};

/// Requests that ran at once.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) answers: Vec<Answer>,
    /// From the first request to the end of the last answer.
    pub(super) took: Duration,
}

/// One request, timed from its beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// When its first piece came, and its last.
    pub(super) first: Option<Duration>,
    pub(super) last: Option<Duration>,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) generated_tokens: Option<u32>,
    /// What the engine says of it.
    pub(super) timings: Option<Timings>,
}

/// An engine's own times. Source: llama.cpp, `result_timings::to_json`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timings {
    /// Without those that a cache had.
    pub(super) prompt_tokens: u32,
    pub(super) prompt_ms: f64,
    pub(super) generated_tokens: u32,
    pub(super) generated_ms: f64,
}

impl Round {
    /// Tells whether speeds can be the engine's own: of several requests at once it does not know what
    /// they do together.
    pub(super) fn is_told_by_engine(&self) -> bool {
        let mut answers = self.answers.iter();
        matches!((answers.next(), answers.next()), (Some(one), None) if one.timings.is_some())
    }

    fn figures(&self, work: Work, by_engine: bool) -> Vec<(Measure, f64)> {
        match work {
            Work::Generate if by_engine => self.told(),
            Work::Generate => self.seen(),
            Work::Embed => self.vectors(),
        }
    }

    fn told(&self) -> Vec<(Measure, f64)> {
        let Some(answer) = self.answers.first() else { return Vec::new() };
        let Some(timings) = answer.timings else { return Vec::new() };
        let speed = |tokens: u32, ms: f64| (ms > 0.0).then(|| f64::from(tokens) * 1e3 / ms);
        // The first token comes out of the prompt: no step is spent on it.
        let steps = timings.generated_tokens.saturating_sub(1);
        listed([
            (Measure::FirstTokenMs, answer.first.map(ms)),
            (Measure::PromptTokensPerSecond, speed(timings.prompt_tokens, timings.prompt_ms)),
            (Measure::GeneratedTokensPerSecond, speed(steps, timings.generated_ms)),
        ])
    }

    /// All requests together: prompts until the last of them has its first token, answers from the first
    /// token of all to the last.
    fn seen(&self) -> Vec<(Measure, f64)> {
        let firsts = || self.answers.iter().filter_map(|answer| answer.first);
        let prompts = sum(self.answers.iter().map(|answer| answer.prompt_tokens));
        let steps = sum(self
            .answers
            .iter()
            .map(|answer| answer.generated_tokens.map(|tokens| tokens.saturating_sub(1))));
        let last = self.answers.iter().filter_map(|answer| answer.last).max();
        let writing = firsts().min().zip(last).map(|(first, last)| last.saturating_sub(first));
        let middle = Spread::of(firsts().map(ms).collect()).map(|firsts| firsts.median);
        listed([
            (Measure::FirstTokenMs, middle),
            (Measure::PromptTokensPerSecond, rate(prompts, firsts().max())),
            (Measure::GeneratedTokensPerSecond, rate(steps, writing)),
        ])
    }

    fn vectors(&self) -> Vec<(Measure, f64)> {
        let lasts = self.answers.iter().filter_map(|answer| answer.last);
        let middle = Spread::of(lasts.map(ms).collect()).map(|lasts| lasts.median);
        let inputs = sum(self.answers.iter().map(|_| Some(1)));
        let tokens = sum(self.answers.iter().map(|answer| answer.prompt_tokens));
        listed([
            (Measure::AnswerMs, middle),
            (Measure::InputsPerSecond, rate(inputs, Some(self.took))),
            (Measure::InputTokensPerSecond, rate(tokens, Some(self.took))),
        ])
    }
}

/// Sums up rounds, one value of each measure a round.
pub(super) fn spreads(rounds: &[Round], work: Work, by_engine: bool) -> BTreeMap<Measure, Spread> {
    let mut values: BTreeMap<Measure, Vec<f64>> = BTreeMap::new();
    for (measure, value) in rounds.iter().flat_map(|round| round.figures(work, by_engine)) {
        values.entry(measure).or_default().push(value);
    }
    let spreads =
        values.into_iter().filter_map(|(measure, runs)| Some((measure, Spread::of(runs)?)));
    spreads.collect()
}

fn listed<const N: usize>(figures: [(Measure, Option<f64>); N]) -> Vec<(Measure, f64)> {
    figures.into_iter().filter_map(|(measure, value)| Some((measure, value?))).collect()
}

/// The sum of counts, if all of them are known.
fn sum(counts: impl Iterator<Item = Option<u32>>) -> Option<f64> {
    counts.map(|count| count.map(f64::from)).sum()
}

fn rate(count: Option<f64>, time: Option<Duration>) -> Option<f64> {
    let seconds = time?.as_secs_f64();
    if seconds > 0.0 { Some(count? / seconds) } else { None }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(first: u64, last: u64) -> Answer {
        Answer {
            first: Some(Duration::from_millis(first)),
            last: Some(Duration::from_millis(last)),
            prompt_tokens: Some(100),
            generated_tokens: Some(11),
            timings: None,
        }
    }

    fn medians(round: Round, work: Work) -> Vec<(Measure, f64)> {
        let by_engine = round.is_told_by_engine();
        let spreads = spreads(&[round], work, by_engine);
        spreads.into_iter().map(|(measure, spread)| (measure, spread.median.round())).collect()
    }

    #[test]
    fn an_engine_is_believed_of_one_request() {
        let timings = Timings {
            prompt_tokens: 100,
            prompt_ms: 50.0,
            generated_tokens: 11,
            generated_ms: 100.0,
        };
        let told = Answer { timings: Some(timings), ..answer(60, 170) };
        let round = Round { answers: vec![told.clone()], took: Duration::from_millis(170) };
        assert_eq!(
            medians(round, Work::Generate),
            [
                (Measure::FirstTokenMs, 60.0),
                (Measure::PromptTokensPerSecond, 2000.0),
                (Measure::GeneratedTokensPerSecond, 100.0)
            ],
            "ten steps make eleven tokens"
        );
        let two = Round { answers: vec![told.clone(), told], took: Duration::from_millis(170) };
        assert!(!two.is_told_by_engine());
    }

    #[test]
    fn requests_at_once_count_together() {
        let answers = vec![answer(100, 300), answer(200, 350)];
        let round = Round { answers, took: Duration::from_millis(400) };
        assert_eq!(
            medians(round, Work::Generate),
            [
                (Measure::FirstTokenMs, 150.0),
                (Measure::PromptTokensPerSecond, 1000.0),
                (Measure::GeneratedTokensPerSecond, 80.0)
            ]
        );
        let answers = vec![answer(100, 300), answer(200, 350)];
        let round = Round { answers, took: Duration::from_millis(400) };
        assert_eq!(
            medians(round, Work::Embed),
            [
                (Measure::AnswerMs, 325.0),
                (Measure::InputsPerSecond, 5.0),
                (Measure::InputTokensPerSecond, 500.0)
            ]
        );
    }
}
