//! States before a child is ready: spawning, cancelling, starting.

use crate::{
    spec::{
        Monotime,
        death::{Confidence, Death, Phase, Verdict},
    },
    supervisor::{
        command::{Refusal, StopSignal},
        input::Input,
        slot::{After, Context, Slot, State, Stop},
    },
};

impl Slot {
    pub(in crate::supervisor) fn spawning(
        &mut self,
        began: Monotime,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let same = State::Spawning { began };
        match input {
            Input::Spawned { pid, engine, rungs } => {
                self.learn(engine, rungs);
                State::Starting { pid, began, stepped_at: context.now, percent: None }
            }
            Input::SpawnFailed { verdict, reason, at_unix_ms, engine } => {
                self.engine = engine.or_else(|| self.engine.take());
                self.record_stillbirth(began, (verdict, reason), at_unix_ms, context);
                let after = self.after_death(context);
                self.settle(after, context)
            }
            Input::Demand(waiter) => {
                self.hold(waiter, context);
                same
            }
            Input::Leave(waiter) => {
                self.waiting.remove(&waiter);
                same
            }
            Input::Unload | Input::Shutdown => {
                self.dismiss_waiting(&input, context);
                State::Cancelling { after: After::Rest }
            }
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                State::Cancelling { after: After::Remove }
            }
            Input::Edited { previous } if !self.profile.starts_same_engine(&previous) => {
                State::Cancelling { after: After::Start }
            }
            Input::Load(_)
            | Input::Restart
            | Input::Edited { .. }
            | Input::TimerFired
            | Input::Sized { .. }
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
            | Input::Reaped => same,
        }
    }

    pub(in crate::supervisor) fn cancelling(
        &mut self,
        after: After,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Spawned { pid, engine, rungs } => {
                self.learn(engine, rungs);
                self.terminate((pid, context.now), Phase::Starting, after, context)
            }
            Input::SpawnFailed { .. } => self.settle(after, context),
            Input::Load(_)
            | Input::Restart
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Unload
            | Input::Shutdown
            | Input::Edited { .. }
            | Input::Removed => {
                let after = self.steer(after, &input, context);
                State::Cancelling { after }
            }
            Input::TimerFired
            | Input::Sized { .. }
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
            | Input::Reaped => State::Cancelling { after },
        }
    }

    pub(in crate::supervisor) fn starting(
        &mut self,
        state: State,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let State::Starting { pid, began, stepped_at, percent } = state else { return state };
        let child = (pid, began);
        match input {
            Input::Progressed { percent: now } => {
                let (percent, is_step) = forward(percent, now);
                let stepped_at = if is_step { context.now } else { stepped_at };
                State::Starting { pid, began, stepped_at, percent: Some(percent) }
            }
            Input::BecameReady => {
                self.record_load(context.now.since(began));
                self.note_worked();
                self.grant_all(context);
                State::Ready(self.serving(child, context))
            }
            Input::Exited { evidence, at_unix_ms } => {
                let after = self.bury(child, Phase::Starting, (evidence, at_unix_ms), context);
                State::Reaping { pid, after }
            }
            Input::TimerFired if self.give_up_at(stepped_at) <= context.now => {
                self.time_out(child, percent, context)
            }
            Input::Demand(waiter) => {
                self.hold(waiter, context);
                state
            }
            Input::Leave(waiter) => {
                self.waiting.remove(&waiter);
                state
            }
            Input::Unload | Input::Shutdown => {
                self.dismiss_waiting(&input, context);
                self.terminate(child, Phase::Starting, After::Rest, context)
            }
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                self.terminate(child, Phase::Starting, After::Remove, context)
            }
            Input::Restart => self.terminate(child, Phase::Starting, After::Start, context),
            Input::Edited { previous } if !self.profile.starts_same_engine(&previous) => {
                self.terminate(child, Phase::Starting, After::Start, context)
            }
            Input::MemoryMeasured { rss } => {
                self.rss = Some(rss);
                state
            }
            Input::Load(_)
            | Input::Edited { .. }
            | Input::TimerFired
            | Input::Spawned { .. }
            | Input::Sized { .. }
            | Input::SpawnFailed { .. }
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

    /// Keeps the death of a child that never was.
    pub(super) fn record_stillbirth(
        &mut self,
        began: Monotime,
        (verdict, reason): (Verdict, String),
        at_unix_ms: u64,
        context: &Context<'_>,
    ) {
        self.record(Death {
            generation: self.generation,
            pid: None,
            verdict,
            // The check or the call that failed says so itself.
            confidence: Confidence::Certain,
            reason,
            phase: Phase::Starting,
            ran_for: context.now.since(began),
            at_unix_ms,
            evidence: None,
        });
    }

    /// Gives a load up: the death is settled here, its evidence comes when the kill has worked.
    fn time_out(
        &mut self,
        (pid, began): (u32, Monotime),
        percent: Option<u8>,
        context: &mut Context<'_>,
    ) -> State {
        let patience = self.profile.start_timeout.as_secs();
        let stood = match percent {
            Some(percent) => {
                format!("its load stood at {percent} % for {patience} s (`start_timeout`)")
            }
            None => format!("it was not ready after {patience} s (`start_timeout`)"),
        };
        let held = self.rss.map_or_else(String::new, |rss| format!("; it held {rss} of memory"));
        self.signal(StopSignal::Kill, context);
        self.record(Death {
            generation: self.generation,
            pid: Some(pid),
            verdict: Verdict::StartTimeout,
            confidence: Confidence::Certain,
            reason: format!("{stood} and was killed{held}"),
            phase: Phase::Starting,
            ran_for: context.now.since(began),
            at_unix_ms: 0,
            evidence: None,
        });
        let after = self.after_death(context);
        State::Stopping { began, pid, stop: Stop::TimedOut, after }
    }
}

/// Moves the bar, and tells whether it moved. Log lines and health answers race; it never runs
/// backwards.
fn forward(before: Option<u8>, now: u8) -> (u8, bool) {
    let next = before.map_or(now, |before| before.max(now)).min(100);
    (next, before.is_none_or(|before| before < next))
}
