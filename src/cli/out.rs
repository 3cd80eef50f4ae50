//! The two ways out: answers to standard output, words about them to standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::{
    failure::Failure,
    text::{Paint, harmless},
};

/// Erases the terminal's present line.
const ERASE: &str = "\r\x1b[2K";

/// Writes text for people to standard output: what in it would steer a terminal is shown as escapes, but for the
/// colours of [`Paint`].
///
/// # Errors
/// Those of [`exact`].
pub(super) fn print(text: impl AsRef<str>) -> Result<(), Failure> {
    exact(harmless(text.as_ref(), Paint::for_stdout()).as_bytes())
}

/// Writes bytes to standard output as they are: JSON, scripts, logs, which were made harmless when they were written.
///
/// # Errors
/// [`Failure::ReaderGone`] when the reader has left (`slotd ps | head`), which ends the program
/// quietly; [`Failure::Write`] when the output cannot be written otherwise.
pub(super) fn exact(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()).map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::ReaderGone
        } else {
            Failure::Write(error)
        }
    })
}

/// Writes a value as indented JSON and a line end.
///
/// # Errors
/// Those of [`exact`].
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(Failure::Encode)?;
    text.push('\n');
    exact(text)
}

/// Writes text for people to standard error, as harmless as that of [`print()`]. Nobody is left to hear that it failed.
pub(super) fn note(text: &str) {
    drop(io::stderr().lock().write_all(harmless(text, Paint::Never).as_bytes()));
}

/// Writes a line to standard error in place of the terminal's present one; none takes that away.
pub(super) fn replace_note(line: &str) {
    let line = format!("{ERASE}{}", harmless(line, Paint::Never));
    drop(io::stderr().lock().write_all(line.as_bytes()));
}

/// Tells whether standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Tells whether standard error is a terminal.
pub(super) fn notes_are_seen() -> bool {
    io::stderr().is_terminal()
}

/// Returns how many columns the terminal has.
pub(super) fn width() -> Option<usize> {
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}
