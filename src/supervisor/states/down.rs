//! States without a child: offline, backoff, failed.

use super::outside::refuse_set_aside;
use crate::{
    spec::{Monotime, death::Verdict, profile::Profile},
    supervisor::{
        input::{Asker, Input},
        slot::{After, Context, Slot, State},
    },
};

impl Slot {
    pub(in crate::supervisor) fn offline(
        &mut self,
        input: Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Load(_) | Input::Restart => self.start(context),
            Input::Demand(waiter) if self.profile.is_external() => {
                refuse_set_aside(waiter, context);
                State::Offline
            }
            Input::Demand(waiter) if self.hold(waiter, context) => self.start(context),
            Input::Edited { previous } if self.is_wanted_since(&previous) => self.start(context),
            Input::Edited { .. } => {
                self.forgive();
                State::Offline
            }
            Input::Removed => State::Gone,
            Input::Leave(_)
            | Input::Demand(_)
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
            | Input::Reaped => State::Offline,
        }
    }

    pub(in crate::supervisor) fn backoff(
        &mut self,
        retry_at: Monotime,
        input: &Input,
        context: &mut Context<'_>,
    ) -> State {
        let same = State::Backoff { retry_at };
        match input {
            Input::TimerFired if retry_at <= context.now => self.restart(context),
            Input::Load(Asker::Person) | Input::Restart | Input::Edited { .. } => {
                self.forgive();
                self.start(context)
            }
            Input::Demand(waiter) => {
                self.hold_over_backoff(*waiter, retry_at, context);
                same
            }
            Input::Leave(waiter) => {
                self.waiting.remove(waiter);
                same
            }
            Input::Unload | Input::Shutdown => {
                self.dismiss_waiting(input, context);
                self.settle(After::Rest, context)
            }
            Input::Removed => self.settle(After::Remove, context),
            // The next attempt comes in its time.
            Input::Load(Asker::Rule)
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
            | Input::Reaped => same,
        }
    }

    pub(in crate::supervisor) fn failed(
        &mut self,
        input: &Input,
        context: &mut Context<'_>,
    ) -> State {
        match input {
            Input::Load(Asker::Person) | Input::Restart => self.start(context),
            Input::ModelCame if self.lacks_its_model() => {
                // What it failed for is mended; others make no room for it, as nobody waits.
                self.forgive();
                self.start(context)
            }
            Input::Edited { .. } => {
                self.forgive();
                if self.profile.is_kept() || self.profile.is_external() {
                    self.start(context)
                } else {
                    State::Offline
                }
            }
            Input::Demand(waiter) => {
                self.refuse_failed(*waiter, context);
                State::Failed
            }
            Input::Unload | Input::Shutdown => State::Offline,
            Input::Removed => State::Gone,
            // What fires by itself would try for ever.
            Input::Load(Asker::Rule)
            | Input::ModelCame
            | Input::Leave(_)
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
            | Input::Exited { .. }
            | Input::Reaped => State::Failed,
        }
    }

    /// Tells whether it failed for want of its model.
    fn lacks_its_model(&self) -> bool {
        self.deaths.last().is_some_and(|death| death.verdict == Verdict::ModelNotFetched)
    }

    /// Tells whether an edit says that the slot is to be up without being asked for.
    fn is_wanted_since(&self, previous: &Profile) -> bool {
        let now = &self.profile;
        now.autostart && !previous.autostart || now.is_external() && !previous.is_external()
    }
}
