//! A seat: a cache, the tokens in it, and the job that sits there.

use std::time::Duration;

use tokio::{sync::mpsc::Sender, time::Instant};

use super::{
    clock::now,
    grammar::Sentence,
    job::{ComputeFault, Done, Event, Generate, Job, Piece, Reason},
    model::{Cache, Want},
    outgoing::{Going, Outgoing},
    report::{Asked, SeatReport, Task, Work},
    sampler::{Sampler, Scored, score},
    text::{Pair, Vocabulary},
};

/// A cache with the tokens that are in it.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) cache: Cache,
    /// As many as the cache has positions.
    pub(super) tokens: Vec<u32>,
    /// When it was last given to a job, by count.
    pub(super) used: u64,
    pub(super) running: Option<Running>,
    /// What sits here, or sat here last.
    task: Option<Task>,
}

/// A job that has a seat.
#[derive(Debug)]
pub(super) struct Running {
    client: Client,
    phase: Phase,
}

/// Who is told about a job.
#[derive(Debug)]
struct Client {
    events: Sender<Event>,
    begun: Instant,
    /// Tokens of the prompt that were still known.
    cached_tokens: usize,
}

#[derive(Debug)]
enum Phase {
    Embedding { tokens: Vec<u32>, sum: Vec<f32> },
    Ranking(Pair),
    Prompt { generate: Box<Generate>, scores: Vec<Scored> },
    Answer(Box<Answer>),
}

#[derive(Debug)]
struct Answer {
    generate: Generate,
    sampler: Sampler,
    outgoing: Outgoing,
    prompt_time: Duration,
    completion_tokens: usize,
    /// When the last token was chosen.
    chosen: Instant,
    has_new_line: bool,
    /// Chosen, and not yet taken in.
    next: u32,
}

/// What a seat brings to a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// One token, and wants to know the next.
    Decode,
    /// A part of a prompt.
    Prefill,
}

/// Rows of a prompt whose tokens are scored: each costs logits over the whole vocabulary.
const SCORED_PART: usize = 32;

impl Seat {
    pub(super) fn new(cache: Cache) -> Self {
        Self { cache, tokens: Vec::new(), used: 0, running: None, task: None }
    }

    /// Gives `job` the seat, which knows `keep` tokens of it.
    pub(super) fn begin(&mut self, job: Job, events: Sender<Event>, (keep, used): (usize, u64)) {
        self.keep(keep);
        self.used = used;
        // A client that has left is found at the next step.
        drop(events.try_send(Event::Begun));
        self.task = Some(Task::new(&job, (keep, used)));
        let phase = match job {
            Job::Embed(tokens) => Phase::Embedding { tokens, sum: Vec::new() },
            Job::Rank(pair) => Phase::Ranking(pair),
            Job::Generate(generate) => Phase::Prompt { generate, scores: Vec::new() },
        };
        let client = Client { events, begun: now(), cached_tokens: keep };
        self.running = Some(Running { client, phase });
    }

    /// Takes note that `count` tokens of the prompt need not be computed.
    pub(super) fn count_cached(&mut self, count: usize) {
        if let Some(running) = &mut self.running {
            running.client.cached_tokens = count;
        }
        if let Some(task) = &mut self.task {
            task.cached_tokens = count;
        }
    }

    /// Forgets all tokens from `count` on.
    pub(super) fn keep(&mut self, count: usize) {
        self.cache.truncate(count);
        self.tokens.truncate(count);
    }

    /// Drops a job whose client has left.
    pub(super) fn drop_cancelled(&mut self) {
        if self.running.as_ref().is_some_and(|running| running.client.events.is_closed()) {
            self.running = None;
        }
    }

