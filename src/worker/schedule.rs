//! Which sequences take part in the next step of the model.
//!
//! ```text
//! inbox ──▶ waiting ──▶ seats ──▶ step: one row of each that answers, then parts of prompts
//!          (in order)     ▲          │ rows of logits
//!                         └──────────┘ sample, tell, next step
//! ```
//!
//! Each answer gets one token in each step. Prompts share what is left of a step in turns; beside
//! answers a step takes no more of them than [`PATIENCE`] allows. A job takes the seat that knows
//! the longest begin of its prompt; a longer begin that another seat knows is copied from there,
//! and one that another seat is about to compute is waited for.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use tokio::sync::{mpsc::Sender, oneshot};

use super::{
    clock::now,
    exit::{Ending, first_line},
    job::{ComputeFault, Event, Job},
    model::{Network, Part, Want},
    report::{self, Report},
    seat::{Kind, Seat},
    text::Vocabulary,
};

/// The thread that computes: the model, its seats, and who waits for one.
#[derive(Debug)]
pub(super) struct Schedule {
    model: Network,
    vocabulary: Arc<Vocabulary>,
    seats: Vec<Seat>,
    waiting: VecDeque<(Job, Sender<Event>)>,
    fatal: Sender<Ending>,
    /// Jobs that have had a seat so far.
    begun: u64,
    /// The seat whose prompt is the first to be served.
    first: usize,
    /// What a row of a prompt takes, about.
    row_time: Duration,
    done: report::Work,
}

/// What reaches the thread.
#[derive(Debug)]
pub(super) enum Work {
    Job(Job, Sender<Event>),
    /// Wants to know how things stand.
    Tell(oneshot::Sender<Report>),
    Close,
}

/// A seat's share of a step.
struct Share {
    seat: usize,
    tokens: Vec<u32>,
    want: Want,
}

/// Rows of prompts in a step.
const MOST_ROWS: usize = 256;
const LEAST_ROWS: usize = 16;
/// How long answers wait for a prompt beside them, each step.
const PATIENCE: Duration = Duration::from_millis(100);
/// A begin of fewer tokens is computed sooner than it is waited for or copied.
const WORTH_SHARING: usize = 16;

impl Schedule {
    /// Makes `parallel` seats, each for `context` tokens.
    pub(super) fn new(
        model: Network,
        vocabulary: Arc<Vocabulary>,
        (parallel, context): (usize, usize),
        fatal: Sender<Ending>,
    ) -> candle_core::Result<Self> {
        let seats = (0..parallel).map(|_| Ok(Seat::new(model.cache(context)?)));
        Ok(Self {
            seats: seats.collect::<candle_core::Result<_>>()?,
            model,
            vocabulary,
            waiting: VecDeque::new(),
            fatal,
            begun: 0,
            first: 0,
            row_time: Duration::from_millis(5),
            done: report::Work::default(),
        })
    }

    /// Works until it is told to close, or nobody is left who could ask.
    pub(super) fn run(mut self, inbox: &Receiver<Work>, closing: &AtomicBool) {
        loop {
            if !self.receive(inbox) || closing.load(Ordering::Relaxed) {
                // Dropped senders tell the clients that the worker ends.
                return;
            }
            self.turn();
        }
    }

    /// Looks who has left, gives free seats away, and computes one step.
    fn turn(&mut self) {
        self.waiting.retain(|(_, events)| !events.is_closed());
        self.seats.iter_mut().for_each(Seat::drop_cancelled);
        self.seat_waiting();
        self.step();
    }

    /// Takes in what has come; waits for something if there is nothing to do.
    fn receive(&mut self, inbox: &Receiver<Work>) -> bool {
        let is_idle =
            self.waiting.is_empty() && self.seats.iter().all(|seat| seat.kind().is_none());
        let mut next = if is_idle {
            inbox.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            inbox.try_recv()
        };
        loop {
            match next {
                Ok(Work::Job(job, events)) => self.waiting.push_back((job, events)),
                // Who asked and left misses nothing.
                Ok(Work::Tell(asker)) => drop(asker.send(self.report())),
                Err(TryRecvError::Empty) => return true,
                Ok(Work::Close) | Err(TryRecvError::Disconnected) => return false,
            }
            next = inbox.try_recv();
        }
    }

