//! What each command may mean, held against the model at the moment it is given.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use slotd::{
    spec::{
        Generation, Monotime, SlotName, WaiterId,
        profile::{OnExit, Profile},
        residence::StayOrder,
    },
    supervisor::{ChildEvent, Command, Event, Refusal, SlotEvent, StopSignal},
};

use super::model::{Alive, Child, Drain, Model, Outside, Seen, Truth, Unplanned};

type Checked<T = ()> = Result<T, String>;

/// A command at its moment: when, and what it answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment<'a> {
    pub(crate) now: Monotime,
    pub(crate) event: &'a Event,
    /// The slots before the event.
    pub(crate) before: &'a BTreeMap<SlotName, Truth>,
}

impl Model {
    /// Takes a command's meaning; returns the unplanned death in it (a load that was given up).
    pub(crate) fn obey(
        &mut self,
        moment: Moment<'_>,
        command: &Command,
    ) -> Checked<Option<(SlotName, Unplanned)>> {
        // A request that comes late is still told.
        if self.is_finished
            && !matches!(command, Command::Refuse { .. } | Command::AnswerRoom { .. })
        {
            return Err("a command after `Finish`".to_owned());
        }
        match command {
            Command::Size { slot, generation, profile } => {
                self.may_start(slot, profile)?;
                check(!profile.is_external(), || "a start of what is not ours".to_owned())?;
                self.truth(slot)?.size(moment, *generation)?;
            }
            Command::ReadMemory => {}
            Command::Spawn { slot, generation, profile, rung, cores, .. } => {
                self.may_start(slot, profile)?;
                self.give_cores(slot, *cores)?;
                self.truth(slot)?.spawn(*generation)?;
                self.truth(slot)?.stand(*rung)?;
            }
            Command::Watch { slot, generation, profile } => {
                self.watch(moment, slot, (*generation, profile))?;
            }
            Command::Signal { slot, generation, signal } => {
                let truth = self.truth(slot)?;
                truth.is_present(*generation)?;
                let given_up = truth.signal(moment, slot, *signal)?;
                return Ok(given_up.map(|death| (slot.clone(), death)));
            }
            Command::Drain { slot, generation } => {
                let is_asked_for_room = self.is_asked_for_room(slot);
                let truth = self.truth(slot)?;
                truth.is_present(*generation)?;
                truth.drain(moment, slot, is_asked_for_room)?;
            }
            Command::CutRequests { slot, generation } => {
                let truth = self.truth(slot)?;
                truth.is_present(*generation)?;
                truth.cut(moment.now)?;
            }
            Command::Leave { slot, generation } => {
                self.leave(moment, slot, *generation)?;
            }
            Command::MeasureActivity { slot, generation } => {
                self.measure_activity(slot, *generation)?;
            }
            Command::MeasureRoom { slot, generation } => {
                self.measure_room(slot, *generation)?;
            }
            Command::Grant { waiter } => self.grant(*waiter)?,
            Command::Refuse { waiter, refusal } => self.refuse(*waiter, refusal)?,
            Command::AnswerRoom { asker, answer } => {
                check(self.rooms.remove(asker), || "an answer that nobody waits for".to_owned())?;
                let is_plain = answer.refused.is_none() || answer.going.is_empty();
                check(is_plain, || "refused, and somebody goes for it".to_owned())?;
            }
            Command::Finish => self.finish()?,
        }
        Ok(None)
    }

    fn may_start(&self, slot: &SlotName, profile: &Arc<Profile>) -> Checked {
        let is_current = self.is_in_force(slot, profile);
        check(is_current, || "a start with a profile that is not in force".to_owned())?;
        check(self.shutdown_at.is_none(), || "a start while shutting down".to_owned())
    }

    /// Tells whether somebody wants room that `slot` may have to make.
    fn is_asked_for_room(&self, slot: &SlotName) -> bool {
        let waits = |truth: &Truth| matches!(truth.child, Child::Queued | Child::None);
        let is_short = self.strain.of_memory().next().is_some();
        is_short
            || !self.rooms.is_empty()
            || self.slots.iter().any(|(name, truth)| name != slot && waits(truth))
    }

    fn finish(&mut self) -> Checked {
        check(self.shutdown_at.is_some(), || "`Finish` without a shutdown".to_owned())?;
        check(self.all_gone(), || "`Finish` while a child lives".to_owned())?;
        self.is_finished = true;
        Ok(())
    }

