//! States of a child that ends: draining, stopping, reaping.

use super::outside::refuse_set_aside;
use crate::{
    spec::{WaiterId, death::Phase, profile::Profile},
    supervisor::{
        command::{Command, Refusal, StopSignal},
        input::{Asker, Input},
        slot::{After, Context, Slot, State, Stop},
        verdict::OurPart,
    },
};

impl Slot {
    pub(in crate::supervisor) fn draining(
        &mut self,
        state: State,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let State::Draining { began, pid, cut_at, after } = state else { return state };
        let child = (pid, began);
        match input {
            Input::Drained => self.part(child, after, context),
            Input::TimerFired if cut_at.is_some_and(|at| at <= context.now) => {
                context.commands.push(Command::CutRequests {
                    slot: self.name.clone(),
                    generation: self.generation,
                });
                self.part(child, after, context)
            }
            Input::Exited { evidence, at_unix_ms } => {
                // It went before it was told to: a death like any other, but what follows is set.
                let exit = (evidence, at_unix_ms);
                self.bury_planned(child, (Phase::Serving, OurPart::None), exit, context);
                State::Reaping { pid, after }
            }
            Input::Load(_)
            | Input::Restart
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Unload
            | Input::Shutdown
            | Input::Edited { .. }
            | Input::Removed => {
                // One that only makes room has all the time it needs, until somebody wants it down.
                let is_wish = !matches!(input, Input::Demand(_) | Input::Leave(_) | Input::Load(_));
                let cut_at = cut_at
                    .or_else(|| is_wish.then(|| context.now.after(self.profile.stop_timeout)));
                let after = self.steer(after, &input, context);
                State::Draining { began, pid, cut_at, after }
            }
            Input::MemoryMeasured { rss } => {
                self.rss = Some(rss);
                state
            }
            Input::TimerFired
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::BecameUnready
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::VitalsRead { .. }
            | Input::Looked { .. }
            | Input::ModelCame
            | Input::Reaped => state,
        }
    }

    pub(in crate::supervisor) fn stopping(
        &mut self,
        state: State,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let State::Stopping { began, pid, stop, after } = state else { return state };
        match input {
            Input::Exited { evidence, at_unix_ms } => {
                match stop {
                    Stop::Condemned { .. } | Stop::TimedOut => {
                        self.complete_last_death(evidence, at_unix_ms);
                    }
                    Stop::Terminated { was, .. } | Stop::Killed { was } => {
                        let exit = (evidence, at_unix_ms);
                        self.bury_planned((pid, began), (was, OurPart::Stopped), exit, context);
                    }
                }
                State::Reaping { pid, after }
            }
            Input::TimerFired => match stop {
                Stop::Terminated { kill_at, was } if kill_at <= context.now => {
                    self.signal(StopSignal::Kill, context);
                    State::Stopping { began, pid, stop: Stop::Killed { was }, after }
                }
                Stop::Condemned { kill_at } if kill_at <= context.now => {
                    self.signal(StopSignal::Kill, context);
                    State::Stopping { began, pid, stop: Stop::TimedOut, after }
                }
                Stop::Terminated { .. }
                | Stop::Condemned { .. }
                | Stop::Killed { .. }
                | Stop::TimedOut => state,
            },
            Input::Load(_)
            | Input::Restart
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Unload
            | Input::Shutdown
            | Input::Edited { .. }
            | Input::Removed => {
                let after = self.steer(after, &input, context);
                State::Stopping { began, pid, stop, after }
            }
            Input::MemoryMeasured { .. }
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
            | Input::Reaped => state,
        }
    }

    pub(in crate::supervisor) fn reaping(
        &mut self,
        pid: u32,
        after: After,
        input: &Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Reaped => self.settle(after, context),
            Input::Load(_)
            | Input::Restart
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Unload
            | Input::Shutdown
            | Input::Edited { .. }
            | Input::Removed => {
                let after = self.steer(after, input, context);
                State::Reaping { pid, after }
            }
            Input::TimerFired
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
            | Input::Exited { .. } => State::Reaping { pid, after },
        }
    }

    /// Changes what follows a child that is on its way out. A removal is final unless the profile
    /// comes back; down wins over a restart that nobody asked for.
    pub(in crate::supervisor) fn steer(
        &mut self,
        after: After,
        input: &Input,
        context: &mut Context<'_>,
    ) -> After {
        match input {
            Input::Leave(waiter) => {
                self.waiting.remove(waiter);
                after
            }
            Input::Demand(waiter) => self.demand_on_the_way_out(*waiter, after, context),
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                After::Remove
            }
            Input::Edited { previous } => self.edit_on_the_way_out(after, previous),
            // Asked twice.
            Input::Shutdown if after == After::Leave => after,
            Input::Unload | Input::Shutdown if after != After::Remove => {
                self.dismiss_waiting(input, context);
                After::Rest
            }
            // What is to follow a death follows it.
            Input::Load(Asker::Rule) if !matches!(after, After::Rest | After::Leave) => after,
            Input::Load(_) | Input::Restart if after != After::Remove => After::Start,
            Input::Load(_)
            | Input::Restart
            | Input::Unload
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
            | Input::Reaped => after,
        }
    }

    fn edit_on_the_way_out(&mut self, after: After, previous: &Profile) -> After {
        let is_external = self.profile.is_external();
        match after {
            // Nobody has to ask for an engine that runs anyway.
            After::Rest if is_external && !previous.is_external() => After::Start,
            After::Rest | After::Start | After::Climb | After::Lower { .. } | After::Leave => after,
            After::Restart | After::Backoff { .. } | After::Fail => {
                self.forgive();
                After::Start
            }
            // The profile came back before its slot was gone.
            After::Remove if self.profile.autostart || is_external => After::Start,
            After::Remove => After::Rest,
        }
    }

    fn demand_on_the_way_out(
        &mut self,
        waiter: WaiterId,
        after: After,
        context: &mut Context<'_>,
    ) -> After {
        match after {
            After::Start | After::Climb | After::Lower { .. } | After::Restart => {
                self.hold(waiter, context);
                after
            }
            After::Rest if self.profile.is_external() => {
                refuse_set_aside(waiter, context);
                after
            }
            After::Rest => {
                if self.hold(waiter, context) {
                    After::Start
                } else {
                    after
                }
            }
            After::Backoff { retry_at } => {
                self.hold_over_backoff(waiter, retry_at, context);
                after
            }
            After::Fail => {
                self.refuse_failed(waiter, context);
                after
            }
            After::Leave => {
                context.commands.push(Command::Refuse { waiter, refusal: Refusal::ShuttingDown });
                after
            }
            After::Remove => {
                context.commands.push(Command::Refuse { waiter, refusal: Refusal::SlotGone });
                after
            }
        }
    }
}
