//! What must hold after each event: the core's snapshot against the model.

use slotd::{
    spec::{
        Monotime, SlotName,
        death::{Death, ExitStatus, Phase, Verdict as Cause},
        profile::Profile,
    },
    supervisor::{SlotView, Snapshot, StateView},
};

use super::{
    commands::check,
    model::{Alive, Child, Model, Outside, Seen, Truth},
};

type Checked = Result<(), String>;

/// Holds the whole snapshot against the model.
pub(crate) fn hold(model: &Model, now: Monotime, snapshot: &Snapshot) -> Checked {
    for (name, truth) in &model.slots {
        let view = snapshot.slots.get(name);
        let waiting = model.waiting(name);
        if let Some(view) = view {
            let rule = Rule { model, now, truth, view, waiting };
            rule.hold().map_err(|fault| format!("{name}: {fault}; {:?}", view.state))?;
        } else {
            let is_free = matches!(truth.child, Child::None);
            check(is_free, || format!("{name} was forgotten with {:?}", truth.child))?;
            let is_gone = !model.profiles.contains_key(name);
            check(is_gone, || format!("{name} was forgotten with its profile there"))?;
        }
    }
    let nobody_lost = model.pending.values().all(|slot| snapshot.slots.contains_key(slot));
    check(nobody_lost, || "a request waits for a slot that is gone".to_owned())?;
    let is_over = model.shutdown_at.is_some() && model.all_gone();
    check(is_over == model.is_finished, || "no `Finish` though all is down".to_owned())?;
    check(model.shutdown_at.is_none() || model.pending.is_empty(), || {
        "a request waits for a daemon that ends".to_owned()
    })
}

struct Rule<'a> {
    model: &'a Model,
    now: Monotime,
    truth: &'a Truth,
    view: &'a SlotView,
    waiting: usize,
}

impl Rule<'_> {
    fn hold(&self) -> Checked {
        let (view, truth) = (self.view, self.truth);
        check(view.generation == truth.generation, || "another generation".to_owned())?;
        check(view.waiting == self.waiting, || {
            format!("{} wait, {} are counted", self.waiting, view.waiting)
        })?;
        check(view.profile == truth.profile, || "another profile is in force".to_owned())?;
        let rejected = view.edits.rejected.as_ref().map(|rejected| &rejected.profile);
        check(rejected == truth.rejected.as_ref(), || "another edit was undone".to_owned())?;
        let limit = self.model.policy.waiting_limit;
        check(self.waiting <= limit, || "more wait than may".to_owned())?;
        self.hold_child()?;
        self.hold_attempt()?;
        match truth.child {
            Child::Alive(alive) => self.hold_deadlines(alive),
            Child::Outside(outside) => check(
                outside.drain.is_none_or(|drain| {
                    !drain.is_drained && drain.cut_at.is_some_and(|at| at > self.now)
                }),
                || "drained, and still looked at".to_owned(),
            ),
            Child::None
            | Child::Sizing
            | Child::Queued
            | Child::Ordered { .. }
            | Child::Dead { .. } => Ok(()),
        }
    }

    /// The state says what lives.
    fn hold_child(&self) -> Checked {
        let state = &self.view.state;
        let fits = match self.truth.child {
            Child::None => {
                matches!(state, StateView::Offline | StateView::Backoff { .. } | StateView::Failed)
            }
            Child::Queued => matches!(state, StateView::Queued { .. }),
            Child::Sizing | Child::Ordered { is_cancelled: false } => {
                matches!(state, StateView::Starting { pid: None, .. })
            }
            Child::Ordered { is_cancelled: true } => {
                matches!(state, StateView::Stopping { pid: None })
            }
            Child::Alive(alive) => {
                state.pid() == Some(alive.pid) && state.as_str() == name_of(&alive)
            }
            Child::Dead { pid } => *state == StateView::Reaping { pid },
            Child::Outside(outside) => shows(state, &outside),
        };
        check(fits, || format!("the child is {:?}", self.truth.child))?;
        let must_not_wait =
            matches!(state, StateView::Offline | StateView::Failed | StateView::Ready { .. })
                || matches!(state, StateView::Absent { reason: Some(_) })
                || matches!(state, StateView::Present { .. });
        check(!must_not_wait || self.waiting == 0, || "requests wait for nothing".to_owned())
    }

    /// A slot that backs off does so as long as it should; one that gave up has failed.
    fn hold_attempt(&self) -> Checked {
        let (truth, state) = (self.truth, &self.view.state);
        let is_essential = truth.profile.essential;
        check(!is_essential || *state != StateView::Failed, || {
            "an essential slot has failed".to_owned()
        })?;
        if let StateView::Backoff { retry_at } = state {
            let fits = truth.attempt.is_some_and(|(from, to)| from <= *retry_at && *retry_at <= to);
            check(fits, || format!("the next attempt should be in {:?}", truth.attempt))?;
            check(*retry_at > self.now, || "the next attempt is overdue".to_owned())?;
            let had_served =
                self.view.deaths.last().is_some_and(|death| death.phase == Phase::Serving);
            check(had_served || self.waiting == 0, || {
                "requests wait over the backoff of a failed load".to_owned()
            })?;
        }
        let is_failed = *state == StateView::Failed;
        check(!is_failed || truth.gave_up, || "failed without cause".to_owned())?;
        let is_down = matches!(truth.child, Child::None);
        let is_running = self.model.shutdown_at.is_none();
        check(!(is_down && truth.gave_up && is_running) || is_failed, || {
            "gave up and does not say so".to_owned()
        })
    }

    /// What is overdue was done.
    fn hold_deadlines(&self, alive: Alive) -> Checked {
        let now = self.now;
        if let Some(kill_at) = alive.kill_at {
            check(alive.is_killed || kill_at > now, || "it outlived its grace".to_owned())?;
        } else if let Some(drain) = alive.drain {
            let may_drain = !drain.is_drained && drain.cut_at.is_none_or(|at| at > now);
            check(may_drain, || "drained, and not told to end".to_owned())?;
        } else if alive.ready_since.is_some() {
            let proven_at = |since: Monotime| since.after(self.model.policy.healthy_after);
            let is_proven = alive.steady_since.is_some_and(|since| proven_at(since) <= now);
            let is_forgiven = !is_proven || self.view.tally == 0;
            check(is_forgiven, || "a healthy run did not wipe the tally".to_owned())?;
        } else if !alive.is_killed {
            let give_up_at = alive.stepped_at.after(self.truth.profile.start_timeout);
            check(give_up_at > now, || "a load goes on past its time".to_owned())?;
        }
        Ok(())
    }
}