    /// Gives what kind of work is to be done here.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.running.as_ref().map(|running| match running.phase {
            Phase::Answer(_) => Kind::Decode,
            Phase::Embedding { .. } | Phase::Ranking(_) | Phase::Prompt { .. } => Kind::Prefill,
        })
    }

    /// Gives the tokens that are to be taken in before an answer.
    pub(super) fn prompt(&self) -> &[u32] {
        match self.running.as_ref().map(|running| &running.phase) {
            Some(Phase::Embedding { tokens, .. } | Phase::Ranking(Pair { tokens, .. })) => tokens,
            Some(Phase::Prompt { generate, .. }) => &generate.prompt,
            Some(Phase::Answer(_)) | None => &[],
        }
    }

    /// Says whether known positions serve for what is left of the prompt.
    pub(super) fn may_reuse(&self) -> bool {
        match self.running.as_ref().map(|running| &running.phase) {
            Some(Phase::Prompt { generate, .. }) => !generate.score_prompt,
            Some(Phase::Embedding { .. } | Phase::Ranking(_) | Phase::Answer(_)) | None => false,
        }
    }

    /// Gives the tokens of the next step, at most `most` of a prompt, and what is wanted of them.
    pub(super) fn ask(&self, most: usize) -> Option<(Vec<u32>, Want)> {
        let running = self.running.as_ref()?;
        let at = self.tokens.len();
        let part = |tokens: &[u32], most: usize| -> Vec<u32> {
            tokens.iter().skip(at).take(most).copied().collect()
        };
        Some(match &running.phase {
            Phase::Answer(answer) => (vec![answer.next], Want::Last),
            Phase::Embedding { tokens, .. } => (part(tokens, most), Want::Sum),
            Phase::Ranking(Pair { tokens, second }) => {
                (part(tokens, most), Want::Score { second: *second })
            }
            Phase::Prompt { generate, .. } if generate.score_prompt => {
                (part(&generate.prompt, most.min(SCORED_PART)), Want::All)
            }
            Phase::Prompt { generate, .. } => {
                let tokens = part(&generate.prompt, most);
                let is_last = at.saturating_add(tokens.len()) >= generate.prompt.len();
                (tokens, if is_last { Want::Last } else { Want::Nothing })
            }
        })
    }

    /// Tells what sits here.
    pub(super) fn report(&self) -> SeatReport {
        SeatReport { is_processing: self.running.is_some(), task: self.task.clone() }
    }

    /// Takes the rows that a step gave for `taken` tokens, and counts the work.
    pub(super) fn take(
        &mut self,
        taken: &[u32],
        rows: Vec<Vec<f32>>,
        (vocabulary, work): (&Vocabulary, &mut Work),
    ) {
        self.tokens.extend_from_slice(taken);
        work.most_tokens = work.most_tokens.max(self.tokens.len());
        let (at, is_full) = (self.tokens.len(), self.cache.length() >= self.cache.capacity());
        let Some(running) = self.running.take() else { return };
        let Some(task) = &mut self.task else { return };
        let computed = at.min(task.prompt_tokens);
        task.processed_tokens = computed.saturating_sub(task.cached_tokens);
        self.running = running.take((at, is_full), rows, vocabulary, (task, work));
    }

    /// Ends the job with a fault, and forgets what the cache holds.
    pub(super) fn fail(&mut self, fault: &ComputeFault) {
        self.keep(0);
        if let Some(running) = self.running.take() {
            // The client may be gone already.
            drop(running.client.events.try_send(Event::Failed(fault.clone())));
        }
    }
}

impl Running {
    /// Goes on with the rows of a step; `None` when the job is done.
    fn take(
        self,
        (at, is_full): (usize, bool),
        rows: Vec<Vec<f32>>,
        vocabulary: &Vocabulary,
        (task, work): (&mut Task, &mut Work),
    ) -> Option<Self> {
        let Self { client, phase } = self;
        let (mut answer, mut logits) = match phase {
            Phase::Embedding { tokens, sum } => {
                let sum = rows.into_iter().fold(sum, |sum, row| added(sum, &row));
                if at < tokens.len() {
                    return Some(Self { client, phase: Phase::Embedding { tokens, sum } });
                }
                client.count_prompt(tokens.len(), work);
                drop(client.events.try_send(Event::Embedding(scaled(sum))));
                return None;
            }
            Phase::Ranking(pair) => {
                client.count_prompt(pair.tokens.len(), work);
                let score = rows.first().and_then(|row| row.first());
                let no_score = || ComputeFault("this model gives no scores".to_owned());
                let event = score
                    .ok_or_else(no_score)
                    .map_or_else(Event::Failed, |score| Event::Score(*score));
                // The client may be gone already.
                drop(client.events.try_send(event));
                return None;
            }
            Phase::Prompt { generate, mut scores } => {
                if generate.score_prompt {
                    let count = generate.sampling.logprobs.unwrap_or(0);
                    let next = generate.prompt.iter().skip(scores.len().saturating_add(1));
                    scores.extend(rows.iter().zip(next).map(|(row, id)| score(row, *id, count)));
                }
                if at < generate.prompt.len() {
                    return Some(Self { client, phase: Phase::Prompt { generate, scores } });
                }
                if generate.score_prompt {
                    client.events.try_send(Event::PromptScores(scores)).ok()?;
                }
                client.count_prompt(generate.prompt.len(), work);
                (Box::new(Answer::new(*generate, client.begun.elapsed())), rows.into_iter().last()?)
            }
            Phase::Answer(answer) => (answer, rows.into_iter().last()?),
        };
        let before = (answer.completion_tokens, answer.chosen);
        let step = answer.go_on(&client.events, &mut logits, is_full, vocabulary);
        answer.chosen = now();
        task.completion_tokens = answer.completion_tokens;
        task.has_new_line = answer.has_new_line;
        let made = answer.completion_tokens.saturating_sub(before.0);
        work.completion_tokens = work.completion_tokens.saturating_add(made);
        work.completion_time = work.completion_time.saturating_add(answer.chosen - before.1);
        match step {
            Step::On => Some(Self { client, phase: Phase::Answer(answer) }),
            Step::Left => None,
            Step::Unkept(fault) => {
                // The client may be gone already.
                drop(client.events.try_send(Event::Unkept(fault)));
                None
            }
            Step::Over(reason) => {
                client.finish(*answer, reason);
                None
            }
        }
    }
}

