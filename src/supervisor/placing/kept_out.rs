//! Who comes back that went because the machine ran short, and what keeps the others out.
//!
//! 1. Who is loaded on demand waits for a request.
//! 2. Nobody comes back while there is too little of what it went for, or of the host's memory.
//! 3. Nor does one with which, by what it took, the machine would be past the mark again from where on it is
//!    short.
//! 4. One that went again soon after it had come rests first, twice as long each time: the cause may be one
//!    that no figure shows.
//!
//! They come back one at a time.

use std::time::Duration;

use serde::Serialize;

use crate::{
    spec::{Bytes, Monotime, SlotName, memory::GpuState, pressure::Source, residence::Restore},
    supervisor::{
        Supervisor,
        command::Command,
        slot::{Cause, Slot, State},
    },
};

use super::Stand;

/// Who stays for as long as this, and for twice its last rest, did not make the machine run short.
const STEADY: Duration = Duration::from_mins(10);
/// The first rest, and the longest that it doubles to.
const RESTS: (Duration, Duration) = (Duration::from_mins(1), Duration::from_hours(1));

/// Why a slot is down that the machine ran short for.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Relieved {
    /// What the machine ran short of.
    pub source: Source,
    /// What it held of that.
    pub took: Bytes,
    /// What keeps it out, where it is to come back by itself and cannot yet.
    pub kept_out: Option<KeptOut>,
}

/// What keeps a slot out that is to come back.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptOut {
    /// There is still too little.
    Short,
    /// There would be too little again.
    Mark {
        /// What it took.
        took: Bytes,
        /// What must be free for it.
        needed: Bytes,
    },
    /// It made the machine run short each time that it came.
    Rest {
        /// How often in a row.
        times: u32,
        /// For how long it rests.
        rest: Duration,
    },
}

/// One that went.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    pub(crate) source: Source,
    /// What it held of that.
    pub(crate) took: Bytes,
    /// How often in a row it went soon after it had come.
    times: u32,
    since: Monotime,
    kept_out: Option<KeptOut>,
}

/// One that is there again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back {
    at: Monotime,
    times: u32,
}

impl Gone {
    /// Notes who goes, and whether it has been there for long since the last time.
    pub(crate) fn new(source: Source, took: Bytes, now: Monotime, last: Option<Back>) -> Self {
        let is_soon = |back: &Back| now.since(back.at) < STEADY.max(rest(back.times) * 2);
        let times = last.filter(is_soon).map_or(0, |back| back.times.saturating_add(1));
        Self { source, took, times, since: now, kept_out: Some(KeptOut::Short) }
    }
}

impl KeptOut {
    /// Says it in one sentence, without the full stop.
    pub fn sentence(&self, source: Source) -> String {
        let what = what(source);
        match self {
            Self::Short => format!("there is still too little of {what}"),
            Self::Mark { took, needed } => format!(
                "it took {took} of {what}, and comes back once {needed} is free: with less the machine would run short again"
            ),
            Self::Rest { times, rest } => format!(
                "the machine ran short of {what} soon after it had come, {times} {} in a row: it is tried again after {} min",
                if *times == 1 { "time" } else { "times" },
                rest.as_secs() / 60
            ),
        }
    }
}

fn what(source: Source) -> String {
    match source {
        Source::Gpu(index) => format!("GPU {index}'s memory"),
        Source::Memory | Source::Cpu | Source::Disk => source.to_string(),
    }
}

/// Returns how long one rests that went so often.
fn rest(times: u32) -> Duration {
    let (first, longest) = RESTS;
    let doubled = |more| first.saturating_mul(1_u32.checked_shl(more).unwrap_or(u32::MAX));
    times.checked_sub(1).map_or(Duration::ZERO, |more| doubled(more).min(longest))
}

impl Supervisor {
    /// Says why a slot is down, if the machine ran short for that.
    pub(in crate::supervisor) fn relieved(&self, name: &SlotName) -> Option<Relieved> {
        let Gone { source, took, kept_out, .. } = self.relief.gone.get(name)?;
        let kept_out = kept_out.clone().filter(|_| self.is_kept_loaded(name));
        Some(Relieved { source: *source, took: *took, kept_out })
    }

    /// Tells whether one is to come back by itself that could as soon as there is room for it.
    pub(super) fn is_anybody_kept_out(&self) -> bool {
        let gone = &self.relief.gone;
        !gone.is_empty()
            && !self.relief.is_host_short()
            && gone.iter().any(|(name, gone)| {
                !self.relief.is_short_of(gone.source) && self.is_kept_loaded(name)
            })
    }

    /// Tells whether one is down for want of something, and is to come back by itself.
    pub(in crate::supervisor) fn is_kept_out(&self, name: &SlotName) -> bool {
        self.relief.gone.contains_key(name) && self.is_kept_loaded(name)
    }

    fn is_kept_loaded(&self, name: &SlotName) -> bool {
        self.slots.get(name).is_some_and(|slot| slot.restore() == Restore::WhenIdle)
    }

