//! Numbers as people read them, and colours.

use std::env;

use super::out;
use crate::spec::date::civil;

/// Shows milliseconds with one or two units: `420ms`, `3.1s`, `42s`, `1m 5s`, `12m`, `2h 5m`, `3d 4h`.
pub(super) fn brief(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..=9 => format!("{seconds}.{}s", ms % 1000 / 100),
        10..=59 => format!("{seconds}s"),
        60..=599 => format!("{}m {}s", seconds / 60, seconds % 60),
        600..=3599 => format!("{}m", seconds / 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Shows a moment of wall-clock time: `2026-11-21 08:40:12 UTC`.
pub(super) fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Shows a count with its noun: `1 fault`, `2 faults`.
pub(super) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Cuts a text to `width` characters, the last one an ellipsis.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// How a word is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tone {
    /// As it is.
    Plain,
    /// All is well.
    Good,
    /// On its way, or worth a look.
    Wary,
    /// A person is needed.
    Bad,
    /// Of little interest.
    Quiet,
}

impl Tone {
    /// Returns the tone of a state: red is for what needs a person.
    pub(super) fn of_state(state: &str) -> Self {
        match state {
            "ready" => Self::Good,
            "failed" => Self::Bad,
            "offline" => Self::Quiet,
            _ => Self::Wary,
        }
    }
}

/// Colours words, or leaves them alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Paint {
    Never,
    Always,
}

impl Paint {
    /// Decides for standard output: on a terminal, and not against the reader's wish.
    pub(super) fn for_stdout() -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        if out::is_terminal() && !is_set("NO_COLOR") && !is_dumb {
            Self::Always
        } else {
            Self::Never
        }
    }

    /// Colours one text.
    pub(super) fn apply(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Wary => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
        };
        match self {
            Self::Never => text.to_owned(),
            Self::Always => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_units_that_matter() {
        let shown = [420, 3_150, 42_000, 65_300, 754_000, 7_512_000, 273_600_000].map(brief);
        assert_eq!(shown, ["420ms", "3.1s", "42s", "1m 5s", "12m", "2h 5m", "3d 4h"]);
    }

    #[test]
    fn moments_are_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_251_612_345), "2026-11-21 09:00:12 UTC");
    }
}
