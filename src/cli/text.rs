//! Numbers as people read them, and colours.

use std::{borrow::Cow, env};

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

/// Makes a text of several lines harmless: what steers a terminal or turns the direction of writing is shown as an
/// escape, `\u{1b}`. Line ends, tabs and the colours of `paint` stay.
pub(super) fn harmless(text: &str, paint: Paint) -> Cow<'_, str> {
    let is_shown = |c: char| matches!(c, '\n' | '\t') || !steers(c);
    if text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text.chars());
    loop {
        if let Some((colour, after)) = paint.colour_before(rest.as_str()) {
            shown.push_str(colour);
            rest = after.chars();
            continue;
        }
        match rest.next() {
            Some(c) if is_shown(c) => shown.push(c),
            Some(c) => shown.extend(c.escape_default()),
            None => return Cow::Owned(shown),
        }
    }
}

/// Makes a text out of a file, a path or an engine harmless, and one line.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Tells whether a character does something else than show itself. Source: Unicode's `Cc`, `Zl` and `Zp`, and the
/// `Bidi_Control` of Unicode Standard Annex #9.
fn steers(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Makes a text one line and cuts it to `width` characters, the last one an ellipsis.
pub(super) fn cut(text: &str, width: usize) -> String {
    let text = one_line(text);
    if text.chars().count() <= width {
        return text.into_owned();
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

    /// Returns the colour that a text begins with, if it is one of ours, and what comes after it.
    fn colour_before(self, text: &str) -> Option<(&str, &str)> {
        const COLOURS: [&str; 5] = ["\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[2m", "\x1b[0m"];
        let of = |colour: &'static str| Some((colour, text.strip_prefix(colour)?));
        COLOURS.into_iter().filter(|_| self == Self::Always).find_map(of)
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
    fn text_of_files_does_not_steer_the_terminal() {
        let evil = "\x1b[2Ja\rb\x07\u{9b}31m\u{202e}c\u{2028}\x7f ünï\ttab\n";
        let shown = r"\u{1b}[2Ja\rb\u{7}\u{9b}31m\u{202e}c\u{2028}\u{7f} ünï";
        assert_eq!(harmless(evil, Paint::Always), format!("{shown}\ttab\n"));
        assert_eq!(harmless(evil, Paint::Never), format!("{shown}\ttab\n"));
        assert_eq!(one_line(evil), format!(r"{shown}\ttab\n"));
        assert_eq!(cut("\x1b[2Jm", 6), r"\u{1b…", "an escape is as wide as it is shown");
    }

    #[test]
    fn our_own_colours_are_shown_where_there_are_any() {
        let painted = [Tone::Good, Tone::Wary, Tone::Bad, Tone::Quiet, Tone::Plain]
            .map(|tone| Paint::Always.apply(tone, "x"))
            .concat();
        assert_eq!(harmless(&painted, Paint::Always), painted);
        assert!(!harmless(&painted, Paint::Never).contains('\x1b'));
    }

    #[test]
    fn moments_are_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_251_612_345), "2026-11-21 09:00:12 UTC");
    }
}
