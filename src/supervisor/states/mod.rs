//! What each state does with each event: one small function a state, one arm an event, no `_`.
//!
//! `down` holds the states without a child, `waiting` those before one is ordered, `coming` those before it is ready, `serving` those in
//! which it has been, `going` those in which it ends, `outside` those of an engine that is not ours.

mod coming;
mod down;
mod going;
mod outside;
mod serving;
mod waiting;

use std::mem;

use super::{
    input::{Asker, Input},
    slot::{Context, Slot, State},
};

impl Slot {
    /// Takes one event.
    pub(super) fn handle(&mut self, input: Input, context: &mut Context<'_>) {
        if self.wipes_tally(&input) {
            self.forgive();
        }
        self.retry_edit(&input);
        self.begin_anew_after(&input);
        // The taken state's function returns the next one; nothing reads `Gone` in between.
        let state = mem::replace(&mut self.state, State::Gone);
        let before = mem::discriminant(&state);
        self.state = match state {
            State::Offline => self.offline(input, context),
            State::Sizing { .. } => self.sizing(state, input, context),
            State::Queued(queued) => self.queued(queued, input, context),
            State::Spawning { began } => self.spawning(began, input, context),
            State::Cancelling { after } => self.cancelling(after, input, context),
            State::Starting { .. } => self.starting(state, input, context),
            State::Ready(serving) => self.ready(serving, input, context),
            State::Unready(serving) => self.unready(serving, input, context),
            State::Draining { .. } => self.draining(state, input, context),
            State::Stopping { .. } => self.stopping(state, input, context),
            State::Reaping { pid, after } => self.reaping(pid, after, &input, context),
            State::Backoff { retry_at } => self.backoff(retry_at, &input, context),
            State::Failed => self.failed(&input, context),
            State::Seeking { found } => self.seeking(found, input, context),
            State::Present { is_asleep } => self.present(is_asleep, input, context),
            State::Parting { cut_at, after } => self.parting(cut_at, after, &input, context),
            State::Gone => State::Gone,
        };
        if mem::discriminant(&self.state) != before {
            self.since = context.now;
        }
    }

    /// A person's wish and another engine begin on the first rung.
    fn begin_anew_after(&mut self, input: &Input) {
        match input {
            Input::Restart => self.ladder.begin_anew(),
            Input::Load(Asker::Person) if matches!(self.state, State::Failed) => {
                self.ladder.begin_anew();
            }
            Input::Edited { previous } if !self.profile.starts_same_engine(previous) => {
                self.ladder.forget();
            }
            Input::Load(_)
            | Input::Edited { .. }
            | Input::Unload
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::BecameUnready
            | Input::Drained
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::VitalsRead { .. }
            | Input::Looked { .. }
            | Input::ModelCame
            | Input::MemoryMeasured { .. }
            | Input::Exited { .. }
            | Input::Reaped => {}
        }
    }

    /// Tells whether earlier deaths say nothing of what comes next, in whichever state: a person has
    /// spoken, or the next engine is another one.
    fn wipes_tally(&self, input: &Input) -> bool {
        match input {
            Input::Load(Asker::Person) | Input::Unload | Input::Restart => true,
            Input::Edited { previous } => !self.profile.starts_same_engine(previous),
            Input::Load(Asker::Rule)
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::BecameUnready
            | Input::Drained
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::MemoryMeasured { .. }
            | Input::VitalsRead { .. }
            | Input::Looked { .. }
            | Input::ModelCame
            | Input::Exited { .. }
            | Input::Reaped => false,
        }
    }
}
