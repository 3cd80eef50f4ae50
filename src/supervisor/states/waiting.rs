//! States before a child is ordered: sizing, queued. Nothing is there that would have to end.

use std::sync::Arc;

use crate::{
    spec::{memory::Share, profile::Profile},
    supervisor::{
        command::{Command, Refusal},
        cores::Neighbours,
        input::{Asker, Input},
        slot::{After, Cause, Context, Queued, Slot, State},
        waits::Wait,
    },
};

impl Slot {
    pub(in crate::supervisor) fn sizing(
        &mut self,
        state: State,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        let State::Sizing { began, cause, fetched } = state else { return state };
        match input {
            // Its model comes from the hub: that may take hours, and nobody else waits for it.
            Input::Progressed { percent } => {
                State::Sizing { began, cause, fetched: Some(percent.min(100)) }
            }
            Input::Sized { rungs, needs } => {
                self.ladder.learn(rungs);
                self.needs = Arc::clone(&needs);
                State::Queued(Queued { began: context.now, cause, needs, wait: Wait::Look })
            }
            Input::SpawnFailed { verdict, reason, at_unix_ms, engine } => {
                self.engine = engine.or_else(|| self.engine.take());
                self.record_stillbirth(began, (verdict, reason), at_unix_ms, context);
                let after = self.after_death(context);
                self.settle(after, context)
            }
            Input::Restart
            | Input::Load(_)
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Edited { .. }
            | Input::Unload
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Spawned { .. }
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
            | Input::Reaped => {
                let same = State::Sizing { began, cause, fetched };
                self.before_the_order(same, input, context)
            }
        }
    }

    pub(in crate::supervisor) fn queued(
        &mut self,
        queued: Queued,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            // Nobody waits for it any more.
            Input::Leave(waiter) if queued.cause == Cause::Demand => {
                let was_last = self.waiting.remove(&waiter) && self.waiting.is_empty();
                if was_last { State::Offline } else { State::Queued(queued) }
            }
            Input::Restart
            | Input::Load(_)
            | Input::Demand(_)
            | Input::Leave(_)
            | Input::Edited { .. }
            | Input::Unload
            | Input::Removed
            | Input::Shutdown
            | Input::TimerFired
            | Input::Sized { .. }
            | Input::Spawned { .. }
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
            | Input::Reaped => self.before_the_order(State::Queued(queued), input, context),
        }
    }

    /// What both have in common: a wish to stop needs nobody to be stopped.
    fn before_the_order(&mut self, same: State, input: Input, context: &mut Context<'_>) -> State {
        match input {
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
                self.settle(After::Rest, context)
            }
            Input::Removed => {
                self.refuse_all(&Refusal::SlotGone, context);
                State::Gone
            }
            // The order that comes with it says for whom.
            Input::Restart => self.start(context),
            // What it needs may be what was edited.
            Input::Edited { previous }
                if !self.profile.starts_same_engine(&previous)
                    || self.profile.residence != previous.residence =>
            {
                self.begin_again(same.cause(), &previous, context)
            }
            Input::Edited { .. }
            | Input::Load(_)
            | Input::TimerFired
            | Input::Sized { .. }
            | Input::Spawned { .. }
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
            | Input::Reaped => same,
        }
    }

    /// Begins anew with the profile as it is now, for whoever asked: an edit takes back no order.
    fn begin_again(
        &mut self,
        cause: Option<Cause>,
        previous: &Profile,
        context: &mut Context<'_>,
    ) -> State {
        let mut next = self.start(context);
        match cause {
            // Whether it is kept loaded is for the profile to say.
            Some(Cause::Keep) if previous.is_kept() => {}
            Some(cause @ (Cause::Order | Cause::Rule | Cause::Restore | Cause::Keep)) => {
                next.set_cause(cause);
            }
            Some(Cause::Demand) | None => {}
        }
        next
    }

    /// Notes that a person or a rule wants it up, and others to make room for it. What a person has said stands.
    pub(in crate::supervisor) fn insist(&mut self, by: Asker) {
        match by {
            Asker::Person => self.state.set_cause(Cause::Order),
            Asker::Rule if self.cause() != Some(Cause::Order) => self.state.set_cause(Cause::Rule),
            Asker::Rule => {}
        }
    }

    /// Has it found out what a start takes, now that the machine is one for it.
    pub(in crate::supervisor) fn size_up(&mut self, context: &mut Context<'_>) {
        let State::Queued(queued) = &self.state else { return };
        let next = self.size(queued.cause, context);
        self.enter(next, context);
    }

    /// Orders the child that has a place.
    pub(in crate::supervisor) fn admit(
        &mut self,
        (rung, share): (usize, Share),
        (devices, neighbours): (Vec<String>, Neighbours),
        context: &mut Context<'_>,
    ) {
        if !matches!(self.state, State::Queued(_)) {
            return;
        }
        self.ladder.settle_on(rung, context.now, context.policy);
        let rung = self.ladder.start();
        self.share = share;
        let (cores, counted) = neighbours.share(&self.applied_profile(), context.policy);
        self.cores = counted;
        context.commands.push(Command::Spawn {
            slot: self.name.clone(),
            generation: self.generation,
            profile: Arc::clone(&self.profile),
            rung,
            cores,
            devices,
        });
        self.enter(State::Spawning { began: context.now }, context);
    }

    /// Leaves the line: it does not fit, and nobody waits for it.
    pub(in crate::supervisor) fn give_up_the_line(&mut self, context: &mut Context<'_>) {
        if matches!(self.state, State::Queued(_)) {
            self.enter(State::Offline, context);
        }
    }

    /// Makes room for another: takes no more requests, ends those it has, however long they take.
    pub(in crate::supervisor) fn give_way(&mut self, context: &mut Context<'_>) {
        self.make_room(After::Rest, context);
    }

    /// Makes room for another by going on on a lower rung.
    pub(in crate::supervisor) fn step_down(&mut self, rung: usize, context: &mut Context<'_>) {
        self.make_room(After::Lower { rung }, context);
    }

    fn make_room(&mut self, after: After, context: &mut Context<'_>) {
        let State::Ready(serving) = &self.state else { return };
        let (began, pid) = (serving.began, serving.pid);
        let (slot, generation) = (self.name.clone(), self.generation);
        context.commands.push(Command::Drain { slot, generation });
        let next = State::Draining { began, pid, cut_at: None, after };
        self.enter(next, context);
    }

    /// Comes back after it has made room.
    pub(in crate::supervisor) fn come_back(&mut self, context: &mut Context<'_>) {
        if !matches!(self.state, State::Offline) {
            return;
        }
        let mut next = self.start(context);
        next.set_cause(Cause::Restore);
        self.enter(next, context);
    }

    fn enter(&mut self, state: State, context: &Context<'_>) {
        self.state = state;
        self.since = context.now;
    }
}
