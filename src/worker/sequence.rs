//! One sequence: a cache, the tokens in it, and the loop that makes an answer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::mpsc::Sender;

use super::{
    clock::now,
    engine::shared,
    exit::first_line,
    job::{ComputeFault, Done, Event, Generate, Job, Piece, Reason},
    model::{Cache, Model},
    sampler::{Sampler, Scored, score},
    text::{StopMatcher, Stopped, TextStream, Vocabulary},
};

/// A cache with the tokens that are in it.
#[derive(Debug)]
pub(super) struct Sequence {
    model: Arc<Model>,
    vocabulary: Arc<Vocabulary>,
    cache: Cache,
    tokens: Vec<u32>,
    /// How many of them were computed as a prompt that met an empty cache would be.
    exact: usize,
    closing: Arc<AtomicBool>,
}

/// Text on its way out: whole characters, no part of a stop string, each token's score with the
/// text it belongs to.
#[derive(Debug)]
struct Outgoing {
    stream: TextStream,
    stops: StopMatcher,
    /// Scores, each with the length of all text up to the end of its token.
    scores: Vec<(usize, Scored)>,
    decoded: usize,
    emitted: usize,
}

/// Whether an answer goes on.
#[derive(Debug, Eq, PartialEq)]
enum Going {
    On,
    Ended,
}

/// Tokens of a prompt that are taken in between two looks at whether the client is still there.
const PROMPT_PART: usize = 256;

impl Sequence {
    pub(super) fn new(
        model: Arc<Model>,
        vocabulary: Arc<Vocabulary>,
        cache: Cache,
        closing: Arc<AtomicBool>,
    ) -> Self {
        Self { model, vocabulary, cache, tokens: Vec::new(), exact: 0, closing }
    }

    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Does the job and tells `events`; a receiver that is gone cancels it.
    pub(super) fn run(&mut self, job: Job, events: &Sender<Event>) -> Result<(), ComputeFault> {
        let result = catch_unwind(AssertUnwindSafe(|| match job {
            Job::Generate(generate) => self.generate(&generate, events),
            Job::Embed(tokens) => self.embed(&tokens, events),
        }));
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.keep(0);
                Err(ComputeFault(first_line(&error)))
            }
            Err(_) => {
                self.keep(0);
                Err(ComputeFault("the computation panicked".to_owned()))
            }
        }
    }

    fn generate(&mut self, generate: &Generate, events: &Sender<Event>) -> candle_core::Result<()> {
        let start = now();
        let cached_tokens = self.reusable(generate);
        self.keep(cached_tokens);
        let mut sampler = Sampler::new(generate.sampling.clone(), &generate.prompt);
        let Some(mut logits) = self.take_in_prompt(generate, cached_tokens, events)? else {
            return Ok(());
        };
        let prompt_time = start.elapsed();
        let mut outgoing = Outgoing::new(generate.stops.clone());
        let mut completion_tokens = 0_usize;
        let reason = loop {
            if self.is_cancelled(events) {
                return Ok(());
            }
            if completion_tokens >= generate.most_tokens {
                break Reason::Length;
            }
            let (id, scored) = sampler.choose(&mut logits);
            completion_tokens = completion_tokens.saturating_add(1);
            if self.vocabulary.is_end(id) && !generate.ignore_end {
                break Reason::Stop;
            }
            let (piece, going) = outgoing.push(self.vocabulary.bytes(id), scored);
            if !tell(events, piece) {
                return Ok(());
            }
            if going == Going::Ended {
                break Reason::Stop;
            }
            if completion_tokens >= generate.most_tokens
                || self.cache.length() >= self.cache.capacity()
            {
                break Reason::Length;
            }
            logits = self.model.logits(&[id], &mut self.cache)?;
            self.tokens.push(id);
        };
        if tell(events, outgoing.finish()) {
            let done = Done {
                reason,
                prompt_tokens: generate.prompt.len(),
                cached_tokens,
                completion_tokens,
                prompt_time,
                completion_time: start.elapsed().saturating_sub(prompt_time),
            };
            // A client that left at the very end misses nothing.
            drop(events.blocking_send(Event::Done(done)));
        }
        Ok(())
    }

    /// Gives how many tokens of the cache serve for the prompt.
    ///
    /// The last token is always computed: its logits are the first choice. Numbers round
    /// differently when a prompt is taken in in other parts, and then a near tie may fall the other
    /// way; a request that must repeat itself therefore only takes what was computed in its parts.
    fn reusable(&self, generate: &Generate) -> usize {
        let wanted = generate.prompt.len().saturating_sub(1);
        let known = shared(&self.tokens, &generate.prompt).min(wanted);
        if generate.score_prompt {
            0
        } else if !generate.is_repeatable || (known == wanted && self.exact == wanted) {
            known
        } else {
            let exact = known.min(self.exact);
            exact - exact % PROMPT_PART
        }
    }

    /// Gives the logits after the prompt, `None` if the client left.
    fn take_in_prompt(
        &mut self,
        generate: &Generate,
        from: usize,
        events: &Sender<Event>,
    ) -> candle_core::Result<Option<Vec<f32>>> {
        if generate.score_prompt {
            return self.score_prompt(generate, events);
        }
        let prompt = generate.prompt.as_slice();
        let Some((last, all_but_last)) = prompt.split_last() else { return Ok(None) };
        let is_exact = self.exact == from && from.is_multiple_of(PROMPT_PART);
        for part in all_but_last.get(from..).unwrap_or_default().chunks(PROMPT_PART) {
            if self.is_cancelled(events) {
                return Ok(None);
            }
            self.model.take_in(part, &mut self.cache)?;
            self.tokens.extend_from_slice(part);
        }
        if is_exact {
            self.exact = all_but_last.len();
        }
        // By itself, so that it is computed alike whether or not the others were known.
        let logits = self.model.logits(&[*last], &mut self.cache)?;
        self.tokens.push(*last);
        Ok(Some(logits))
    }

    /// Takes in the whole prompt and tells how likely each of its tokens was.
    fn score_prompt(
        &mut self,
        generate: &Generate,
        events: &Sender<Event>,
    ) -> candle_core::Result<Option<Vec<f32>>> {
        let count = generate.sampling.logprobs.unwrap_or(0);
        let mut scores: Vec<Scored> = Vec::new();
        let mut after = Vec::new();
        for part in generate.prompt.chunks(PROMPT_PART) {
            if self.is_cancelled(events) {
                return Ok(None);
            }
            let rows = self.model.all_logits(part, &mut self.cache)?;
            let next = generate.prompt.iter().skip(scores.len().saturating_add(1));
            scores.extend(rows.iter().zip(next).map(|(row, id)| score(row, *id, count)));
            after = rows.into_iter().next_back().unwrap_or_default();
            self.tokens.extend_from_slice(part);
        }
        let is_told = events.blocking_send(Event::PromptScores(scores)).is_ok();
        Ok(is_told.then_some(after))
    }

    /// The mean of the hidden states, scaled to length 1.
    fn embed(&mut self, tokens: &[u32], events: &Sender<Event>) -> candle_core::Result<()> {
        self.keep(0);
        let mut sum: Vec<f32> = Vec::new();
        for part in tokens.chunks(PROMPT_PART) {
            if self.is_cancelled(events) {
                return Ok(());
            }
            let states = self.model.summed_states(part, &mut self.cache)?;
            self.tokens.extend_from_slice(part);
            sum = if sum.is_empty() {
                states
            } else {
                sum.iter().zip(states).map(|(sum, state)| sum + state).collect()
            };
        }
        // The mean has the direction of the sum, and only that survives the scaling.
        let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        for x in &mut sum {
            *x *= scale;
        }
        drop(events.blocking_send(Event::Embedding(sum)));
        Ok(())
    }

    fn keep(&mut self, count: usize) {
        self.cache.truncate(count);
        self.tokens.truncate(count);
        self.exact = self.exact.min(count);
    }

    fn is_cancelled(&self, events: &Sender<Event>) -> bool {
        events.is_closed() || self.is_closing()
    }
}

