//! What is true of the world, kept by hand: which children live, who waits, what was promised.
//!
//! It learns from events and commands only, by the protocol between core and shell; it never asks
//! the core why. [`super::rules`] compares the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use slotd::{
    spec::{
        Generation, Monotime, SlotName, WaiterId, death::Verdict, pressure::Strain,
        profile::Profile,
    },
    supervisor::{ChildEvent, Event, Policy, Sight, SlotEvent},
};

use super::rules::needs_person;

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) policy: Policy,
    pub(crate) slots: BTreeMap<SlotName, Truth>,
    /// The profiles on disk.
    pub(crate) profiles: BTreeMap<SlotName, Arc<Profile>>,
    /// Requests without an answer, and the slot that each waits for.
    pub(crate) pending: BTreeMap<WaiterId, SlotName>,
    /// Requests that left before an answer.
    pub(crate) left: BTreeSet<WaiterId>,
    pub(crate) shutdown_at: Option<Monotime>,
    pub(crate) is_finished: bool,
    /// How short the machine is.
    pub(crate) strain: Strain,
    /// Who has asked for room and was not answered.
    pub(crate) rooms: BTreeSet<WaiterId>,
}

/// What is true of one slot; outlives its profile.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    /// The profile in force.
    pub(crate) profile: Arc<Profile>,
    /// The profile whose engine was ready last, and the rung of it.
    pub(crate) worked: Option<(Arc<Profile>, usize)>,
    /// What is on disk, where that is not in force.
    pub(crate) rejected: Option<Arc<Profile>>,
    /// How often an edit was undone.
    pub(crate) rollbacks: u64,
    pub(crate) generation: Generation,
    pub(crate) child: Child,
    /// CPU cores that its last engine has, or was promised.
    pub(crate) cores: u32,
    /// Backoffs in a row.
    pub(crate) delays: u32,
    /// No spawn before the first, no later attempt than the second; cleared by a person or an edit.
    pub(crate) attempt: Option<(Monotime, Monotime)>,
    /// No spawn until a person or an edit says so.
    pub(crate) gave_up: bool,
    /// What it gave up for last.
    last_straw: Option<Verdict>,
    pub(crate) ladder: Footing,
    /// The present steady run has been seen to prove itself.
    was_proven: bool,
    /// Unloaded by a person, and nobody has asked since.
    pub(crate) is_put_down: bool,
}

/// Where the next start has to stand on its ladder.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Footing {
    pub(crate) rung: usize,
    /// How many there are; 0 while no engine was chosen.
    pub(crate) rungs: usize,
    /// The next start may be one higher.
    pub(crate) may_climb: bool,
    /// The rung was climbed to, and no run on it has proven itself.
    pub(crate) is_on_trial: bool,
    /// Deaths of one cause in a row.
    pub(crate) streak: Option<(Verdict, u32)>,
    /// No climb before this.
    pub(crate) quiet_until: Monotime,
}

impl Footing {
    fn learn(&mut self, rungs: usize) {
        self.rungs = rungs;
        self.rung = self.rung.min(rungs - 1);
    }

    /// Takes it into account where a start was to be one rung higher and did not come to its spawn.
    pub(crate) fn fail_before_the_spawn(&mut self, had_served: bool, tried: Option<usize>) {
        if !had_served && self.may_climb && tried.is_some_and(|rung| rung + 1 == self.rung) {
            (self.rung, self.may_climb, self.is_on_trial) = (self.rung - 1, false, true);
        }
    }

    fn begin_anew(&mut self) {
        (self.rung, self.may_climb, self.is_on_trial) = (0, false, false);
        self.streak = None;
    }