    fn measure_room(&mut self, slot: &SlotName, generation: Generation) -> Checked {
        let truth = self.truth(slot)?;
        truth.is_present(generation)?;
        let is_low = truth.ladder.rung > 0;
        let alive = truth.alive()?;
        let is_serving = alive.ready_since.is_some() && alive.drain.is_none();
        check(is_serving && is_low, || "room asked without a climb to make".to_owned())
    }

    fn is_in_force(&self, name: &SlotName, profile: &Arc<Profile>) -> bool {
        let truth = self.slots.get(name).filter(|_| self.profiles.contains_key(name));
        truth.is_some_and(|truth| truth.profile == *profile)
    }

    /// An engine is given cores that no other has or was promised, or one where none is free.
    fn give_cores(&mut self, name: &SlotName, cores: u32) -> Checked {
        let has_cores = |truth: &Truth| {
            let is_down = matches!(
                truth.child,
                Child::None | Child::Sizing | Child::Queued | Child::Outside(_)
            );
            !is_down
        };
        let others = self.slots.iter().filter(|(other, truth)| *other != name && has_cores(truth));
        let taken: u32 = others.map(|(_, truth)| truth.cores).sum();
        let free = self.policy.machine.cores.saturating_sub(taken);
        let is_free = (1..=free.max(1)).contains(&cores);
        check(is_free, || format!("{cores} cores for {name}, free are {free}"))?;
        self.truth(name)?.cores = cores;
        Ok(())
    }

    fn watch(
        &mut self,
        moment: Moment<'_>,
        slot: &SlotName,
        (generation, profile): (Generation, &Arc<Profile>),
    ) -> Checked {
        let is_current = self.is_in_force(slot, profile);
        check(is_current, || "a watch by a profile that is not in force".to_owned())?;
        check(self.shutdown_at.is_none(), || "a watch while shutting down".to_owned())?;
        check(profile.is_external(), || "a watch over our own".to_owned())?;
        self.truth(slot)?.watch(moment, generation)
    }

    fn leave(&mut self, moment: Moment<'_>, slot: &SlotName, generation: Generation) -> Checked {
        let is_shutdown = self.shutdown_at.is_some();
        let truth = self.truth(slot)?;
        truth.is_present(generation)?;
        if let Child::Outside(outside) = truth.child {
            return truth.look_away(moment, slot, outside);
        }
        check(is_shutdown, || "left while the daemon lives".to_owned())?;
        truth.leave()
    }

    fn measure_activity(&mut self, slot: &SlotName, generation: Generation) -> Checked {
        let truth = self.truth(slot)?;
        truth.is_present(generation)?;
        let alive = truth.alive()?;
        let is_serving = alive.ready_since.is_some() && alive.drain.is_none();
        check(is_serving, || "activity asked of an engine not serving".to_owned())?;
        let has_timeout = truth.profile.idle_timeout.is_some();
        check(has_timeout, || "activity asked without an idle timeout".to_owned())?;
        Ok(())
    }

    pub(crate) fn all_gone(&self) -> bool {
        self.slots.values().all(|truth| matches!(truth.child, Child::None))
    }

    fn truth(&mut self, name: &SlotName) -> Checked<&mut Truth> {
        self.slots.get_mut(name).ok_or_else(|| format!("a command for unknown slot {name}"))
    }

    fn answered(&mut self, waiter: WaiterId) -> Checked<SlotName> {
        let left = self.left.contains(&waiter);
        check(!left, || format!("an answer for {waiter:?}, which has left"))?;
        self.pending.remove(&waiter).ok_or_else(|| format!("a second answer for {waiter:?}"))
    }

    fn grant(&mut self, waiter: WaiterId) -> Checked {
        let slot = self.answered(waiter)?;
        let truth = self.truth(&slot)?;
        if let Child::Outside(outside) = truth.child {
            let takes_requests = outside.seen == Seen::Ready && outside.drain.is_none();
            return check(takes_requests, || format!("{waiter:?} was granted who is not there"));
        }
        let Child::Alive(alive) = truth.child else {
            return Err(format!("{waiter:?} was granted a slot without a child"));
        };
        let takes_requests = alive.is_ready && alive.drain.is_none() && !alive.is_stopping();
        check(takes_requests, || format!("{waiter:?} was granted an engine that is not ready"))
    }

