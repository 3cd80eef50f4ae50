//! States of a child that has been ready: ready, unready.

use std::time::Duration;

use crate::{
    spec::{
        Monotime,
        death::{Confidence, Death, Phase},
        profile::OnExit,
    },
    supervisor::{
        command::{Command, Refusal, StopSignal},
        event::EngineInfo,
        health::{Pulse, Vitals},
        input::Input,
        policy::Policy,
        slot::{After, Context, Serving, Slot, State, Stop},
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
                    self.drain(&serving, After::Climb, context)
                } else {
                    State::Ready(serving)
                }
            }
            Input::Load(_)
            | Input::Unload
            | Input::Restart
            | Input::Leave(_)
            | Input::Edited { .. }
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::Drained
            | Input::MemoryMeasured { .. }
            | Input::VitalsRead { .. }
            | Input::Looked { .. }
            | Input::ModelCame
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
            Input::Load(_)
            | Input::Unload
            | Input::Restart
            | Input::Leave(_)
            | Input::Edited { .. }
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameUnready
            | Input::Drained
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::MemoryMeasured { .. }
            | Input::VitalsRead { .. }
            | Input::Looked { .. }
            | Input::ModelCame
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
            Input::Shutdown if self.profile.on_exit == OnExit::Keep => {
                self.dismiss_waiting(&input, context);
                Ok(self.drain(&serving, After::Leave, context))
            }
            Input::Unload | Input::Shutdown => {
                self.dismiss_waiting(&input, context);
                Ok(self.drain(&serving, After::Rest, context))
            }
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                Ok(self.drain(&serving, After::Remove, context))
            }
            Input::Restart => Ok(self.drain(&serving, After::Start, context)),
            Input::Edited { previous } if !self.profile.starts_same_engine(&previous) => {
                Ok(self.drain(&serving, After::Start, context))
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
            Input::VitalsRead { vitals } => self.after_vitals(serving, vitals, context),
            Input::Load(_)
            | Input::Demand(_)
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
            | Input::Progressed { .. }
            | Input::BecameReady
            | Input::BecameUnready
            | Input::Drained
            | Input::ActivityMeasured { .. }
            | Input::RoomMeasured { .. }
            | Input::Looked { .. }
            | Input::ModelCame
            | Input::Reaped => Err(serving),
        }
    }

    /// Goes on with a child of an earlier daemon, at the moment that the slot is made.
    pub(in crate::supervisor) fn adopt(&mut self, pid: u32, engine: EngineInfo, policy: &Policy) {
        self.cores = engine.cores;
        self.engine = Some(engine);
        self.note_worked();
        self.state = State::Ready(self.became_ready((pid, self.since), self.since, policy));
    }

    /// Makes the data of a child that has just become ready.
    pub(in crate::supervisor) fn serving(
        &self,
        child: (u32, Monotime),
        context: &Context<'_>,
    ) -> Serving {
        self.became_ready(child, context.now, context.policy)
    }

    fn became_ready(
        &self,
        (pid, began): (u32, Monotime),
        now: Monotime,
        policy: &Policy,
    ) -> Serving {
        Serving {
            began,
            pid,
            ready_at: now,
            proven_at: Some(now.after(policy.healthy_after)),
            idle_check_at: self.idle_check_at(now),
            room_check_at: self.ladder.look_at(now, policy),
            pulse: None,
        }
    }

    /// Replaces an engine that is past saving. `Err` gives the serving data back: it may live.
    fn after_vitals(
        &mut self,
        mut serving: Serving,
        vitals: Vitals,
        context: &mut Context<'_>,
    ) -> Result<State, Serving> {
        let pulse = Pulse::read(serving.pulse.as_deref(), context.now, vitals);
        let judged = pulse.judge(context.now, context.policy, self.profile.hang_timeout);
        serving.pulse = Some(Box::new(pulse));
        let Some((verdict, reason)) = judged else { return Err(serving) };
        let Serving { pid, began, .. } = serving;
        // The signal goes first: what follows a death may be an order of its own.
        self.signal(StopSignal::Terminate, context);
        self.record(Death {
            generation: self.generation,
            pid: Some(pid),
            verdict,
            confidence: Confidence::Certain,
            reason,
            phase: Phase::Serving,
            ran_for: context.now.since(began),
            at_unix_ms: 0,
            evidence: None,
        });
        let after = self.after_death(context);
        let kill_at = context.now.after(self.profile.stop_timeout);
        Ok(State::Stopping { began, pid, stop: Stop::Condemned { kill_at }, after })
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
            return self.drain(&serving, After::Rest, context);
        }
        let left = if in_flight == 0 { timeout.saturating_sub(idle_for) } else { timeout };
        serving.idle_check_at = Some(context.now.after(left.max(IDLE_CHECK_FLOOR)));
        State::Ready(serving)
    }
}
