//! One request's seat: what its exchange came to, told to the gate and to the records.

use std::sync::{Arc, PoisonError, atomic::Ordering};

use tokio::time::Instant;

use super::Gate;
use crate::proxy::{record::Fingerprint, seats::Seat};

/// One request's seat at an engine. Held until its answer has ended or was dropped.
#[derive(Debug)]
pub(in crate::proxy) struct Lease {
    gate: Arc<Gate>,
    seat: Option<Seat>,
    request: Fingerprint,
    since: Instant,
    is_use: bool,
    outcome: Outcome,
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// Not a byte came.
    Nothing,
    /// The engine said something.
    Something,
    /// It is whole.
    Answered,
    /// The engine broke it off, which has been noted.
    Broken,
}

impl Lease {
    /// Makes the lease of a seat that has just been taken.
    pub(super) fn new(gate: Arc<Gate>, seat: Seat, request: Fingerprint) -> Self {
        let since = Instant::now();
        Self { gate, seat: Some(seat), request, since, is_use: true, outcome: Outcome::Nothing }
    }

    /// Lets the engine's idle time go on: somebody only looks at it.
    pub(in crate::proxy) fn only_look(&mut self) {
        self.is_use = false;
    }

    /// Notes that the engine said something, if only that it will not.
    pub(in crate::proxy) fn note_word(&mut self) {
        self.outcome = Outcome::Something;
        self.gate.record.note_piece();
    }

    /// Notes that the answer is whole.
    pub(in crate::proxy) fn note_answer(&mut self) {
        self.outcome = Outcome::Answered;
        self.note_use();
        self.gate.note_held(self.since.elapsed());
        self.gate.record.note_answer();
        self.gate.suspects.clear(self.request);
    }

    /// Notes that a connection that was taken over has ended. How long it was says nothing of how long
    /// the next request takes.
    pub(in crate::proxy) fn note_session(&mut self) {
        self.outcome = Outcome::Answered;
        self.note_use();
        self.gate.record.note_answer();
        self.gate.suspects.clear(self.request);
    }

    fn note_use(&self) {
        if self.is_use {
            self.gate.note_use();
        }
    }

    /// Notes that the engine broke the exchange off, and perhaps itself.
    pub(in crate::proxy) fn note_break(&mut self) {
        self.note_failure();
        self.outcome = Outcome::Broken;
        self.gate.troubled.notify_one();
        let mut broken = self.gate.broken.lock().unwrap_or_else(PoisonError::into_inner);
        // What broke long before a death is pushed out by what broke in it.
        if broken.len() >= self.gate.parallel {
            broken.remove(0);
        }
        broken.push(self.request);
        drop(broken);
        if self.gate.is_blamed.load(Ordering::SeqCst) {
            self.gate.blame();
        }
    }

    /// Notes that the engine failed the request. One that is being ended is not to blame.
    pub(in crate::proxy) fn note_failure(&mut self) {
        self.outcome = Outcome::Something;
        if !self.gate.is_closed() {
            self.gate.record.note_failure(self.request);
        }
    }

    /// Returns the gate that the seat belongs to.
    pub(in crate::proxy) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_use {
            self.gate.touch();
        }
        // Whether it was to blame for an end may be told later.
        let may_be_blamed =
            self.gate.is_blamed.load(Ordering::SeqCst) || self.gate.awaits_verdict();
        if may_be_blamed && matches!(self.outcome, Outcome::Nothing | Outcome::Something) {
            self.note_break();
        }
        if self.outcome == Outcome::Nothing && !self.gate.is_closed() {
            self.gate.record.note_given_up();
        }
        // The seat goes back before the waiters of `drained` count.
        drop(self.seat.take());
        self.gate.released.notify_waiters();
    }
}