    fn refuse(&mut self, waiter: WaiterId, refusal: &Refusal) -> Checked {
        let slot = self.answered(waiter)?;
        let limit = self.policy.waiting_limit;
        let is_fair = match refusal {
            Refusal::SlotGone => !self.profiles.contains_key(&slot),
            Refusal::ShuttingDown => self.shutdown_at.is_some(),
            Refusal::Unloaded => self.slots.get(&slot).is_some_and(|truth| truth.is_put_down),
            Refusal::QueueFull { waiting } => *waiting == self.waiting(&slot) && *waiting >= limit,
            Refusal::LoadFailed { .. } => self.slots.get(&slot).is_some_and(|truth| {
                truth.attempt.is_some() || matches!(truth.child, Child::Queued)
            }),
            Refusal::NoRoom { .. } => {
                self.slots.get(&slot).is_some_and(|truth| matches!(truth.child, Child::Queued))
            }
            Refusal::Absent { .. } => self.slots.get(&slot).is_some_and(|truth| {
                matches!(truth.child, Child::Outside(Outside { seen: Seen::Nothing, .. }))
            }),
            Refusal::SetAside => self
                .slots
                .get(&slot)
                .is_some_and(|truth| truth.is_put_down && truth.profile.is_external()),
            Refusal::DownloadRequired { .. } | Refusal::Failed { .. } => {
                self.slots.get(&slot).is_some_and(|truth| truth.gave_up)
            }
        };
        check(is_fair, || format!("{waiter:?} was refused without cause: {refusal:?}"))
    }
}

impl Truth {
    fn is_present(&self, generation: Generation) -> Checked {
        check(generation == self.generation, || {
            format!("a command for generation {generation}, present is {}", self.generation)
        })
    }

    fn alive(&mut self) -> Checked<&mut Alive> {
        match &mut self.child {
            Child::Alive(alive) => Ok(alive),
            other => Err(format!("a command for a child that does not live: {other:?}")),
        }
    }

    fn spawn(&mut self, generation: Generation) -> Checked {
        let has_place = matches!(self.child, Child::Queued);
        check(has_place, || format!("a spawn without a place: {:?}", self.child))?;
        self.is_present(generation)?;
        self.child = Child::Ordered { is_cancelled: false };
        Ok(())
    }

    fn size(&mut self, moment: Moment<'_>, generation: Generation) -> Checked {
        let is_free = matches!(self.child, Child::None | Child::Sizing | Child::Queued);
        check(is_free, || format!("a start beside a child: {:?}", self.child))?;
        let is_new = generation > self.generation;
        check(is_new, || format!("generation {generation} after {}", self.generation))?;
        check(!self.gave_up, || "a spawn after giving up".to_owned())?;
        check(!self.is_put_down, || "a spawn after an unload".to_owned())?;
        if let Some((earliest, _)) = self.attempt.take() {
            let early = earliest.since(moment.now);
            check(early.is_zero(), || format!("a spawn {early:?} before its time"))?;
        }
        self.generation = generation;
        self.child = Child::Sizing;
        Ok(())
    }

    /// An engine that is not ours is looked at anew only while it is not there.
    fn watch(&mut self, moment: Moment<'_>, generation: Generation) -> Checked {
        let is_new = generation > self.generation;
        check(is_new, || format!("generation {generation} after {}", self.generation))?;
        check(!self.is_put_down, || "a watch after an unload".to_owned())?;
        let seen = match self.child {
            Child::None => Seen::Unknown,
            Child::Outside(Outside { seen: Seen::Nothing, drain: None }) => match moment.event {
                Event::Slot { event: SlotEvent::Child { .. }, .. } => Seen::Nothing,
                _ => Seen::Unknown,
            },
            other => return Err(format!("a watch in place of {other:?}")),
        };
        (self.attempt, self.gave_up) = (None, false);
        self.generation = generation;
        self.child = Child::Outside(Outside { seen, drain: None });
        Ok(())
    }