fn shows(state: &StateView, outside: &Outside) -> bool {
    match (outside.drain, outside.seen) {
        (Some(_), _) => *state == StateView::Parting,
        (None, Seen::Unknown) => *state == StateView::Absent { reason: None },
        (None, Seen::Nothing) => matches!(state, StateView::Absent { reason: Some(_) }),
        (None, Seen::Loading) => matches!(state, StateView::Coming { .. }),
        (None, Seen::Ready) => matches!(state, StateView::Present { .. }),
    }
}

fn name_of(alive: &Alive) -> &'static str {
    if alive.is_stopping() {
        "stopping"
    } else if alive.drain.is_some() {
        "draining"
    } else if alive.is_ready {
        "ready"
    } else if alive.ready_since.is_some() {
        "unready"
    } else {
        "starting"
    }
}

/// What the tally of deaths may do in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TallyStep {
    pub(crate) before: u32,
    pub(crate) after: u32,
    pub(crate) died: bool,
    pub(crate) may_be_forgiven: bool,
}

impl TallyStep {
    pub(crate) fn hold(self, name: &SlotName) -> Checked {
        let fits = if self.died {
            self.after == self.before + 1
        } else {
            self.after == self.before || (self.may_be_forgiven && self.after == 0)
        };
        check(fits, || format!("{name}: the tally of deaths moved wrongly: {self:?}"))
    }
}

/// Tells whether somebody outside told an engine to end that nobody wants loaded for good.
pub(crate) fn was_a_wish(death: &Death, profile: &Profile) -> bool {
    let status = death.evidence.as_ref().map(|evidence| evidence.status);
    let was_told = matches!(status, Some(ExitStatus::Signal(1 | 2 | 15)));
    let is_resident = profile.autostart || profile.essential;
    was_told && death.verdict == Cause::KilledByOther && !is_resident
}

/// Tells whether a cause needs a person, by the documented list and not by the code under test.
pub(crate) fn needs_person(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::BadConfig
            | Cause::MissingFile
            | Cause::ModelNotFetched
            | Cause::BadModel
            | Cause::SpawnFailed
    )
}