/// Tells a piece unless it is empty; says whether the client is still there.
fn tell(events: &Sender<Event>, piece: Piece) -> bool {
    (piece.text.is_empty() && piece.scores.is_empty())
        || events.blocking_send(Event::Text(piece)).is_ok()
}

impl Outgoing {
    fn new(stops: Vec<String>) -> Self {
        Self {
            stream: TextStream::default(),
            stops: StopMatcher::new(stops),
            scores: Vec::new(),
            decoded: 0,
            emitted: 0,
        }
    }

    fn push(&mut self, bytes: &[u8], scored: Option<Scored>) -> (Piece, Going) {
        let text = self.stream.push(bytes);
        self.decoded = self.decoded.saturating_add(text.len());
        self.scores.extend(scored.map(|scored| (self.decoded, scored)));
        match self.stops.push(&text) {
            Stopped::Not(text) => (self.emit(text), Going::On),
            Stopped::At(text) => {
                let piece = self.emit(text);
                self.scores.clear();
                (piece, Going::Ended)
            }
        }
    }

    fn finish(&mut self) -> Piece {
        let text = self.stops.finish();
        let mut piece = self.emit(text);
        piece.scores.extend(self.scores.drain(..).map(|(_, scored)| scored));
        piece
    }

    fn emit(&mut self, text: String) -> Piece {
        self.emitted = self.emitted.saturating_add(text.len());
        let out = self.scores.iter().take_while(|(end, _)| *end <= self.emitted).count();
        Piece { text, scores: self.scores.drain(..out).map(|(_, scored)| scored).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(id: u32) -> Scored {
        Scored { id, logprob: 0.0, top: Vec::new() }
    }

    #[test]
    fn a_score_goes_out_with_the_text_of_its_token() {
        let mut outgoing = Outgoing::new(vec!["STOP".to_owned()]);
        let ids = |piece: &Piece| piece.scores.iter().map(|scored| scored.id).collect::<Vec<_>>();
        let (first, _) = outgoing.push(b"a S", Some(scored(1)));
        assert_eq!((first.text.as_str(), ids(&first)), ("a ", vec![]));
        let (second, _) = outgoing.push(b"un", Some(scored(2)));
        assert_eq!((second.text.as_str(), ids(&second)), ("Sun", vec![1, 2]));
        let (third, going) = outgoing.push(b"STOP", Some(scored(3)));
        assert_eq!((third.text.as_str(), ids(&third), going), ("", vec![], Going::Ended));
        assert_eq!(ids(&outgoing.finish()), Vec::<u32>::new());
    }
}