    /// Requests in flight end first, or have had their time.
    fn look_away(&mut self, moment: Moment<'_>, slot: &SlotName, outside: Outside) -> Checked {
        if let Some(drain) = outside.drain {
            let is_over = drain.is_drained || drain.is_cut;
            check(is_over, || "looked away with requests in flight".to_owned())?;
        } else {
            let is_ordered = moment.is_order_to_stop(slot);
            check(is_ordered, || "looked away without an order".to_owned())?;
            check(!outside.may_serve(), || "looked away without a drain".to_owned())?;
        }
        self.child = Child::None;
        Ok(())
    }

    /// A start is on the rung that deaths and wishes have led to, or on trial one above it.
    fn stand(&mut self, rung: usize) -> Checked {
        let ladder = &mut self.ladder;
        let is_climb = ladder.may_climb && rung + 1 == ladder.rung;
        check(is_climb || rung == ladder.rung, || {
            format!("a start on rung {rung}, expected {ladder:?}")
        })?;
        // An undone edit leaves a rung to go back to, and the next start tells what it is.
        let in_range = ladder.rungs == 0 || rung < ladder.rungs;
        check(in_range, || format!("there is no rung {rung} in {ladder:?}"))?;
        (ladder.rung, ladder.may_climb) = (rung, false);
        ladder.is_on_trial |= is_climb;
        Ok(())
    }

    /// Returns the death in it, if the signal gives a load up, or an engine that hangs.
    fn signal(
        &mut self,
        moment: Moment<'_>,
        slot: &SlotName,
        signal: StopSignal,
    ) -> Checked<Option<Unplanned>> {
        let patience = self.profile.hang_timeout;
        let (stop, start) = (self.profile.stop_timeout, self.profile.start_timeout);
        let is_planned_stop = moment.is_order_to_stop(slot);
        let was_cancelled = moment.was_cancelled(slot);
        let alive = self.alive()?;
        let now = moment.now;
        check(!alive.is_killed, || "a signal after the kill".to_owned())?;
        match (signal, alive.kill_at) {
            (StopSignal::Terminate, Some(_)) => Err("a second `SIGTERM`".to_owned()),
            (StopSignal::Terminate, None) => {
                match alive.drain {
                    Some(drain) => {
                        check(drain.is_drained || drain.is_cut, || {
                            "told to end with requests in flight".to_owned()
                        })?;
                        check(!drain.is_leaving, || "told to end, and to be kept".to_owned())?;
                    }
                    None if alive.ready_since.is_some() => {
                        let is_lost = moment.shows_no_life(slot, alive, patience);
                        check(is_lost, || "told to end without a drain".to_owned())?;
                        alive.kill_at = Some(now.after(stop));
                        return Ok(Some(Unplanned { had_served: true }));
                    }
                    None => check(is_planned_stop || was_cancelled, || {
                        "a load was stopped without an order".to_owned()
                    })?,
                }
                alive.kill_at = Some(now.after(stop));
                Ok(None)
            }
            (StopSignal::Kill, Some(kill_at)) => {
                check(kill_at <= now, || "killed before its grace was over".to_owned())?;
                alive.is_killed = true;
                Ok(None)
            }
            (StopSignal::Kill, None) => {
                check(alive.ready_since.is_none(), || "killed without a grace".to_owned())?;
                let give_up_at = alive.stepped_at.after(start);
                check(give_up_at <= now, || "a load was killed before its time".to_owned())?;
                alive.is_killed = true;
                Ok(Some(Unplanned { had_served: false }))
            }
        }
    }

    fn drain(&mut self, moment: Moment<'_>, slot: &SlotName, is_asked_for_room: bool) -> Checked {
        let cut_at = Some(moment.now.after(self.profile.stop_timeout));
        let is_idle = moment.says_idle(slot, self);
        let is_ordered = moment.is_order_to_stop(slot);
        let is_climb = moment.says_room(slot, self);
        self.ladder.may_climb = is_climb;
        if let Child::Outside(outside) = &mut self.child {
            let may_drain = outside.may_serve() && outside.drain.is_none() && is_ordered;
            check(may_drain, || format!("a drain that nobody ordered of {outside:?}"))?;
            let drain = Drain { cut_at, is_drained: false, is_cut: false, is_leaving: true };
            outside.drain = Some(drain);
            return Ok(());
        }
        let keeps = self.profile.on_exit == OnExit::Keep;
        let alive = self.alive()?;
        let is_serving =
            alive.ready_since.is_some() && alive.drain.is_none() && !alive.is_stopping();
        check(is_serving, || "a drain of an engine that does not serve".to_owned())?;
        let is_wish = is_idle || is_ordered || is_climb;
        check(is_wish || is_asked_for_room, || "a drain that nobody ordered".to_owned())?;
        let cut_at = cut_at.filter(|_| is_wish);
        let is_leaving = keeps && matches!(moment.event, Event::ShutdownRequested);
        alive.drain = Some(Drain { cut_at, is_drained: false, is_cut: false, is_leaving });
        Ok(())
    }