    /// Forgets those that are there again, that are gone, or that nobody wants back.
    pub(super) fn forget_relieved(&mut self) {
        let is_back = |name: &&SlotName| {
            let slot = self.slots.get(name);
            !slot.is_some_and(|slot| matches!(slot.state, State::Offline) || slot.is_leaving())
        };
        let back: Vec<_> = self.relief.gone.keys().filter(is_back).cloned().collect();
        for name in back {
            self.note_back(&name);
        }
    }

    /// Forgets what one slot went for, and how often.
    pub(in crate::supervisor) fn forget_relieved_of(&mut self, name: &SlotName) {
        self.relief.back.remove(name);
        if self.relief.gone.remove(name).is_some() {
            self.slots.touch(name);
        }
    }

    fn note_back(&mut self, name: &SlotName) {
        if let Some(Gone { times, .. }) = self.relief.gone.remove(name) {
            self.slots.touch(name);
            self.relief.back.insert(name.clone(), Back { at: self.now, times });
        }
    }

    /// Brings one back that is kept loaded, once there is enough for it; says of the others why not. Called
    /// with a fresh reading. Nobody comes where others come first.
    pub(super) fn bring_back_relieved(&mut self, may_come: bool, commands: &mut Vec<Command>) {
        let is_down = |name: &&SlotName| {
            let slot = self.slots.get(name);
            slot.is_some_and(|slot| matches!(slot.state, State::Offline))
                && self.is_kept_loaded(name)
        };
        let names: Vec<_> = self.relief.gone.keys().filter(is_down).cloned().collect();
        if names.is_empty() {
            return;
        }
        let stand = self.stand();
        let is_coming = |slot: &Slot| slot.cause() == Some(Cause::Restore);
        let mut may_come = may_come && !self.slots.values().any(is_coming);
        for name in names {
            let Some(gone) = self.relief.gone.get(&name) else { continue };
            let kept_out = self.kept_out(gone, &stand);
            if kept_out.is_none() && may_come {
                may_come = false;
                self.note_back(&name);
                self.with(&name, commands, Slot::come_back);
            } else if kept_out != gone.kept_out
                && let Some(gone) = self.relief.gone.get_mut(&name)
            {
                gone.kept_out = kept_out;
                self.slots.touch(&name);
            }
        }
    }

    fn kept_out(&self, gone: &Gone, stand: &Stand) -> Option<KeptOut> {
        if self.relief.is_host_short() || self.relief.is_short_of(gone.source) {
            return Some(KeptOut::Short); // (2)
        }
        let (free, mark) = self.free_and_mark(gone.source, stand);
        let needed = Bytes(gone.took.0.saturating_add(mark.0));
        if free.is_some_and(|free| free < needed) {
            return Some(KeptOut::Mark { took: gone.took, needed }); // (3)
        }
        let rest = rest(gone.times);
        let is_resting = self.now.since(gone.since) < rest;
        is_resting.then_some(KeptOut::Rest { times: gone.times, rest }) // (4)
    }

    /// Returns what is free of something once all promises are kept, where that is known, and from where on
    /// the machine is short of it.
    fn free_and_mark(&self, source: Source, stand: &Stand) -> (Option<Bytes>, Bytes) {
        let (marks, read) = (&self.policy.pressure, &self.look.last.memory);
        let but = |free: Bytes, due: Bytes| Some(Bytes(free.0.saturating_sub(due.0)));
        match source {
            Source::Memory => read.host.map_or((None, Bytes(0)), |room| {
                let percent = u64::from(marks.memory_free_percent);
                let mark = (room.total.0 / 100).saturating_mul(percent);
                (but(room.free, stand.due.host), Bytes(mark))
            }),
            Source::Gpu(index) => match read.gpus.get(&index).map(|gpu| &gpu.state) {
                Some(GpuState::Present(room)) => {
                    let due = stand.due.gpus.get(&index).copied().unwrap_or_default();
                    (but(room.free, due), marks.gpu_free_of(room.total))
                }
                Some(GpuState::Silent { .. } | GpuState::Lost { .. }) | None => (None, Bytes(0)),
            },
            Source::Cpu | Source::Disk => (None, Bytes(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_doubles_up_to_an_hour() {
        let minutes: Vec<_> = (0..9).map(|times| rest(times).as_secs() / 60).collect();
        assert_eq!(minutes, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(rest(u32::MAX), RESTS.1);
    }

    #[test]
    fn what_keeps_one_out_is_told_in_one_sentence() {
        let (took, needed) = (Bytes(10 << 30), Bytes(11 << 30));
        insta::assert_snapshot!(KeptOut::Mark { took, needed }.sentence(Source::Gpu(1)), @"it took 10 GiB of GPU 1's memory, and comes back once 11 GiB is free: with less the machine would run short again");
        insta::assert_snapshot!(KeptOut::Short.sentence(Source::Memory), @"there is still too little of memory");
        let rests = KeptOut::Rest { times: 3, rest: rest(3) };
        insta::assert_snapshot!(rests.sentence(Source::Memory), @"the machine ran short of memory soon after it had come, 3 times in a row: it is tried again after 4 min");
    }
}
