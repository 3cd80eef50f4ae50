//! What others see and ask of a slot; nothing here changes it.

use std::{borrow::Cow, sync::Arc};

use super::{
    ledger::measured,
    slot::{After, Cause, Found, Queued, Serving, Slot, State, Stop},
    snapshot::{SlotView, StateView},
};
use crate::spec::{
    Bytes, Monotime,
    ladder::Rung,
    memory::{EngineReading, Share},
    profile::{Capability, Profile},
};

impl Slot {
    /// Tells whether nothing is left of the slot and its profile.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone)
    }

    /// Tells whether there is no child and none is to come.
    pub(super) fn is_down(&self) -> bool {
        matches!(self.state, State::Offline | State::Failed | State::Gone)
    }

    /// Tells whether the slot goes because its profile is gone.
    pub(super) fn is_being_removed(&self) -> bool {
        match self.state {
            State::Cancelling { after }
            | State::Draining { after, .. }
            | State::Stopping { after, .. }
            | State::Reaping { after, .. }
            | State::Parting { after, .. } => after == After::Remove,
            State::Offline
            | State::Sizing { .. }
            | State::Queued(_)
            | State::Spawning { .. }
            | State::Starting { .. }
            | State::Ready(_)
            | State::Unready(_)
            | State::Backoff { .. }
            | State::Failed
            | State::Seeking { .. }
            | State::Present { .. }
            | State::Gone => false,
        }
    }

    /// Returns when the slot wants to be woken.
    pub(super) fn deadline(&self) -> Option<Monotime> {
        match &self.state {
            State::Starting { stepped_at, .. } => Some(self.give_up_at(*stepped_at)),
            State::Ready(serving) | State::Unready(serving) => {
                let Serving { proven_at, idle_check_at, room_check_at, .. } = *serving;
                [proven_at, idle_check_at, room_check_at].into_iter().flatten().min()
            }
            State::Draining { cut_at, .. } => *cut_at,
            State::Parting { cut_at, .. } => Some(*cut_at),
            State::Stopping {
                stop: Stop::Terminated { kill_at, .. } | Stop::Condemned { kill_at },
                ..
            } => Some(*kill_at),
            State::Backoff { retry_at } => Some(*retry_at),
            State::Stopping { stop: Stop::Killed { .. } | Stop::TimedOut, .. }
            | State::Offline
            | State::Sizing { .. }
            | State::Queued(_)
            | State::Spawning { .. }
            | State::Cancelling { .. }
            | State::Reaping { .. }
            | State::Failed
            | State::Seeking { .. }
            | State::Present { .. }
            | State::Gone => None,
        }
    }

    /// Returns the slot as others see it.
    pub(super) fn view(&self) -> SlotView {
        SlotView {
            profile: Arc::clone(&self.profile),
            state: self.state_view(),
            since: self.since,
            generation: self.generation,
            engine: self.engine.clone(),
            rung: self.ladder.view(self.has_child()),
            rung_index: self.ladder.at(),
            edits: self.edits.clone(),
            orders: self.orders,
            tally: self.tally.deaths,
            restarts: self.restarts,
            promised: self.held(),
            displaced_by: None,
            relieved: None,
            waiting: self.waiting.len(),
            expected_load: self.expected_load(),
            rss: self.rss,
            deaths: self.deaths.clone(),
            loads: self.loads.clone(),
        }
    }

    /// Returns the profile with the rung that it is started on, as far as that is known.
    pub(super) fn applied_profile(&self) -> Cow<'_, Profile> {
        match self.ladder.rung() {
            Some(rung) if *rung != Rung::default() => Cow::Owned(rung.apply(&self.profile)),
            Some(_) | None => Cow::Borrowed(&self.profile),
        }
    }

    /// Returns how many CPU cores its engine is counted with, where there is one or one is ordered.
    pub(super) fn cores_held(&self) -> Option<u32> {
        self.has_child().then_some(self.cores)
    }

    /// Returns what it is counted with of the machine's memory while a child is there or ordered.
    pub(super) fn held(&self) -> Option<Share> {
        let rss = Share { host: self.rss.unwrap_or_default(), ..Share::default() };
        self.has_child().then(|| self.share.clone().at_least(&rss))
    }

    /// Returns what it is counted with beside what was read of its engine.
    pub(super) fn held_by(&self, read: &EngineReading) -> Cow<'_, Share> {
        let Share { host, gpus } = &self.share;
        let is_within = |(gpu, bytes): (&u32, &Bytes)| gpus.get(gpu).is_some_and(|of| bytes <= of);
        let most = self.rss.max(read.host).unwrap_or_default();
        if self.has_child() && most <= *host && read.gpus.iter().all(is_within) {
            return Cow::Borrowed(&self.share);
        }
        Cow::Owned(self.held().unwrap_or_default().at_least(&measured(read)))
    }

    /// Returns what matters of it to those that wait for memory.
    pub(super) fn standing(&self) -> (&'static str, bool, Option<Cause>) {
        (self.state.name(), self.waiting.is_empty(), self.cause())
    }

    /// Returns why it is started, until it is.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.state.cause()
    }

    /// Returns the kinds of work that it is counted for where those are limited.
    pub(super) fn kinds(&self) -> &[Capability] {
        let named = &self.profile.capabilities;
        if named.is_empty() { &[Capability::Chat] } else { named }
    }

    /// Tells whether its engine serves, or could.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self.state, State::Ready(_) | State::Unready(_))
    }

    /// Tells whether its engine is on its way out.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(
            self.state,
            State::Cancelling { .. }
                | State::Draining { .. }
                | State::Stopping { .. }
                | State::Reaping { .. }
        )
    }

    /// Tells whether an engine is to become ready without anybody's doing: one is on its way, or another
    /// comes at once.
    pub(super) fn is_coming(&self) -> bool {
        let comes = |after: &After| match after {
            After::Start | After::Climb | After::Lower { .. } | After::Restart => true,
            After::Rest | After::Backoff { .. } | After::Fail | After::Leave | After::Remove => {
                false
            }
        };
        match &self.state {
            State::Sizing { .. }
            | State::Queued(_)
            | State::Spawning { .. }
            | State::Starting { .. }
            | State::Seeking { .. } => true,
            State::Cancelling { after }
            | State::Draining { after, .. }
            | State::Stopping { after, .. }
            | State::Reaping { after, .. }
            | State::Parting { after, .. } => comes(after),
            State::Offline
            | State::Ready(_)
            | State::Unready(_)
            | State::Backoff { .. }
            | State::Failed
            | State::Present { .. }
            | State::Gone => false,
        }
    }

    /// Tells whether a child is there or ordered.
    pub(super) fn has_child(&self) -> bool {
        match self.state {
            State::Offline
            | State::Sizing { .. }
            | State::Queued(_)
            | State::Backoff { .. }
            | State::Failed
            | State::Seeking { .. }
            | State::Present { .. }
            | State::Parting { .. }
            | State::Gone => false,
            State::Spawning { .. }
            | State::Cancelling { .. }
            | State::Starting { .. }
            | State::Ready(_)
            | State::Unready(_)
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Reaping { .. } => true,
        }
    }

    fn state_view(&self) -> StateView {
        let attempt = self.tally.deaths.saturating_add(1);
        match &self.state {
            State::Offline | State::Gone => StateView::Offline,
            State::Queued(Queued { needs, wait, .. }) => StateView::Queued {
                need: needs.get(self.ladder.at()).or(needs.last()).cloned().unwrap_or_default(),
                wait: wait.clone(),
            },
            State::Sizing { began, fetched, .. } => StateView::Starting {
                pid: None,
                percent: *fetched,
                attempt,
                give_up_at: self.give_up_at(*began),
            },
            State::Spawning { began } => StateView::Starting {
                pid: None,
                percent: None,
                attempt,
                give_up_at: self.give_up_at(*began),
            },
            State::Starting { pid, stepped_at, percent, .. } => {
                let give_up_at = self.give_up_at(*stepped_at);
                StateView::Starting { pid: Some(*pid), percent: *percent, attempt, give_up_at }
            }
            State::Ready(Serving { pid, .. }) => StateView::Ready { pid: *pid },
            State::Unready(Serving { pid, .. }) => StateView::Unready { pid: *pid },
            State::Draining { pid, .. } => StateView::Draining { pid: *pid },
            State::Cancelling { .. } => StateView::Stopping { pid: None },
            State::Stopping { pid, .. } => StateView::Stopping { pid: Some(*pid) },
            State::Reaping { pid, .. } => StateView::Reaping { pid: *pid },
            State::Backoff { retry_at } => StateView::Backoff { retry_at: *retry_at },
            State::Failed => StateView::Failed,
            State::Seeking { found: Found::Unknown } => StateView::Absent { reason: None },
            State::Seeking { found: Found::Nothing { reason } } => {
                StateView::Absent { reason: Some(reason.clone()) }
            }
            State::Seeking { found: Found::Loading { percent } } => {
                StateView::Coming { percent: *percent }
            }
            State::Present { is_asleep } => StateView::Present { is_asleep: *is_asleep },
            State::Parting { .. } => StateView::Parting,
        }
    }
}
