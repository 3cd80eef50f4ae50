//! The choice of the next token.
//!
//! Source: the order of the steps and their defaults are those of llama.cpp's server: bias,
//! penalties, top-k, top-p, min-p, temperature.

use std::collections::{BTreeMap, VecDeque};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sampling {
    /// 0 takes the most likely token.
    pub(super) temperature: f32,
    /// 0 keeps all.
    pub(super) top_k: usize,
    pub(super) top_p: f32,
    pub(super) min_p: f32,
    /// 1 leaves repeated tokens as they are.
    pub(super) repeat_penalty: f32,
    /// How many tokens back the penalties look.
    pub(super) recent: usize,
    pub(super) presence_penalty: f32,
    pub(super) frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub(super) bias: Vec<(u32, f32)>,
    /// The same seed gives the same text.
    pub(super) seed: u64,
    /// How many alternatives are told for each token, `None` for no probabilities at all.
    pub(super) logprobs: Option<usize>,
}

/// A token with how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scored {
    pub(super) id: u32,
    pub(super) logprob: f32,
    /// The most likely tokens, best first.
    pub(super) top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one answer.
#[derive(Debug)]
pub(super) struct Sampler {
    sampling: Sampling,
    random: StdRng,
    /// Recent tokens, newest last, prompt included: what the penalties look at.
    recent: VecDeque<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            recent: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl Sampler {
    pub(super) fn new(sampling: Sampling, prompt: &[u32]) -> Self {
        let recent = prompt.iter().rev().take(sampling.recent).rev().copied().collect();
        Self { random: StdRng::seed_from_u64(sampling.seed), sampling, recent }
    }

    /// Chooses the token that follows, and says how likely it was by the logits of `before`, which
    /// nothing has changed, where they are given.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
        before: Option<&[f32]>,
    ) -> (u32, Option<Scored>) {
        for (id, bias) in &self.sampling.bias {
            change(logits, *id, |logit| logit + bias);
        }
        self.penalise(logits);
        let id = if self.sampling.temperature <= 0.0 { best(logits) } else { self.draw(logits) };
        self.recent.push_back(id);
        if self.recent.len() > self.sampling.recent {
            self.recent.pop_front();
        }
        let scored = before.map(|logits| score(logits, id, self.sampling.logprobs.unwrap_or(0)));
        (id, scored)
    }

    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
        for id in &self.recent {
            *counts.entry(*id).or_default() += 1.0;
        }
        for (id, count) in counts {
            change(logits, id, |logit| {
                let scaled =
                    if logit > 0.0 { logit / repeat_penalty } else { logit * repeat_penalty };
                scaled - count * frequency_penalty - presence_penalty
            });
        }
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        let keep = if self.sampling.top_k == 0 { logits.len() } else { self.sampling.top_k };
        let ranked = most_likely(logits, keep);
        let temperature = self.sampling.temperature;
        let plain = softmax(&ranked, 1.0);
        let most = plain.first().copied().unwrap_or(1.0);
        let mut kept = 0_usize;
        let mut mass = 0.0;
        for probability in &plain {
            let enough = mass >= self.sampling.top_p || *probability < self.sampling.min_p * most;
            if kept > 0 && enough {
                break;
            }
            kept = kept.saturating_add(1);
            mass += probability;
        }
        let kept = ranked.get(..kept).unwrap_or(&ranked);
        let mut point: f32 = self.random.random();
        for ((id, _), probability) in kept.iter().zip(softmax(kept, temperature)) {
            point -= probability;
            if point < 0.0 {
                return *id;
            }
        }
        // Rounding left a rest: the last one covers it.
        kept.last().map_or_else(|| best(logits), |(id, _)| *id)
    }
}