    fn report(&self) -> Report {
        Report {
            seats: self.seats.iter().map(Seat::report).collect(),
            waiting: self.waiting.len(),
            work: self.done.clone(),
        }
    }

    fn seat_waiting(&mut self) {
        while self.seats.iter().any(|seat| seat.running.is_none()) {
            let Some((job, events)) = self.waiting.pop_front() else { return };
            let known = match &job {
                Job::Generate(generate) if self.may_reuse(generate.is_repeatable) => {
                    if generate.score_prompt { &[] } else { generate.prompt.as_slice() }
                }
                Job::Generate(_) | Job::Embed(_) | Job::Rank(_) => &[],
            };
            let Some((seat, keep)) = self.choose_seat(known) else { return };
            self.begun = self.begun.saturating_add(1);
            let used = self.begun;
            if let Some(seat) = self.seats.get_mut(seat) {
                seat.begin(job, events, (keep, used));
            }
        }
    }

    /// On a GPU numbers round differently when a prompt is taken in in other parts, and then a near
    /// tie may fall the other way: there, what must repeat itself takes in its whole prompt.
    fn may_reuse(&self, is_repeatable: bool) -> bool {
        self.model.is_exact() || !is_repeatable
    }

    /// Gives an idle seat for `prompt`, and how many of its tokens it knows.
    fn choose_seat(&mut self, prompt: &[u32]) -> Option<(usize, usize)> {
        let idle = |seat: &(usize, &Seat)| seat.1.running.is_none();
        let known = |seat: &Seat| useful(&seat.tokens, prompt);
        let all = || self.seats.iter().enumerate();
        let (best, of_best) = all().filter(idle).max_by_key(|(_, seat)| {
            (known(seat), usize::MAX - seat.tokens.len(), u64::MAX - seat.used)
        })?;
        let oldest =
            all().filter(idle).min_by_key(|(_, seat)| (!seat.tokens.is_empty(), seat.used));
        let (oldest, of_oldest) = oldest?;
        let (donor, of_donor) = all().max_by_key(|(_, seat)| known(seat))?;
        let (shared, most) = (known(of_best), known(of_donor));
        let lost = of_best.tokens.len().saturating_sub(shared);
        let is_spared = lost > shared && of_oldest.used < of_best.used && shared >= WORTH_SHARING;
        if most >= shared.saturating_add(WORTH_SHARING) || is_spared {
            let copied = self.copy(donor, oldest, most);
            return Some((oldest, copied));
        }
        Some((best, shared))
    }

    /// Copies the first `count` positions from one seat to another; gives how many it then knows.
    fn copy(&mut self, from: usize, to: usize, count: usize) -> usize {
        let Ok([from, to]) = self.seats.get_disjoint_mut([from, to]) else {
            // The two are one.
            return count;
        };
        if to.cache.copy_from(&from.cache, count).is_err() {
            to.keep(0);
            return 0;
        }
        to.tokens.clear();
        to.tokens.extend(from.tokens.iter().take(count));
        count
    }

    fn step(&mut self) {
        let shares = self.shares();
        if shares.is_empty() {
            return;
        }
        let rows: usize = shares.iter().map(|share| share.tokens.len()).sum();
        let start = now();
        match self.compute(&shares) {
            Ok(results) => {
                if rows >= LEAST_ROWS {
                    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
                    self.row_time = (self.row_time + start.elapsed() / rows) / 2;
                }
                self.done.steps = self.done.steps.saturating_add(1);
                self.done.busy_seats = self.done.busy_seats.saturating_add(shares.len());
                for (share, rows) in shares.iter().zip(results) {
                    if let Some(seat) = self.seats.get_mut(share.seat) {
                        let told = (&*self.vocabulary, &mut self.done);
                        seat.take(&share.tokens, rows, told);
                    }
                }
            }
            Err(fault) => self.fail(&shares, &fault),
        }
    }