    /// Takes a death; what it leads to, by the rules for people.
    fn suffer(&mut self, now: Monotime, policy: &Policy, cause: Verdict, had_served: bool) -> Fall {
        self.quiet_until = now.after(policy.climb_after);
        if self.is_on_trial {
            self.is_on_trial = false;
            self.streak = None;
            let last = self.rungs.checked_sub(1).unwrap_or(self.rung + 1);
            self.rung = (self.rung + 1).min(last);
            return Fall::FailedTrial;
        }
        let is_oom = matches!(cause, Verdict::OomHost | Verdict::OomDevice);
        let is_fit = matches!(
            cause,
            Verdict::Crash
                | Verdict::StartTimeout
                | Verdict::Hung
                | Verdict::Poisoned
                | Verdict::KilledByOther
                | Verdict::UnexpectedExit
        );
        let count =
            self.streak.filter(|(before, _)| *before == cause).map_or(0, |(_, count)| count);
        if !is_oom {
            self.streak = Some((cause, count + 1));
        }
        let is_worn_out = is_fit && count + 1 >= policy.same_cause_deaths;
        if !is_oom && !is_worn_out {
            return Fall::None;
        }
        if self.rung + 1 < self.rungs {
            self.rung += 1;
            self.streak = None;
            return Fall::OneDown;
        }
        if is_oom && !had_served && self.rungs > 1 { Fall::End } else { Fall::None }
    }
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Fall {
    None,
    OneDown,
    FailedTrial,
    End,
}

impl Fall {
    pub(crate) const ALL: [Self; 4] = [Self::None, Self::OneDown, Self::FailedTrial, Self::End];
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Child {
    None,
    /// What a start needs is found out.
    Sizing,
    /// It waits for memory.
    Queued,
    Ordered {
        is_cancelled: bool,
    },
    Alive(Alive),
    /// Exited, not reaped.
    Dead {
        pid: u32,
    },
    /// Somebody else's, watched.
    Outside(Outside),
}

/// An engine that somebody else runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outside {
    pub(crate) seen: Seen,
    pub(crate) drain: Option<Drain>,
}

/// What the last look saw.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    Unknown,
    Nothing,
    Loading,
    Ready,
}

impl Outside {
    /// Tells whether requests may be in flight there.
    pub(crate) fn may_serve(self) -> bool {
        matches!(self.seen, Seen::Loading | Seen::Ready)
    }

