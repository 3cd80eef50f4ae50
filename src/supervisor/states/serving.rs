//! States of a child that has been ready: ready, unready.

use std::time::Duration;

use crate::{
    spec::{Monotime, death::Phase},
    supervisor::{
        command::{Command, Refusal},
        input::Input,
        slot::{After, Context, Serving, Slot, State},
    },
};

/// The shortest time between two looks at how idle an engine is.
const IDLE_CHECK_FLOOR: Duration = Duration::from_millis(100);

impl Slot {
    pub(in crate::supervisor) fn ready(
        &mut self,
        serving: Serving,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Demand(waiter) => {
                context.commands.push(Command::Grant { waiter });
                State::Ready(serving)
            }
            // Only ready time proves anything.
            Input::BecameUnready => State::Unready(Serving { proven_at: None, ..serving }),
            Input::ActivityMeasured { in_flight, idle_for } => {
                self.after_activity(serving, (in_flight, idle_for), context)
            }
            Input::RoomMeasured { in_flight, idle_for, free } => {
                let room = (free, self.rss);
                let activity = (in_flight, idle_for);
                if self.ladder.may_climb(context.now, context.policy, activity, room) {
                    self.drain(serving, After::Climb, context)
                } else {
                    State::Ready(serving)
                }
            }
            Input::Load
            | Input::Unload
            | Input::Restart
            | Input::Leave(_)
            | Input::Edited { .. }
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::Drained
            | Input::MemoryMeasured { .. }
            | Input::Exited { .. }
            | Input::Reaped => {
                self.serving_input(serving, input, context).unwrap_or_else(State::Ready)
            }
        }
    }

    pub(in crate::supervisor) fn unready(
        &mut self,
        serving: Serving,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Demand(waiter) => {
                self.hold(waiter, context);
                State::Unready(serving)
            }
            Input::BecameReady => {
                self.grant_all(context);
                let proven_at = Some(context.now.after(context.policy.healthy_after));
                State::Ready(Serving { proven_at, ..serving })
            }
            Input::Load
            | Input::Unload
            | Input::Restart
            | Input::Leave(_)
            | Input::Edited { .. }
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameUnready
            | Input::Drained
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::MemoryMeasured { .. }
            | Input::Exited { .. }
            | Input::Reaped => {
                self.serving_input(serving, input, context).unwrap_or_else(State::Unready)
            }
        }
    }

    /// What `ready` and `unready` share. `Err` gives the serving data back: the state stays.
    fn serving_input(
        &mut self,
        mut serving: Serving,
        input: Input,
        context: &mut Context<'_>,
    ) -> Result<State, Serving> {
        match input {
            Input::Exited { evidence, at_unix_ms } => {
                let child = (serving.pid, serving.began);
                let exit = (evidence, at_unix_ms);
                let after = self.bury(child, Phase::Serving, exit, context);
                Ok(State::Reaping { pid: serving.pid, after })
            }
            Input::Unload | Input::Shutdown => {
                self.dismiss_waiting(&input, context);
                Ok(self.drain(serving, After::Rest, context))
            }
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                Ok(self.drain(serving, After::Remove, context))
            }
            Input::Restart => Ok(self.drain(serving, After::Start, context)),
            Input::Edited { previous } if !self.profile.starts_same_engine(&previous) => {
                Ok(self.drain(serving, After::Start, context))
            }
            Input::Edited { .. } => {
                serving.idle_check_at = self.idle_check_at(context.now);
                Err(serving)
            }
            Input::TimerFired => Err(self.serving_timers(serving, context)),
            Input::Leave(waiter) => {
                self.waiting.remove(&waiter);
                Err(serving)
            }
            Input::MemoryMeasured { rss } => {
                self.rss = Some(rss);
                Err(serving)
            }
            Input::Load
            | Input::Demand(_)
            | Input::Spawned { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::BecameUnready
            | Input::Drained
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::Reaped => Err(serving),
        }
    }

    /// Makes the data of a child that has just become ready.
    pub(in crate::supervisor) fn serving(
        &self,
        (pid, began): (u32, Monotime),
        context: &Context<'_>,
    ) -> Serving {
        Serving {
            began,
            pid,
            proven_at: Some(context.now.after(context.policy.healthy_after)),
            idle_check_at: self.idle_check_at(context.now),
            room_check_at: self.ladder.look_at(context.now, context.policy),
        }
    }

    fn idle_check_at(&self, now: Monotime) -> Option<Monotime> {
        self.profile.idle_timeout.map(|timeout| now.after(timeout.max(IDLE_CHECK_FLOOR)))
    }

    fn serving_timers(&mut self, mut serving: Serving, context: &mut Context<'_>) -> Serving {
        if serving.proven_at.is_some_and(|at| at <= context.now) {
            serving.proven_at = None;
            self.forgive();
            self.ladder.prove();
        }
        if serving.room_check_at.is_some_and(|at| at <= context.now) {
            serving.room_check_at = self.ladder.look_at(context.now, context.policy);
            context.commands.push(Command::MeasureRoom {
                slot: self.name.clone(),
                generation: self.generation,
            });
        }
        if serving.idle_check_at.is_some_and(|at| at <= context.now) {
            serving.idle_check_at = self.idle_check_at(context.now);
            context.commands.push(Command::MeasureActivity {
                slot: self.name.clone(),
                generation: self.generation,
            });
        }
        serving
    }

    /// Unloads an engine that has been idle for its timeout, or looks again when it may have been.
    fn after_activity(
        &mut self,
        mut serving: Serving,
        (in_flight, idle_for): (u32, Duration),
        context: &mut Context<'_>,
    ) -> State {
        let Some(timeout) = self.profile.idle_timeout else { return State::Ready(serving) };
        if in_flight == 0 && idle_for >= timeout {
            return self.drain(serving, After::Rest, context);
        }
        let left = if in_flight == 0 { timeout.saturating_sub(idle_for) } else { timeout };
        serving.idle_check_at = Some(context.now.after(left.max(IDLE_CHECK_FLOOR)));
        State::Ready(serving)
    }
}