    fn compute(&mut self, shares: &[Share]) -> Result<Vec<Vec<Vec<f32>>>, ComputeFault> {
        let mut caches: Vec<_> = self.seats.iter_mut().map(|seat| Some(&mut seat.cache)).collect();
        let mut parts = Vec::with_capacity(shares.len());
        for share in shares {
            if let Some(cache) = caches.get_mut(share.seat).and_then(Option::take) {
                parts.push(Part { tokens: &share.tokens, cache, want: share.want });
            }
        }
        match catch_unwind(AssertUnwindSafe(|| self.model.step(&mut parts))) {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(ComputeFault(first_line(&error))),
            Err(_) => Err(ComputeFault("the computation panicked".to_owned())),
        }
    }

    /// Nobody knows what a failed step left in the caches that took part.
    fn fail(&mut self, shares: &[Share], fault: &ComputeFault) {
        if fault.is_out_of_memory() {
            let sentence = format!("out of memory while computing: {}", first_line(fault));
            // One ending is enough: with the place taken another one is on its way.
            drop(self.fatal.try_send(Ending::out_of_memory(sentence)));
        }
        for share in shares {
            if let Some(seat) = self.seats.get_mut(share.seat) {
                seat.fail(fault);
            }
        }
    }

    /// Divides the next step.
    fn shares(&mut self) -> Vec<Share> {
        let mut shares = Vec::new();
        for (at, seat) in self.seats.iter().enumerate() {
            if seat.kind() == Some(Kind::Decode) {
                shares.extend(share(at, seat, 1));
            }
        }
        let mut left = if shares.is_empty() { MOST_ROWS } else { self.patient_rows() };
        let count = self.seats.len();
        let order: Vec<usize> = (self.first..count).chain(0..self.first.min(count)).collect();
        for at in order {
            if left == 0 || self.seats.get(at).and_then(Seat::kind) != Some(Kind::Prefill) {
                continue;
            }
            if self.waits_for_another(at) {
                continue;
            }
            let most = if self.model.is_encoder() { usize::MAX } else { left };
            let Some(share) = self.seats.get(at).and_then(|seat| share(at, seat, most)) else {
                continue;
            };
            left = left.saturating_sub(share.tokens.len());
            shares.push(share);
            // The next step begins with the one after the last that was served.
            self.first = at.saturating_add(1).checked_rem(count).unwrap_or(0);
        }
        shares
    }

    /// Gives the rows of prompts that answers can wait for.
    fn patient_rows(&self) -> usize {
        let rows = PATIENCE.as_nanos().checked_div(self.row_time.as_nanos()).unwrap_or(u128::MAX);
        usize::try_from(rows).unwrap_or(MOST_ROWS).clamp(LEAST_ROWS, MOST_ROWS)
    }

    /// Copies what another seat knows of the prompt by now; says whether more is about to come from
    /// one that was there before.
    fn waits_for_another(&mut self, at: usize) -> bool {
        let Some(seat) = self.seats.get(at).filter(|seat| seat.may_reuse()) else { return false };
        if !self.model.is_exact() {
            return false;
        }
        let (prompt, known, used) = (seat.prompt(), seat.tokens.len(), seat.used);
        let others = || self.seats.iter().enumerate().filter(|(other, _)| *other != at);
        let at_hand = others().map(|(other, seat)| (useful(&seat.tokens, prompt), other)).max();
        let (count, other) = at_hand.unwrap_or((0, at));
        let worth = known.max(count).saturating_add(WORTH_SHARING);
        let is_promised =
            others().any(|(_, other)| other.used < used && useful(other.prompt(), prompt) >= worth);
        if !is_promised && count >= known.saturating_add(WORTH_SHARING) {
            let copied = self.copy(other, at, count);
            if let Some(seat) = self.seats.get_mut(at) {
                seat.count_cached(copied);
            }
        }
        is_promised
    }
}

fn share(at: usize, seat: &Seat, most: usize) -> Option<Share> {
    let (tokens, want) = seat.ask(most)?;
    (!tokens.is_empty()).then_some(Share { seat: at, tokens, want })
}

