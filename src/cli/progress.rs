//! Shows on standard error how a slot comes along: one moving line on a terminal, else one line for
//! each step.

use std::time::Duration;

use super::{
    out,
    text::{brief, cut},
};
use crate::{
    admin::{DeathObject, SlotObject},
    spec::{Generation, death::Verdict},
};

/// The narrowest and the widest bar.
const BAR: (usize, usize) = (10, 30);
/// The terminal's width where it does not tell.
const USUAL_WIDTH: usize = 80;

/// Shows progress.
#[derive(Debug)]
pub(super) struct Progress {
    manner: Manner,
    /// The last death that was told.
    told: Option<Generation>,
}

#[derive(Debug)]
enum Manner {
    /// One line that moves, in a terminal of this width.
    Moving { width: usize },
    /// A line a step; the last one, so that none comes twice.
    Lines { last: String },
}

impl Progress {
    /// Starts to show a slot that stands as `before`: what it went through earlier is not told.
    pub(super) fn new(before: &SlotObject) -> Self {
        let manner = if out::notes_are_seen() {
            Manner::Moving { width: out::width().unwrap_or(USUAL_WIDTH) }
        } else {
            Manner::Lines { last: String::new() }
        };
        Self { manner, told: generation_of(last_death(before)) }
    }

    /// Shows the slot; `age` is how long ago it stood so.
    pub(super) fn show(&mut self, slot: &SlotObject, age: Duration) {
        let last = generation_of(last_death(slot));
        if last != self.told {
            self.told = last;
            self.clear();
            out::note(&death_line(slot));
        }
        match &mut self.manner {
            Manner::Moving { width } => {
                out::replace_note(&moving_line(slot, age, *width));
            }
            Manner::Lines { last } => {
                let line = step_line(slot);
                if *last != line {
                    out::note(&line);
                    *last = line;
                }
            }
        }
    }

    /// Takes the moving line away.
    pub(super) fn clear(&self) {
        if let Manner::Moving { .. } = self.manner {
            out::replace_note("");
        }
    }
}

/// An engine that slotd stopped is no news to whoever asked for it.
fn last_death(slot: &SlotObject) -> Option<&DeathObject> {
    slot.deaths.iter().rfind(|death| death.verdict != Verdict::StoppedByUs)
}

fn generation_of(death: Option<&DeathObject>) -> Option<Generation> {
    death.map(|death| death.generation)
}

fn death_line(slot: &SlotObject) -> String {
    match last_death(slot) {
        Some(death) => format!("{}: {}: {}\n", slot.slot, death.verdict, death.reason),
        None => String::new(),
    }
}

/// `chat: starting, attempt 2, 40 %`; in steps of ten per cent.
fn step_line(slot: &SlotObject) -> String {
    let attempt = slot.attempt.map(|attempt| format!(", attempt {attempt}")).unwrap_or_default();
    let percent =
        slot.percent.map(|percent| format!(", {} %", percent / 10 * 10)).unwrap_or_default();
    let waits = slot.waits_for.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{}: {}{attempt}{percent}{waits}\n", slot.slot, slot.state)
}

/// `chat  starting  [#####-----]  42 %  3.1s of about 7.0s, attempt 2`.
fn moving_line(slot: &SlotObject, age: Duration, width: usize) -> String {
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let head = format!("{}  {}", slot.slot, slot.state);
    if let Some(reason) = &slot.waits_for {
        return cut(&format!("{head}  {reason}"), width);
    }
    if let Some(retry_in) = slot.retry_in_ms {
        let left = brief(retry_in.saturating_sub(age_ms));
        return cut(&format!("{head}  next try in {left}, Ctrl-C leaves it to itself"), width);
    }
    let Some(elapsed) = slot.elapsed_ms else {
        return cut(&format!("{head}  {}", brief(slot.since_ms.saturating_add(age_ms))), width);
    };
    let elapsed = elapsed.saturating_add(age_ms);
    let attempt = match slot.attempt {
        None | Some(1) => String::new(),
        Some(attempt) => format!(", attempt {attempt}"),
    };
    let of_about =
        slot.expected_load_ms.map(|ms| format!(" of about {}", brief(ms))).unwrap_or_default();
    let tail = format!("{}{of_about}{attempt}", brief(elapsed));
    let Some((percent, shown)) = fraction(slot, elapsed) else {
        return cut(&format!("{head}  {tail}"), width);
    };
    let taken = head.chars().count() + shown.chars().count() + tail.chars().count() + 8;
    let room = width.saturating_sub(taken).clamp(BAR.0, BAR.1);
    let done = room * usize::from(percent) / 100;
    let bar = format!("{}{}", "#".repeat(done), "-".repeat(room - done));
    cut(&format!("{head}  [{bar}]  {shown}  {tail}"), width)
}

/// How far the load has come: what the engine says, else what earlier loads let one expect.
fn fraction(slot: &SlotObject, elapsed: u64) -> Option<(u8, String)> {
    if let Some(percent) = slot.percent {
        let percent = percent.min(100);
        return Some((percent, format!("{percent:>2} %")));
    }
    let expected = slot.expected_load_ms.filter(|ms| *ms > 0)?;
    let guess = u8::try_from(elapsed.saturating_mul(100) / expected).unwrap_or(99).min(99);
    Some((guess, format!("~{guess} %")))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::cli::example;

    fn line(slot: &SlotObject, width: usize) -> String {
        let line = moving_line(slot, Duration::from_millis(400), width);
        assert!(line.chars().count() <= width, "{line}");
        line
    }

    #[test]
    fn a_load_shows_what_the_engine_tells() {
        assert_snapshot!(line(&example::starting(), 80), @"coder-large  starting  [#######-----------]  42 %  3.5s of about 7.0s, attempt 2");
    }

    #[test]
    fn without_per_cent_earlier_loads_are_the_measure() {
        let quiet = SlotObject { percent: None, attempt: Some(1), ..example::starting() };
        assert_snapshot!(line(&quiet, 100), @"coder-large  starting  [###############---------------]  ~50 %  3.5s of about 7.0s");
        let late = SlotObject { elapsed_ms: Some(60_000), ..quiet };
        assert_snapshot!(line(&late, 100), @"coder-large  starting  [#############################-]  ~99 %  1m 0s of about 7.0s");
        let first = SlotObject { expected_load_ms: None, ..late };
        assert_snapshot!(line(&first, 100), @"coder-large  starting  1m 0s");
    }

    #[test]
    fn a_wait_between_attempts_counts_down() {
        assert_snapshot!(line(&example::backoff(), 80), @"embed  backoff  next try in 9.0s, Ctrl-C leaves it to itself");
        line(&example::starting(), 30);
    }

    #[test]
    fn steps_are_told_by_tens_of_per_cent() {
        assert_snapshot!(step_line(&example::starting()), @"coder-large: starting, attempt 2, 40 %");
        assert_snapshot!(step_line(&example::ready()), @"chat: ready");
        assert_snapshot!(death_line(&example::backoff()), @"embed: crash: SIGSEGV ended it after it had been ready");
    }
}
