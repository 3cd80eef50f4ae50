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

use tokio::sync::mpsc::Sender;

use super::{
    clock::now,
    exit::{Ending, first_line},
    job::{ComputeFault, Event, Job},
    model::{Model, Part, Want},
    seat::{Kind, Seat},
    text::Vocabulary,
};

/// The thread that computes: the model, its seats, and who waits for one.
#[derive(Debug)]
pub(super) struct Schedule {
    model: Model,
    vocabulary: Arc<Vocabulary>,
    seats: Vec<Seat>,
    waiting: VecDeque<(Job, Sender<Event>)>,
    fatal: Sender<Ending>,
    /// Jobs that have had a seat so far.
    begun: u64,
    /// The seat whose prompt is the first to be served.
    turn: usize,
    /// What a row of a prompt takes, about.
    row_time: Duration,
}

/// What reaches the thread.
#[derive(Debug)]
pub(super) enum Work {
    Job(Job, Sender<Event>),
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
        model: Model,
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
            turn: 0,
            row_time: Duration::from_millis(5),
        })
    }

    /// Works until it is told to close, or nobody is left who could ask.
    pub(super) fn run(mut self, inbox: &Receiver<Work>, closing: &AtomicBool) {
        loop {
            if !self.receive(inbox) || closing.load(Ordering::Relaxed) {
                // Dropped senders tell the clients that the worker ends.
                return;
            }
            self.waiting.retain(|(_, events)| !events.is_closed());
            self.seats.iter_mut().for_each(Seat::drop_cancelled);
            self.seat_waiting();
            self.step();
        }
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
                Err(TryRecvError::Empty) => return true,
                Ok(Work::Close) | Err(TryRecvError::Disconnected) => return false,
            }
            next = inbox.try_recv();
        }
    }

    fn seat_waiting(&mut self) {
        while self.seats.iter().any(|seat| seat.running.is_none()) {
            let Some((job, events)) = self.waiting.pop_front() else { return };
            let known = match &job {
                Job::Generate(generate) if self.may_reuse(generate.is_repeatable) => {
                    if generate.score_prompt { &[] } else { generate.prompt.as_slice() }
                }
                Job::Generate(_) | Job::Embed(_) => &[],
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
                for (share, rows) in shares.iter().zip(results) {
                    if let Some(seat) = self.seats.get_mut(share.seat) {
                        seat.take(&share.tokens, rows, &self.vocabulary);
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
        let order: Vec<usize> = (self.turn..count).chain(0..self.turn.min(count)).collect();
        for at in order {
            if left == 0 || self.seats.get(at).and_then(Seat::kind) != Some(Kind::Prefill) {
                continue;
            }
            if self.waits_for_another(at) {
                continue;
            }
            let Some(share) = self.seats.get(at).and_then(|seat| share(at, seat, left)) else {
                continue;
            };
            left = left.saturating_sub(share.tokens.len());
            shares.push(share);
            // The next step begins with the one after the last that was served.
            self.turn = at.saturating_add(1).checked_rem(count).unwrap_or(0);
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