    fn leave(&mut self) -> Checked {
        let alive = self.alive()?;
        check(!alive.is_stopping(), || "left, and told to end before".to_owned())?;
        let may_leave =
            alive.drain.is_some_and(|drain| drain.is_leaving && (drain.is_drained || drain.is_cut));
        check(may_leave, || "left without its due".to_owned())?;
        self.child = Child::None;
        Ok(())
    }

    fn cut(&mut self, now: Monotime) -> Checked {
        let drain = match &mut self.child {
            Child::Outside(outside) => &mut outside.drain,
            _ => &mut self.alive()?.drain,
        };
        let Some(drain) = drain else {
            return Err("requests were cut without a drain".to_owned());
        };
        check(drain.cut_at.is_some_and(|at| at <= now), || {
            "requests were cut before the deadline".to_owned()
        })?;
        drain.is_cut = true;
        Ok(())
    }
}

impl Moment<'_> {
    /// Tells whether the event orders the slot's present engine to go.
    fn is_order_to_stop(&self, name: &SlotName) -> bool {
        match self.event {
            Event::ShutdownRequested => true,
            Event::ProfilesChanged { profiles } => {
                let before = self.before.get(name);
                profiles.get(name).is_none_or(|profile: &Arc<_>| {
                    before.is_some_and(|before| {
                        before.on_disk() != profile && !profile.starts_same_engine(&before.profile)
                    })
                })
            }
            Event::StayOrdered { slot, order } => slot == name && *order == StayOrder::Offload,
            Event::DeadlinePassed
            | Event::EngineAdopted { .. }
            | Event::PressureChanged { .. }
            | Event::RoomRequested(_)
            | Event::MemoryRead { .. } => false,
            Event::Slot { slot, event } => {
                slot == name
                    && matches!(event, SlotEvent::UnloadRequested | SlotEvent::RestartRequested)
            }
        }
    }

    /// Tells whether the event says that the engine has failed every request, or that there was no
    /// byte from it for the whole of the patience.
    fn shows_no_life(&self, name: &SlotName, alive: &Alive, patience: Option<Duration>) -> bool {
        let Event::Slot { slot, event: SlotEvent::Child { event, .. } } = self.event else {
            return false;
        };
        let ChildEvent::VitalsRead { vitals } = event else { return false };
        let is_silent =
            patience.is_some_and(|patience| self.now.since(alive.lively_at) >= patience);
        slot == name && (is_silent || vitals.failed_in_row >= 5)
    }

    fn was_cancelled(&self, name: &SlotName) -> bool {
        let truth = self.before.get(name);
        truth.is_some_and(|truth| matches!(truth.child, Child::Ordered { is_cancelled: true }))
    }

    /// Tells whether the event says that there is room for the rung above, and nobody at work.
    fn says_room(&self, name: &SlotName, truth: &Truth) -> bool {
        let Event::Slot { slot, event: SlotEvent::Child { event, .. } } = self.event else {
            return false;
        };
        if slot != name {
            return false;
        }
        let (rung, quiet_until) = (truth.ladder.rung, truth.ladder.quiet_until);
        matches!(event, ChildEvent::RoomMeasured { in_flight: 0, free: Some(_), .. })
            && rung > 0
            && quiet_until <= self.now
    }

    fn says_idle(&self, name: &SlotName, truth: &Truth) -> bool {
        let Event::Slot { slot, event: SlotEvent::Child { event, .. } } = self.event else {
            return false;
        };
        if slot != name {
            return false;
        }
        matches!(event, ChildEvent::ActivityMeasured { in_flight: 0, idle_for }
            if truth.profile.idle_timeout.is_some_and(|timeout| *idle_for >= timeout))
    }
}

pub(crate) fn check(holds: bool, fault: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(fault()) }
}