/// Says how likely token `id` is after `logits`, with `count` alternatives.
pub(super) fn score(logits: &[f32], id: u32, count: usize) -> Scored {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
    let norm = most + sum.ln();
    let of = usize::try_from(id).ok().and_then(|id| logits.get(id)).copied();
    let top =
        most_likely(logits, count).into_iter().map(|(id, logit)| (id, logit - norm)).collect();
    Scored { id, logprob: of.map_or(f32::NEG_INFINITY, |logit| logit - norm), top }
}

/// Gives the `count` largest logits, largest first; ties by id, so that a run repeats.
fn most_likely(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<(u32, f32)> = (0_u32..).zip(logits.iter().copied()).collect();
    if count == 0 {
        return Vec::new();
    }
    if count < all.len() {
        all.select_nth_unstable_by(count - 1, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}

fn best(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in (0_u32..).zip(logits) {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0
}

fn change(logits: &mut [f32], id: u32, to: impl Fn(f32) -> f32) {
    if let Some(logit) = usize::try_from(id).ok().and_then(|id| logits.get_mut(id)) {
        *logit = to(*logit);
    }
}

/// `ranked` holds the largest first.
fn softmax(ranked: &[(u32, f32)], temperature: f32) -> Vec<f32> {
    let most = ranked.first().map_or(0.0, |(_, logit)| *logit);
    let mut weights: Vec<f32> =
        ranked.iter().map(|(_, logit)| ((logit - most) / temperature).exp()).collect();
    let sum: f32 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= sum;
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.9];

    fn run(sampling: Sampling, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..count).map(|_| sampler.choose(&mut LOGITS.to_vec(), None).0).collect()
    }

    #[test]
    fn no_temperature_takes_the_most_likely() {
        assert_eq!(run(Sampling { temperature: 0.0, ..Sampling::default() }, 3), [1, 1, 1]);
    }

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        let seeded = |seed| run(Sampling { seed, temperature: 1.5, ..Sampling::default() }, 40);
        assert_eq!(seeded(7), seeded(7));
        assert_ne!(seeded(7), seeded(8));
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let wild = Sampling { temperature: 5.0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
        let drawn =
            |sampling| run(sampling, 200).into_iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(drawn(Sampling { top_k: 2, ..wild.clone() }), [1, 4].into());
        assert_eq!(drawn(Sampling { top_k: 0, top_p: 0.5, ..wild.clone() }), [1, 4].into());
        assert_eq!(drawn(Sampling { top_k: 0, min_p: 0.8, ..wild.clone() }), [1, 4].into());
        assert_eq!(drawn(Sampling { top_k: 0, ..wild }).len(), 5);
    }

    #[test]
    fn bias_and_penalties_move_the_choice() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(run(Sampling { bias: vec![(3, 100.0)], ..greedy.clone() }, 1), [3]);
        assert_eq!(run(Sampling { presence_penalty: 1.5, ..greedy.clone() }, 3), [1, 4, 2]);
        assert_eq!(run(Sampling { repeat_penalty: 2.0, ..greedy }, 3), [1, 4, 2]);
    }

    #[test]
    fn penalties_look_as_far_back_as_is_asked() {
        let greedy = |recent| Sampling {
            temperature: 0.0,
            presence_penalty: 1.5,
            recent,
            ..Sampling::default()
        };
        assert_eq!(run(greedy(0), 3), [1, 1, 1]);
        assert_eq!(run(greedy(1), 3), [1, 4, 1]);
        assert_eq!(run(greedy(usize::MAX), 3), [1, 4, 2]);
    }

    #[test]
    fn probabilities_are_those_before_any_change() {
        let sampling = Sampling {
            temperature: 0.0,
            bias: vec![(3, 100.0)],
            logprobs: Some(2),
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling, &[]);
        let (id, scored) = sampler.choose(&mut LOGITS.to_vec(), Some(&LOGITS));
        let scored = scored.unwrap();
        assert_eq!((id, scored.id), (3, 3));
        assert!(scored.logprob < -4.0);
        assert_eq!(scored.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 4]);
    }
}