impl Client {
    fn count_prompt(&self, tokens: usize, work: &mut Work) {
        let computed = tokens.saturating_sub(self.cached_tokens);
        work.prompt_tokens = work.prompt_tokens.saturating_add(computed);
        work.cached_tokens = work.cached_tokens.saturating_add(self.cached_tokens);
        work.prompt_time = work.prompt_time.saturating_add(self.begun.elapsed());
    }

    fn finish(&self, mut answer: Answer, reason: Reason) {
        let done = Done {
            reason,
            prompt_tokens: answer.generate.prompt.len(),
            cached_tokens: self.cached_tokens,
            completion_tokens: answer.completion_tokens,
            prompt_time: answer.prompt_time,
            completion_time: self.begun.elapsed().saturating_sub(answer.prompt_time),
        };
        if tell(&self.events, answer.outgoing.finish()).is_some() {
            // A client that left at the very end misses nothing.
            drop(self.events.try_send(Event::Done(done)));
        }
    }
}

impl Task {
    fn new(job: &Job, (cached_tokens, id): (usize, u64)) -> Self {
        let (prompt_tokens, asked) = match job {
            Job::Embed(tokens) | Job::Rank(Pair { tokens, .. }) => (tokens.len(), None),
            Job::Generate(generate) => {
                let asked = Asked {
                    sampling: generate.sampling.clone(),
                    most_tokens: generate.most_tokens,
                    ignore_end: generate.ignore_end,
                };
                (generate.prompt.len(), Some(asked))
            }
        };
        Self {
            id,
            prompt_tokens,
            cached_tokens,
            processed_tokens: 0,
            completion_tokens: 0,
            has_new_line: false,
            asked,
        }
    }
}

/// What becomes of an answer after a choice.
enum Step {
    On,
    Over(Reason),
    /// The client has left.
    Left,
    /// The grammar failed.
    Unkept(String),
}

impl Answer {
    fn new(generate: Generate, prompt_time: Duration) -> Self {
        Self {
            sampler: Sampler::new(generate.sampling.clone(), &generate.prompt),
            outgoing: Outgoing::new(generate.stops.clone()),
            generate,
            prompt_time,
            completion_tokens: 0,
            chosen: now(),
            has_new_line: false,
            next: 0,
        }
    }

    /// Chooses the next token and tells its text.
    fn go_on(
        &mut self,
        events: &Sender<Event>,
        logits: &mut [f32],
        is_full: bool,
        vocabulary: &Vocabulary,
    ) -> Step {
        if self.completion_tokens >= self.generate.most_tokens {
            return Step::Over(Reason::Length);
        }
        let before = self.generate.sampling.logprobs.map(|_| logits.to_vec());
        if let Some(grammar) = &mut self.generate.grammar
            && let Err(fault) = grammar.mask(logits, vocabulary)
        {
            return Step::Unkept(fault);
        }
        let (id, scored) = self.sampler.choose(logits, before.as_deref());
        self.completion_tokens = self.completion_tokens.saturating_add(1);
        if vocabulary.is_end(id) && !self.generate.ignore_end {
            return Step::Over(Reason::Stop);
        }
        let sentence = match self.generate.grammar.as_mut().map(|grammar| grammar.take(id)) {
            None => Sentence::GoesOn,
            Some(Ok(sentence)) => sentence,
            Some(Err(fault)) => return Step::Unkept(fault),
        };
        self.has_new_line |= vocabulary.bytes(id).contains(&b'\n');
        let (piece, going) = self.outgoing.push(vocabulary.bytes(id), scored);
        if tell(events, piece).is_none() {
            return Step::Left;
        }
        if going == Going::Ended || sentence == Sentence::Whole {
            return Step::Over(Reason::Stop);
        }
        if self.completion_tokens >= self.generate.most_tokens || is_full {
            return Step::Over(Reason::Length);
        }
        self.next = id;
        Step::On
    }
}

/// Tells a piece unless it is empty; `None` if the client has left.
fn tell(events: &Sender<Event>, piece: Piece) -> Option<()> {
    if piece.text.is_empty() && piece.scores.is_empty() {
        return Some(());
    }
    // There is room for all events of a job, so only a client that left refuses one.
    events.try_send(Event::Text(piece)).ok()
}

fn added(mut sum: Vec<f32>, row: &[f32]) -> Vec<f32> {
    if sum.is_empty() {
        return row.to_vec();
    }
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += x;
    }
    sum
}

/// The mean of hidden states has the direction of their sum, and only that survives the scaling to
/// length 1.
fn scaled(mut sum: Vec<f32>) -> Vec<f32> {
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    for x in &mut sum {
        *x *= scale;
    }
    sum
}