/// Gives how many positions of `known` serve for `prompt`: not its last one, whose logits are the
/// first choice.
fn useful(known: &[u32], prompt: &[u32]) -> usize {
    let shared = known.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    shared.min(prompt.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    use tokio::sync::mpsc::{Receiver as Told, channel};

    use super::*;
    use crate::worker::{
        job::{Done, Generate},
        model::{Header, Loading, Shape, tiny},
        sampler::Sampling,
    };

    const CONTEXT: usize = 128;

    fn schedule(parallel: usize) -> Schedule {
        let folder = tempfile::tempdir().unwrap();
        let header = Header::open(&tiny::write(folder.path(), GgmlDType::Q4_1)).unwrap();
        let shape = Shape::read(&header).unwrap();
        let loading = Loading { header: &header, shape, gpu: None, progress: |_, _| () };
        let vocabulary = Arc::new(Vocabulary::read(&header).unwrap());
        let model = Network::Text(Box::new(loading.run().unwrap()));
        let (fatal, _) = channel(1);
        Schedule::new(model, vocabulary, (parallel, CONTEXT), fatal).unwrap()
    }

    fn generate(prompt: Vec<u32>, most_tokens: usize, sampling: Sampling) -> Generate {
        Generate {
            prompt,
            sampling,
            most_tokens,
            stops: Vec::new(),
            grammar: None,
            ignore_end: true,
            is_repeatable: true,
            score_prompt: false,
        }
    }

    fn greedy(prompt: Vec<u32>, most_tokens: usize) -> Generate {
        generate(prompt, most_tokens, Sampling { temperature: 0.0, ..Sampling::default() })
    }

    /// A job that was handed in, and what was told about it.
    struct Asked {
        generate: Generate,
        told: Option<Told<Event>>,
        has_begun: bool,
        text: String,
        done: Option<Done>,
    }

    fn ask(schedule: &mut Schedule, generate: Generate) -> Asked {
        let (events, told) = channel(CONTEXT + 8);
        schedule.waiting.push_back((Job::Generate(Box::new(generate.clone())), events));
        Asked { generate, told: Some(told), has_begun: false, text: String::new(), done: None }
    }

    impl Asked {
        fn read(&mut self) {
            while let Some(Ok(event)) = self.told.as_mut().map(Told::try_recv) {
                match event {
                    Event::Begun => self.has_begun = true,
                    Event::Text(piece) => self.text.push_str(&piece.text),
                    Event::Done(done) => self.done = Some(done),
                    other @ (Event::PromptScores(_)
                    | Event::Embedding(_)
                    | Event::Score(_)
                    | Event::Failed(_)
                    | Event::Unkept(_)) => {
                        panic!("{other:?}")
                    }
                }
            }
        }
    }

    fn finish(schedule: &mut Schedule, asked: &mut [Asked]) {
        while schedule.seats.iter().any(|seat| seat.running.is_some())
            || !schedule.waiting.is_empty()
        {
            schedule.turn();
            asked.iter_mut().for_each(Asked::read);
        }
    }

    fn alone(generate: Generate) -> (String, usize) {
        let mut schedule = schedule(1);
        let mut asked = [ask(&mut schedule, generate)];
        finish(&mut schedule, &mut asked);
        let [Asked { text, done, .. }] = asked;
        (text, done.unwrap().completion_tokens)
    }

    fn prompt(random: &mut StdRng) -> Vec<u32> {
        // A few begins, so that jobs share them.
        let begin = random.random_range(0..3_u32);
        let shared = (0..random.random_range(0..60_u32)).map(|at| (at * 7 + begin * 31) % 256);
        let own = random.random_range(1..20);
        shared.chain((0..own).map(|_| random.random_range(0..256))).collect()
    }

    #[test]
    fn each_answer_is_that_of_its_solo_run_whatever_runs_and_leaves_beside_it() {
        let (mut finished, mut cut, mut cached) = (0, 0, 0);
        for seed in 0..6 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut schedule = schedule(3);
            let mut asked: Vec<Asked> = Vec::new();
            for _ in 0..60 {
                if asked.len() < 20 && random.random_bool(0.5) {
                    let temperature = [0.0, 1.2][usize::from(random.random_bool(0.5))];
                    let sampling = Sampling { temperature, seed, ..Sampling::default() };
                    let most = random.random_range(1..30);
                    let generate = generate(prompt(&mut random), most, sampling);
                    asked.push(ask(&mut schedule, generate));
                }
                if random.random_bool(0.1) && !asked.is_empty() {
                    let leaver = random.random_range(0..asked.len());
                    asked[leaver].told = None;
                }
                // Small parts of prompts, as on a slow machine.
                schedule.row_time = PATIENCE / random.random_range(1..40);
                schedule.turn();
                asked.iter_mut().for_each(Asked::read);
            }
            finish(&mut schedule, &mut asked);
            for asked in asked {
                let (text, count) = alone(asked.generate);
                if let Some(done) = asked.done {
                    assert_eq!((&asked.text, done.completion_tokens), (&text, count), "{seed}");
                    finished += 1;
                    cached += done.cached_tokens;
                } else {
                    assert!(asked.told.is_none() && text.starts_with(&asked.text), "{seed}");
                    cut += 1;
                }
            }
            for seat in &schedule.seats {
                assert_eq!(seat.tokens.len(), seat.cache.length(), "a seat knows what it holds");
            }
        }
        assert!(finished > 50 && cut > 5 && cached > 200, "{finished} {cut} {cached}");
    }

    #[test]
    fn jobs_get_seats_in_the_order_they_came() {
        let mut schedule = schedule(1);
        let mut asked: Vec<Asked> =
            (1..5).map(|id| ask(&mut schedule, greedy(vec![id; 3], 3))).collect();
        let mut order = Vec::new();
        while order.len() < asked.len() {
            schedule.turn();
            for (at, asked) in asked.iter_mut().enumerate() {
                asked.read();
                if asked.has_begun && !order.contains(&at) {
                    order.push(at);
                }
            }
        }
        assert_eq!(order, [0, 1, 2, 3]);
    }

    #[test]
    fn an_answer_gets_a_token_in_each_step_and_short_prompts_pass_long_ones() {
        let mut schedule = schedule(3);
        let mut asked = vec![ask(&mut schedule, greedy(vec![1], 100))];
        schedule.turn();
        asked.push(ask(&mut schedule, greedy((0..120).collect(), 1)));
        asked.push(ask(&mut schedule, greedy((0..20).rev().collect(), 1)));
        let (mut steps, mut ends) = (1, Vec::new());
        while ends.len() < 2 {
            schedule.row_time = PATIENCE;
            schedule.turn();
            steps += 1;
            asked.iter_mut().for_each(Asked::read);
            ends.extend(
                (1..3)
                    .filter(|at| asked[*at].done.is_some() && !ends.contains(at))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(ends, [2, 1]);
        assert!(steps >= 9, "a step takes no more of prompts than answers wait for: {steps}");
        let told = schedule.seats.iter().map(|seat| seat.tokens.len()).collect::<Vec<_>>();
        assert!(told.contains(&steps), "{told:?}: an answer missed one of {steps} steps");
    }

    #[test]
    fn a_begin_that_another_computes_is_not_computed_twice() {
        let mut schedule = schedule(3);
        let prompt: Vec<u32> = (0..100).collect();
        let mut asked: Vec<Asked> =
            (0..3).map(|_| ask(&mut schedule, greedy(prompt.clone(), 2))).collect();
        finish(&mut schedule, &mut asked);
        let cached: Vec<usize> =
            asked.iter().map(|asked| asked.done.as_ref().unwrap().cached_tokens).collect();
        assert_eq!(cached, [0, 99, 99]);
        assert!(asked.iter().all(|other| other.text == asked[0].text));
    }

    #[test]
    fn a_job_whose_client_leaves_frees_its_seat() {
        let mut schedule = schedule(1);
        let mut asked =
            [ask(&mut schedule, greedy(vec![1], 100)), ask(&mut schedule, greedy(vec![2], 2))];
        schedule.turn();
        asked[0].told = None;
        for _ in 0..3 {
            schedule.turn();
        }
        asked[1].read();
        assert!(asked[1].done.is_some());
    }
}