    fn learn(&mut self, event: &ChildEvent) {
        match event {
            ChildEvent::Looked { sight: Sight::Absent { .. } } => self.seen = Seen::Nothing,
            ChildEvent::Looked { sight: Sight::Loading { .. } } => self.seen = Seen::Loading,
            ChildEvent::Looked { sight: Sight::Present { .. } } => self.seen = Seen::Ready,
            ChildEvent::Drained => {
                if let Some(drain) = &mut self.drain {
                    drain.is_drained = true;
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Alive {
    pub(crate) pid: u32,
    /// The spawn, or the last step forward of its load.
    pub(crate) stepped_at: Monotime,
    pub(crate) percent: Option<u8>,
    pub(crate) ready_since: Option<Monotime>,
    /// Since when it has been ready without a break.
    pub(crate) steady_since: Option<Monotime>,
    pub(crate) is_ready: bool,
    /// The last sign of life, or the moment from which on signs are missed.
    pub(crate) lively_at: Monotime,
    pub(crate) pieces: u64,
    pub(crate) drain: Option<Drain>,
    pub(crate) kill_at: Option<Monotime>,
    pub(crate) is_killed: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    /// `None` while it only makes room for another.
    pub(crate) cut_at: Option<Monotime>,
    pub(crate) is_drained: bool,
    pub(crate) is_cut: bool,
    /// It is to be left to the next daemon.
    pub(crate) is_leaving: bool,
}

/// A death that nobody planned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unplanned {
    pub(crate) had_served: bool,
}

impl Alive {
    fn spawned(pid: u32, now: Monotime) -> Self {
        Self { ready_since: None, steady_since: None, is_ready: false, ..Self::adopted(pid, now) }
    }

    fn adopted(pid: u32, now: Monotime) -> Self {
        Self {
            pid,
            stepped_at: now,
            percent: None,
            ready_since: Some(now),
            steady_since: Some(now),
            is_ready: true,
            lively_at: now,
            pieces: 0,
            drain: None,
            kill_at: None,
            is_killed: false,
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.kill_at.is_some() || self.is_killed
    }
}

impl Truth {
    fn new(profile: Arc<Profile>) -> Self {
        Self {
            profile,
            worked: None,
            rejected: None,
            rollbacks: 0,
            generation: Generation::default(),
            child: Child::None,
            cores: 0,
            delays: 0,
            attempt: None,
            gave_up: false,
            last_straw: None,
            ladder: Footing::default(),
            was_proven: false,
            is_put_down: false,
        }
    }

    /// A person or an edit wipes what deaths had led to.
    fn clear(&mut self) {
        self.attempt = None;
        self.gave_up = false;
    }

    /// When a child that heeds nothing but `SIGKILL` is gone at the latest, if all is to go by now.
    pub(crate) fn latest_end(&self, now: Monotime) -> Monotime {
        let grace = self.profile.stop_timeout;
        match self.child {
            Child::None | Child::Sizing | Child::Queued | Child::Dead { .. } => now,
            Child::Ordered { .. } => now.after(grace),
            Child::Outside(outside) => match outside.drain {
                Some(drain) => drain.cut_at.unwrap_or(now.after(grace)),
                None if outside.may_serve() => now.after(grace),
                None => now,
            },
            Child::Alive(alive) => match (alive.is_killed, alive.kill_at, alive.drain) {
                (true, _, _) => now,
                (false, Some(kill_at), _) => kill_at,
                (false, None, Some(drain)) => drain.cut_at.unwrap_or(now.after(grace)).after(grace),
                (false, None, None) => now.after(grace * 2),
            },
        }
    }

    /// Makes a drain that only makes room one that has its time.
    fn hurry(&mut self, now: Monotime) {
        self.hurry_by(now, self.profile.stop_timeout);
    }

    fn hurry_by(&mut self, now: Monotime, grace: Duration) {
        let cut_at = now.after(grace);
        if let Child::Alive(Alive { drain: Some(drain), .. }) = &mut self.child {
            drain.cut_at.get_or_insert(cut_at);
        }
    }

    fn cancel(&mut self) {
        match &mut self.child {
            Child::Ordered { is_cancelled } => *is_cancelled = true,
            Child::Sizing | Child::Queued => self.child = Child::None,
            _ => {}
        }
    }

    /// Tells whether the protocol lets `event` mean anything now; all else must change nothing.
    pub(crate) fn expects(&self, event: &ChildEvent) -> bool {
        match (&self.child, event) {
            (
                Child::Ordered { .. },
                ChildEvent::Spawned { .. } | ChildEvent::SpawnFailed { .. },
            )
            | (
                Child::Sizing,
                ChildEvent::Sized { .. }
                | ChildEvent::SpawnFailed { .. }
                | ChildEvent::Progressed { .. },
            )
            | (Child::Alive(_), ChildEvent::Exited { .. })
            | (Child::Dead { .. }, ChildEvent::Reaped) => true,
            (Child::Outside(outside), ChildEvent::Looked { .. }) => outside.drain.is_none(),
            (Child::Outside(outside), ChildEvent::Drained) => outside.drain.is_some(),
            (Child::Outside(_), _) | (Child::Alive(_), ChildEvent::Looked { .. }) => false,
            (Child::Alive(alive), _) if alive.is_stopping() => false,
            (Child::Alive(alive), ChildEvent::Drained) => alive.drain.is_some(),
            (Child::Alive(_), ChildEvent::MemoryMeasured { .. }) => true,
            (Child::Alive(Alive { drain: Some(_), .. }), _) => false,
            (Child::Alive(alive), ChildEvent::Progressed { .. }) => alive.ready_since.is_none(),
            (Child::Alive(alive), ChildEvent::BecameReady) => !alive.is_ready,
            (Child::Alive(alive), ChildEvent::VitalsRead { .. }) => alive.ready_since.is_some(),
            (
                Child::Alive(alive),
                ChildEvent::BecameUnready
                | ChildEvent::ActivityMeasured { .. }
                | ChildEvent::RoomMeasured { .. },
            ) => alive.is_ready,
            _ => false,
        }
    }
}

impl Model {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            slots: BTreeMap::new(),
            profiles: BTreeMap::new(),
            pending: BTreeMap::new(),
            left: BTreeSet::new(),
            shutdown_at: None,
            is_finished: false,
            strain: Strain::default(),
            rooms: BTreeSet::new(),
        }
    }

    pub(crate) fn waiting(&self, name: &SlotName) -> usize {
        self.pending.values().filter(|slot| *slot == name).count()
    }

    /// Takes an event's meaning; returns the unplanned death in it, if there is one.
    pub(crate) fn learn(&mut self, now: Monotime, event: &Event) -> Option<(SlotName, Unplanned)> {
        match event {
            Event::ProfilesChanged { profiles } => {
                if self.shutdown_at.is_none() {
                    self.learn_profiles(now, profiles);
                }
                None
            }
            Event::ShutdownRequested => {
                self.shutdown_at.get_or_insert(now);
                self.slots.values_mut().for_each(Truth::cancel);
                self.slots.values_mut().for_each(|truth| truth.hurry(now));
                None
            }
            Event::EngineAdopted { slot, generation, pid, profile, engine } => {
                if self.shutdown_at.is_none() && !self.profiles.contains_key(slot) {
                    self.slots.entry(slot.clone()).or_insert_with(|| {
                        let mut truth = Truth::new(Arc::clone(profile));
                        truth.generation = *generation;
                        truth.cores = engine.cores;
                        truth.child = Child::Alive(Alive::adopted(*pid, now));
                        truth.worked = Some((Arc::clone(profile), 0));
                        truth
                    });
                }
                None
            }
            Event::PressureChanged { strain } => {
                self.strain = strain.clone();
                None
            }
            Event::RoomRequested(request) => {
                self.rooms.insert(request.asker);
                None
            }
            Event::StayOrdered { .. } | Event::DeadlinePassed | Event::MemoryRead { .. } => None,
            Event::Slot { slot, event } => self.learn_slot(now, slot, event),
        }
    }

    fn learn_profiles(&mut self, now: Monotime, profiles: &BTreeMap<SlotName, Arc<Profile>>) {
        for (name, truth) in &mut self.slots {
            if !profiles.contains_key(name) {
                truth.clear();
                truth.cancel();
                truth.hurry(now);
            }
        }
        for (name, profile) in profiles {
            let had = self.profiles.contains_key(name);
            let truth =
                self.slots.entry(name.clone()).or_insert_with(|| Truth::new(Arc::clone(profile)));
            if had && *truth.on_disk() == *profile {
                continue;
            }
            truth.rejected = None;
            truth.clear();
            truth.hurry_by(now, profile.stop_timeout);
            if !profile.starts_same_engine(&truth.profile) {
                truth.cancel();
                truth.ladder.begin_anew();
                truth.ladder.rungs = 0;
            }
            truth.is_put_down &= had;
            let comes_by_itself = profile.is_external() && !truth.profile.is_external();
            if profile.autostart || profile.essential || comes_by_itself {
                truth.is_put_down = false;
            }
            if profile.is_external() {
                truth.worked = None;
            }
            if let Some((worked, _)) = &mut truth.worked
                && worked.starts_same_engine(profile)
            {
                *worked = Arc::clone(profile);
            }
            truth.profile = Arc::clone(profile);
        }
        self.profiles.clone_from(profiles);
    }

    fn learn_slot(
        &mut self,
        now: Monotime,
        name: &SlotName,
        event: &SlotEvent,
    ) -> Option<(SlotName, Unplanned)> {
        if let SlotEvent::Demanded { waiter } = event {
            self.pending.insert(*waiter, name.clone());
        }
        if let SlotEvent::WaiterLeft { waiter } = event
            && self.pending.remove(waiter).is_some()
        {
            self.left.insert(*waiter);
        }
        let is_running = self.shutdown_at.is_none();
        let truth = self.slots.get_mut(name)?;
        match event {
            SlotEvent::LoadRequested | SlotEvent::RestartRequested => {
                let is_restart = *event == SlotEvent::RestartRequested;
                if is_restart && is_running {
                    // The edit that is tried again says how long a drain may take.
                    truth.retry_edit();
                    truth.hurry(now);
                }
                if is_restart || truth.gave_up && matches!(truth.child, Child::None) {
                    truth.ladder.begin_anew();
                }
                truth.clear();
                truth.is_put_down = false;
            }
            // It knows nothing of deaths.
            SlotEvent::LoadOrderedByRule => truth.is_put_down &= truth.gave_up,
            SlotEvent::ModelBecameWhole => {
                if truth.gave_up && truth.last_straw == Some(Verdict::ModelNotFetched) {
                    truth.clear();
                }
            }
            SlotEvent::UnloadRequested => {
                truth.clear();
                truth.cancel();
                truth.hurry(now);
                if let Child::Alive(Alive { drain: Some(drain), .. }) = &mut truth.child {
                    drain.is_leaving = false;
                }
                truth.is_put_down = true;
            }
            // One that was set aside waits for a person.
            SlotEvent::Demanded { .. } => truth.is_put_down &= truth.profile.is_external(),
            SlotEvent::WaiterLeft { .. } => {}
            SlotEvent::Child { generation, event } => {
                if *generation == truth.generation && truth.expects(event) {
                    return truth.learn_child(now, event).map(|death| (name.clone(), death));
                }
            }
        }
        None
    }
}

impl Truth {
    /// What the slot's file says.
    pub(crate) fn on_disk(&self) -> &Arc<Profile> {
        self.rejected.as_ref().unwrap_or(&self.profile)
    }

    /// A person's restart tries an undone edit again, unless an engine is just being ordered.
    fn retry_edit(&mut self) {
        if !matches!(self.child, Child::Ordered { is_cancelled: false })
            && let Some(edit) = self.rejected.take()
        {
            self.profile = edit;
            self.ladder.begin_anew();
            self.ladder.rungs = 0;
        }
    }

    /// An edit that could not start is undone, if another profile is known to have worked.
    fn roll_back(&mut self, now: Monotime, policy: &Policy) -> bool {
        let is_another =
            |worked: &(Arc<Profile>, usize)| !worked.0.starts_same_engine(&self.profile);
        let Some((worked, rung)) = self.worked.clone().filter(is_another) else { return false };
        let mut in_force = Profile::clone(&worked);
        in_force.aliases.retain(|alias| self.profile.aliases.contains(alias));
        self.rejected = Some(mem::replace(&mut self.profile, Arc::new(in_force)));
        self.rollbacks += 1;
        self.clear();
        let quiet_until = now.after(policy.climb_after);
        self.ladder = Footing { rung, quiet_until, ..Footing::default() };
        true
    }

    fn learn_child(&mut self, now: Monotime, event: &ChildEvent) -> Option<Unplanned> {
        match (&mut self.child, event) {
            (Child::Sizing, ChildEvent::Sized { rungs, .. }) => {
                self.ladder.learn(rungs.len());
                self.child = Child::Queued;
            }
            // Its model comes from the hub.
            (Child::Sizing, ChildEvent::Progressed { .. }) => {}
            (Child::Sizing, _) => {
                self.child = Child::None;
                return Some(Unplanned { had_served: false });
            }
            (Child::Ordered { .. }, ChildEvent::Spawned { pid, rungs, engine }) => {
                self.cores = engine.cores;
                self.ladder.learn(rungs.len());
                self.child = Child::Alive(Alive::spawned(*pid, now));
            }
            (Child::Ordered { is_cancelled }, _) => {
                let was_wanted = !*is_cancelled;
                self.child = Child::None;
                return was_wanted.then_some(Unplanned { had_served: false });
            }
            (Child::Alive(alive), ChildEvent::Exited { .. }) => {
                let is_planned = alive.is_stopping() || alive.drain.is_some();
                let had_served = alive.ready_since.is_some();
                self.child = Child::Dead { pid: alive.pid };
                return (!is_planned).then_some(Unplanned { had_served });
            }
            (Child::Alive(alive), ChildEvent::Progressed { percent })
                if alive.percent < Some((*percent).min(100)) =>
            {
                alive.percent = Some((*percent).min(100));
                alive.stepped_at = now;
            }
            (Child::Alive(alive), ChildEvent::BecameReady) => {
                self.worked = Some((Arc::clone(&self.profile), self.ladder.rung));
                alive.is_ready = true;
                alive.ready_since.get_or_insert(now);
                alive.steady_since = Some(now);
                self.was_proven = false;
            }
            (Child::Alive(alive), ChildEvent::BecameUnready) => {
                (alive.is_ready, alive.steady_since) = (false, None);
            }
            (Child::Alive(alive), ChildEvent::VitalsRead { vitals })
                if !vitals.continues || vitals.pieces != alive.pieces =>
            {
                alive.lively_at = now;
                alive.pieces = vitals.pieces;
            }
            (Child::Alive(alive), ChildEvent::Drained) => {
                if let Some(drain) = &mut alive.drain {
                    drain.is_drained = true;
                }
            }
            (Child::Dead { .. }, ChildEvent::Reaped) => self.child = Child::None,
            (Child::Outside(outside), event) => outside.learn(event),
            _ => {}
        }
        None
    }

    /// Takes a death that nobody planned: what follows it, by the rules for people.
    pub(crate) fn suffer(
        &mut self,
        now: Monotime,
        policy: &Policy,
        (had_served, cause): (bool, Verdict),
        earlier_deaths: u32,
    ) -> Fall {
        let fall = self.ladder.suffer(now, policy, cause, had_served);
        if fall == Fall::FailedTrial {
            return fall;
        }
        let needs_person = needs_person(cause) || fall == Fall::End;
        if earlier_deaths == 0 {
            self.delays = 0;
        }
        let is_hopeless = needs_person || earlier_deaths >= self.profile.max_restarts;
        let is_relief =
            fall == Fall::OneDown && matches!(cause, Verdict::OomHost | Verdict::OomDevice);
        let goes_on_at_once = is_relief && !is_hopeless;
        if !had_served && !goes_on_at_once && self.roll_back(now, policy) {
            return fall;
        }
        if is_hopeless && !self.profile.essential {
            self.gave_up = true;
            self.last_straw = Some(cause);
            self.worked = None;
            return fall;
        }
        if !is_hopeless && (is_relief || earlier_deaths == 0 && had_served) {
            return fall;
        }
        let mut plain = policy.backoff_base;
        for _ in 0..self.delays {
            plain = (plain * 2).min(policy.backoff_cap);
        }
        if is_hopeless {
            plain = policy.backoff_cap;
        }
        self.delays += 1;
        let margin = plain / 10 + Duration::from_micros(1);
        self.attempt = Some((now.after(plain.saturating_sub(margin)), now.after(plain + margin)));
        fall
    }

    /// A run that has proven itself ends a trial.
    pub(crate) fn prove(&mut self, now: Monotime, policy: &Policy) {
        if let Child::Alive(Alive { steady_since: Some(since), drain: None, .. }) = self.child
            && since.after(policy.healthy_after) <= now
            && !self.was_proven
        {
            self.was_proven = true;
            self.ladder.is_on_trial = false;
        }
    }
}
