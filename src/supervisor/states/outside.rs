//! States of an engine that somebody else runs: seeking, present, parting.
//!
//! It is looked at, never spawned and never signalled: no death, no backoff, no ladder. What it is is
//! what the last look saw.

use std::{sync::Arc, time::Duration};

use crate::{
    spec::{Monotime, WaiterId},
    supervisor::{
        command::{Command, Refusal},
        event::Sight,
        input::Input,
        slot::{After, Context, Found, Slot, State},
    },
};

/// When a request is told to come back: an absent engine is looked for at least this often.
const RETRY_IN: Duration = Duration::from_secs(5);

impl Slot {
    pub(in crate::supervisor) fn seeking(
        &mut self,
        found: Found,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let same = |found| State::Seeking { found };
        match input {
            Input::Looked { sight } => self.sought(&found, sight, context),
            // Whoever asks has it looked at once.
            Input::Demand(waiter) => match (self.hold(waiter, context), found) {
                (true, Found::Nothing { .. }) => self.seek(Found::Unknown, context),
                (_, found) => same(found),
            },
            Input::Load(_) | Input::Restart => match found {
                Found::Nothing { .. } => self.seek(Found::Unknown, context),
                found @ (Found::Unknown | Found::Loading { .. }) => same(found),
            },
            Input::Leave(waiter) => {
                self.waiting.remove(&waiter);
                same(found)
            }
            Input::Unload | Input::Shutdown => {
                self.dismiss_waiting(&input, context);
                self.turn_away(&found, After::Rest, context)
            }
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                self.turn_away(&found, After::Remove, context)
            }
            Input::Edited { previous } if !self.profile.starts_same_engine(&previous) => {
                self.turn_away(&found, After::Start, context)
            }
            Input::Edited { .. }
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
            | Input::ModelCame
            | Input::Exited { .. }
            | Input::Reaped => same(found),
        }
    }

    pub(in crate::supervisor) fn present(
        &mut self,
        is_asleep: bool,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let same = State::Present { is_asleep };
        match input {
            Input::Looked { sight: Sight::Present { is_asleep } } => State::Present { is_asleep },
            // Requests in flight may yet be served.
            Input::Looked { sight: Sight::Loading { percent } } => {
                State::Seeking { found: Found::Loading { percent } }
            }
            Input::Looked { sight: Sight::Absent { reason } } => {
                self.seek(Found::Nothing { reason }, context)
            }
            Input::Demand(waiter) => {
                context.commands.push(Command::Grant { waiter });
                same
            }
            Input::Unload | Input::Shutdown => self.part_with(After::Rest, context),
            Input::Removed => self.part_with(After::Remove, context),
            Input::Edited { previous } if !self.profile.starts_same_engine(&previous) => {
                self.part_with(After::Start, context)
            }
            // It is up, and only those who run it can restart it.
            Input::Load(_)
            | Input::Restart
            | Input::Leave(_)
            | Input::Edited { .. }
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
            | Input::ModelCame
            | Input::Exited { .. }
            | Input::Reaped => same,
        }
    }

    pub(in crate::supervisor) fn parting(
        &mut self,
        cut_at: Monotime,
        after: After,
        input: &Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Drained => self.leave(after, context),
            Input::TimerFired if cut_at <= context.now => {
                context.commands.push(Command::CutRequests {
                    slot: self.name.clone(),
                    generation: self.generation,
                });
                self.leave(after, context)
            }
            Input::Load(_)
            | Input::Restart
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Unload
            | Input::Shutdown
            | Input::Edited { .. }
            | Input::Removed => {
                let after = self.steer(after, input, context);
                State::Parting { cut_at, after }
            }
            Input::TimerFired
            | Input::Looked { .. }
            | Input::ModelCame
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::BecameUnready
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::MemoryMeasured { .. }
            | Input::VitalsRead { .. }
            | Input::Exited { .. }
            | Input::Reaped => State::Parting { cut_at, after },
        }
    }

    /// Has the engine looked at, at once and from then on. A watch that goes on already ends.
    pub(in crate::supervisor) fn seek(&mut self, found: Found, context: &mut Context<'_>) -> State {
        // Bump first: news of the watch before may already be in the mailbox.
        self.generation = self.generation.next();
        (self.rss, self.engine) = (None, None);
        context.commands.push(Command::Watch {
            slot: self.name.clone(),
            generation: self.generation,
            profile: Arc::clone(&self.profile),
        });
        State::Seeking { found }
    }

    fn sought(&mut self, found: &Found, sight: Sight, context: &mut Context<'_>) -> State {
        match sight {
            Sight::Present { is_asleep } => {
                self.grant_all(context);
                State::Present { is_asleep }
            }
            Sight::Loading { percent } => State::Seeking { found: Found::Loading { percent } },
            Sight::Absent { reason } => {
                let refusal = Refusal::Absent { reason: reason.clone(), retry_in: RETRY_IN };
                self.refuse_all(&refusal, context);
                let nothing = Found::Nothing { reason };
                // What it may still have been serving is lost.
                if matches!(found, Found::Loading { .. }) {
                    return self.seek(nothing, context);
                }
                State::Seeking { found: nothing }
            }
        }
    }

    /// Looks away from an engine that takes no requests. One that answers may have taken some before.
    fn turn_away(&mut self, found: &Found, after: After, context: &mut Context<'_>) -> State {
        match found {
            Found::Loading { .. } => self.part_with(after, context),
            Found::Unknown | Found::Nothing { .. } => self.leave(after, context),
        }
    }

    fn part_with(&self, after: After, context: &mut Context<'_>) -> State {
        let (slot, generation) = (self.name.clone(), self.generation);
        context.commands.push(Command::Drain { slot, generation });
        State::Parting { cut_at: context.now.after(self.profile.stop_timeout), after }
    }

    fn leave(&mut self, after: After, context: &mut Context<'_>) -> State {
        let (slot, generation) = (self.name.clone(), self.generation);
        context.commands.push(Command::Leave { slot, generation });
        self.settle(after, context)
    }
}

/// Turns a request away from an engine that a person has set aside.
pub(super) fn refuse_set_aside(waiter: WaiterId, context: &mut Context<'_>) {
    context.commands.push(Command::Refuse { waiter, refusal: Refusal::SetAside });
}
