//! Feeds the core one event at a time and holds each step against the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use slotd::{
    spec::{Monotime, SlotName, death::ExitStatus, death::Verdict as Cause, profile::Profile},
    supervisor::{
        Cell, ChildEvent, Command, Event, Policy, SlotEvent, SlotView, Snapshot, StateView,
        Supervisor,
    },
};

use super::{
    cells::Counts,
    commands::{Moment, check},
    model::{Child, Fall, Footing, Model, Unplanned},
    rules::{self, TallyStep},
};

type Checked<T = ()> = Result<T, String>;

/// A core under watch.
#[derive(Debug)]
pub(crate) struct Checker {
    core: Supervisor,
    seed: u64,
    pub(crate) model: Model,
    pub(crate) now: Monotime,
    pub(crate) cells: Counts,
    pub(crate) verdicts: BTreeSet<Cause>,
    pub(crate) states: BTreeSet<&'static str>,
    pub(crate) falls: BTreeMap<Fall, u64>,
    /// How many edits were undone.
    pub(crate) rollbacks: u64,
    journal: Vec<(Monotime, Event)>,
    answers: Vec<Vec<Command>>,
    last: Arc<Snapshot>,
}

impl Checker {
    pub(crate) fn new(policy: Policy, seed: u64) -> Self {
        Self {
            core: Supervisor::new(policy.clone(), seed, BTreeMap::new()),
            seed,
            model: Model::new(policy),
            now: Monotime::default(),
            cells: Counts::new(),
            verdicts: BTreeSet::new(),
            states: BTreeSet::new(),
            falls: BTreeMap::new(),
            rollbacks: 0,
            journal: Vec::new(),
            answers: Vec::new(),
            last: Arc::default(),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Monotime> {
        self.core.deadline()
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.last)
    }

    pub(crate) fn view(&self, name: &SlotName) -> Option<&SlotView> {
        self.last.slots.get(name).map(AsRef::as_ref)
    }

    pub(crate) fn events(&self) -> usize {
        self.journal.len()
    }

    /// The last steps, for the report of a failure.
    pub(crate) fn last_steps(&self, count: usize) -> String {
        let from = self.journal.len().saturating_sub(count);
        let steps = self.journal.iter().zip(self.answers.iter().map(Some).chain([None])).skip(from);
        let lines = steps.map(|((at, event), commands)| {
            format!("{:?} {event:?}\n      -> {commands:?}", at.since_start())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Lets timers that are due by `now` fire, then hands the event over; returns all commands.
    pub(crate) fn step(&mut self, now: Monotime, event: Event) -> Checked<Vec<Command>> {
        let now = self.now.max(now);
        let mut commands = Vec::new();
        if self.core.deadline().is_some_and(|at| at <= now) {
            commands = self.deliver(now, Event::DeadlinePassed)?;
        }
        commands.append(&mut self.deliver(now, event)?);
        Ok(commands)
    }

    fn deliver(&mut self, now: Monotime, told: Event) -> Checked<Vec<Command>> {
        self.now = now;
        let event = &told.clone();
        let before = Arc::clone(&self.last);
        let is_noise = self.is_noise(&before, event);
        self.count_cells(&before, event);
        self.journal.push((now, told));
        let due: BTreeSet<SlotName> = self.core.due(now).cloned().collect();
        let mut commands = Vec::new();
        self.core.handle(now, event.clone(), &mut commands);
        let after = self.core.snapshot();
        self.last = Arc::clone(&after);
        self.answers.push(commands.clone());
        if *event == Event::DeadlinePassed {
            self.count_timers(&due, &before, &after, &commands);
        }
        if is_noise {
            // A climb that is refused by an old reading asks for a new one.
            let is_quiet = commands.iter().all(|one| matches!(one, Command::ReadMemory));
            check(is_quiet, || format!("noise gave {commands:?}"))?;
            check(Arc::ptr_eq(&before, &after), || "noise changed the snapshot".to_owned())?;
        }
        check((before.generation == after.generation) == (before.slots == after.slots), || {
            "the snapshot's generation and its content moved apart".to_owned()
        })?;
        let is_ahead = self.core.deadline().is_none_or(|at| at >= now);
        check(is_ahead, || "the deadline lies in the past".to_owned())?;
        self.compare(event, &commands, (&before, &after))?;
        Ok(commands)
    }

    fn compare(
        &mut self,
        event: &Event,
        commands: &[Command],
        (before, after): (&Snapshot, &Snapshot),
    ) -> Checked {
        let now = self.now;
        let earlier = self.model.slots.clone();
        let deaths: Vec<_> = self.model.learn(now, event).into_iter().collect();
        // What a death leads to is settled before the commands that follow from it.
        let mut counted = self.suffer(&deaths, before, after)?;
        for command in commands {
            let moment = Moment { now, event, before: &earlier };
            let given_up = self.model.obey(moment, command)?;
            counted.append(&mut self.suffer(given_up.as_slice(), before, after)?);
        }
        for (name, view) in &after.slots {
            let is_sizing =
                matches!(self.model.slots.get(name).map(|truth| truth.child), Some(Child::Sizing));
            self.states.insert(if is_sizing { "sizing" } else { state_name(&view.state) });
            let undone = self.model.slots.get(name).map_or(0, |truth| truth.rollbacks);
            let was_undone = earlier.get(name).is_some_and(|truth| truth.rollbacks < undone);
            let Some(was) = before.slots.get(name) else { continue };
            let step = TallyStep {
                before: was.tally,
                after: view.tally,
                died: counted.contains(name),
                may_be_forgiven: was_undone || self.may_be_forgiven(name, event),
            };
            step.hold(name)?;
        }
        for (name, truth) in &mut self.model.slots {
            // One that nobody waits for need not wait for memory.
            let has_left = after
                .slots
                .get(name)
                .is_some_and(|view| view.state == StateView::Offline && view.waiting == 0);
            if matches!(truth.child, Child::Queued) && has_left {
                truth.child = Child::None;
            }
            truth.prove(now, &self.model.policy);
            match after.slots.get(name) {
                // A slot that is forgotten forgets its rung.
                None => {
                    truth.ladder = Footing::default();
                    (truth.worked, truth.rejected) = (None, None);
                }
                // Whatever wipes the tally wipes this.
                Some(view) if view.tally == 0 => truth.ladder.streak = None,
                Some(_) => {}
            }
        }
        rules::hold(&self.model, now, after)
    }

    /// Tells the model of unplanned deaths, with the cause that the core found; returns whose deaths
    /// count.
    fn suffer(
        &mut self,
        deaths: &[(SlotName, Unplanned)],
        before: &Snapshot,
        after: &Snapshot,
    ) -> Checked<BTreeSet<SlotName>> {
        let mut counted = BTreeSet::new();
        for (name, Unplanned { had_served }) in deaths {
            let truth = self.model.slots.get_mut(name).unwrap();
            let dead = truth.generation;
            let record = after
                .slots
                .get(name)
                .and_then(|view| view.deaths.iter().rev().find(|death| death.generation == dead));
            let Some(record) = record else {
                return Err(format!("{name}: the death of generation {dead} was not recorded"));
            };
            self.verdicts.insert(record.verdict);
            if *had_served && rules::was_a_wish(record, &truth.profile) {
                continue;
            }
            let tally = before.slots.get(name).map_or(0, |view| view.tally);
            // A trial can fail before its spawn: its rung is known by the core alone.
            let tried = before.slots.get(name).map(|view| view.rung_index);
            truth.ladder.fail_before_the_spawn(*had_served, tried);
            let cause = (*had_served, record.verdict);
            let rollbacks = truth.rollbacks;
            let fall = truth.suffer(self.now, &self.model.policy, cause, tally);
            *self.falls.entry(fall).or_default() += 1;
            let was_undone = truth.rollbacks > rollbacks;
            self.rollbacks += u64::from(was_undone);
            // A trial was the core's own idea, and what failed is no longer in force.
            if fall != Fall::FailedTrial && !was_undone {
                counted.insert(name.clone());
            }
        }
        for view in after.slots.values() {
            self.verdicts.extend(view.deaths.last().map(|death| death.verdict));
            let mut generations: Vec<_> =
                view.deaths.iter().map(|death| death.generation).collect();
            let recorded = generations.len();
            generations.dedup();
            check(generations.len() == recorded, || "a death was recorded twice".to_owned())?;
        }
        Ok(counted)
    }

    fn may_be_forgiven(&self, name: &SlotName, event: &Event) -> bool {
        let is_said = match event {
            Event::ProfilesChanged { .. } => true,
            Event::ShutdownRequested
            | Event::DeadlinePassed
            | Event::EngineAdopted { .. }
            | Event::PressureChanged { .. }
            | Event::StayOrdered { .. }
            | Event::RoomRequested(_)
            | Event::MemoryRead { .. } => false,
            Event::Slot { slot, event } => {
                slot == name
                    && matches!(
                        event,
                        SlotEvent::LoadRequested
                            | SlotEvent::ModelBecameWhole
                            | SlotEvent::UnloadRequested
                            | SlotEvent::RestartRequested
                    )
            }
        };
        let is_proven = match self.model.slots.get(name).map(|truth| truth.child) {
            Some(Child::Alive(alive)) => alive
                .steady_since
                .is_some_and(|since| since.after(self.model.policy.healthy_after) <= self.now),
            _ => false,
        };
        is_said || is_proven
    }

    /// Tells whether an event means nothing by the protocol: it must change nothing.
    fn is_noise(&self, before: &Snapshot, event: &Event) -> bool {
        match event {
            Event::DeadlinePassed => self.core.deadline().is_none_or(|at| at > self.now),
            Event::EngineAdopted { slot, .. } => {
                before.slots.contains_key(slot) || self.model.shutdown_at.is_some()
            }
            Event::ProfilesChanged { .. } | Event::ShutdownRequested => self.model.is_finished,
            Event::PressureChanged { .. }
            | Event::StayOrdered { .. }
            | Event::RoomRequested(_)
            | Event::MemoryRead { .. } => false,
            Event::Slot { slot, event } => match event {
                SlotEvent::WaiterLeft { waiter } => self.model.pending.get(waiter) != Some(slot),
                SlotEvent::Child { generation, event } => {
                    let is_there = before.slots.contains_key(slot);
                    !is_there
                        || !self.model.slots.get(slot).is_some_and(|truth| {
                            truth.generation == *generation && truth.expects(event)
                        })
                }
                SlotEvent::LoadRequested
                | SlotEvent::LoadOrderedByRule
                | SlotEvent::ModelBecameWhole
                | SlotEvent::RestartRequested
                | SlotEvent::UnloadRequested
                | SlotEvent::Demanded { .. } => false,
            },
        }
    }

    /// Counts the cells that an event lands in; timers are counted by what they did.
    fn count_cells(&mut self, before: &Snapshot, event: &Event) {
        if let Some(cell) = self.core.cell(event) {
            self.count(cell.state, cell.event);
        }
        for (name, view) in &before.slots {
            let truth = self.model.slots.get(name);
            let state = match truth.map(|truth| truth.child) {
                Some(Child::Sizing) => "sizing",
                _ => state_name(&view.state),
            };
            match event {
                Event::ShutdownRequested => self.count(state, "shutdown"),
                Event::ProfilesChanged { profiles } if self.model.shutdown_at.is_none() => {
                    match profiles.get(name) {
                        None => self.count(state, "removed"),
                        Some(profile) if self.is_edit(name, profile) => {
                            self.count(state, "edited");
                        }
                        Some(_) => {}
                    }
                }
                _ => {}
            }
        }
    }

    fn is_edit(&self, name: &SlotName, profile: &Arc<Profile>) -> bool {
        self.model.profiles.get(name) != Some(profile)
    }

    /// Counts the slots' own timers that did something; that memory was read anew may move others besides.
    fn count_timers(
        &mut self,
        due: &BTreeSet<SlotName>,
        before: &Snapshot,
        after: &Snapshot,
        commands: &[Command],
    ) {
        for (name, was) in before.slots.iter().filter(|(name, _)| due.contains(*name)) {
            let is_moved = after.slots.get(name) != Some(was);
            let is_told = commands.iter().any(|command| match command {
                Command::Signal { slot, .. } | Command::MeasureActivity { slot, .. } => {
                    slot == name
                }
                _ => false,
            });
            if is_moved || is_told {
                self.count(state_name(&was.state), "timer-fired");
            }
        }
    }

    fn count(&mut self, state: &'static str, event: &'static str) {
        *self.cells.entry(Cell { state, event }).or_default() += 1;
    }

    /// Ends everything, by the slowest shell there is: nothing drains, nothing heeds `SIGTERM`.
    pub(crate) fn drive_to_the_end(&mut self) -> Checked {
        let asked_at = self.now;
        self.step(asked_at, Event::ShutdownRequested)?;
        let end = self.model.slots.values().map(|truth| truth.latest_end(asked_at)).max();
        let end = end.unwrap_or(asked_at);
        while !self.model.is_finished {
            while let Some(event) = self.next_answer() {
                self.step(self.now, event)?;
            }
            if self.model.is_finished {
                break;
            }
            let next = self.deadline().ok_or("nothing is due, and not all is down")?;
            check(next <= end, || "a shutdown outlasts its graces".to_owned())?;
            self.step(next, Event::DeadlinePassed)?;
        }
        let finishes = self.answers.iter().flatten().filter(|command| **command == Command::Finish);
        check(finishes.count() == 1, || "not exactly one `Finish`".to_owned())?;
        let none_waits = self.model.pending.is_empty();
        check(none_waits, || "a request was never answered".to_owned())
    }

    /// The next answer of a shell whose children end only by `SIGKILL`.
    fn next_answer(&self) -> Option<Event> {
        self.model.slots.iter().find_map(|(name, truth)| {
            let event = match truth.child {
                Child::Ordered { .. } => super::spawned(1),
                Child::Alive(alive) if alive.is_killed => {
                    super::exited(super::ended(ExitStatus::Signal(9)))
                }
                Child::Dead { .. } => ChildEvent::Reaped,
                Child::None
                | Child::Sizing
                | Child::Queued
                | Child::Alive(_)
                | Child::Outside(_) => return None,
            };
            Some(super::of_child(name, truth.generation, event))
        })
    }

    /// Holds a fresh core to the same journal: the same events at the same times, the same commands.
    /// Once with every wake-up, once with those left out that an event comes right after: a timer
    /// that is due fires first.
    pub(crate) fn replay(&self) -> Checked {
        let policy = &self.model.policy;
        let mut again = Supervisor::new(policy.clone(), self.seed, BTreeMap::default());
        let mut late = Supervisor::new(policy.clone(), self.seed, BTreeMap::default());
        let (mut commands, mut owed, mut sleepy) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (at, event)) in self.journal.iter().enumerate() {
            again.handle(*at, event.clone(), &mut commands);
            check(Some(&commands) == self.answers.get(index), || {
                format!("a replay of {event:?} gave {commands:?}")
            })?;
            owed.append(&mut commands);
            let next = self.journal.get(index + 1);
            let is_followed = next.is_some_and(|(next, _)| next == at);
            if *event == Event::DeadlinePassed && is_followed {
                continue;
            }
            late.handle(*at, event.clone(), &mut sleepy);
            check(owed == sleepy, || format!("without a wake-up, {event:?} gave {sleepy:?}"))?;
            mem::take(&mut owed);
            mem::take(&mut sleepy);
        }
        Ok(())
    }
}

/// The state by the name that the core uses; a child without a process id is on its way.
pub(crate) fn state_name(state: &StateView) -> &'static str {
    match state {
        StateView::Starting { pid: None, .. } => "spawning",
        StateView::Stopping { pid: None } => "cancelling",
        StateView::Absent { .. } | StateView::Coming { .. } => "seeking",
        StateView::Present { .. } => "present",
        StateView::Parting => "parting",
        other => other.as_str(),
    }
}
