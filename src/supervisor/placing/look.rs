//! When the machine's memory is read for a decision, and how long a reading is good for.

use std::time::Duration;

use crate::{
    spec::{Monotime, memory::MemoryReading},
    supervisor::{command::Command, ledger::EngineReadings},
};

/// How long a reading is good for, if nothing has ended since.
const FRESH: Duration = Duration::from_millis(200);
/// How often it is looked for room for those that others make room for, at the least. Nobody tells that an
/// engine has ended what it worked on, or has been there for its time: the next look comes after a quarter
/// of the wait so far, so that no look is late by more than that. A look takes milliseconds.
const URGENT: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(100);
/// How often it is looked for room for those that wait until there is some; for displaced ones sooner where they come
/// back sooner, so that few are late by more than a quarter of that.
const CALM: Duration = Duration::from_secs(15);
/// A reading that has not come after this time is asked for once more.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was read last.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) memory: MemoryReading,
    pub(crate) engines: EngineReadings,
}

/// The readings, and when the next one is wanted.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) last: Looked,
    /// When it came; `None` once it is of no use.
    at: Option<Monotime>,
    /// An engine has ended since the one was asked for that is on its way.
    is_late: bool,
    /// Something has changed that may matter.
    is_due: bool,
    next: Next,
}

/// What comes if nothing else does.
#[derive(Clone, Copy, Debug, Default)]
enum Next {
    #[default]
    Nothing,
    /// Time to look.
    Look(Monotime),
    /// A reading was asked for; it is asked for again then.
    Answer(Monotime),
}

impl Look {
    /// Notes a change that may matter.
    pub(crate) fn touch(&mut self) {
        self.is_due = true;
    }

    /// Notes that an engine is gone: what it had is only free once a new reading says so.
    pub(crate) fn outdate(&mut self) {
        (self.is_due, self.is_late) = (true, true);
        self.at = None;
    }

    /// Takes a reading.
    pub(crate) fn take(&mut self, now: Monotime, last: Looked) {
        self.last = last;
        self.at = (!self.is_late).then_some(now);
        self.is_due = true;
        self.next = Next::Nothing;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    pub(crate) fn is_fresh(&self, now: Monotime) -> bool {
        self.at.is_some_and(|at| now.since(at) <= FRESH)
    }

    /// Asks for a reading, unless one is on its way.
    pub(crate) fn ask(&mut self, now: Monotime, commands: &mut Vec<Command>) {
        self.is_due = false;
        if matches!(self.next, Next::Answer(_)) {
            return;
        }
        self.is_late = false;
        self.next = Next::Answer(now.after(PATIENCE));
        commands.push(Command::ReadMemory);
    }

    /// Sets the time of the next look. `waited` is for how long others have been asked to make room, `back_after` for how
    /// long others rest before displaced ones come back, where there are some.
    pub(crate) fn again(
        &mut self,
        now: Monotime,
        waited: Option<Duration>,
        (is_waiting, back_after): (bool, Option<Duration>),
    ) {
        self.is_due = false;
        if matches!(self.next, Next::Answer(_)) {
            return;
        }
        let calm = back_after.map_or(CALM, |after| (after / 4).clamp(URGENT, CALM));
        self.next = match (waited, is_waiting) {
            (Some(waited), _) => Next::Look(now.after((waited / 4).clamp(SOON, URGENT))),
            (None, true) => Next::Look(now.after(calm)),
            (None, false) => Next::Nothing,
        };
    }

    /// Nobody waits for anything.
    pub(crate) fn rest(&mut self) {
        self.is_due = false;
        self.next = Next::Nothing;
    }

    pub(crate) fn deadline(&self) -> Option<Monotime> {
        match self.next {
            Next::Nothing => None,
            Next::Look(at) | Next::Answer(at) => Some(at),
        }
    }

    /// Notes that it is time to look.
    pub(crate) fn wake(&mut self, now: Monotime) {
        match self.next {
            Next::Look(at) if at <= now => {
                (self.next, self.at) = (Next::Nothing, None);
                self.is_due = true;
            }
            Next::Answer(at) if at <= now => (self.next, self.is_due) = (Next::Nothing, true),
            Next::Look(_) | Next::Answer(_) | Next::Nothing => {}
        }
    }
}
